//! All that the entries up to one lead to, as it goes to a file and to a replica that is too far
//! behind for the log. It shares with the machine what has not changed since it was taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::ids::JobName;
use muster_cluster::state::ClusterState;
use muster_consensus::{Mark, ReplicaId};
use muster_proto::{convert, v1};

use crate::archive::{Archive, state_of};
use crate::coordinator::Account;
use crate::members::Members;

/// The state behind one entry.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) cluster_id: [u8; 16],
    pub(crate) members: Members,
    /// Without the jobs that are over.
    pub(crate) state: ClusterState,
    pub(crate) archive: Archive,
    pub(crate) accounts: BTreeMap<JobName, Arc<Account>>,
    /// How many bytes it was read from; 0 where it was not.
    pub(crate) num_bytes: u64,
}

/// A snapshot, and where it ends.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The last entry that it covers.
    pub mark: Mark,
    /// The state.
    pub snapshot: Snapshot,
}

impl Snapshot {
    /// The bytes of a file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.parts().flatten().collect()
    }

    /// The bytes of a file in parts, made one after the other, so that they need not be in memory all at
    /// once.
    pub fn parts(&self) -> impl Iterator<Item = Vec<u8>> {
        let head = std::iter::once_with(|| self.head());
        let going_on = self.state.jobs.iter().map(|(name, job)| v1::Snapshot {
            jobs: vec![state_of(
                name,
                job,
                self.accounts.get(name).unwrap_or(&Arc::default()),
            )],
            ..v1::Snapshot::default()
        });
        let ended = self.archive.to_wire().map(|job| v1::Snapshot {
            ended: vec![job],
            ..v1::Snapshot::default()
        });
        let parts = head.chain(going_on).chain(ended);
        parts.map(|part| convert::snapshot_bytes(&part))
    }

    /// All but the jobs.
    fn head(&self) -> v1::Snapshot {
        let nodes = self.state.nodes.iter();
        let answered = self.state.answered.iter();
        let draining = self.state.draining.iter();
        v1::Snapshot {
            cluster_id: self.cluster_id.to_vec(),
            stamp_ms: self.state.stamp_ms,
            members: self.members.to_wire(),
            newest_member: self.members.newest(),
            nodes: nodes
                .map(|(worker, node)| convert::register(worker, node))
                .collect(),
            draining: draining.map(ToString::to_string).collect(),
            answered: answered
                .map(|(stamp_ms, request, answer)| convert::answered(stamp_ms, request, answer))
                .collect(),
            jobs: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// A snapshot from the bytes of a file.
    ///
    /// # Errors
    /// When they are none; the text says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut archive = Archive::default();
        let message = convert::snapshot(bytes, |job| archive.take_in(job));
        let snapshot = message.and_then(|message| Self::of_wire(message, archive));
        let snapshot = snapshot.map_err(|error| error.to_string())?;
        Ok(Self {
            num_bytes: bytes.len() as u64,
            ..snapshot
        })
    }

    fn of_wire(message: v1::Snapshot, mut archive: Archive) -> Result<Self, convert::BadMessage> {
        let mut state = ClusterState::default();
        let mut accounts = BTreeMap::new();
        state.pass(message.stamp_ms);
        for node in message.nodes {
            let worker = convert::worker_name(&node.worker)?;
            state.nodes.insert(worker, convert::node(node)?);
        }
        for worker in message.draining {
            state.draining.insert(convert::worker_name(&worker)?);
        }
        for answered in message.answered {
            let (stamp_ms, request, answer) = convert::remembered(answered)?;
            state.answered.restore(stamp_ms, request, answer);
        }
        for mut job in message.jobs {
            let account = Account::of_wire(job.account.take().unwrap_or_default());
            let (name, job) = convert::job_of(job)?;
            if job.is_over() {
                archive.put(name, &job, &account);
            } else {
                accounts.insert(name.clone(), Arc::new(account));
                state.restore_job(name, job);
            }
        }
        let cluster_id = message.cluster_id.try_into();
        Ok(Self {
            cluster_id: cluster_id.map_err(|_| convert::BadMessage::Missing("cluster id"))?,
            members: Members::of_wire(message.members, message.newest_member),
            state,
            archive,
            accounts,
            num_bytes: 0,
        })
    }

    /// The same jobs and nodes in a group of these members, which nobody has seen yet.
    #[must_use]
    pub fn in_group(self, cluster_id: [u8; 16], addresses: &BTreeMap<ReplicaId, String>) -> Self {
        Self {
            cluster_id,
            members: Members::founders(addresses),
            ..self
        }
    }

    /// How many bytes of events each job has.
    pub fn event_bytes(&self) -> impl Iterator<Item = (&JobName, u64)> {
        let accounts = self.accounts.iter();
        let going_on = accounts.map(|(name, account)| (name, account.num_bytes));
        going_on.chain(self.archive.event_bytes())
    }

    /// The members of the group there, with their addresses.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }
}
