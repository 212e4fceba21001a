//! Where the time of a job's ranks went since its submission: arithmetic on the events of its
//! stream, so that a leader that begins knows what the one before it knew.
//!
//! A rank counts from when its world is made until the next one is, or the job ends. A job without
//! a world counts as many ranks as the world that ends the wait, and at least as many as it needs.
//!
//! ```text
//! submitted       made              first step       last step      loss         made, or ended
//!     |  queued    |  1: world or healing |  2: steps    |  3: useful |  4: world       |
//! ```
//!
//! 1. *Waiting for a world*, where its processes are new: they start and read data. *Healing*, where
//!    it goes on with the state of the one before: ranks connect, and those that lack it are given
//!    the state. What is computed meanwhile is part of the first step.
//! 2. The time of steps and of what lies between them: *waiting for a checkpoint*, where a snapshot
//!    waits for the files of the one before (all wait for the rank that waits longest); *data*, where
//!    samples are read; else *useful*.
//! 3. The evaluation behind the last step, and the step that a loss interrupts: its contributions are
//!    kept. Where no loss was told, as behind a planned end of a world, there is no such step.
//! 4. *Waiting for a world*: it is closed, and the next one is decided. Behind the last step of a job
//!    that ends without a loss: *waiting for a checkpoint*, which its end does.
//!
//! What a fallback voids, and the interrupted step before it, is *healing*: it has to be run again.
//!
//! It is approximate in three ways. Steps are timed by rank 0 and worlds by the leader, so their
//! clocks should agree; all ranks of a world are taken to be in the phase that rank 0 is in; and what
//! only the leader before saw, when a world closed without a loss, is not known any more.

use std::collections::BTreeMap;

use muster_proto::event::{Event, RankTime, What};

mod books;

/// The books of one submission.
#[derive(Clone, Debug, Default)]
pub(crate) struct Goodput {
    submitted_s: f64,
    worlds: Vec<World>,
    /// What each step above the last checkpoint took.
    steps: BTreeMap<u64, RankTime>,
    /// What the steps up to each checkpoint, from the one before it, took.
    settled: BTreeMap<u64, RankTime>,
    /// What was voided.
    void_s: f64,
    end: Option<End>,
}

/// One world.
#[derive(Clone, Debug)]
struct World {
    generation: u64,
    history: u64,
    size: f64,
    /// Whether it goes on with the state of the one before.
    heals: bool,
    made_s: f64,
    /// When rank 0 began to work in it.
    begun_s: Option<f64>,
    /// When its last step ended, and the evaluation behind it; and that step.
    last_s: f64,
    evaluated_s: f64,
    step: u64,
    /// What its first step waited for the peers, in rank-seconds.
    meeting_s: f64,
    lost_s: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    at_s: f64,
    /// Whether its last checkpoint ended it.
    rests: bool,
}

/// How things stand with a job that goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) now_s: f64,
    /// How many ranks it waits for, if it has none.
    pub(crate) wanted: u32,
    /// Since when its world is known to make no steps.
    pub(crate) closed_s: Option<f64>,
}

impl Goodput {
    /// Books an event.
    pub(crate) fn take(&mut self, event: &Event) {
        if !event.time.is_finite() {
            // A rank's clock may say anything.
            return;
        }
        match &event.what {
            What::Submitted { .. } => {
                *self = Self {
                    submitted_s: event.time,
                    ..Self::default()
                };
            }
            What::Generation {
                generation,
                world_size,
                from_step,
                ..
            } => {
                let last = self.worlds.last().map(|world| world.history);
                if last.is_some_and(|history| history != event.history) {
                    self.void_above(*from_step);
                }
                self.worlds.push(World {
                    generation: *generation,
                    history: event.history,
                    size: f64::from(*world_size),
                    heals: last == Some(event.history),
                    made_s: event.time,
                    begun_s: None,
                    last_s: event.time,
                    evaluated_s: event.time,
                    step: *from_step,
                    meeting_s: 0.0,
                    lost_s: None,
                });
            }
            What::Step {
                step, generation, ..
            } => self.step(*step, *generation, event),
            What::Evaluated { step, .. } => {
                let mut worlds = self.worlds.iter_mut().rev();
                let world = worlds.find(|world| world.step == *step && world.begun_s.is_some());
                if let Some(world) = world {
                    world.evaluated_s = world.evaluated_s.max(event.time);
                }
            }
            What::Lost { .. } => {
                if let Some(world) = self.worlds.last_mut() {
                    world.lost_s.get_or_insert(event.time);
                }
            }
            What::Checkpoint { step, .. } => {
                let above = self.steps.split_off(&(step + 1));
                let below = std::mem::replace(&mut self.steps, above);
                add(
                    self.settled.entry(*step).or_default(),
                    below.into_values().fold(RankTime::default(), sum),
                );
            }
            What::Finished { state, step, .. } => self.finish(event.time, state, *step),
            What::Rank { .. }
            | What::Damaged { .. }
            | What::Unwritten { .. }
            | What::Distrusted { .. } => {}
        }
    }

    /// The job ends: what is above its last checkpoint is void.
    pub(crate) fn finish(&mut self, at_s: f64, state: &str, step: u64) {
        self.void_above(step);
        self.end = Some(End {
            at_s,
            rests: state != "failed",
        });
    }

    fn step(&mut self, step: u64, generation: u64, event: &Event) {
        let What::Step {
            wall_ms,
            contribute_ms,
            reduce_ms,
            update_ms,
            data_ms,
            checkpoint_ms,
            evaluate_ms,
            ..
        } = &event.what
        else {
            return;
        };
        // Records of a world may come behind the next one.
        let mut worlds = self.worlds.iter_mut().rev();
        let Some(world) = worlds.find(|world| world.generation == generation) else {
            return;
        };
        let seconds = |ms: f64| {
            if ms.is_finite() {
                ms.max(0.0) / 1000.0
            } else {
                0.0
            }
        };
        let wall_s = seconds(*wall_ms);
        let size = world.size;
        let mut left_s = wall_s;
        let mut part = |ms: f64| {
            let part_s = seconds(ms).min(left_s);
            left_s -= part_s;
            part_s * size
        };
        let mut time = RankTime {
            waiting_for_checkpoint_s: part(*checkpoint_ms),
            data_s: part(*data_ms),
            ..RankTime::default()
        };
        if world.begun_s.is_none() {
            world.begun_s = Some(event.time - wall_s);
            let busy_ms = contribute_ms + reduce_ms + update_ms + evaluate_ms + checkpoint_ms;
            world.meeting_s = part(wall_ms - busy_ms);
        }
        time.useful_s = left_s * size;
        world.last_s = world.last_s.max(event.time);
        world.step = step;
        self.steps.insert(step, time);
    }

    fn void_above(&mut self, step: u64) {
        let steps = self.steps.split_off(&(step + 1)).into_values();
        let settled = self.settled.split_off(&(step + 1)).into_values();
        self.void_s += steps.chain(settled).map(|time| time.total_s()).sum::<f64>();
    }

    /// Where the time went. Of a job that has ended nothing of `standing` counts.
    pub(crate) fn rank_time(&self, standing: Standing) -> RankTime {
        let end_s = self.end.map_or(standing.now_s, |end| end.at_s);
        let steps = self.steps.values().chain(self.settled.values());
        let mut time = steps.copied().fold(RankTime::default(), sum);
        time.healing_s += self.void_s;
        let (queued_until_s, size) = match self.worlds.first() {
            Some(first) => (first.made_s, first.size),
            None => (end_s, f64::from(standing.wanted)),
        };
        time.queued_s = (queued_until_s - self.submitted_s).max(0.0) * size;
        for (index, world) in self.worlds.iter().enumerate() {
            let next = self.worlds.get(index + 1);
            let until_s = next.map_or(end_s, |next| next.made_s);
            let is_newest = next.is_none() && self.end.is_none();
            let closed_s = if is_newest { standing.closed_s } else { None };
            world.add_rest(&mut time, until_s, next, closed_s, self.end);
        }
        time
    }
}

impl World {
    /// Adds what no step took: parts 1, 3 and 4 of the picture above.
    fn add_rest(
        &self,
        time: &mut RankTime,
        until_s: f64,
        next: Option<&World>,
        closed_s: Option<f64>,
        end: Option<End>,
    ) {
        let lost_s = [self.lost_s, closed_s]
            .into_iter()
            .flatten()
            .reduce(f64::min);
        let is_open = next.is_none() && end.is_none() && lost_s.is_none();
        let stop_s = if is_open {
            until_s
        } else {
            lost_s.unwrap_or(self.evaluated_s)
        };
        let (from_s, start_s) = match self.begun_s {
            Some(begun_s) => (self.last_s, (begun_s - self.made_s).max(0.0)),
            None => {
                let stop_s = stop_s.clamp(self.made_s, until_s.max(self.made_s));
                (stop_s, stop_s - self.made_s)
            }
        };
        let start = if self.heals {
            &mut time.healing_s
        } else {
            &mut time.waiting_for_world_s
        };
        *start += start_s * self.size + self.meeting_s;
        let until_s = until_s.max(from_s);
        let stop_s = stop_s.clamp(from_s, until_s);
        let is_void = next.is_some_and(|next| next.history != self.history);
        let interrupted = if is_void {
            &mut time.healing_s
        } else {
            &mut time.useful_s
        };
        *interrupted += (stop_s - from_s) * self.size;
        let rests = next.is_none() && lost_s.is_none() && end.is_some_and(|end| end.rests);
        let rest = if rests && self.begun_s.is_some() {
            &mut time.waiting_for_checkpoint_s
        } else {
            &mut time.waiting_for_world_s
        };
        *rest += (until_s - stop_s) * self.size;
    }
}

fn sum(mut one: RankTime, other: RankTime) -> RankTime {
    add(&mut one, other);
    one
}

fn add(to: &mut RankTime, more: RankTime) {
    to.useful_s += more.useful_s;
    to.healing_s += more.healing_s;
    to.waiting_for_world_s += more.waiting_for_world_s;
    to.waiting_for_checkpoint_s += more.waiting_for_checkpoint_s;
    to.data_s += more.data_s;
    to.queued_s += more.queued_s;
}

#[cfg(test)]
mod tests;
