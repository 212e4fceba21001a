//! Which samples the shards have that ranks died of again and again: told before they are computed,
//! since whoever computes them may say nothing afterwards.

use muster_cluster::ids::{ShardId, Step};
use muster_proto::{convert, v1};
use muster_trainer::Trainer;
use v1::rank_report::Report;

use crate::shared::Shared;

/// Of so many shards, and so many samples of each.
const MAX_SHARDS: usize = 4;
const MAX_SAMPLES: usize = 4;

/// Writes them to the log of this rank; rank 0 says them to the coordinator, too.
pub(crate) fn tell(shared: &Shared, trainer: &Trainer, suspect: &v1::Poison) {
    let step = suspect.step;
    let runs = convert::runs(suspect.shards.clone()).unwrap_or_default();
    let numbers = runs.into_iter().flat_map(muster_cluster::tree::Run::shards);
    let shards = numbers.take(MAX_SHARDS).map(|shard| {
        let mut rows = trainer.rows(Step(step), ShardId(shard));
        rows.truncate(MAX_SAMPLES);
        v1::ShardSamples { shard, rows }
    });
    let shards: Vec<v1::ShardSamples> = shards.collect();
    for v1::ShardSamples { shard, rows } in &shards {
        tracing::warn!(
            step,
            shard,
            ?rows,
            "ranks died that had this shard to compute"
        );
    }
    if shared.key().rank == 0 {
        shared.report(Report::SuspectSamples(v1::SuspectSamples { step, shards }));
    }
}
