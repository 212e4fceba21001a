//! How the ranks of a new world come together: they connect, and those that are at the step give
//! the others what these lack. It runs beside the computation of what is missing of the step.
//!
//! What crosses between two ranks, each a message of the group:
//!
//! ```text
//! reduced = head (step: u64, story, shard notes), then the vector
//! state   = head (step: u64, trace: 32 bytes, BLAKE3 of the values: 32 bytes, records), then the
//!           values of the giver's share
//! records = those that are not known to be durable, each behind its length as u32
//! ```
//!
//! A rank that enters knows itself what it lacks, and tells all who are to give it (a byte, [`Lack`]).
//! Where it lacks nothing, the first of them sends records. Where it lacks a step, it first asks that one
//! alone, who answers 1, reduced and records, or 0 if it does not have the vector; then the rank lacks
//! the state. A state comes from all.

mod exchange;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use muster_cluster::ids::{Generation, History, RankId};
#[cfg(feature = "devices")]
use muster_cluster::job::spec::Reduction;
use muster_cluster::state::{Finish, Heal};
use muster_cluster::tree::Run;
use muster_collective::tcp::{self, Token};
use muster_collective::{Group, Revoker, World};
use muster_proto::{convert, v1};
use muster_trainer::{Head, Trainer};

use crate::halt;
#[cfg(feature = "devices")]
use crate::kernels;
use crate::last::Last;
use crate::links::{Links, Way};
#[cfg(feature = "devices")]
use crate::prepare;
use crate::shared::{Shared, Trouble};
use crate::work::{Work, closed_by, failed};
use exchange::Exchange;
pub(crate) use exchange::{decode_records, encode_records};

/// What a rank was given.
pub(crate) enum Received {
    /// What moves it one step on.
    Reduced {
        last: Last,
        /// Of the steps up to it, not known to be durable.
        records: Vec<v1::StepRecord>,
    },
    /// A whole state.
    State {
        head: Head,
        shares: Vec<Vec<f32>>,
        records: Vec<v1::StepRecord>,
    },
    /// Nothing else: it follows, and is at the step.
    Records(Vec<v1::StepRecord>),
}

/// What a rank lacks that enters a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Lack {
    Nothing = 0,
    Reduced = 1,
    State = 2,
}

/// What this rank gives another one.
enum Gift {
    Reduced(Arc<Last>),
    /// What it lacks; of a state the share of this place of so many.
    Lacking {
        place: usize,
        count: usize,
    },
}

/// A world on its way together, as one rank sees it.
pub(crate) struct Meeting {
    world: World,
    token: Token,
    revoker: Revoker,
    listener: Arc<tcp::Listener>,
    way: Way,
    /// Of ranks that are to have the same bits, on devices: what is known of kernels.
    #[cfg(feature = "devices")]
    known: Option<kernels::Known>,
    detect: Duration,
    timeout: Duration,
    gifts: Vec<(RankId, Gift)>,
    last: Option<Arc<Last>>,
    /// What goes to those who enter.
    records: Vec<v1::StepRecord>,
    need: Option<Heal>,
    lack: Lack,
    num_elements: usize,
    num_state_values: usize,
}

/// A meeting that is under way.
pub(crate) struct Underway {
    thread: JoinHandle<Result<(Links, Option<Received>), Trouble>>,
    /// Parts of the state that it wants to give, and what they are.
    wanted: Receiver<Range<usize>>,
    given: Sender<(Head, Vec<f32>)>,
}

/// The thread's side of it.
struct Window {
    wanted: Sender<Range<usize>>,
    given: Receiver<(Head, Vec<f32>)>,
}

/// The runs of an assignment.
pub(crate) fn runs(shards: &[v1::Shards]) -> Result<Vec<Run>, Trouble> {
    convert::runs(shards.to_vec()).map_err(|error| failed(&error))
}

/// How this rank's device reaches the others' in the world of `assignment`.
#[cfg(feature = "devices")]
fn way(work: &Work<'_>, assignment: &v1::Assignment, token: Token) -> Result<Way, Trouble> {
    if !work.trainer.is_on_device() {
        return Ok(Way::Host);
    }
    let detect = Duration::from_millis(assignment.detect_ms.max(1));
    let gpu = prepare::gpu(assignment)?;
    Ok(Way::of_device(
        gpu,
        work.host,
        token,
        detect,
        work.shared.refusal(),
    ))
}

/// As above, in a build without devices.
#[cfg(not(feature = "devices"))]
#[expect(clippy::unnecessary_wraps, reason = "as in a build with devices")]
fn way(_: &Work<'_>, _: &v1::Assignment, _: Token) -> Result<Way, Trouble> {
    Ok(Way::Host)
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
            size: assignment.num_ranks(),
        };
        // The values of a shared state go their own way.
        let is_shared = work.rules.is_shared;
        let token: [u8; 16] = assignment.world_token[..]
            .try_into()
            .map_err(|_| Trouble::Failed("the token of this world is not 16 bytes".to_owned()))?;
        let finish = assignment.finish.clone().map(Finish::try_from);
        let finish = finish.transpose().map_err(|error| failed(&error))?;
        let step = assignment.first_step;
        let last = work.last.clone().filter(|last| last.step + 1 == step);
        let at = work.shared.tell(|machine| machine.state());
        let lack = match at.and_then(|at| step.checked_sub(at)) {
            _ if is_shared => Lack::State,
            Some(0) => Lack::Nothing,
            Some(1) => Lack::Reduced,
            _ => Lack::State,
        };
        let mut meeting = Self {
            world,
            token: Token(token),
            revoker,
            listener: Arc::clone(&work.listener),
            way: way(work, assignment, Token(token))?,
            #[cfg(feature = "devices")]
            known: work
                .known
                .clone()
                .filter(|_| work.spec.train.reduction == Reduction::Canonical),
            detect: Duration::from_millis(assignment.detect_ms.max(1)),
            timeout: Duration::from_millis(assignment.collective_timeout_ms),
            gifts: Vec::new(),
            last,
            records: Vec::new(),
            need: None,
            lack,
            num_elements: work.trainer.num_elements(),
            num_state_values: if is_shared {
                0
            } else {
                work.trainer.num_state_values()
            },
        };
        let parts = finish.map(|finish| finish.parts).unwrap_or_default();
        for (rank, part) in (0u32..).map(RankId).zip(parts) {
            match &part.heal {
                heal if rank == world.rank => meeting.need = heal.clone(),
                Some(Heal::Reduced { from }) if *from == world.rank => {
                    let last = meeting.last.clone().ok_or_else(|| {
                        Trouble::Failed(format!(
                            "rank {rank} is to be given the reduced vector of the step before \
                             step {step}, which is not here"
                        ))
                    })?;
                    meeting.gifts.push((rank, Gift::Reduced(last)));
                }
                Some(Heal::State { from }) => {
                    let place = from.iter().position(|from| *from == world.rank);
                    if let Some(place) = place {
                        let count = from.len();
                        meeting.gifts.push((rank, Gift::Lacking { place, count }));
                    }
                }
                _ => {}
            }
        }
        meeting.records = work.shared.tell(|machine| {
            let kept: Vec<_> = machine.unacked().cloned().collect();
            kept
        });
        Ok(meeting)
    }

    /// Whether this rank is given something before it can compute.
    pub(crate) fn needs(&self) -> bool {
        match self.need {
            None => false,
            Some(Heal::Reduced { .. }) => true,
            Some(Heal::State { .. }) => self.lack != Lack::Nothing,
        }
    }

    /// Begins, on a thread of its own.
    pub(crate) fn start(self, shared: &Arc<Shared>) -> Result<Underway, Trouble> {
        let shared = Arc::clone(shared);
        let (of_thread, wanted) = channel();
        let (given, to_thread) = channel();
        let window = Window {
            wanted: of_thread,
            given: to_thread,
        };
        let thread = thread::Builder::new()
            .name("meeting".to_owned())
            .spawn(move || self.meet(&shared, &window));
        let thread = thread
            .map_err(|error| Trouble::Failed(format!("no thread to meet the peers: {error}")))?;
        Ok(Underway {
            thread,
            wanted,
            given,
        })
    }

    fn meet(self, shared: &Shared, window: &Window) -> Result<(Links, Option<Received>), Trouble> {
        let generation = self.world.generation.0;
        halt::at(shared, "meet");
        let peers = shared.wait_for_peers(generation)?;
        let addresses = convert::addresses(&peers).map_err(|error| failed(&error))?;
        let parsed: Result<Vec<SocketAddr>, _> =
            addresses.iter().map(|address| address.parse()).collect();
        let peers = parsed.map_err(|_| {
            Trouble::Failed(format!(
                "the peers' addresses {addresses:?} are no addresses"
            ))
        })?;
        #[cfg_attr(
            not(feature = "devices"),
            expect(unused_mut, reason = "nothing is compared")
        )]
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
        #[cfg(feature = "devices")]
        if let Some(trouble) = self.compare(&mut group, shared)? {
            group.retire();
            return Err(trouble);
        }
        let mut links = Links::connect(group, &self.way, shared, self.timeout);
        match self.exchange(links.group(), shared, window) {
            Ok(received) => {
                halt::at(shared, "healed");
                Ok((links, received))
            }
            Err(trouble) => {
                links.retire();
                Err(trouble)
            }
        }
    }

    /// Whether this rank's kernels give other bits than those of most.
    #[cfg(feature = "devices")]
    fn compare(&self, group: &mut Group, shared: &Shared) -> Result<Option<Trouble>, Trouble> {
        let Some(known) = self.known.as_ref().filter(|_| self.world.size > 1) else {
            return Ok(None);
        };
        let told = kernels::told(known.hash, self.need.is_none());
        let told = group.all_gather(told, self.timeout);
        let told = told.map_err(|error| closed_by(shared, self.world.generation.0, &error))?;
        let odd = kernels::odd_ones(&told);
        let is_one = odd.contains(&(self.world.rank.0 as usize));
        Ok(is_one.then(|| kernels::is_odd(odd.len(), told.len(), known)))
    }

    fn exchange(
        &self,
        group: &mut Group,
        shared: &Shared,
        window: &Window,
    ) -> Result<Option<Received>, Trouble> {
        let exchange = Exchange {
            meeting: self,
            shared,
            window,
        };
        for (to, gift) in &self.gifts {
            match gift {
                Gift::Reduced(last) => exchange.give_reduced(group, *to, last)?,
                Gift::Lacking { place, count } => {
                    exchange.give_what_it_lacks(group, *to, *place, *count)?;
                }
            }
        }
        match &self.need {
            None => Ok(None),
            Some(Heal::Reduced { from }) => {
                let last = exchange.take_reduced(group, *from)?;
                let records = Vec::new();
                Ok(Some(Received::Reduced { last, records }))
            }
            Some(Heal::State { from }) => exchange.take_what_is_lacking(group, from).map(Some),
        }
    }
}

impl Window {
    /// A part of the state, as the thread that has it gives it.
    fn look(&self, range: Range<usize>) -> Option<(Head, Vec<f32>)> {
        self.wanted.send(range).ok()?;
        self.given.recv().ok()
    }
}

impl Underway {
    /// Gives what the meeting wants of the state, if it wants anything yet.
    pub(crate) fn give(&self, trainer: &Trainer) -> Result<(), Trouble> {
        while let Ok(range) = self.wanted.try_recv() {
            self.hand(trainer, range)?;
        }
        Ok(())
    }

    fn hand(&self, trainer: &Trainer, range: Range<usize>) -> Result<(), Trouble> {
        let values = trainer.values(range).map_err(|error| failed(&error))?;
        // Who asked may have given up meanwhile.
        let _ = self.given.send((trainer.head(), values));
        Ok(())
    }

    /// The connections, once all are together and this rank has what it needs.
    pub(crate) fn wait(self, trainer: &Trainer) -> Result<(Links, Option<Received>), Trouble> {
        while let Ok(range) = self.wanted.recv() {
            self.hand(trainer, range)?;
        }
        let done = self.thread.join();
        done.unwrap_or_else(|_| Err(Trouble::Failed("the thread that meets panicked".to_owned())))
    }
}
