//! The coordinator as a member of its group: what consensus wants done, who leads, and changes of the
//! group. Who may speak is in `admission`, snapshots in `snapshots`.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::ids::JobName;
use muster_cluster::state::{ClusterState, Job};
use muster_consensus::{Change, Membership, ReplicaId, Status};
use muster_proto::convert::LogEntry;
use muster_proto::{convert, v1};

use super::{Coordinator, Duty, Output, Reply, ReplyTo};
use crate::archive::Archive;
use crate::members::{Members, is_everywhere};
use crate::ranks::WorldWatch;
use crate::snapshot::Snapshot;

/// The election timeout, in ticks: from this to below twice as much. A leader that is gone is
/// followed by another one within half a second, mostly.
const ELECTION_TICKS: u32 = 10;
const HEARTBEAT_TICKS: u32 = 2;

/// So many numbers of members may be left out: one that is mistyped must not end all that follow.
const MAX_SKIPPED: u64 = 1000;

/// The last entry that nobody ever sees: the log of a new group begins behind it.
pub const GENESIS_INDEX: u64 = 1;

/// Who a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its number in the group, and where it is reached.
    pub id: ReplicaId,
    /// `host:port`.
    pub address: String,
    /// Drawn by chance when its disk was first used.
    pub store_id: [u8; 16],
    /// Which cluster it is of.
    pub cluster_id: [u8; 16],
    /// The members that founded the group, and where they were reached; empty for one that joined
    /// it later.
    pub founders: BTreeMap<ReplicaId, String>,
    /// Where members are that are not where the log says.
    pub moved: BTreeMap<ReplicaId, String>,
    /// The folder of checkpoints of jobs that name none.
    pub checkpoints: String,
}

impl Options {
    pub(super) fn consensus(&self) -> muster_consensus::Options {
        let (seed, _) = self.cluster_id.split_at(8);
        muster_consensus::Options {
            id: self.id,
            seed: u64::from_le_bytes(seed.try_into().expect("half of 16 bytes")),
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
        }
    }

    /// What is known of members before they show themselves, this one included.
    pub(super) fn shown(&self) -> BTreeMap<ReplicaId, v1::Member> {
        let moved = self.moved.iter().map(|(id, address)| {
            let member = v1::Member {
                id: id.0,
                address: address.clone(),
                store_id: Vec::new(),
            };
            (*id, member)
        });
        moved.chain([(self.id, self.member())]).collect()
    }

    /// What it says of itself.
    pub(super) fn member(&self) -> v1::Member {
        v1::Member {
            id: self.id.0,
            address: self.address.clone(),
            store_id: self.store_id.to_vec(),
        }
    }

    /// What there was before the first entry.
    pub(super) fn genesis(&self) -> Snapshot {
        Snapshot {
            cluster_id: self.cluster_id,
            members: Members::founders(&self.founders),
            state: ClusterState::default(),
            archive: Archive::default(),
            accounts: BTreeMap::new(),
            num_bytes: 0,
        }
    }
}

/// Who waits for a proposal.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// For a command.
    Command(ReplyTo),
    /// To read.
    Read(ReplyTo),
    /// For a change of the group.
    Change(ReplyTo),
}

impl Asked {
    fn reply_to(&self) -> ReplyTo {
        match self {
            Asked::Command(reply_to) | Asked::Read(reply_to) | Asked::Change(reply_to) => *reply_to,
        }
    }
}

impl Coordinator {
    /// What it says of its part in the group.
    #[must_use]
    pub fn status(&self) -> Status {
        self.replica.status()
    }

    /// Who it is.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The members of the group, as applied so far.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The newest term that it has seen.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.replica.term()
    }

    /// Who leads, as far as is known here.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    /// A member speaks. It is answered where it says that it is: the part of the log that tells of it
    /// may not be here yet.
    pub(super) fn peer_shows_itself(&mut self, seen: v1::Member, outputs: &mut Vec<Output>) {
        let id = ReplicaId(seen.id);
        let last = self.shown.get(&id).map(|last| &last.address);
        let is_news = last != Some(&seen.address);
        self.shown.insert(id, seen);
        if is_news {
            self.say_members(outputs);
        }
    }

    /// The members as the log has them, but where they say that they are.
    pub(super) fn say_members(&mut self, outputs: &mut Vec<Output>) {
        let mut members = self.members.clone();
        // Who was removed is none any more, whatever it says.
        let me = self.options.id;
        self.shown
            .retain(|id, _| *id == me || members.get(*id).is_some() || id.0 > members.newest());
        for (id, seen) in &self.shown {
            members.is_at(*id, seen.address.clone());
        }
        outputs.push(Output::Members(members));
    }

    pub(super) fn read(&mut self, reply_to: ReplyTo, outputs: &mut Vec<Output>) {
        let request = self.next_proposal();
        self.asked.insert(request, Asked::Read(reply_to));
        self.step_replica(muster_consensus::Input::Read { request }, outputs);
    }

    pub(super) fn change(
        &mut self,
        reply_to: ReplyTo,
        change: Change,
        address: String,
        outputs: &mut Vec<Output>,
    ) {
        let change = match change {
            // Who asks a second time, as where an answer was lost, gets the same number.
            Change::AddLearner(ReplicaId(0)) => {
                let mut members = self.members.iter();
                let same = members.find(|(_, member)| member.address == address);
                let next = || ReplicaId(self.members.newest().saturating_add(1));
                Change::AddLearner(same.map_or_else(next, |(id, _)| id))
            }
            change => change,
        };
        if let Change::AddLearner(id) = change
            && let Some(reply) = self.answer_to_add(id, &address)
        {
            outputs.push(Output::Reply { reply_to, reply });
            return;
        }
        let request = self.next_proposal();
        self.asked.insert(request, Asked::Change(reply_to));
        self.propose_change(request, change, address, outputs);
    }

    /// What is answered at once to whoever wants a member added.
    fn answer_to_add(&self, id: ReplicaId, address: &str) -> Option<Reply> {
        let newest = self.members.newest();
        if let Some(member) = self.members.get(id)
            && member.address == address
        {
            // It was asked for before, and the answer was lost.
            return Some(Reply::Changed(self.replica.mark().membership.clone()));
        }
        if id.0 <= newest || id.0 > newest.saturating_add(MAX_SKIPPED) {
            let id = id.0;
            let why = match id > newest {
                true => format!("{id} is far beyond the numbers of the members"),
                false => format!(
                    "{id} was the number of a member already, and numbers are not used twice"
                ),
            };
            return Some(Reply::Refused(format!(
                "{why}; the next one is {}",
                newest.saturating_add(1)
            )));
        }
        if is_everywhere(address) {
            return Some(Reply::Refused(format!(
                "{address} is where a member listens, not where others reach it: give its host's address"
            )));
        }
        let nowhere = self
            .members
            .iter()
            .find(|(_, one)| is_everywhere(&one.address));
        nowhere.map(|(ReplicaId(other), member)| {
            let address = &member.address;
            Reply::Refused(format!(
                "member {other} is known as {address}, where no other member reaches it; start it again with \
                 --id {other} --peers {other}=HOST:PORT --moved first"
            ))
        })
    }

    fn propose_change(
        &mut self,
        request: u64,
        change: Change,
        address: String,
        outputs: &mut Vec<Output>,
    ) {
        let (Change::AddLearner(id) | Change::Promote(id) | Change::Remove(id)) = change;
        let data = convert::member_bytes(&v1::Member {
            id: id.0,
            address,
            store_id: Vec::new(),
        });
        let change = muster_consensus::Input::Change {
            request,
            change,
            data,
        };
        self.step_replica(change, outputs);
    }

    /// Looks after the group: the log is told of members that it does not know as they are, and
    /// those that have caught up vote from now on.
    pub(super) fn tend_group(&mut self, outputs: &mut Vec<Output>) {
        let is_news = |seen: &&v1::Member| {
            let member = self.members.get(ReplicaId(seen.id));
            member.is_some_and(|member| {
                let is_unknown = member.store_id.is_none() && seen.store_id.len() == 16;
                is_unknown || member.address != seen.address
            })
        };
        let news: Vec<v1::Member> = self.shown.values().filter(is_news).cloned().collect();
        for seen in news {
            let duty = Duty::Seen(ReplicaId(seen.id));
            if !self.in_flight.contains_key(&duty) {
                let proposal = self.next_proposal();
                self.in_flight.insert(duty, proposal);
                self.propose_entry(proposal, LogEntry::Seen(seen), outputs);
            }
        }
        if self.replica.mark().membership.learners.is_empty()
            || self.in_flight.contains_key(&Duty::Promote)
        {
            return;
        }
        let status = self.replica.status();
        let ready = status.peers.iter().find(|peer| {
            status.membership.learners.contains(&peer.id)
                && peer.is_active
                && peer.matched >= status.committed
        });
        if let Some(peer) = ready.map(|peer| peer.id) {
            let request = self.next_proposal();
            self.in_flight.insert(Duty::Promote, request);
            self.propose_change(request, Change::Promote(peer), String::new(), outputs);
        }
    }

    pub(super) fn transfer(&mut self, to: Option<ReplicaId>, outputs: &mut Vec<Output>) {
        let status = self.replica.status();
        let others = status
            .peers
            .iter()
            .filter(|peer| peer.is_active && status.membership.voters.contains(&peer.id));
        let furthest = others.max_by_key(|peer| peer.matched).map(|peer| peer.id);
        if let Some(to) = to.or(furthest) {
            self.step_replica(muster_consensus::Input::Transfer { to }, outputs);
        }
    }

    pub(super) fn hear_peer(
        &mut self,
        from: ReplicaId,
        bytes: Vec<u8>,
        snapshot: Option<Box<Snapshot>>,
        outputs: &mut Vec<Output>,
    ) {
        if let Some(snapshot) = snapshot {
            // It would take the place of the one that is about to become the state.
            if self.replica.is_restoring() {
                return;
            }
            self.snapshots.receive(snapshot);
        }
        self.step_replica(muster_consensus::Input::Message { from, bytes }, outputs);
        if !self.replica.is_restoring() {
            self.snapshots.forget_received();
        }
    }

    pub(super) fn step_replica(
        &mut self,
        input: muster_consensus::Input,
        outputs: &mut Vec<Output>,
    ) {
        let mut from_replica = Vec::new();
        self.replica.handle(input, &mut from_replica);
        self.take_replica_outputs(from_replica, outputs);
    }

    pub(super) fn take_replica_outputs(
        &mut self,
        from_replica: Vec<muster_consensus::Output>,
        outputs: &mut Vec<Output>,
    ) {
        use muster_consensus::Output as From;
        for output in from_replica {
            match output {
                From::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => outputs.push(Output::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                }),
                From::Send { to, bytes } => outputs.push(Output::Send { to, bytes }),
                From::SendSnapshot { to, index, bytes } => {
                    self.send_snapshot(to, index, bytes, outputs);
                }
                From::Discard { through } => outputs.push(Output::Discard { through }),
                From::Restore { mark } => self.restore(mark, outputs),
                From::Apply {
                    index,
                    data,
                    request,
                    ..
                } => self.apply(index, &data, request, outputs),
                From::Changed {
                    membership,
                    change,
                    data,
                    request,
                    ..
                } => self.changed(change, membership, &data, request, outputs),
                From::Readable { request } => {
                    if let Some(asked) = self.asked.remove(&request) {
                        let reply_to = asked.reply_to();
                        outputs.push(Output::Readable { reply_to });
                    }
                }
                From::Dropped { request, reason } => self.dropped(request, reason, outputs),
                From::Leader { leader, is_me, .. } => self.led_by(leader, is_me, outputs),
                From::Broken { reason } => outputs.push(Output::Broken { reason }),
            }
        }
    }

    fn dropped(&mut self, request: u64, reason: String, outputs: &mut Vec<Output>) {
        self.in_flight.retain(|_, proposal| *proposal != request);
        self.unrecorded.dropped(request);
        if let Some(asked) = self.asked.remove(&request) {
            let reply_to = asked.reply_to();
            let reply = match asked {
                // Asking again would not help: an operator is to decide.
                Asked::Change(_) => Reply::Refused(reason),
                Asked::Command(_) | Asked::Read(_) => Reply::Unavailable(reason),
            };
            outputs.push(Output::Reply { reply_to, reply });
        }
    }

    fn changed(
        &mut self,
        change: Change,
        membership: Membership,
        data: &[u8],
        request: Option<u64>,
        outputs: &mut Vec<Output>,
    ) {
        self.snapshots.applied(data.len());
        let member = convert::member(data).unwrap_or_default();
        if let Change::AddLearner(id) = change
            && membership.has(id)
            && self.members.get(id).is_none()
        {
            self.members.add(id, member.address);
        }
        self.members.keep(&membership);
        self.say_members(outputs);
        if !membership.has(self.options.id) {
            outputs.push(Output::Removed);
        }
        if let Some(request) = request {
            self.in_flight.retain(|_, proposal| *proposal != request);
            if let Some(asked) = self.asked.remove(&request) {
                let (reply_to, reply) = (asked.reply_to(), Reply::Changed(membership));
                outputs.push(Output::Reply { reply_to, reply });
            }
        }
    }

    /// Who leads has changed. A leader that steps down forgets what only a leader knows: the next
    /// one hears of it again.
    fn led_by(&mut self, leader: Option<ReplicaId>, is_me: bool, outputs: &mut Vec<Output>) {
        self.leader = leader;
        if self.is_leader == is_me {
            return;
        }
        self.is_leader = is_me;
        self.is_changed = true;
        self.observed = muster_cluster::plan::Observed::default();
        self.links.clear();
        self.worlds.clear();
        self.waits.clear();
        self.closing.clear();
        self.stuck.clear();
        self.in_flight.clear();
        self.unrecorded.clear();
        for asked in std::mem::take(&mut self.asked).into_values() {
            let (reply_to, reply) = (asked.reply_to(), Reply::NotLeading(leader));
            outputs.push(Output::Reply { reply_to, reply });
        }
        outputs.push(Output::Leads(is_me));
        if is_me {
            // Nothing is known of the worlds that there are; they are watched from now on.
            let running = self.state.open_jobs().filter(|(_, job)| job.has_world());
            let watch = |(name, job): (&JobName, &Arc<Job>)| {
                (name.clone(), WorldWatch::new(job.generation))
            };
            self.worlds = running.map(watch).collect();
        }
    }
}
