//! The machine: raft-rs, told what happened and asked what to do.
//!
//! Writes are asynchronous. A batch goes out as [`Output::Persist`]; what depends on it (votes,
//! acknowledgements, the leader counting itself) waits in `waiting` for [`Input::Persisted`], while
//! a leader's own messages go at once (Raft thesis §10.2.1).

mod group;
mod proposing;
mod reads;
mod start;
mod status;

use std::collections::{BTreeMap, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::{self, EntryType, Message, MessageType};
use raft::{Config, RawNode, SnapshotStatus, StateRole};
use slog::{Discard, Logger, o};

use crate::check::{self, Refusal};
use crate::error::Error;
use crate::io::{Input, Output};
use crate::log::{self, Log};
use crate::types::{Entry, EntryKind, HardState, Mark, Membership, Recovered, ReplicaId};
use proposing::Proposing;
use reads::Reads;
pub use status::{Peer, Role, Status};

/// At most this many bytes of proposals may wait to be committed; more are dropped, so that a
/// leader without its quorum does not fill the memory.
const MAX_UNCOMMITTED_BYTES: u64 = 64 << 20;
/// Committed entries are handed over in portions of about this many bytes.
const MAX_APPLY_BYTES: u64 = 4 << 20;
/// Messages of entries that may be on their way to one peer.
const MAX_INFLIGHT_MESSAGES: usize = 256;

/// Who a replica is, and how patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// This replica.
    pub id: ReplicaId,
    /// Draws the election timeouts.
    pub seed: u64,
    /// The lower bound of the election timeout, in ticks; the upper is twice that.
    pub election_ticks: u32,
    /// How often a leader shows that it is alive, in ticks.
    pub heartbeat_ticks: u32,
}

/// One member of the group that agrees on a log.
pub struct Replica {
    node: RawNode<Log>,
    options: Options,
    /// Batches that are on their way to the disk, oldest first.
    waiting: VecDeque<Waiting>,
    /// A hard state that no batch has carried yet. A commit index alone is not worth a sync: it is
    /// learned again, so that it rides with the next batch. That of a change of the group is.
    unsaved: Option<HardState>,
    /// Proposals that go into the log together.
    proposing: Proposing,
    /// Proposals of this replica by the index they were written at: their term and number.
    proposals: BTreeMap<u64, (u64, u64)>,
    reads: Reads,
    /// Who belongs to the group by what was applied, and where that was.
    applied: Mark,
    announced: Announced,
    num_refused: u64,
    is_broken: bool,
}

/// What the last [`Output::Leader`] said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Announced {
    term: u64,
    leader: Option<ReplicaId>,
    is_me: bool,
}

/// A batch that is not durable yet.
struct Waiting {
    batch: u64,
    /// The last of raft-rs's readies that is durable with this batch.
    through: u64,
    /// May leave when the batch is durable.
    messages: Vec<Message>,
    /// The snapshot that is the state when the batch is durable.
    restored: Option<Mark>,
}

impl Replica {
    /// A replica with what its store gave back: the log is applied again from where its snapshot ends.
    /// The only voter of a group campaigns at once.
    ///
    /// # Errors
    /// When the options contradict each other, or what was recovered is not a log.
    pub fn new(
        options: Options,
        mut recovered: Recovered,
        outputs: &mut Vec<Output>,
    ) -> Result<Self, Error> {
        start::check_options(&options)?;
        start::check_recovered(&recovered)?;
        let start = recovered.start.clone();
        let config = Config {
            applied: start.index,
            id: options.id.0,
            election_tick: options.election_ticks as usize,
            heartbeat_tick: options.heartbeat_ticks as usize,
            max_size_per_msg: check::MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_APPLY_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        // A snapshot is of what was committed, whether or not that was noted.
        let commit = &mut recovered.hard_state.commit;
        *commit = (*commit).max(start.index);
        let log = Log::new(recovered);
        let node = RawNode::new(&config, log, &Logger::root(Discard, o!()))
            .map_err(|error| Error::Library(error.to_string()))?;
        let mut replica = Self {
            node,
            options,
            waiting: VecDeque::new(),
            unsaved: None,
            proposing: Proposing::default(),
            proposals: BTreeMap::new(),
            reads: Reads::default(),
            applied: start,
            announced: Announced::default(),
            num_refused: 0,
            is_broken: false,
        };
        if replica.is_alone() {
            replica
                .node
                .campaign()
                .map_err(|error| Error::Library(error.to_string()))?;
        }
        replica.settle(outputs);
        Ok(replica)
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, outputs: &mut Vec<Output>) {
        if self.is_broken {
            return;
        }
        self.send_proposals(outputs);
        match input {
            // Before its state is that of the snapshot, it cannot know whether it may lead: time stands
            // still for it.
            Input::Tick if self.is_restoring() => {}
            Input::Tick => {
                self.node.tick();
            }
            Input::Propose { request, data } => {
                self.propose(request, data, outputs);
                self.send_proposals(outputs);
            }
            Input::Read { request } => self.read(request, outputs),
            Input::Change {
                request,
                change,
                data,
            } => self.propose_change(request, change, data, outputs),
            Input::Transfer { to } => {
                if self.applied.membership.voters.contains(&to) {
                    self.node.transfer_leader(to.0);
                }
            }
            Input::Snapshotted { mark, num_kept } => self.snapshotted(mark, num_kept, outputs),
            Input::SnapshotSent { to, is_there } => {
                let status = if is_there {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                self.node.report_snapshot(to.0, status);
            }
            Input::Unreachable { peer } => self.node.report_unreachable(peer.0),
            Input::Message { from, bytes } => self.receive(from, &bytes, outputs),
            Input::Persisted { batch } => self.persisted(batch, outputs),
        }
        if !self.is_broken {
            self.settle(outputs);
        }
    }

    /// Whether this replica leads and has applied all that earlier leaders committed; what
    /// [`Output::Leader`] said last.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.announced.is_me && !self.is_broken
    }

    /// The newest term this replica has seen.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// How many inputs were ignored because no correct peer or caller gives them.
    #[must_use]
    pub fn num_refused(&self) -> u64 {
        self.num_refused
    }

    /// Who belongs to the group by what was applied so far, and where that is: for a snapshot of what
    /// was applied.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.applied
    }

    /// Whether it is the only one that votes.
    fn is_alone(&self) -> bool {
        self.applied.membership == Membership::of([self.options.id])
    }

    /// Why nothing can be proposed here, or read.
    fn not_leading(&self) -> Option<String> {
        if self.node.raft.state == StateRole::Leader {
            return None;
        }
        Some(match self.node.raft.leader_id {
            raft::INVALID_ID => "no leader is known; try again".to_owned(),
            leader => format!("replica {leader} leads; ask it"),
        })
    }

    fn proposed(&mut self, request: u64, refusal: Option<String>, outputs: &mut Vec<Output>) {
        match refusal {
            Some(reason) => outputs.push(Output::Dropped { request, reason }),
            None => {
                let raft = &self.node.raft;
                self.proposals
                    .insert(raft.raft_log.last_index(), (raft.term, request));
            }
        }
    }

    fn receive(&mut self, from: ReplicaId, bytes: &[u8], outputs: &mut Vec<Output>) {
        match check::check(&self.node.raft, from, bytes) {
            Ok(message)
                if message.msg_type == MessageType::MsgTimeoutNow && self.is_restoring() => {}
            // raft-rs answers with an error where it ignores a message; there is nothing to do.
            Ok(message) => drop(self.node.step(message)),
            Err(Refusal::Garbage(_)) => self.num_refused += 1,
            Err(Refusal::Impossible(reason)) => {
                self.is_broken = true;
                outputs.push(Output::Broken { reason });
            }
        }
    }

    /// Whether a snapshot was received and is not durable as the beginning of the log.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.waiting
            .iter()
            .any(|waiting| waiting.restored.is_some())
    }

    fn persisted(&mut self, batch: u64, outputs: &mut Vec<Output>) {
        if !self.waiting.iter().any(|waiting| waiting.batch == batch) {
            self.num_refused += 1;
            return;
        }
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.batch <= batch) {
            self.node.on_persist_ready(waiting.through);
            if let Some(mark) = waiting.restored {
                self.restore(mark, outputs);
            }
            self.send(waiting.messages, outputs);
        }
    }
}

impl Replica {
    /// Hands out all that raft-rs wants done, then says who leads.
    fn settle(&mut self, outputs: &mut Vec<Output>) {
        while self.node.has_ready() {
            self.take_ready(outputs);
        }
        self.settle_reads(outputs);
        // raft-rs draws a timeout by chance on every change of role; ours follows from the seed and
        // the term, so that a run can be repeated. It is put in place before anything reads it.
        let ticks = election_timeout(&self.options, self.node.raft.term);
        self.node.raft.set_randomized_election_timeout(ticks);
        self.announce(outputs);
    }

    fn take_ready(&mut self, outputs: &mut Vec<Output>) {
        let mut ready = self.node.ready();
        let number = ready.number();
        let entries = ready.take_entries();
        let restored = self.restored(ready.snapshot());
        if let Some(mark) = &restored {
            self.node.mut_store().restore(mark.clone());
        }
        self.node.mut_store().append(&entries);
        for state in ready.take_read_states() {
            self.reads.may_be_read(&state.request_ctx, state.index);
        }
        if let Some(hard_state) = ready.hs() {
            self.unsaved = Some(log::hard_state_from_raft(hard_state));
        }
        // A group is another one once the change is committed. One that forgot that would ask the old
        // group for its votes, of which too few may be left.
        let changes = |entry: &eraftpb::Entry| entry.entry_type != EntryType::EntryNormal;
        let must_sync = ready.must_sync()
            || self.unsaved.is_some() && ready.committed_entries().iter().any(changes);
        if must_sync {
            let entries = entries.iter().map(log::from_raft).collect();
            outputs.push(Output::Persist {
                batch: number,
                entries,
                hard_state: self.unsaved.take(),
                restore: restored.clone(),
            });
        }
        self.send(ready.take_messages(), outputs);
        let committed = ready.take_committed_entries();
        let messages = ready.take_persisted_messages();
        self.node.advance_append_async(ready);
        self.apply(&committed, outputs);

        match self.waiting.back_mut() {
            _ if must_sync => self.waiting.push_back(Waiting {
                batch: number,
                through: number,
                messages,
                restored,
            }),
            // Nothing to write, but raft-rs counts its readies in order.
            Some(last) => {
                last.through = number;
                last.messages.extend(messages);
            }
            None => {
                self.node.on_persist_ready(number);
                self.send(messages, outputs);
            }
        }
    }

    fn apply(&mut self, committed: &[eraftpb::Entry], outputs: &mut Vec<Output>) {
        for entry in committed {
            let mut request = None;
            while let Some((index, (term, number))) = self.proposals.pop_first() {
                if index > entry.index {
                    self.proposals.insert(index, (term, number));
                    break;
                }
                if (index, term) == (entry.index, entry.term) {
                    request = Some(number);
                } else {
                    // Only now is it certain: until another entry is committed at its place, a
                    // replica that holds the proposal might still lead and commit it.
                    let reason =
                        "a new leader put another entry in its place; try again".to_owned();
                    outputs.push(Output::Dropped {
                        request: number,
                        reason,
                    });
                }
            }
            (self.applied.index, self.applied.term) = (entry.index, entry.term);
            let Entry {
                index,
                term,
                kind,
                data,
            } = log::from_raft(entry);
            match kind {
                EntryKind::Config => self.changed(index, term, &data, request, outputs),
                // It opens a term.
                EntryKind::Normal if data.is_empty() => {}
                EntryKind::Normal => outputs.push(Output::Apply {
                    index,
                    term,
                    data,
                    request,
                }),
            }
        }
        if let Some(last) = committed.last() {
            self.node.advance_apply_to(last.index);
        }
    }

    fn send(&self, messages: Vec<Message>, outputs: &mut Vec<Output>) {
        outputs.extend(messages.into_iter().map(|message| {
            let bytes = message
                .write_to_bytes()
                .expect("every field of raft-rs's messages is optional");
            let to = ReplicaId(message.to);
            if message.msg_type == MessageType::MsgSnapshot {
                let index = message.get_snapshot().get_metadata().index;
                return Output::SendSnapshot { to, index, bytes };
            }
            Output::Send { to, bytes }
        }));
    }

    fn announce(&mut self, outputs: &mut Vec<Output>) {
        let raft = &self.node.raft;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(ReplicaId(raft.leader_id));
        // The entry that opens its term is behind all that earlier leaders committed (Raft §8).
        let is_me = raft.state == StateRole::Leader && raft.apply_to_current_term();
        let now = Announced {
            term: raft.term,
            leader,
            is_me,
        };
        if now != self.announced {
            self.announced = now;
            outputs.push(Output::Leader {
                term: now.term,
                leader,
                is_me,
            });
        }
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.node.raft;
        f.debug_struct("Replica")
            .field("id", &self.options.id)
            .field("announced", &self.announced)
            .field("last_index", &raft.raft_log.last_index())
            .field("committed", &raft.raft_log.committed)
            .field("persisted", &raft.raft_log.persisted)
            .field("num_refused", &self.num_refused)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

/// In ticks: from `election_ticks` to below twice that, by the seed, the replica and the term.
fn election_timeout(options: &Options, term: u64) -> usize {
    let drawn = mix(mix(mix(options.seed) ^ options.id.0) ^ term);
    (options.election_ticks + (drawn % u64::from(options.election_ticks)) as u32) as usize
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) after one step of its counter.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
