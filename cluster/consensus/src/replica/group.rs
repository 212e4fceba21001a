//! Who belongs to the group, and where its log begins: changes of the membership, and snapshots.

use raft::StateRole;
use raft::eraftpb;

use super::Replica;
use crate::io::Output;
use crate::types::{Change, Mark};
use crate::{change, log};

impl Replica {
    pub(super) fn propose_change(
        &mut self,
        request: u64,
        change: Change,
        data: Vec<u8>,
        outputs: &mut Vec<Output>,
    ) {
        let behind = self.behind();
        let (membership, me) = (&self.applied.membership, self.options.id);
        let refusal = self.not_leading();
        let refusal = refusal.or_else(|| change::fault_of(change, membership, me, &behind));
        let pending = || {
            let raft = &self.node.raft;
            let is_pending = raft.has_pending_conf() || !raft.apply_to_current_term();
            is_pending.then(|| "the group is changing already; try again later".to_owned())
        };
        let refusal = refusal.or_else(pending).or_else(|| {
            let message = change::to_raft(change, data);
            let proposed = self.node.propose_conf_change(Vec::new(), message);
            proposed.is_err().then(|| self.why_dropped().to_owned())
        });
        self.proposed(request, refusal, outputs);
    }

    pub(super) fn snapshotted(&mut self, mark: Mark, num_kept: u64, outputs: &mut Vec<Output>) {
        if mark.index > self.applied.index {
            self.num_refused += 1;
            return;
        }
        if let Some(through) = self.node.mut_store().compact(mark, num_kept) {
            outputs.push(Output::Discard { through });
        }
    }

    /// A change of the membership is committed.
    pub(super) fn changed(
        &mut self,
        index: u64,
        term: u64,
        bytes: &[u8],
        request: Option<u64>,
        outputs: &mut Vec<Output>,
    ) {
        let Some((message, change)) = change::decode(bytes) else {
            self.is_broken = true;
            let reason =
                format!("entry {index} changes the group in a way that nothing is known of");
            outputs.push(Output::Broken { reason });
            return;
        };
        // The same everywhere: it depends on the changes before it alone. One that makes no sense any
        // more, such as the removal of the last voter, changes nothing.
        let applied = self.node.apply_conf_change(&message);
        let applied = applied.ok().and_then(|state| log::membership_of(&state));
        if let Some(membership) = applied {
            self.applied.membership = membership;
        }
        let raft = &mut self.node.raft;
        if !self.applied.membership.has(self.options.id) && raft.state == StateRole::Leader {
            // The leader before this one had asked for it. raft-rs would count this replica on.
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
        outputs.push(Output::Changed {
            index,
            term,
            change,
            membership: self.applied.membership.clone(),
            data: message.context.to_vec(),
            request,
        });
    }

    /// Where a snapshot ends that was received, if there is one.
    pub(super) fn restored(&self, snapshot: &eraftpb::Snapshot) -> Option<Mark> {
        let metadata = snapshot.get_metadata();
        (metadata.index > 0).then(|| Mark {
            index: metadata.index,
            term: metadata.term,
            membership: log::membership_of(metadata.get_conf_state()).unwrap_or_default(),
        })
    }

    /// The state becomes that of a snapshot. What was proposed here and is covered by it may have
    /// been applied or not: nobody can say any more.
    pub(super) fn restore(&mut self, mark: Mark, outputs: &mut Vec<Output>) {
        self.applied = mark.clone();
        self.proposals = self.proposals.split_off(&(mark.index + 1));
        self.node.advance_apply_to(mark.index);
        outputs.push(Output::Restore { mark });
    }
}

#[cfg(test)]
mod tests;
