//! How the ranks of a new world come together: they connect, and those that are at the step give
//! the others what these lack. It runs beside the computation of what is missing of the step.
//!
//! What crosses between two ranks, each a message of the group:
//!
//! ```text
//! reduced = head (step: u64, shard notes), then the vector
//! state   = head (step: u64, trace: 32 bytes, BLAKE3 of the values: 32 bytes, the records that
//!           are not known to be durable, each behind its length as u32), then the values of the
//!           giver's share
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use muster_cluster::ids::{Generation, History, RankId, Step};
use muster_cluster::state::{Finish, Heal};
use muster_cluster::tree::Run;
use muster_collective::tcp::{self, Token};
use muster_collective::{Group, Revoker, World};
use muster_proto::{convert, v1};
use muster_trainer::{Head, ShardNote, Snapshot};
use muster_worker_core::rank::Cause;
use prost::Message as _;

use crate::halt;
use crate::shared::{Shared, Trouble};
use crate::work::{Last, Work, closed_by, failed};

/// What a rank was given.
pub(crate) enum Received {
    /// What moves it one step on.
    Reduced(Last),
    /// A whole state.
    State {
        head: Head,
        values: Vec<f32>,
        /// Of the steps up to it, not known to be durable.
        records: Vec<v1::StepRecord>,
    },
}

/// What a rank gives another one.
#[derive(Clone)]
enum Gift {
    Reduced(Arc<Last>),
    State(Arc<Snapshot>, Range<usize>),
}

/// A world on its way together, as one rank sees it.
pub(crate) struct Meeting {
    world: World,
    token: Token,
    revoker: Revoker,
    listener: Arc<tcp::Listener>,
    detect: Duration,
    timeout: Duration,
    gifts: Vec<(RankId, Gift)>,
    /// What goes with a state.
    records: Vec<v1::StepRecord>,
    need: Option<Heal>,
    num_elements: usize,
    num_state_values: usize,
}

/// A meeting that is under way.
pub(crate) struct Underway(JoinHandle<Result<(Group, Option<Received>), Trouble>>);

/// The runs of an assignment.
pub(crate) fn runs(shards: &[v1::Shards]) -> Result<Vec<Run>, Trouble> {
    convert::runs(shards.to_vec()).map_err(|error| failed(&error))
}

impl Meeting {
    /// What this rank has to give and to take, by its assignment.
    pub(crate) fn new(
        work: &Work<'_>,
        assignment: &v1::Assignment,
        revoker: Revoker,
    ) -> Result<Self, Trouble> {
        let world = World {
            history: History(assignment.history),
            generation: Generation(assignment.generation),
            rank: RankId(assignment.rank),
            size: u32::try_from(assignment.shards.len()).unwrap_or(u32::MAX),
        };
        // The values of a shared state go their own way.
        let is_shared = work.rules.is_shared;
        let token: [u8; 16] = assignment.world_token[..]
            .try_into()
            .map_err(|_| Trouble::Failed("the token of this world is not 16 bytes".to_owned()))?;
        let finish = assignment.finish.clone().map(Finish::try_from);
        let finish = finish.transpose().map_err(|error| failed(&error))?;
        let mut meeting = Self {
            world,
            token: Token(token),
            revoker,
            listener: Arc::clone(&work.listener),
            detect: Duration::from_millis(assignment.detect_ms.max(1)),
            timeout: Duration::from_millis(assignment.collective_timeout_ms),
            gifts: Vec::new(),
            records: Vec::new(),
            need: None,
            num_elements: work.trainer.num_elements(),
            num_state_values: if is_shared {
                0
            } else {
                work.trainer.num_state_values()
            },
        };
        let parts = finish.map(|finish| finish.parts).unwrap_or_default();
        let mut snapshot = None;
        for (rank, part) in (0u32..).map(RankId).zip(parts) {
            match &part.heal {
                heal if rank == world.rank => meeting.need = heal.clone(),
                Some(Heal::Reduced { from }) if *from == world.rank => {
                    let step = assignment.first_step;
                    let last = work.last.clone();
                    let last = last.filter(|last| last.step + 1 == step).ok_or_else(|| {
                        Trouble::Failed(format!(
                            "rank {rank} is to be given the reduced vector of the step before \
                             step {step}, which is not here"
                        ))
                    })?;
                    meeting.gifts.push((rank, Gift::Reduced(last)));
                }
                Some(Heal::State { from }) => {
                    let Some(place) = from.iter().position(|from| *from == world.rank) else {
                        continue;
                    };
                    let snapshot = snapshot.get_or_insert_with(|| {
                        Arc::new(if is_shared {
                            work.trainer.snapshot_of(false, &BTreeSet::new())
                        } else {
                            work.trainer.snapshot()
                        })
                    });
                    let share = share(meeting.num_state_values, place, from.len());
                    let gift = Gift::State(Arc::clone(snapshot), share);
                    meeting.gifts.push((rank, gift));
                }
                _ => {}
            }
        }
        if snapshot.is_some() {
            let kept = work.shared.tell(|machine| {
                let kept: Vec<_> = machine.unacked().cloned().collect();
                kept
            });
            meeting.records = kept;
        }
        Ok(meeting)
    }

    /// Whether this rank is given something before it can compute.
    pub(crate) fn needs(&self) -> bool {
        self.need.is_some()
    }

    /// Begins, on a thread of its own.
    pub(crate) fn start(self, shared: &Arc<Shared>) -> Result<Underway, Trouble> {
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new()
            .name("meeting".to_owned())
            .spawn(move || self.meet(&shared));
        let thread = thread
            .map_err(|error| Trouble::Failed(format!("no thread to meet the peers: {error}")))?;
        Ok(Underway(thread))
    }

    fn meet(self, shared: &Shared) -> Result<(Group, Option<Received>), Trouble> {
        let generation = self.world.generation.0;
        halt::at(shared, "meet");
        let addresses = shared.wait_for_peers(generation)?;
        let parsed: Result<Vec<SocketAddr>, _> =
            addresses.iter().map(|address| address.parse()).collect();
        let peers = parsed.map_err(|_| {
            Trouble::Failed(format!(
                "the peers' addresses {addresses:?} are no addresses"
            ))
        })?;
        let mut group = tcp::connect(
            &self.listener,
            self.world,
            &peers,
            self.token,
            self.detect,
            &self.revoker,
            self.timeout,
        )
        .map_err(|error| closed_by(shared, generation, &error))?;
        halt::at(shared, "met");
        match self.exchange(&mut group, shared) {
            Ok(received) => {
                halt::at(shared, "healed");
                Ok((group, received))
            }
            Err(trouble) => {
                group.retire();
                Err(trouble)
            }
        }
    }

    fn exchange(&self, group: &mut Group, shared: &Shared) -> Result<Option<Received>, Trouble> {
        let generation = self.world.generation.0;
        let closed = |error| closed_by(shared, generation, &error);
        for (to, gift) in &self.gifts {
            let (head, values) = gift.encode(&self.records);
            group.send(*to, head, self.timeout).map_err(closed)?;
            group
                .send_vector(*to, &values, self.timeout)
                .map_err(closed)?;
        }
        let broken = |reason: String| {
            let cause = Cause {
                reason,
                ..Cause::default()
            };
            shared.close(generation, cause);
            Trouble::Closed
        };
        match &self.need {
            None => Ok(None),
            Some(Heal::Reduced { from }) => {
                let head = group.recv(*from, self.timeout).map_err(closed)?;
                let vector = group
                    .recv_vector(*from, self.num_elements, self.timeout)
                    .map_err(closed)?;
                let (step, notes) = decode_reduced(&head)
                    .ok_or_else(|| broken(format!("rank {from} sent a bad head")))?;
                Ok(Some(Received::Reduced(Last {
                    step,
                    vector: Arc::new(vector),
                    notes,
                })))
            }
            Some(Heal::State { from }) => {
                let mut whole = None;
                let mut records = Vec::new();
                let mut values = Vec::with_capacity(self.num_state_values);
                for (place, giver) in from.iter().enumerate() {
                    let head = group.recv(*giver, self.timeout).map_err(closed)?;
                    let share = share(self.num_state_values, place, from.len());
                    let part = group
                        .recv_vector(*giver, share.len(), self.timeout)
                        .map_err(closed)?;
                    let sent = decode_state(&head, &part).filter(|(head, _)| {
                        // All of them are at the same step of the same samples.
                        whole.is_none_or(|whole| whole == *head)
                    });
                    let (head, kept) = sent.ok_or_else(|| {
                        broken(format!("the state that rank {giver} sent is not whole"))
                    })?;
                    whole = Some(head);
                    // They have the same but for those that were acknowledged meanwhile.
                    if kept.len() > records.len() {
                        records = kept;
                    }
                    values.extend_from_slice(&part);
                }
                let head = whole.ok_or_else(|| broken("nobody sends a state".to_owned()))?;
                Ok(Some(Received::State {
                    head,
                    values,
                    records,
                }))
            }
        }
    }
}

impl Underway {
    /// The group, once all are together and this rank has what it needs.
    pub(crate) fn wait(self) -> Result<(Group, Option<Received>), Trouble> {
        self.0
            .join()
            .unwrap_or_else(|_| Err(Trouble::Failed("the thread that meets panicked".to_owned())))
    }
}

/// The share of `len` values that giver `place` of `count` sends.
fn share(len: usize, place: usize, count: usize) -> Range<usize> {
    let at = |place: usize| len / count * place + (len % count).min(place);
    at(place)..at(place + 1)
}

impl Gift {
    fn encode(&self, records: &[v1::StepRecord]) -> (Vec<u8>, Cow<'_, [f32]>) {
        match self {
            Gift::Reduced(last) => {
                let mut head = last.step.to_le_bytes().to_vec();
                for note in &last.notes {
                    note.encode(&mut head);
                }
                (head, last.vector.as_slice().into())
            }
            Gift::State(snapshot, share) => {
                let values = snapshot.values(share.clone());
                let Head { step, trace } = snapshot.head();
                let mut head = step.0.to_le_bytes().to_vec();
                head.extend(trace);
                head.extend(hash(&values));
                for record in records {
                    let bytes = record.encode_to_vec();
                    let length = u32::try_from(bytes.len()).expect("a record is a few numbers");
                    head.extend(length.to_le_bytes());
                    head.extend(bytes);
                }
                (head, values.into())
            }
        }
    }
}

/// BLAKE3 of values as they lie in memory, which is little-endian on every machine that we run on.
fn hash(values: &[f32]) -> [u8; 32] {
    blake3::hash(bytemuck::cast_slice(values)).into()
}

fn decode_reduced(head: &[u8]) -> Option<(u64, Vec<ShardNote>)> {
    let (step, mut rest) = head.split_first_chunk()?;
    let mut notes = Vec::new();
    while !rest.is_empty() {
        notes.push(ShardNote::decode(&mut rest).ok()?);
    }
    Some((u64::from_le_bytes(*step), notes))
}

/// The head of a state and its records, if its values are those that were sent.
fn decode_state(head: &[u8], values: &[f32]) -> Option<(Head, Vec<v1::StepRecord>)> {
    let (step, rest) = head.split_first_chunk()?;
    let (trace, rest) = rest.split_first_chunk()?;
    let (sent, mut rest): (&[u8; 32], _) = rest.split_first_chunk()?;
    let head = Head {
        step: Step(u64::from_le_bytes(*step)),
        trace: *trace,
    };
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (length, bytes) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (record, others) = bytes.split_at_checked(length)?;
        records.push(v1::StepRecord::decode(record).ok()?);
        rest = others;
    }
    (hash(values) == *sent).then_some((head, records))
}
