//! What all our handshakes have in common, whoever shakes hands: 80 bytes, numbers little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | letters that name the protocol |
//! | 8..12 | its version |
//! | 12..16 | length of the whole |
//! | 16..48 | the body |
//! | 48..80 | BLAKE3 of bytes 0..48, keyed with a token that strangers do not know |

use super::Token;
use crate::frame::Refusal;

/// The length of a handshake.
pub const HANDSHAKE_BYTES: usize = 80;

/// The length of what a protocol says in one.
pub const BODY_BYTES: usize = 32;

const BODY_AT: usize = 16;
const SIGNED_BYTES: usize = BODY_AT + BODY_BYTES;

/// What tells the handshakes of one protocol from all others.
#[derive(Clone, Copy, Debug)]
pub struct Seal {
    /// The letters.
    pub magic: [u8; 8],
    /// The version.
    pub version: u32,
    /// What its key is derived for, besides the token.
    pub context: &'static str,
}

impl Seal {
    /// The bytes of a handshake.
    #[must_use]
    pub fn close(&self, body: [u8; BODY_BYTES], token: Token) -> [u8; HANDSHAKE_BYTES] {
        let mut bytes = [0; HANDSHAKE_BYTES];
        bytes[0..8].copy_from_slice(&self.magic);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..BODY_AT].copy_from_slice(&(HANDSHAKE_BYTES as u32).to_le_bytes());
        bytes[BODY_AT..SIGNED_BYTES].copy_from_slice(&body);
        let signature = self.signature(&bytes, token);
        bytes[SIGNED_BYTES..].copy_from_slice(signature.as_bytes());
        bytes
    }

    /// The body of a handshake, of which perhaps only the beginning is there: `None` while it may
    /// still become one.
    ///
    /// # Errors
    /// Garbage is refused as early as it shows.
    pub fn open(&self, bytes: &[u8], token: Token) -> Result<Option<[u8; BODY_BYTES]>, Refusal> {
        let seen = bytes.len().min(self.magic.len());
        if bytes[..seen] != self.magic[..seen] {
            return Err(Refusal::Magic);
        }
        if bytes.len() >= 12 && bytes[8..12] != self.version.to_le_bytes() {
            return Err(Refusal::Version);
        }
        if bytes.len() >= BODY_AT && bytes[12..BODY_AT] != (HANDSHAKE_BYTES as u32).to_le_bytes() {
            return Err(Refusal::Length);
        }
        let Some(bytes) = bytes.first_chunk::<HANDSHAKE_BYTES>() else {
            return Ok(None);
        };
        let shown = blake3::Hash::from_slice(&bytes[SIGNED_BYTES..]);
        // Comparing two BLAKE3 hashes takes the same time wherever they differ.
        if shown.map_err(|_| Refusal::Field)? != self.signature(bytes, token) {
            return Err(Refusal::Token);
        }
        let body = bytes[BODY_AT..SIGNED_BYTES].try_into();
        Ok(Some(body.expect("a range of a body's length")))
    }

    fn signature(&self, bytes: &[u8; HANDSHAKE_BYTES], token: Token) -> blake3::Hash {
        let key = blake3::derive_key(self.context, &token.0);
        blake3::keyed_hash(&key, &bytes[..SIGNED_BYTES])
    }
}
