//! A run of tokens, kept as the bytes that it is in its file, and cut into windows on demand.
//!
//! ```text
//! tokens    0 1 2 3 4 5 6 7 8 9          context 4
//! window 0  0 1 2 3     predicts 1 2 3 4
//! window 1  4 5 6 7     predicts 5 6 7 8     (token 9 is left over: the next window is not whole)
//! ```
//! Every token but the first is predicted once at most, and which window is which follows from the
//! file and the context alone.

use std::path::Path;

use super::DataError;

/// The tokens of a file.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    bytes: Vec<u8>,
    width: Width,
    /// The tokens of a window; 1 at least.
    context: usize,
}

/// How a token is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// As itself.
    Byte,
    /// As a little-endian u16.
    Pair,
}

impl Tokens {
    /// Each byte is a token.
    pub(super) fn of_text(bytes: Vec<u8>, context: usize) -> Self {
        Self {
            bytes,
            width: Width::Byte,
            context: context.max(1),
        }
    }

    /// Each two bytes are a token's number, which must be below `vocabulary`.
    ///
    /// # Errors
    /// [`DataError::BadToken`] for the first one that is not.
    pub(super) fn of_ids(
        path: &Path,
        bytes: Vec<u8>,
        context: usize,
        vocabulary: u32,
    ) -> Result<Self, DataError> {
        let bad = |byte: usize, fault: String| DataError::BadToken {
            path: path.to_owned(),
            byte: byte as u64,
            fault,
        };
        let (pairs, rest) = bytes.as_chunks::<2>();
        let ids = pairs
            .iter()
            .map(|&pair| u32::from(u16::from_le_bytes(pair)));
        for (number, id) in ids.enumerate() {
            if id >= vocabulary {
                let last = vocabulary.saturating_sub(1);
                let fault = format!(
                    "token {number} is {id}, expected 0 to {last}; mend data.vocabulary, or the file"
                );
                return Err(bad(2 * number, fault));
            }
        }
        if !rest.is_empty() {
            let fault = "one byte is left over, expected two for each token; is the file whole?";
            return Err(bad(2 * pairs.len(), fault.to_owned()));
        }
        Ok(Self {
            bytes,
            width: Width::Pair,
            context: context.max(1),
        })
    }

    /// How many windows there are whose every token has a next one.
    pub(super) fn num_windows(&self) -> usize {
        let num_tokens = match self.width {
            Width::Byte => self.bytes.len(),
            Width::Pair => self.bytes.len() / 2,
        };
        num_tokens.saturating_sub(1) / self.context
    }

    /// Appends the tokens of a window, and the next token of each.
    ///
    /// # Panics
    /// When there is no such window.
    pub(super) fn read(&self, window: usize, inputs: &mut Vec<u32>, next: &mut Vec<u32>) {
        let start = window * self.context;
        inputs.extend((start..start + self.context).map(|at| self.token(at)));
        next.extend((start + 1..=start + self.context).map(|at| self.token(at)));
    }

    fn token(&self, at: usize) -> u32 {
        match self.width {
            Width::Byte => u32::from(self.bytes[at]),
            Width::Pair => u32::from(u16::from_le_bytes([
                self.bytes[2 * at],
                self.bytes[2 * at + 1],
            ])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_ids(ids: &[u16], context: usize) -> Result<Tokens, String> {
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let tokens = Tokens::of_ids(Path::new("a.tokens"), bytes, context, 700);
        tokens.map_err(|error| error.to_string())
    }

    fn window(tokens: &Tokens, window: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut inputs, mut next) = (Vec::new(), Vec::new());
        tokens.read(window, &mut inputs, &mut next);
        (inputs, next)
    }

    #[test]
    fn windows_lie_side_by_side_and_each_token_has_its_next() {
        let ids: Vec<u16> = (0..10).map(|i| i * 60).collect();
        let tokens = of_ids(&ids, 4).expect("in the vocabulary");
        assert_eq!(tokens.num_windows(), 2);
        assert_eq!(
            window(&tokens, 1),
            (vec![240, 300, 360, 420], vec![300, 360, 420, 480])
        );
        // The last window needs one token behind it.
        for (num_tokens, num_windows) in [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)] {
            let tokens = of_ids(&ids[..num_tokens], 4).expect("in the vocabulary");
            assert_eq!(tokens.num_windows(), num_windows, "{num_tokens} tokens");
        }
    }

    #[test]
    fn bytes_of_a_text_are_its_tokens() {
        let tokens = Tokens::of_text("aé\n!".into(), 2);
        assert_eq!(tokens.num_windows(), 2);
        assert_eq!(window(&tokens, 0), (vec![97, 0xc3], vec![0xc3, 0xa9]));
        assert_eq!(window(&tokens, 1), (vec![0xa9, 10], vec![10, 33]));
    }

    #[test]
    fn tokens_out_of_range_and_torn_files_are_named_with_their_place() {
        assert_eq!(
            of_ids(&[1, 699, 700, 2], 2).expect_err("out of range"),
            "a.tokens: byte 4: token 2 is 700, expected 0 to 699; mend data.vocabulary, or the file"
        );
        let torn = Tokens::of_ids(Path::new("a.tokens"), vec![1, 0, 2], 2, 700);
        assert_eq!(
            torn.expect_err("half a token").to_string(),
            "a.tokens: byte 2: one byte is left over, expected two for each token; is the file whole?"
        );
    }
}
