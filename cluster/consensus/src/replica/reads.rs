//! Reads of what is true now: each waits until a quorum has confirmed that this replica leads, and
//! until all that was committed when it was asked for is applied (Raft thesis §6.4).

use std::collections::BTreeMap;

use super::Replica;
use crate::io::Output;

/// The reads that wait.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Numbers each in the messages of the group.
    last: u64,
    /// What each one's caller calls it, until a quorum has confirmed it.
    asked: BTreeMap<u64, u64>,
    /// The index that has to be applied, and the caller's number.
    confirmed: Vec<(u64, u64)>,
    /// In which term they were asked for.
    term: u64,
}

impl Reads {
    /// A quorum has confirmed a read; all through `index` has to be applied.
    pub(super) fn may_be_read(&mut self, context: &[u8], index: u64) {
        let number = context.try_into().map(u64::from_le_bytes);
        let request = number.ok().and_then(|number| self.asked.remove(&number));
        self.confirmed
            .extend(request.map(|request| (index, request)));
    }

    fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.confirmed.is_empty()
    }
}

impl Replica {
    pub(super) fn read(&mut self, request: u64, outputs: &mut Vec<Output>) {
        if let Some(reason) = self.not_leading() {
            outputs.push(Output::Dropped { request, reason });
            return;
        }
        if !self.node.raft.apply_to_current_term() {
            let reason = "the leader has just begun; try again".to_owned();
            outputs.push(Output::Dropped { request, reason });
            return;
        }
        self.reads.term = self.node.raft.term;
        self.reads.last += 1;
        self.reads.asked.insert(self.reads.last, request);
        self.node.read_index(self.reads.last.to_le_bytes().to_vec());
    }

    /// Lets those read that may, and those go that cannot any more.
    pub(super) fn settle_reads(&mut self, outputs: &mut Vec<Output>) {
        if self.reads.is_empty() {
            return;
        }
        if self.not_leading().is_some() || self.reads.term != self.node.raft.term {
            let asked = std::mem::take(&mut self.reads.asked).into_values();
            let confirmed = std::mem::take(&mut self.reads.confirmed).into_iter();
            outputs.extend(
                asked
                    .chain(confirmed.map(|(_, request)| request))
                    .map(|request| {
                        let reason = "this replica does not lead any more; try again".to_owned();
                        Output::Dropped { request, reason }
                    }),
            );
            return;
        }
        let applied = self.applied.index;
        let confirmed = &mut self.reads.confirmed;
        outputs.extend(
            confirmed
                .extract_if(.., |(index, _)| *index <= applied)
                .map(|(_, request)| Output::Readable { request }),
        );
    }
}
