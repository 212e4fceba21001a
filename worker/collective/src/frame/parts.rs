//! Notes and messages of any length, cut into parts that fit a frame and put together again.

use bytes::Bytes;

use crate::chunks::PIECE_ELEMENTS;

/// Notes and messages travel in parts of this length, that of a full piece.
pub const PART_BYTES: usize = PIECE_ELEMENTS * size_of::<f32>();

/// One part of a text of bytes that may be longer than a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which part, from 0.
    pub part: u32,
    /// How many parts there are; at least one.
    pub num_parts: u32,
    /// The bytes of this part.
    pub bytes: Bytes,
}

/// Cuts `bytes` into parts that share its memory; an empty text is one empty part.
pub(crate) fn parts(bytes: &Bytes) -> impl Iterator<Item = Part> + use<> {
    let bytes = bytes.clone();
    let num_parts = u32::try_from(bytes.len().div_ceil(PART_BYTES).max(1)).unwrap_or(u32::MAX);
    (0..num_parts).map(move |part| {
        let start = part as usize * PART_BYTES;
        let end = (start + PART_BYTES).min(bytes.len());
        Part {
            part,
            num_parts,
            bytes: bytes.slice(start..end),
        }
    })
}

/// Puts the parts of one text together, in their order.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    bytes: Vec<u8>,
    next: u32,
}

impl Assembly {
    /// Adds a part; the whole text after the last one, `Err` for a part out of order.
    pub(crate) fn add(&mut self, part: &Part) -> Result<Option<Vec<u8>>, ()> {
        let is_next = part.part == self.next && part.part < part.num_parts;
        let is_full = part.part + 1 == part.num_parts || part.bytes.len() == PART_BYTES;
        if !is_next || !is_full {
            return Err(());
        }
        self.bytes.extend_from_slice(&part.bytes);
        self.next += 1;
        if self.next < part.num_parts {
            return Ok(None);
        }
        self.next = 0;
        Ok(Some(std::mem::take(&mut self.bytes)))
    }
}
