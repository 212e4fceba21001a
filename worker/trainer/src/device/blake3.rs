//! BLAKE3 of device memory (the hash of <https://github.com/BLAKE3-team/BLAKE3-specs>, section 2):
//! a unit for each chunk of 1 KiB, then a unit for each pair of nodes, level by level. What is left
//! at the top is folded on the host.

use cubecl::prelude::*;

/// Bytes in a chunk.
pub(crate) const CHUNK_BYTES: usize = 1024;
/// Words in a chaining value.
pub(crate) const CV_WORDS: usize = 8;

const WORDS_A_BLOCK: usize = 16;
const BLOCKS_A_CHUNK: usize = 16;
const CHUNK_START: u32 = 1;
const CHUNK_END: u32 = 2;
const PARENT: u32 = 4;
const IV: [u32; 8] = [
    0x6A09_E667,
    0xBB67_AE85,
    0x3C6E_F372,
    0xA54F_F53A,
    0x510E_527F,
    0x9B05_688C,
    0x1F83_D9AB,
    0x5BE0_CD19,
];

#[cube]
fn rotated(word: u32, #[comptime] by: u32) -> u32 {
    (word >> by) | (word << comptime![32 - by])
}

/// The quarter round `G`.
#[cube]
fn mix(
    state: &mut Array<u32>,
    #[comptime] a: usize,
    #[comptime] b: usize,
    #[comptime] c: usize,
    #[comptime] d: usize,
    x: u32,
    y: u32,
) {
    state[a] = state[a] + state[b] + x;
    state[d] = rotated(state[d] ^ state[a], 16u32);
    state[c] += state[d];
    state[b] = rotated(state[b] ^ state[c], 12u32);
    state[a] = state[a] + state[b] + y;
    state[d] = rotated(state[d] ^ state[a], 8u32);
    state[c] += state[d];
    state[b] = rotated(state[b] ^ state[c], 7u32);
}

/// Which word of the message comes `at`-th in `round`: the permutation, as often as there were rounds.
fn word_of(round: usize, at: usize) -> usize {
    const PERMUTATION: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
    (0..round).fold(at, |at, _| PERMUTATION[at])
}

/// The compression of one block into the chaining value `cv`.
#[cube]
fn compress(cv: &mut Array<u32>, message: &Array<u32>, counter: u32, num_bytes: u32, flags: u32) {
    let mut state = Array::<u32>::new(16usize);
    #[unroll]
    for i in 0..8usize {
        state[i] = cv[i];
    }
    #[unroll]
    for i in 0..4usize {
        state[comptime![i + 8]] = comptime![IV[i]].runtime();
    }
    state[12usize] = counter;
    state[13usize] = u32::new(0);
    state[14usize] = num_bytes;
    state[15usize] = flags;
    #[unroll]
    for round in 0..7usize {
        #[unroll]
        for column in 0..4usize {
            mix(
                &mut state,
                column,
                comptime![column + 4],
                comptime![column + 8],
                comptime![column + 12],
                message[comptime![word_of(round, 2 * column)]],
                message[comptime![word_of(round, 2 * column + 1)]],
            );
        }
        #[unroll]
        for diagonal in 0..4usize {
            mix(
                &mut state,
                diagonal,
                comptime![4 + (diagonal + 1) % 4],
                comptime![8 + (diagonal + 2) % 4],
                comptime![12 + (diagonal + 3) % 4],
                message[comptime![word_of(round, 8 + 2 * diagonal)]],
                message[comptime![word_of(round, 9 + 2 * diagonal)]],
            );
        }
    }
    #[unroll]
    for i in 0..8usize {
        cv[i] = state[i] ^ state[comptime![i + 8]];
    }
}

/// The chaining values of the chunks of a vector of more than one, of at most 2^32 of them.
#[cube(launch)]
pub(crate) fn chunks(values: &[f32], cvs: &mut [u32]) {
    let chunk = ABSOLUTE_POS;
    if chunk < cvs.len() / CV_WORDS {
        let mut cv = Array::<u32>::new(8usize);
        #[unroll]
        for i in 0..8usize {
            cv[i] = comptime![IV[i]].runtime();
        }
        let start = chunk * comptime![WORDS_A_BLOCK * BLOCKS_A_CHUNK];
        let left = values.len() - start;
        let mut num_words = usize::new(256);
        if left < 256 {
            num_words = left;
        }
        let num_blocks = (num_words + comptime![WORDS_A_BLOCK - 1]) / WORDS_A_BLOCK;
        for block in 0..num_blocks {
            let first = block * WORDS_A_BLOCK;
            let mut message = Array::<u32>::new(16usize);
            let mut num_bytes = u32::new(0);
            #[unroll]
            for i in 0..16usize {
                let mut word = u32::new(0);
                if first + i < num_words {
                    word = u32::reinterpret(values[start + first + i]);
                    num_bytes += 4;
                }
                message[i] = word;
            }
            let mut flags = u32::new(0);
            if block == 0 {
                flags |= CHUNK_START;
            }
            if block + 1 == num_blocks {
                flags |= CHUNK_END;
            }
            compress(&mut cv, &message, chunk as u32, num_bytes, flags);
        }
        #[unroll]
        for i in 0..8usize {
            cvs[chunk * CV_WORDS + i] = cv[i];
        }
    }
}

/// One level up: the chaining values of pairs of nodes; a last one without a partner stays.
#[cube(launch)]
pub(crate) fn parents(nodes: &[u32], cvs: &mut [u32]) {
    let node = ABSOLUTE_POS;
    if node < cvs.len() / CV_WORDS {
        let left = node * comptime![2 * CV_WORDS];
        if left + CV_WORDS < nodes.len() {
            let mut cv = Array::<u32>::new(8usize);
            #[unroll]
            for i in 0..8usize {
                cv[i] = comptime![IV[i]].runtime();
            }
            let mut message = Array::<u32>::new(16usize);
            #[unroll]
            for i in 0..16usize {
                message[i] = nodes[left + i];
            }
            compress(&mut cv, &message, u32::new(0), u32::new(64), PARENT);
            #[unroll]
            for i in 0..8usize {
                cvs[node * CV_WORDS + i] = cv[i];
            }
        } else {
            #[unroll]
            for i in 0..8usize {
                cvs[node * CV_WORDS + i] = nodes[left + i];
            }
        }
    }
}
