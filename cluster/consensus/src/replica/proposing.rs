//! Proposals that come together go together: one message to each peer, one batch to the disk.

use raft::eraftpb::{Entry, Message, MessageType};

use super::Replica;
use crate::check;
use crate::io::Output;

/// What waits; its bytes are at most [`check::MAX_APPEND_BYTES`] and one proposal.
#[derive(Debug, Default)]
pub(super) struct Proposing {
    requests: Vec<u64>,
    message: Message,
    num_bytes: u64,
}

impl Replica {
    /// Takes a proposal as [`Input::Propose`](crate::Input::Propose) does, but has it wait for others
    /// until [`Replica::flush`], or the next input.
    pub fn propose(&mut self, request: u64, data: Vec<u8>, outputs: &mut Vec<Output>) {
        if self.is_broken {
            return;
        }
        if data.is_empty() || data.len() > check::MAX_PROPOSAL_BYTES {
            let (given, most) = (data.len(), check::MAX_PROPOSAL_BYTES);
            let reason = format!("a proposal has 1 to {most} bytes, this one has {given}");
            outputs.push(Output::Dropped { request, reason });
            return;
        }
        self.proposing.num_bytes += data.len() as u64;
        self.proposing.requests.push(request);
        let mut entry = Entry::default();
        entry.set_data(data.into());
        self.proposing.message.mut_entries().push(entry);
        if self.proposing.num_bytes >= check::MAX_APPEND_BYTES {
            self.flush(outputs);
        }
    }

    /// Has the proposals go that wait.
    pub fn flush(&mut self, outputs: &mut Vec<Output>) {
        if !self.is_broken && !self.proposing.requests.is_empty() {
            self.send_proposals(outputs);
            self.settle(outputs);
        }
    }

    /// Why raft-rs took no proposal of a leader's.
    pub(super) fn why_dropped(&self) -> &'static str {
        match self.node.raft.lead_transferee {
            Some(_) => "another replica is about to lead; try again",
            None => "too many proposals wait for a quorum of replicas; try again later",
        }
    }

    /// Gives the proposals that wait to raft-rs: they are entries from here on, or all are dropped.
    pub(super) fn send_proposals(&mut self, outputs: &mut Vec<Output>) {
        if self.proposing.requests.is_empty() {
            return;
        }
        let Proposing {
            requests,
            mut message,
            ..
        } = std::mem::take(&mut self.proposing);
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.options.id.0;
        let refusal = self.not_leading().or_else(|| {
            let dropped = self.node.raft.step(message).is_err();
            dropped.then(|| self.why_dropped().to_owned())
        });
        match refusal {
            Some(reason) => {
                outputs.extend(requests.into_iter().map(|request| Output::Dropped {
                    request,
                    reason: reason.clone(),
                }));
            }
            None => {
                let raft = &self.node.raft;
                let first = raft.raft_log.last_index() + 1 - requests.len() as u64;
                let term = raft.term;
                let written = (first..).zip(requests);
                self.proposals
                    .extend(written.map(|(index, request)| (index, (term, request))));
            }
        }
    }
}
