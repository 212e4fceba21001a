//! A process that waits to enter a world follows the steps of its job meanwhile. What it asks of whom is
//! decided in [`muster_worker_core::follower`].

mod call;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use muster_cluster::ids::ProcessId;
use muster_proto::v1;
use muster_trainer::Head;
use muster_worker_core::feed::Ask;
use muster_worker_core::follower::{Follower, Input, Output};
use muster_worker_core::rank::RankMachine;
use v1::rank_report::Report;

use crate::feed::Badge;
use crate::last::{Last, Story};
use crate::shared::Trouble;
use crate::work::{Times, Work, failed};
use call::{Call, Lengths};

/// Reduced vectors that wait to be applied; whoever brings one more waits, too.
const MAX_STEPS: usize = 2;

/// What comes from the processes that are followed.
#[derive(Debug)]
pub(crate) enum Event {
    Reached(ProcessId),
    Lost(ProcessId, String),
    Share {
        from: ProcessId,
        attempt: u64,
        head: Head,
        bytes: u64,
    },
    Arrived {
        from: ProcessId,
        attempt: u64,
        bytes: u64,
    },
    Whole {
        from: ProcessId,
        attempt: u64,
        share: Share,
    },
    Step {
        from: ProcessId,
        last: Last,
    },
    Level {
        from: ProcessId,
        step: u64,
    },
    Refused {
        from: ProcessId,
        ask: Ask,
    },
}

/// A share of a state that is here.
#[derive(Debug)]
pub(crate) struct Share {
    values: Vec<f32>,
    /// Of the steps up to it, what is not known to be durable, and behind which record.
    records: Vec<v1::StepRecord>,
    acked: (u64, bool),
}

/// What a process that waits hears next.
#[derive(Debug)]
pub(crate) enum News {
    /// It is to enter this world.
    World(v1::Assignment),
    Dismissed,
    Follow(v1::Follow),
    Event(Event),
}

/// Where events wait for the thread that follows.
#[derive(Debug)]
pub(crate) struct Mail {
    events: VecDeque<Event>,
    num_steps: usize,
    /// The step that is arriving.
    arriving: Option<u64>,
    is_open: bool,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            events: VecDeque::new(),
            num_steps: 0,
            arriving: None,
            is_open: true,
        }
    }
}

impl Mail {
    /// Whether nobody will read it any more.
    pub(crate) fn is_closed(&self) -> bool {
        !self.is_open
    }

    /// Whether there is no room for another step.
    pub(crate) fn is_full(&self) -> bool {
        self.num_steps >= MAX_STEPS
    }

    /// Whether a step below `first_step` is here, or will be in a moment: less would be lacking of a
    /// world that begins there.
    pub(crate) fn brings(&self, first_step: u64) -> bool {
        self.num_steps > 0 || self.arriving.is_some_and(|step| step < first_step)
    }

    /// A step begins to arrive.
    pub(crate) fn begins(&mut self, step: u64) {
        self.arriving = Some(step);
    }

    pub(crate) fn put(&mut self, event: Event) {
        self.num_steps += usize::from(matches!(event, Event::Step { .. }));
        if matches!(event, Event::Step { .. } | Event::Lost(..)) {
            self.arriving = None;
        }
        self.events.push_back(event);
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.num_steps -= usize::from(matches!(event, Event::Step { .. }));
        Some(event)
    }

    pub(crate) fn close(&mut self) {
        self.is_open = false;
        self.events.clear();
        self.num_steps = 0;
    }
}

/// What the thread that follows knows beside the machine.
struct Following<'a, 'w> {
    work: &'a mut Work<'w>,
    badge: Badge,
    machine: Follower,
    addresses: BTreeMap<ProcessId, SocketAddr>,
    calls: BTreeMap<ProcessId, Arc<Call>>,
    heads: BTreeMap<ProcessId, (u64, Head)>,
    shares: BTreeMap<ProcessId, (u64, Share)>,
}

/// Follows until there is a world to enter, or the dismissal (`None`).
pub(crate) fn follow(work: &mut Work<'_>, badge: Badge) -> Result<Option<v1::Assignment>, Trouble> {
    let shared = Arc::clone(work.shared);
    let mut following = Following {
        work,
        badge,
        machine: Follower::new(ProcessId(badge.process)),
        addresses: BTreeMap::new(),
        calls: BTreeMap::new(),
        heads: BTreeMap::new(),
        shares: BTreeMap::new(),
    };
    let result = loop {
        let done = match shared.wait_for_news() {
            Ok(News::World(assignment)) => Ok(Some(assignment)),
            Ok(News::Dismissed) => Ok(None),
            Ok(News::Follow(follow)) => match following.told(follow) {
                Ok(()) => continue,
                Err(trouble) => Err(trouble),
            },
            Ok(News::Event(event)) => match following.happened(event) {
                Ok(()) => continue,
                Err(trouble) => Err(trouble),
            },
            Err(trouble) => Err(trouble),
        };
        break done;
    };
    shared.close_mail();
    for call in following.calls.values() {
        call.hang_up();
    }
    match result {
        // The world that it was to enter is closed already: it holds what it has reported, and enters
        // the next one.
        Err(Trouble::Closed) => shared.wait_for_world(),
        result => result,
    }
}

impl Following<'_, '_> {
    fn told(&mut self, follow: v1::Follow) -> Result<(), Trouble> {
        let mut set = |feeds: Vec<v1::Feed>| -> BTreeSet<ProcessId> {
            let feeds = feeds.into_iter().filter_map(|feed| {
                let process = ProcessId(feed.process);
                // A process that feeds nobody is none to be followed.
                let address = feed.address.parse().ok()?;
                self.addresses.insert(process, address);
                Some(process)
            });
            feeds.collect()
        };
        let (ranks, others) = (set(follow.ranks), set(follow.others));
        self.handle(Input::Told { ranks, others }, None)
    }

    fn happened(&mut self, event: Event) -> Result<(), Trouble> {
        let mut step = None;
        let input = match event {
            Event::Reached(process) => Input::Reached(process),
            Event::Lost(process, reason) => Input::Lost { process, reason },
            Event::Share {
                from,
                attempt,
                head,
                bytes,
            } => {
                self.heads.insert(from, (attempt, head));
                self.shares.remove(&from);
                // One of no values has arrived with its head.
                let step = head.step.0;
                Input::Share {
                    from,
                    attempt,
                    step,
                    bytes,
                }
            }
            Event::Arrived {
                from,
                attempt,
                bytes,
            } => Input::Arrived {
                from,
                attempt,
                bytes,
            },
            Event::Whole {
                from,
                attempt,
                share,
            } => {
                let bytes = (share.values.len() * size_of::<f32>()) as u64;
                self.shares.insert(from, (attempt, share));
                Input::Arrived {
                    from,
                    attempt,
                    bytes,
                }
            }
            Event::Step { from, last } => {
                let number = last.step;
                step = Some(last);
                Input::Step { from, step: number }
            }
            Event::Level { from, step } => Input::Level { from, step },
            Event::Refused { from, ask } => Input::Refused { from, ask },
        };
        self.handle(input, step)
    }

    fn handle(&mut self, input: Input, mut step: Option<Last>) -> Result<(), Trouble> {
        let mut outputs = Vec::new();
        self.machine.handle(input, &mut outputs);
        for output in outputs {
            match output {
                Output::Call(process) => self.call(process)?,
                Output::HangUp(process) => {
                    if let Some(call) = self.calls.remove(&process) {
                        call.hang_up();
                    }
                }
                Output::Ask(process, ask) => {
                    if let Some(call) = self.calls.get(&process) {
                        call.ask(ask);
                    }
                }
                Output::TakeOver(givers, attempt) => {
                    if !self.take_over(&givers, attempt)? {
                        return self.handle(Input::Spoiled, None);
                    }
                }
                Output::Apply => {
                    if let Some(last) = step.take() {
                        self.apply(last)?;
                    }
                }
                Output::Report(following) => {
                    self.work.shared.report(Report::Following(following));
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, process: ProcessId) -> Result<(), Trouble> {
        let Some(address) = self.addresses.get(&process) else {
            return Ok(());
        };
        let lengths = Lengths {
            num_elements: self.work.trainer.num_elements(),
            num_state_values: self.work.trainer.num_state_values(),
        };
        let call = Call::start(process, *address, self.badge, lengths, self.work.shared);
        let call = call
            .map_err(|error| Trouble::Failed(format!("no thread to follow the ranks: {error}")))?;
        self.calls.insert(process, call);
        Ok(())
    }

    /// Takes the state over that came in these shares; `false` where they are not of one state.
    fn take_over(&mut self, givers: &[ProcessId], attempt: u64) -> Result<bool, Trouble> {
        let mut shares = Vec::new();
        let mut heads = Vec::new();
        let mut acked = (0, false);
        let mut records = Vec::new();
        for giver in givers {
            let head = self.heads.get(giver).filter(|(of, _)| *of == attempt);
            let share = self.shares.remove(giver).filter(|(of, _)| *of == attempt);
            let (Some((_, head)), Some((_, share))) = (head, share) else {
                return Ok(false);
            };
            heads.push(*head);
            shares.push(share.values);
            // They have the same but for those that were acknowledged meanwhile.
            acked = acked.max(share.acked);
            if share.records.len() > records.len() {
                records = share.records;
            }
        }
        let Some(head) = heads.first().copied() else {
            return Ok(false);
        };
        if heads.iter().any(|other| *other != head) {
            return Ok(false);
        }
        self.begin()?;
        let trainer = &mut self.work.trainer;
        trainer
            .take_over(head, &shares)
            .map_err(|error| failed(&error))?;
        self.work.last = None;
        self.work.feed.restarted(head.step.0);
        self.work.shared.tell(|machine| {
            machine.inherited(records);
            machine.acked(acked);
            machine.received(head.step.0);
        });
        tracing::info!(step = head.step.0, "has the state, and follows");
        Ok(true)
    }

    /// Asks whether what this process holds may still change.
    fn begin(&self) -> Result<(), Trouble> {
        let may = self.work.shared.tell(RankMachine::begin_follow);
        if may { Ok(()) } else { Err(Trouble::Closed) }
    }

    fn apply(&mut self, last: Last) -> Result<(), Trouble> {
        self.begin()?;
        let work = &mut *self.work;
        let report = work.trainer.apply(last.vector.view(), &last.notes);
        let report = report.map_err(|error| failed(&error))?;
        let Story {
            generation,
            acked,
            evaluation,
        } = last.story.clone();
        let key = work.shared.key_in(generation);
        let record = work.record_of(report, &Times::of_nothing(), key);
        let last = Arc::new(last);
        work.feed.applied(&last);
        work.last = Some(last);
        work.shared.tell(|machine| {
            machine.inherited(evaluation.into_iter().chain([record]).collect());
            machine.acked(acked);
            machine.followed();
        });
        Ok(())
    }
}
