//! What all processes of the simulation share beside the network: the disk of checkpoints, the
//! oracle, the log, and the bugs that are planted to see whether anybody notices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use muster_proto::v1;

use super::model::State;
use super::net::{Net, Node, StreamId, Time};
use super::oracle::Oracle;
use super::rng::mix;

/// A bug of the model's, never of the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// A step that completes after the rank reported its world closed is applied all the same.
    ApplyWhenClosed,
    /// Frames are matched by their sender alone, whatever generation they are of.
    AnyGeneration,
    /// What a dead rank had sent of a shard is counted beside what is computed again.
    CountTheDead,
    /// A checkpoint's files are reported before the records of its steps are durable.
    ReportEarly,
    /// A coordinator takes a write for durable that is on its way to the disk.
    AnswerBeforeSync,
    /// A coordinator that lost its disk comes back under its old number, and nobody asks it for its
    /// disk: it votes, and counts, a second time.
    ComeBackEmpty,
    /// What the ranks of a given up history wrote comes late, and is taken for a checkpoint of the
    /// present one.
    AnyHistory,
}

/// A moment in the life of a process at which a fault is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Preparing,
    Entering,
    Meeting,
    Giving,
    Taking,
    Computing,
    Reducing,
    Applying,
    Applied,
    Evaluating,
    Writing,
    /// A follower asks for a state.
    Asking,
    /// A rank copies its share of one.
    Copying,
    /// A follower has applied a step.
    Following,
    Closed,
    Done,
    Decided,
    Committed,
    // Of the control plane.
    Elected,
    Snapshotting,
    Sending,
    Restored,
    /// An operator asks for another group, and a member has applied that it is one.
    Changing,
    Changed,
}

/// Those of the control plane alone.
pub(crate) const GROUP_POINTS: [Point; 8] = [
    Point::Decided,
    Point::Committed,
    Point::Elected,
    Point::Snapshotting,
    Point::Sending,
    Point::Restored,
    Point::Changing,
    Point::Changed,
];

pub(crate) const POINTS: [Point; 18] = [
    Point::Preparing,
    Point::Entering,
    Point::Meeting,
    Point::Giving,
    Point::Taking,
    Point::Computing,
    Point::Reducing,
    Point::Applying,
    Point::Applied,
    Point::Evaluating,
    Point::Writing,
    Point::Asking,
    Point::Copying,
    Point::Following,
    Point::Closed,
    Point::Done,
    Point::Decided,
    Point::Committed,
];

/// A report that is late.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) report: v1::RankReport,
    pub(crate) stream: StreamId,
    pub(crate) since: Time,
}

/// A process that a worker starts.
#[derive(Debug)]
pub(crate) struct Spawn {
    pub(crate) pid: u32,
    pub(crate) host: u32,
    pub(crate) life: u64,
    pub(crate) key: v1::RankKey,
}

#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) net: Net,
    pub(crate) oracle: Oracle,
    pub(crate) plant: Plant,
    /// Checkpoint files by name; every machine sees them.
    pub(crate) files: BTreeMap<String, State>,
    /// What comes late, with [`Plant::AnyHistory`].
    pub(crate) held: Vec<Held>,
    /// Whether files of checkpoints cannot be written now and then.
    pub(crate) has_full_disks: bool,
    pub(crate) points: Vec<(Point, Node)>,
    pub(crate) spawns: Vec<Spawn>,
    /// Processes that ended by themselves, and how.
    pub(crate) exits: Vec<(u32, String)>,
    pub(crate) num_pids: u32,
    /// The coordinators that listen, by their seats.
    pub(crate) listening: BTreeMap<u32, Node>,
    /// Seats of machines that are off.
    pub(crate) dark: BTreeSet<u32>,
    /// The lines of the log; `None` where nobody wants them.
    pub(crate) log: Option<Vec<String>>,
}

impl Env {
    pub(crate) fn log(&mut self, line: fmt::Arguments<'_>) {
        if let Some(log) = &mut self.log {
            let now = self.net.now;
            log.push(format!(
                "{:>4}.{:06} {line}",
                now / 1_000_000,
                now % 1_000_000
            ));
        }
    }

    pub(crate) fn point(&mut self, point: Point, node: Node) {
        self.points.push((point, node));
    }

    /// Whether a process finds no room for a file of this step's checkpoint.
    pub(crate) fn refuses_to_write(&self, pid: u32, step: u64) -> bool {
        self.has_full_disks && mix(u64::from(pid) << 32 ^ step).is_multiple_of(3)
    }

    /// The coordinator at a seat.
    pub(crate) fn at(&self, seat: u32) -> Option<Node> {
        self.listening.get(&seat).copied()
    }

    /// Whether nobody would even refuse there.
    pub(crate) fn is_dark(&self, seat: u32) -> bool {
        self.dark.contains(&seat)
    }

    pub(crate) fn new_pid(&mut self) -> u32 {
        self.num_pids += 1;
        self.num_pids
    }
}
