//! From an assignment to a rank in its first state; see `worker/rank/src/prepare.rs`.

use muster_collective::{Accumulator, Pool};
use muster_proto::v1;
use muster_worker_core::rank::Rules;
use v1::rank_report::Report;

use super::super::env::Env;
use super::super::model::{
    CHECKPOINT_EVERY, CHECKPOINT_KEEP, EVALUATE_EVERY, NUM_ELEMENTS, NUM_SHARDS, State, TOTAL_STEPS,
};
use super::follow::Following;
use super::work::{FILES, Work};
use super::{Rank, Trouble, address};

impl Rank {
    pub(super) fn prepared(
        &mut self,
        assignment: &v1::Assignment,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let mut state = State::initial();
        if let Some(source) = &assignment.source {
            let read = |file: &v1::FileRef| env.files.get(&file.name).cloned();
            let files: Vec<_> = source.files.iter().map(read).collect();
            let first = files.first().cloned().flatten();
            let is_whole = files.len() == FILES.len() && files.iter().all(|file| *file == first);
            match first.filter(|_| is_whole) {
                Some(first) => state = first,
                None if files.iter().any(Option::is_some) => {
                    let (history, step) = (source.history, source.step);
                    return Err(Trouble::Damaged { history, step });
                }
                // Whoever is prepared too late may find a newer one in its place.
                None => return Err(Trouble::Fault("the checkpoint is not there".to_owned())),
            }
        }
        let has_state = assignment.generation > 0 && assignment.finish.is_none();
        if has_state {
            if state.step != assignment.first_step {
                return Err(Trouble::Failed(
                    "the checkpoint is of another step".to_owned(),
                ));
            }
            env.oracle.received(self.pid, assignment.history, &state);
        }
        let rules = Rules {
            total_steps: TOTAL_STEPS,
            checkpoint_every: CHECKPOINT_EVERY,
            checkpoint_keep: CHECKPOINT_KEEP,
            evaluate_every: Some(EVALUATE_EVERY),
            num_files: 2,
            is_shared: false,
        };
        let step = has_state.then_some(state.step);
        self.work = Some(Work {
            state,
            has_state,
            was_rank: false,
            held: Accumulator::new(NUM_SHARDS, NUM_ELEMENTS, Pool::default()),
            notes: Vec::new(),
            last: None,
            evaluation: None,
            world: None,
            writing: None,
        });
        self.tell(env, |shared| shared.machine.prepared(rules, step));
        if let Some(step) = step {
            self.feed.restarted(step);
        }
        if assignment.generation == 0 {
            self.following = Some(Following::new(assignment.process));
        }
        let address = address(self.pid, self.host);
        let ready = Report::Ready(v1::Ready {
            feed: address.clone(),
            address,
        });
        let key = self.shared.as_ref().map(|shared| shared.key.clone());
        self.report(key.unwrap_or_default(), ready, env);
        Ok(())
    }
}
