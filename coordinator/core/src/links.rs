//! The workers' streams as the leader sees them: who is at the other end, when it last spoke, and
//! which orders went over it. What ought to go over it is not decided here.

use std::collections::BTreeMap;

use muster_cluster::command::Node;
use muster_cluster::ids::{Generation, Incarnation, JobName, ProcessId, Step, WorkerName};
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

/// The open streams, one a worker.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_session: BTreeMap<Session, Link>,
    by_worker: BTreeMap<WorkerName, Session>,
}

impl Links {
    /// A stream opened. A worker that has another one is taken off that first, by
    /// [`remove`](Self::remove).
    pub(crate) fn insert(&mut self, session: Session, link: Link) {
        self.by_worker.insert(link.worker.clone(), session);
        self.by_session.insert(session, link);
    }

    pub(crate) fn remove(&mut self, session: Session) -> Option<Link> {
        let link = self.by_session.remove(&session)?;
        if self.by_worker.get(&link.worker) == Some(&session) {
            self.by_worker.remove(&link.worker);
        }
        Some(link)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn get(&self, session: Session) -> Option<&Link> {
        self.by_session.get(&session)
    }

    pub(crate) fn get_mut(&mut self, session: Session) -> Option<&mut Link> {
        self.by_session.get_mut(&session)
    }

    /// The stream of a worker.
    pub(crate) fn of(&self, worker: &WorkerName) -> Option<(Session, &Link)> {
        let session = *self.by_worker.get(worker)?;
        Some((session, self.by_session.get(&session)?))
    }

    /// The stream of a worker in one of its lives, to be marked.
    pub(crate) fn in_life(
        &mut self,
        worker: &WorkerName,
        incarnation: Incarnation,
    ) -> Option<(Session, &mut Link)> {
        let session = *self.by_worker.get(worker)?;
        let link = self.by_session.get_mut(&session)?;
        (link.node.incarnation == incarnation).then_some((session, link))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Session, &Link)> {
        self.by_session
            .iter()
            .map(|(session, link)| (*session, link))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Session, &mut Link)> {
        let links = self.by_session.iter_mut();
        links.map(|(session, link)| (*session, link))
    }
}
