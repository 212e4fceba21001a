//! All that the entries up to one lead to, as it goes to a file and to a replica that is too far
//! behind for the log. It shares with the machine what has not changed since it was taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::ids::JobName;
use muster_cluster::state::ClusterState;
use muster_consensus::{Mark, ReplicaId};
use muster_proto::{convert, v1};

use crate::coordinator::Account;
use crate::members::Members;

/// The state behind one entry.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) cluster_id: [u8; 16],
    pub(crate) members: Members,
    pub(crate) state: ClusterState,
    pub(crate) accounts: BTreeMap<JobName, Arc<Account>>,
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
        let nodes = self.state.nodes.iter();
        let answered = self.state.answered.iter();
        let jobs = self.state.jobs.iter().map(|(name, job)| v1::JobState {
            account: self.accounts.get(name).map(|account| account.to_wire()),
            ..convert::job_state(name, job)
        });
        let draining = self.state.draining.iter();
        let message = v1::Snapshot {
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
            jobs: jobs.collect(),
        };
        convert::snapshot_bytes(&message)
    }

    /// A snapshot from the bytes of a file.
    ///
    /// # Errors
    /// When they are none; the text says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = convert::snapshot(bytes);
        message
            .and_then(Self::of_wire)
            .map_err(|error| error.to_string())
    }

    fn of_wire(message: v1::Snapshot) -> Result<Self, convert::BadMessage> {
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
            let account = job.account.take();
            let (name, job) = convert::job_of(job)?;
            if let Some(account) = account {
                accounts.insert(name.clone(), Arc::new(Account::of_wire(account)));
            }
            state.restore_job(name, job);
        }
        let cluster_id = message.cluster_id.try_into();
        Ok(Self {
            cluster_id: cluster_id.map_err(|_| convert::BadMessage::Missing("cluster id"))?,
            members: Members::of_wire(message.members, message.newest_member),
            state,
            accounts,
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
        accounts.map(|(name, account)| (name, account.num_bytes))
    }

    /// Which cluster it is of.
    #[must_use]
    pub fn cluster_id(&self) -> [u8; 16] {
        self.cluster_id
    }

    /// The members of the group there, with their addresses.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }
}
