//! A rank's steps, and what it does between two of them.

use std::collections::BTreeMap;

use muster_cluster::shares::runs;
use muster_cluster::tree::{self, Run};
use muster_proto::v1;
use muster_worker_core::rank::Next;

use super::super::Env;
use super::super::links::Frame;
use super::super::model::{NUM_SHARDS, State, TOTAL_STEPS};
use super::{Main, RULES, Rank};

/// What a rank brought into a step: contributions by shard, and why it wants its world closed.
pub(in super::super) type Came = (BTreeMap<u32, u64>, Option<String>);

impl Rank {
    /// Computes what is not there of its contributions: `false` where the world is closed.
    pub(super) fn contribute(&mut self, env: &mut Env) -> bool {
        if self.state.step >= TOTAL_STEPS {
            return true;
        }
        let world = self.world();
        let (plan, step) = (world.plan, self.state.step);
        let is_first = step == plan.first_step;
        let brings = if is_first { &world.first } else { &world.then };
        let brings = brings[plan.rank as usize].clone();
        if !tree::difference(&runs(self.held.keys().copied()), &brings).is_empty() {
            self.held.clear();
            self.machine.drop_contributions();
        }
        let missing = tree::difference(&brings, &runs(self.held.keys().copied()));
        for shard in missing.into_iter().flat_map(Run::shards) {
            if !self.machine.begin_shard(shard) {
                return false;
            }
            env.oracle
                .check_params(self.process, &self.state, "computes");
            self.held.insert(shard, self.state.contribute(shard));
        }
        true
    }

    pub(super) fn boundary(&mut self, env: &mut Env) {
        self.main = Main::Boundary;
        match self.machine.next() {
            Next::Step => {
                if self.contribute(env) {
                    self.main = Main::Sending;
                } else {
                    self.leave(env);
                }
            }
            Next::Evaluate => self.machine.evaluated(BTreeMap::new()),
            Next::Checkpoint { .. } => {
                self.checkpoint(env);
                self.machine.snapped();
            }
            Next::LeaveOut => self.machine.left_out(),
            Next::End { stopped } => {
                self.machine.ended(v1::Done {
                    step: self.state.step,
                    stopped,
                    arena_hash: format!("{:?}", self.state.params),
                    ..v1::Done::default()
                });
                self.leave(env);
            }
        }
        self.flush(env);
    }

    /// Writes its files of a checkpoint, which take no time.
    fn checkpoint(&mut self, env: &mut Env) {
        let sharing = &self.world().sharing;
        let (owned, is_first) = (sharing.owned(), sharing.is_first());
        env.oracle.check_shares(self.process, &self.state, &owned);
        env.oracle
            .check_params(self.process, &self.state, "writes a checkpoint");
        let part = |name: String| v1::CheckpointPart {
            step: self.state.step,
            file: Some(v1::FileRef {
                name,
                ..v1::FileRef::default()
            }),
            num_files: RULES.num_files,
            ..v1::CheckpointPart::default()
        };
        let mut parts = Vec::new();
        if is_first {
            parts.push(v1::CheckpointPart {
                arena_hash: format!("{:?}", self.state.params),
                ..part("params".to_owned())
            });
        }
        for share in owned {
            let value = self.state.kept.get(&share).copied().unwrap_or_default();
            let mut digest = vec![0; 32];
            digest[..8].copy_from_slice(&value.to_le_bytes());
            parts.push(v1::CheckpointPart {
                share_digests: [(share, digest)].into(),
                ..part(format!("share {share}"))
            });
        }
        for part in parts {
            self.machine.part_written(part);
        }
    }

    /// Brings its contributions into the step.
    pub(super) fn bring(&mut self, env: &mut Env) {
        let generation = self.world().plan.generation;
        let pause = self.pause.clone().filter(|(of, _)| *of == generation);
        let came = (self.held.clone(), pause.map(|(_, reason)| reason));
        for other in self.world().others() {
            let (shards, pause) = came.clone();
            self.send(other, Frame::Contribution { shards, pause }, env);
        }
        let rank = self.world().plan.rank;
        self.main = Main::Reducing(BTreeMap::from([(rank, came)]));
    }

    pub(super) fn reduce(&mut self, mut came: BTreeMap<u32, Came>, env: &mut Env) -> bool {
        let (before, size) = (came.len(), self.world().plan.size as usize);
        for from in self.world().others() {
            if came.contains_key(&from) {
                continue;
            }
            match self.receive(from, env) {
                Some(Frame::Contribution { shards, pause }) => {
                    came.insert(from, (shards, pause));
                }
                Some(frame) => self.surprise(&frame, env),
                None if self.has_left() => return true,
                None => {}
            }
        }
        if came.len() < size {
            let went_on = came.len() > before;
            self.main = Main::Reducing(came);
            return went_on;
        }
        let all: Vec<(u32, u64)> = came
            .values()
            .flat_map(|(shards, _)| shards.clone())
            .collect();
        let shards: BTreeMap<u32, u64> = all.iter().copied().collect();
        if all.len() != NUM_SHARDS as usize || shards.len() != all.len() {
            let (process, step) = (self.process, self.state.step);
            env.oracle.blame(format!(
                "process {process} sums the shards {all:?} in step {step}"
            ));
        }
        if self.machine.begin_apply() {
            self.main = Main::Applying {
                reduced: State::reduce(shards.into_values()),
                pause: came.into_values().find_map(|(_, pause)| pause),
                heals: false,
            };
        } else {
            self.leave(env);
        }
        true
    }

    pub(super) fn apply(
        &mut self,
        reduced: u64,
        pause: Option<String>,
        heals: bool,
        env: &mut Env,
    ) {
        let step = self.state.step;
        self.machine.all_acked((step, false));
        self.state.apply(reduced);
        self.held.clear();
        self.last = Some((step, reduced));
        self.machine.applied(false, pause);
        let generation = self.world().plan.generation;
        env.said
            .push((self.process, super::Said::Applied(generation)));
        if heals {
            self.begin(env);
        } else {
            env.oracle.steps(generation, self.process);
            self.behind_step(env);
        }
        self.flush(env);
    }
}
