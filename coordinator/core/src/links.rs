//! The workers' streams as the leader sees them: who is at the other end, when it last spoke, and
//! which orders went over it. What ought to go over it is not decided here.

use std::collections::BTreeMap;

use muster_cluster::command::Node;
use muster_cluster::ids::{Generation, JobName, ProcessId, Step, WorkerName};
use muster_proto::v1;

/// One control stream of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Session(pub u64);

/// One process of a job.
pub(crate) type ProcessKey = (JobName, ProcessId);

/// What a worker was told of one process over this stream, and for which world. A new stream starts
/// from nothing, and so everything that still holds is said again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Its assignment; or the worker said itself that it has it. A process that waits to enter a
    /// world is assigned to generation 0.
    pub assigned: Option<Generation>,
    pub peers: Option<Generation>,
    pub stop: Option<Generation>,
    pub pause: Option<Generation>,
    pub close: Option<Generation>,
    /// To end it, since it does not answer.
    pub kill: Option<Generation>,
    pub committed: Option<Step>,
    /// Whom it is to follow.
    pub follow: Option<v1::Follow>,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Link {
    pub worker: WorkerName,
    pub node: Node,
    pub last_seen_ms: u64,
    pub told: BTreeMap<ProcessKey, Told>,
}

impl Link {
    pub(crate) fn new(worker: WorkerName, node: Node, now_ms: u64) -> Self {
        Self {
            worker,
            node,
            last_seen_ms: now_ms,
            told: BTreeMap::new(),
        }
    }

    /// What was told of a process, to be marked.
    pub(crate) fn told(&mut self, job: &JobName, process: ProcessId) -> &mut Told {
        self.told.entry((job.clone(), process)).or_default()
    }
}
