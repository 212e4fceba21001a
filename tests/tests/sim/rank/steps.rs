//! Steps, evaluations and checkpoints; see `worker/rank/src/{work,writer}.rs`.

use std::collections::{BTreeMap, VecDeque};

use muster_cluster::ids::{ShardId, Step};
use muster_cluster::tree::{self, Run};
use muster_collective::{Operation, Reduced};
use muster_proto::v1;
use v1::rank_report::Report;
use v1::step_record::Record;

use super::super::env::{Env, Plant, Point};
use super::super::model::{NUM_ELEMENTS, NUM_SHARDS, State, TOTAL_STEPS};
use super::super::net::{MS, Timer};
use super::super::note::Note;
use super::work::{FILES, Last, Main, Story, TIMEOUT, Then};
use super::{Rank, Trouble};

impl Rank {
    /// Computes what is not there of these shards' contributions to the step that comes next.
    pub(super) fn contribute(
        &mut self,
        brings: &[Run],
        then: Then,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let work = self.work();
        if work.state.step >= TOTAL_STEPS {
            return self.compute(VecDeque::new(), then, env);
        }
        if !tree::difference(&work.held.shards(), brings).is_empty() {
            work.forget();
            self.tell(env, |shared| shared.machine.drop_contributions());
        }
        let missing = tree::difference(brings, &self.work().held.shards());
        let missing = missing.into_iter().flat_map(Run::shards).collect();
        self.compute(missing, then, env)
    }

    fn compute(
        &mut self,
        mut left: VecDeque<u32>,
        then: Then,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let Some(shard) = left.pop_front() else {
            return match then {
                Then::Meet => {
                    self.main = Main::Meeting;
                    Ok(())
                }
                Then::Reduce => self.reduce(env),
            };
        };
        if !self.tell(env, |shared| shared.machine.begin_shard(shard)) {
            return Err(Trouble::Closed);
        }
        env.point(Point::Computing, self.node());
        self.busy(
            (2 * MS, 15 * MS),
            Main::Computing { shard, left, then },
            env,
        );
        Ok(())
    }

    pub(super) fn computed(
        &mut self,
        shard: u32,
        left: VecDeque<u32>,
        then: Then,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let is_healed = self.work().world().plan.healed.is_some();
        let work = self.work();
        let (mut values, note) = work.state.contribute(shard);
        if env.plant == Plant::CountTheDead && then == Then::Meet && is_healed {
            values.iter_mut().for_each(|value| *value *= 2.0);
        }
        let pushed = work.held.push(ShardId(shard), values);
        pushed.map_err(|error| Trouble::Failed(error.to_string()))?;
        work.notes.push(note);
        self.compute(left, then, env)
    }

    fn reduce(&mut self, env: &mut Env) -> Result<(), Trouble> {
        let (stop, pause, acked) = self
            .shared
            .as_ref()
            .map_or_else(Default::default, |shared| {
                let acked = shared.machine.last_acked();
                (shared.stop, shared.pause.clone(), acked)
            });
        let tickets = self.feed.tickets();
        let work = self.work();
        let world = work.world();
        let is_first = work.state.step == world.plan.first_step;
        let brings = if is_first { &world.first } else { &world.then };
        let holdings = brings.iter().map(|runs| tree::cover(NUM_SHARDS, runs));
        let note = Note {
            stop,
            pause,
            acked,
            tickets,
            shards: work.notes.clone(),
        };
        let operation = Operation {
            step: Step(work.state.step),
            num_shards: NUM_SHARDS,
            num_elements: NUM_ELEMENTS,
            holdings: holdings.collect(),
            mine: work.held.subtrees(),
            note: note.encode(),
        };
        env.point(Point::Reducing, self.node());
        self.operate(operation, Main::Reducing, env)
    }

    /// Begins an operation with the others.
    fn operate(&mut self, operation: Operation, main: Main, env: &mut Env) -> Result<(), Trouble> {
        let generation = self.work().world().plan.generation;
        let mut joined = self.joined.take().expect("the meeting is over");
        let started = joined.group.start(operation);
        self.flush(&mut joined, env);
        self.joined = Some(joined);
        if let Err(error) = started {
            return Err(self.closed_by(generation, &error, env));
        }
        self.token += 1;
        self.main = main;
        let timer = Timer::Deadline(self.token);
        env.net.timer(self.node(), TIMEOUT, timer);
        Ok(())
    }

    pub(super) fn reduced(&mut self, reduced: Reduced, env: &mut Env) -> Result<(), Trouble> {
        let note = Note::merge(&reduced.notes);
        let work = self.work();
        let last = Last {
            step: work.state.step,
            vector: reduced.vector,
            notes: note.shards.clone(),
            story: Story {
                generation: work.world().plan.generation,
                acked: note.acked,
                evaluation: work.evaluation.take(),
            },
        };
        self.tell(env, |shared| shared.machine.all_acked(note.acked));
        self.busy((1, 2 * MS), Main::Merging(last, note), env);
        Ok(())
    }

    pub(super) fn begin_apply(
        &mut self,
        last: Last,
        note: Note,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        env.point(Point::Applying, self.node());
        if !self.tell(env, |shared| shared.machine.begin_apply()) {
            if env.plant == Plant::ApplyWhenClosed {
                let history = self.shared.as_ref().map_or(0, |shared| shared.key.history);
                let work = self.work();
                work.state.apply(&last.vector, &last.notes);
                work.forget();
                let state = work.state.clone();
                env.oracle.applied(self.pid, history, &state);
            }
            return Err(Trouble::Closed);
        }
        self.feed.applied(last.step, &last);
        self.busy((MS, 8 * MS), Main::Applying(last, note), env);
        Ok(())
    }

    pub(super) fn applied(
        &mut self,
        last: Last,
        note: &Note,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let work = self.work();
        work.state.apply(&last.vector, &last.notes);
        work.forget();
        let generation = last.story.generation;
        work.last = Some(last);
        let state = work.state.clone();
        let shared = self.shared.as_ref();
        let history = shared.map_or(0, |shared| shared.key.history);
        env.oracle.applied(self.pid, history, &state);
        env.log(format_args!("p{} applied step {}", self.pid, state.step));
        let applied = applied_record(state.step);
        let (stop, pause) = (note.stop, note.pause.clone());
        self.tell(env, |shared| {
            let key = v1::RankKey {
                generation,
                ..shared.key.clone()
            };
            shared.machine.record(record(key, applied));
            shared.machine.applied(stop, pause);
        });
        env.point(Point::Applied, self.node());
        self.copy_shares(&note.tickets, env);
        // A reduced vector that was given leads to the world's first step, and no further.
        if state.step <= self.work().world().plan.first_step {
            self.arrived_at_the_step(env)
        } else {
            self.boundary(env)
        }
    }

    pub(super) fn evaluate(
        &mut self,
        mut left: VecDeque<u32>,
        mut mine: Vec<(u32, f64)>,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let Some(chunk) = left.pop_front() else {
            let mut bytes = Vec::new();
            for (chunk, value) in &mine {
                bytes.extend(u64::from(*chunk).to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            return self.operate(Operation::exchange(bytes), Main::Gathering, env);
        };
        self.check()?;
        mine.push((chunk, self.work().state.evaluate(chunk)));
        self.busy((MS, 10 * MS), Main::Evaluating(left, mine), env);
        Ok(())
    }

    pub(super) fn gathered(&mut self, notes: &[Vec<u8>], env: &mut Env) -> Result<(), Trouble> {
        let mut chunks = BTreeMap::new();
        for pair in notes.iter().flat_map(|bytes| bytes.chunks_exact(16)) {
            let (chunk, value) = pair.split_at(8);
            let chunk = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
            let value = f64::from_le_bytes(value.try_into().expect("eight bytes"));
            chunks.insert(u32::try_from(chunk).unwrap_or(u32::MAX), value);
        }
        let step = self.work().state.step;
        let metrics = State::metrics(&chunks);
        env.oracle.evaluated(step, &metrics);
        let evaluated = Record::Evaluated(v1::Evaluated {
            step,
            metrics: metrics.clone().into_iter().collect(),
        });
        let key = self.shared.as_ref().map(|shared| shared.key.clone());
        let record = record(key.unwrap_or_default(), evaluated);
        self.work().evaluation = Some(record.clone());
        self.tell(env, |shared| {
            shared.machine.record(record);
            shared.machine.evaluated(metrics.into_iter().collect());
        });
        self.boundary(env)
    }

    /// Hands a snapshot to the thread that writes.
    pub(super) fn write(&mut self, files: Vec<u32>, is_last: bool, env: &mut Env) {
        let node = self.node();
        let work = self.work();
        if !files.is_empty() {
            work.writing = Some((work.state.clone(), files.into(), is_last));
            env.point(Point::Writing, node);
            env.net.timer_between(node, (MS, 50 * MS), Timer::Written);
        }
        self.tell(env, |shared| shared.machine.snapped());
    }

    /// A file of a checkpoint is durable.
    pub(super) fn written(&mut self, env: &mut Env) {
        let node = self.node();
        let Some(work) = &mut self.work else { return };
        let Some((state, left, is_last)) = &mut work.writing else {
            return;
        };
        let Some(file) = left.pop_front() else { return };
        let state = state.clone();
        if !*is_last && env.refuses_to_write(self.pid, state.step) {
            env.log(format_args!(
                "p{} cannot write step {}",
                self.pid, state.step
            ));
            work.writing = None;
            let unwritten = v1::CheckpointUnwritten {
                step: state.step,
                reason: "the disk is full".to_owned(),
            };
            let key = self.shared.as_ref().map(|shared| shared.key.clone());
            let report = Report::CheckpointUnwritten(unwritten);
            return self.report(key.unwrap_or_default(), report, env);
        }
        if left.is_empty() {
            work.writing = None;
        } else {
            env.net.timer_between(node, (MS, 50 * MS), Timer::Written);
        }
        let hash = format!("{}{}", state.arena_hash(), state.trace_text());
        let logical = FILES[file as usize];
        let name = format!("step-{:08}-{logical}-{hash}", state.step);
        let part = v1::CheckpointPart {
            step: state.step,
            file: Some(v1::FileRef {
                name: name.clone(),
                bytes: 8,
                hash,
            }),
            num_files: 2,
            folder: "/checkpoints".to_owned(),
            arena_hash: state.arena_hash(),
            share_digests: state.share_digests(),
            trace: state.trace_text(),
        };
        env.files.insert(name, state);
        if env.plant == Plant::ReportEarly {
            let key = self.shared.as_ref().map(|shared| shared.key.clone());
            self.report(key.unwrap_or_default(), Report::CheckpointPart(part), env);
        } else {
            self.tell(env, |shared| shared.machine.part_written(part));
        }
    }
}

pub(super) fn applied_record(step: u64) -> Record {
    Record::Applied(v1::StepApplied {
        step,
        loss: 1.0,
        wall_ms: 1.0,
        total_steps: TOTAL_STEPS,
        ..v1::StepApplied::default()
    })
}

pub(super) fn record(key: v1::RankKey, record: Record) -> v1::StepRecord {
    v1::StepRecord {
        key: Some(key),
        time: 0.0,
        record: Some(record),
    }
}
