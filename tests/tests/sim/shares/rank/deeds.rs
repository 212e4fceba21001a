//! How a rank carries out what is decided about its shares; see `worker/rank/src/shares.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::tree::Run;
use muster_worker_core::sharing::{Deed, Word, rounds};

use super::super::Env;
use super::super::links::Frame;
use super::super::plants::{self, Plant};
use super::{Main, Rank};

/// So many parameters are told at a time, so that a gathering has more rounds than one.
const ROUND_ELEMENTS: usize = 6;

/// A gathering that is under way: what each rank tells in the rounds that are left, and what came of
/// the first of them.
#[derive(Debug)]
pub(in super::super) struct Gathering {
    rounds: VecDeque<Vec<Vec<u32>>>,
    has_sent: bool,
    came: BTreeMap<u32, Vec<u64>>,
}

impl Rank {
    fn shares_here(&self) -> BTreeSet<u32> {
        self.state.kept.keys().copied().collect()
    }

    /// Its world begins, now that it is at its step.
    pub(super) fn begin(&mut self, env: &mut Env) {
        let (world, at) = (self.world(), self.state.step);
        if at != world.plan.first_step {
            let (process, first) = (self.process, world.plan.first_step);
            env.oracle.blame(format!(
                "process {process} is at step {at} in a world that begins at {first}"
            ));
        }
        let deeds = plants::begin(env.plant, &world.sharing, &self.shares_here());
        self.main = Main::Sharing {
            deeds: deeds.into(),
            gathering: None,
        };
    }

    pub(super) fn behind_step(&mut self, env: &mut Env) {
        let sharing = &self.world().sharing;
        let deeds = plants::behind_step(env.plant, sharing, &self.shares_here());
        self.main = Main::Sharing {
            deeds: deeds.into(),
            gathering: None,
        };
    }

    /// The next of these deeds; `false` where it only waits.
    pub(super) fn share(
        &mut self,
        mut deeds: VecDeque<Deed>,
        gathering: Option<Gathering>,
        env: &mut Env,
    ) -> bool {
        let Some(deed) = deeds.pop_front() else {
            self.main = Main::Boundary;
            return true;
        };
        env.log(format_args!("p{} {deed:?}", self.process));
        let (is_done, gathering) = match deed.clone() {
            Deed::Say(word) => {
                if !self.say(word, env) {
                    self.leave(env);
                    return true;
                }
                (true, None)
            }
            Deed::Free { all_but } => {
                env.oracle.counts.given_up += 1;
                self.state.kept.retain(|share, _| all_but.contains(share));
                (true, None)
            }
            Deed::Give { share, to } => {
                match self.state.kept.get(&share) {
                    Some(value) => {
                        let share = [*value, self.state.params[share as usize]];
                        self.send(to.0, Frame::Share(share), env);
                    }
                    None => env.oracle.blame(format!(
                        "process {} is to give share {share}, which is not here",
                        self.process
                    )),
                }
                (true, None)
            }
            Deed::Take { share, from } => match self.receive(from.0, env) {
                Some(Frame::Share([value, parameter])) => {
                    env.oracle.counts.moves += 1;
                    self.state.kept.insert(share, value);
                    if env.plant != Plant::CopyWithoutParameters {
                        self.state.params[share as usize] = parameter;
                    }
                    (true, None)
                }
                Some(frame) => {
                    self.surprise(&frame, env);
                    (true, None)
                }
                None if self.has_left() => return true,
                None => (false, None),
            },
            Deed::Gather { tellers } => {
                let begun = gathering.is_none();
                let mut gathering = gathering.unwrap_or_else(|| Gathering {
                    rounds: rounds(&tellers, ROUND_ELEMENTS, |_| 1).into(),
                    has_sent: false,
                    came: BTreeMap::new(),
                });
                let went_on = self.gather(&mut gathering, env);
                if self.has_left() {
                    return true;
                }
                let is_done = gathering.rounds.is_empty();
                if !is_done {
                    deeds.push_front(deed);
                    let gathering = Some(gathering);
                    self.main = Main::Sharing { deeds, gathering };
                    return begun || went_on;
                }
                env.oracle.counts.gatherings += 1;
                (true, None)
            }
        };
        if !is_done {
            deeds.push_front(deed);
        }
        self.main = Main::Sharing { deeds, gathering };
        is_done
    }

    /// Says it to the machine: `false` where the rank has to stop.
    fn say(&mut self, word: Word, env: &mut Env) -> bool {
        if word == Word::Gathered {
            let what = "has gathered";
            env.oracle.check_params(self.process, &self.state, what);
        }
        let left = match &word {
            Word::Left(left) => Some(left.clone()),
            Word::Kept(_) | Word::Gathered => None,
        };
        if !word.tell(&mut self.machine) {
            return env.plant == Plant::FreeWhenClosed;
        }
        if let Some(left) = left {
            let left: BTreeSet<u32> = left.into_iter().flat_map(Run::shards).collect();
            self.promised.retain(|share| left.contains(share));
        }
        true
    }

    /// One thing of a gathering; `false` where it only waits.
    fn gather(&mut self, gathering: &mut Gathering, env: &mut Env) -> bool {
        let Some(round) = gathering.rounds.front().cloned() else {
            return true;
        };
        let plan = self.world().plan;
        let others: Vec<u32> = self.world().others().collect();
        if !gathering.has_sent {
            gathering.has_sent = true;
            let told = round[plan.rank as usize].iter();
            let told: Vec<u64> = told
                .map(|share| self.state.params[*share as usize])
                .collect();
            for other in others {
                self.send(other, Frame::Told(told.clone()), env);
            }
            return true;
        }
        let mut went_on = false;
        for from in &others {
            if gathering.came.contains_key(from) {
                continue;
            }
            match self.receive(*from, env) {
                Some(Frame::Told(values)) => {
                    went_on = true;
                    gathering.came.insert(*from, values);
                }
                Some(frame) => self.surprise(&frame, env),
                None if self.has_left() => return true,
                None => {}
            }
        }
        if gathering.came.len() < others.len() {
            return went_on;
        }
        for (rank, values) in std::mem::take(&mut gathering.came) {
            let shares = &round[rank as usize];
            if shares.len() != values.len() {
                env.oracle
                    .blame(format!("rank {rank} told parameters of another length"));
            }
            for (share, value) in shares.iter().zip(values) {
                self.state.params[*share as usize] = value;
            }
        }
        gathering.rounds.pop_front();
        gathering.has_sent = false;
        true
    }
}
