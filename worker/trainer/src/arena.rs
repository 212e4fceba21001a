//! All parameters of a model as one flat vector of f32, and the layout that names its parts.

use std::ops::Range;

use crate::vector::Vector;

/// How an entry of the arena is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A weight: follows its gradient and decays.
    Weight,
    /// A bias or a scale: follows its gradient and does not decay.
    Bias,
    /// A buffer, such as a running mean: a contribution carries its new value, and the update
    /// sets it to the mean over the logical shards.
    Buffer,
}

/// One named tensor of the arena, stored row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A dotted name, unique in its layout, such as `conv1.weight`.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// Where it starts in the arena, in elements.
    pub offset: usize,
    /// How it is updated.
    pub group: Group,
    /// Which part of a partitioned model it belongs to; 0 while models are whole.
    pub part: u32,
}

impl Entry {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the entry has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the entry lies in the arena.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The entries of an arena, back to back, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// Appends an entry behind the others; returns its offset.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        group: Group,
    ) -> usize {
        let entry = Entry {
            name: name.into(),
            shape: shape.into(),
            offset: self.len,
            group,
            part: 0,
        };
        self.len += entry.len();
        let offset = entry.offset;
        self.entries.push(entry);
        offset
    }

    /// The entries, in the order of their offsets.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The entries that lie in `range` of the arena, each with the elements of the arena that do.
    pub fn entries_in(&self, range: Range<usize>) -> impl Iterator<Item = (&Entry, Range<usize>)> {
        let first = self
            .entries
            .partition_point(|entry| entry.range().end <= range.start);
        let end = range.end;
        let rest = self.entries[first..].iter();
        let inside = rest.take_while(move |entry| entry.offset < end);
        inside.filter_map(move |entry| {
            let own = entry.range();
            let part = own.start.max(range.start)..own.end.min(range.end);
            (!part.is_empty()).then_some((entry, part))
        })
    }

    /// The number of elements of the arena.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the arena has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The parameters and buffers of a model.
pub type Arena = Vector;
