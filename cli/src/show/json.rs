//! Views as JSON for scripts: the same facts as the text for people, with nothing shortened.

use muster_proto::event::RankTime;
use muster_proto::v1;
use serde_json::{Value, json};

/// One line of a rank's output.
pub(crate) fn log(line: &v1::LogRecord) -> Value {
    json!({ "time": line.time, "generation": line.generation, "rank": line.rank, "text": line.text })
}

/// A GPU of a worker.
fn gpu(view: &v1::GpuView) -> Value {
    let gpu = view.gpu.clone().unwrap_or_default();
    json!({
        "index": gpu.index,
        "name": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "uuid": gpu.uuid,
        "class": gpu.class.unwrap_or_default().gpu,
        "job": (!view.job.is_empty()).then_some(&view.job),
    })
}

/// A worker.
pub(crate) fn node(node: &v1::NodeView) -> Value {
    let class = node.class.clone().unwrap_or_default();
    json!({
        "worker": node.worker,
        "connected": node.connected,
        "devices": node.num_devices,
        "busy": node.num_busy,
        "host": node.host,
        "incarnation": node.incarnation,
        "last_seen_ms_ago": node.last_seen_ms_ago,
        "draining": node.draining,
        "jobs": node.jobs,
        "drains": (!node.drains.is_empty()).then_some(&node.drains),
        "class": { "build": class.build, "canary": class.canary, "libc": class.libc, "cpu": class.cpu },
        "gpus": node.gpus.iter().map(gpu).collect::<Vec<_>>(),
    })
}

/// A job, with all that is known.
pub(crate) fn job(job: &v1::JobView) -> Value {
    let rank = |rank: &v1::RankView| {
        json!({
            "rank": rank.rank, "worker": rank.worker, "device": rank.device, "pid": rank.pid, "state": rank.state,
            "shards": [rank.shards_start, rank.shards_end],
            "shard_us": (rank.shard_us > 0).then_some(rank.shard_us),
            "slow": (!rank.slow_in.is_empty())
                .then(|| json!({ "in": rank.slow_in, "percent": rank.slow_percent })),
        })
    };
    let standby = |standby: &v1::StandbyView| {
        json!({
            "process": standby.process, "worker": standby.worker, "device": standby.device, "pid": standby.pid,
            "state": standby.state, "reason": standby.reason,
            "bytes": [standby.bytes_taken, standby.bytes_total],
        })
    };
    let manifest = |manifest: &v1::Manifest| {
        let file = |file: &v1::FileRef| json!({ "name": file.name, "bytes": file.bytes, "hash": file.hash });
        json!({
            "step": manifest.step, "history": manifest.history, "generation": manifest.generation,
            "folder": manifest.folder, "files": manifest.files.iter().map(file).collect::<Vec<_>>(),
            "arena_hash": manifest.arena_hash, "optimizer_hash": manifest.optimizer_hash, "trace": manifest.trace,
        })
    };
    let world = |entry: &v1::LedgerView| {
        json!({
            "history": entry.history, "generation": entry.generation, "first_step": entry.first_step,
            "world_size": entry.world_size, "reason": entry.reason, "stamp_ms": entry.stamp_ms,
        })
    };
    let rank_time: RankTime = job.rank_time.unwrap_or_default().into();
    let outcome = job.outcome.as_ref();
    let peaks = outcome.map(|outcome| outcome.peak_memory_bytes.clone());
    let distrusted =
        |one: &v1::DistrustedView| json!({ "worker": one.worker, "reason": one.reason });
    json!({
        "job": job.job,
        "state": job.state,
        "reason": job.reason,
        "history": job.history,
        "generation": job.generation,
        "step": job.step,
        "total_steps": job.total_steps,
        "world_size": job.world_size,
        "workers": { "min": job.workers_min, "max": job.workers_max },
        "submitted_ms": job.submitted_ms,
        "loss": job.loss,
        "identity": job.identity,
        "rank_time": rank_time,
        "goodput": rank_time.goodput(),
        "peak_memory_bytes": peaks,
        "distrusted": job.distrusted.iter().map(distrusted).collect::<Vec<_>>(),
        "ranks": job.ranks.iter().map(rank).collect::<Vec<_>>(),
        "standbys": job.standbys.iter().map(standby).collect::<Vec<_>>(),
        "checkpoints": job.manifests.iter().map(manifest).collect::<Vec<_>>(),
        "worlds": job.ledger.iter().map(world).collect::<Vec<_>>(),
    })
}
