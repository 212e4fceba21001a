//! What a rank does at a step boundary beside the next step: evaluations, checkpoints, the end.

use std::collections::BTreeMap;
use std::time::Instant;

use muster_collective::Group;
use muster_proto::v1;
use muster_trainer::Metrics;
use muster_trainer::checkpoint::Content;
use v1::step_record::Record;

use super::measured::record;
use super::{Work, World, failed};
use crate::memory;
use crate::shared::Trouble;
use crate::shares::files;

impl Work<'_> {
    /// Has this rank's files of a checkpoint written, beside the steps that follow.
    pub(super) fn checkpoint(&self, world: &World, is_last: bool) -> Result<(), Trouble> {
        let Some(sharing) = &world.sharing else {
            let all = Content::all(false);
            let files = world.plan.files(self.rules.num_files);
            let files: Vec<Content> = files
                .filter_map(|file| all.get(file as usize).copied())
                .collect();
            if files.is_empty() {
                return Ok(());
            }
            return self
                .writer
                .write(|| self.trainer.snapshot(), files, is_last);
        };
        let files = files(sharing);
        if files.is_empty() {
            return Ok(());
        }
        let shares = files.iter().filter_map(|content| match content {
            Content::Share(share) => Some(*share),
            Content::Params | Content::Optimizer => None,
        });
        let (has_params, shares) = (files.contains(&Content::Params), shares.collect());
        let snapshot = || self.trainer.snapshot_of(has_params, &shares);
        self.writer.write(snapshot, files, is_last)
    }

    /// Evaluates this rank's chunks and adds up everybody's, in the order of the chunks.
    pub(super) fn evaluate(&mut self, group: &mut Group, world: &World) -> Result<(), Trouble> {
        let begun = Instant::now();
        let plan = world.plan;
        let num_chunks = self.trainer.num_eval_chunks();
        let mut mine = Vec::new();
        for chunk in plan.chunks(plan.rank, num_chunks) {
            self.shared.check()?;
            let metrics = self
                .trainer
                .evaluate_chunk(chunk)
                .map_err(|error| failed(&error))?;
            metrics.encode(&mut mine);
        }
        let all = group
            .all_gather(mine, world.timeout)
            .map_err(|error| self.closed_by(plan.generation, &error))?;
        let mut chunks = BTreeMap::new();
        for (rank, bytes) in (0u32..).zip(&all) {
            let mut bytes = &bytes[..];
            for chunk in plan.chunks(rank, num_chunks) {
                let metrics = Metrics::decode(&mut bytes).map_err(|error| failed(&error))?;
                chunks.insert(chunk, metrics);
            }
        }
        let mut sum = Metrics::default();
        chunks.values().for_each(|metrics| sum.add(metrics));
        let means = sum.means();
        let evaluated = Record::Evaluated(v1::Evaluated {
            step: self.trainer.step().0,
            metrics: means.clone(),
        });
        let record = record(evaluated, self.shared.key());
        self.evaluation = Some(record.clone());
        self.shared.tell(|machine| {
            machine.record(record);
            machine.evaluated(means);
        });
        self.spent.evaluating += begun.elapsed();
        Ok(())
    }

    /// Reports the end, which goes out when the last checkpoint counts.
    pub(super) fn end(
        &self,
        group: &mut Group,
        world: &World,
        stopped: bool,
    ) -> Result<(), Trouble> {
        let optimizer_hash = match &world.sharing {
            Some(sharing) => self.shared_hash(group, sharing, world.timeout)?,
            None => {
                let hash = self.trainer.optimizer_hash();
                hash.map_err(|error| failed(&error))?.ok_or_else(|| {
                    Trouble::Failed("not all of the optimizer's state is here".to_owned())
                })?
            }
        };
        let mut done = v1::Done {
            step: self.trainer.step().0,
            stopped,
            arena_hash: self.trainer.arena_hash().map_err(|error| failed(&error))?,
            optimizer_hash,
            trace: self.trainer.trace(),
            metrics: BTreeMap::new(),
            peak_memory_bytes: memory::peak_bytes(),
        };
        self.shared.tell(|machine| {
            done.metrics.clone_from(machine.metrics());
            machine.ended(done);
        });
        Ok(())
    }
}
