//! Turns views into aligned text for people, and into JSON for scripts.

use muster_proto::v1;
use serde_json::{Value, json};

/// Rows in columns as wide as their widest cell.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width_of = |column: usize, title: &str| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([title.chars().count()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| width_of(column, title))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}

/// The list of jobs.
pub(crate) fn jobs(jobs: &[v1::JobView]) -> String {
    if jobs.is_empty() {
        return "no jobs; `muster submit JOB.toml` submits one".to_owned();
    }
    let row = |job: &v1::JobView| {
        vec![
            job.job.clone(),
            job.state.clone(),
            progress(job),
            workers(job),
            loss(job),
            job.reason.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    table(
        &["JOB", "STATE", "STEP", "WORKERS", "LOSS", "REASON"],
        &rows,
    )
}

fn progress(job: &v1::JobView) -> String {
    match job.total_steps {
        0 => job.step.to_string(),
        total => format!("{}/{total}", job.step),
    }
}

fn workers(job: &v1::JobView) -> String {
    let range = if job.workers_min == job.workers_max {
        job.workers_max.to_string()
    } else {
        format!("{}-{}", job.workers_min, job.workers_max)
    };
    format!("{} of {range}", job.world_size)
}

fn loss(job: &v1::JobView) -> String {
    if job.step == 0 {
        "-".to_owned()
    } else {
        format!("{:.4}", job.loss)
    }
}

/// One job, with all that is known.
pub(crate) fn job(job: &v1::JobView) -> String {
    let mut text = format!(
        "job {}: {}{}\nstep {}, history {}, generation {}, workers {}\nidentity {}",
        job.job,
        job.state,
        if job.reason.is_empty() {
            String::new()
        } else {
            format!(" ({})", job.reason)
        },
        progress(job),
        job.history,
        job.generation,
        workers(job),
        job.identity,
    );
    if !job.ranks.is_empty() {
        let row = |rank: &v1::RankView| {
            vec![
                rank.rank.to_string(),
                rank.worker.clone(),
                rank.pid.to_string(),
                rank.state.clone(),
                format!("{}..{}", rank.shards_start, rank.shards_end),
            ]
        };
        let rows: Vec<Vec<String>> = job.ranks.iter().map(row).collect();
        text += &format!(
            "\n\n{}",
            table(&["RANK", "WORKER", "PID", "STATE", "SHARDS"], &rows)
        );
    }
    if !job.manifests.is_empty() {
        let row = |manifest: &v1::Manifest| {
            let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
            vec![
                manifest.step.to_string(),
                bytes.to_string(),
                short(&manifest.arena_hash),
                manifest.folder.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = job.manifests.iter().map(row).collect();
        text += &format!(
            "\n\n{}",
            table(&["CHECKPOINT", "BYTES", "ARENA", "FOLDER"], &rows)
        );
    }
    if !job.ledger.is_empty() {
        let row = |entry: &v1::LedgerView| {
            vec![
                entry.generation.to_string(),
                entry.history.to_string(),
                entry.first_step.to_string(),
                entry.world_size.to_string(),
                entry.reason.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = job.ledger.iter().map(row).collect();
        text += &format!(
            "\n\n{}",
            table(
                &["GENERATION", "HISTORY", "FROM STEP", "RANKS", "WHY"],
                &rows
            )
        );
    }
    text
}

/// The first digits of a hash.
pub(crate) fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// The list of workers.
pub(crate) fn nodes(nodes: &[v1::NodeView]) -> String {
    if nodes.is_empty() {
        return "no workers; `muster worker --join ADDRESS` starts one".to_owned();
    }
    let row = |node: &v1::NodeView| {
        #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
        let seconds = node.last_seen_ms_ago as f64 / 1000.0;
        let state = if node.connected {
            "connected".to_owned()
        } else {
            format!("silent for {seconds:.1} s")
        };
        let class = node
            .class
            .as_ref()
            .map(|class| short(&class.canary))
            .unwrap_or_default();
        let devices = format!("{}/{}", node.num_busy, node.num_devices);
        vec![
            node.worker.clone(),
            state,
            devices,
            node.host.clone(),
            class,
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["WORKER", "STATE", "BUSY", "HOST", "CANARY"], &rows)
}

/// One line of a rank's output.
pub(crate) fn log(line: &v1::LogRecord) -> String {
    format!("[g{} rank {}] {}", line.generation, line.rank, line.text)
}

pub(crate) fn log_json(line: &v1::LogRecord) -> Value {
    json!({ "time": line.time, "generation": line.generation, "rank": line.rank, "text": line.text })
}

pub(crate) fn node_json(node: &v1::NodeView) -> Value {
    let class = node.class.clone().unwrap_or_default();
    json!({
        "worker": node.worker,
        "connected": node.connected,
        "devices": node.num_devices,
        "busy": node.num_busy,
        "host": node.host,
        "incarnation": node.incarnation,
        "last_seen_ms_ago": node.last_seen_ms_ago,
        "class": { "build": class.build, "canary": class.canary, "libc": class.libc, "cpu": class.cpu },
    })
}

pub(crate) fn job_json(job: &v1::JobView) -> Value {
    let rank = |rank: &v1::RankView| {
        json!({
            "rank": rank.rank, "worker": rank.worker, "pid": rank.pid, "state": rank.state,
            "shards": [rank.shards_start, rank.shards_end],
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
        "ranks": job.ranks.iter().map(rank).collect::<Vec<_>>(),
        "checkpoints": job.manifests.iter().map(manifest).collect::<Vec<_>>(),
        "worlds": job.ledger.iter().map(world).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned()],
            vec!["longer".to_owned(), "b".to_owned()],
        ];
        assert_eq!(
            table(&["X", "Y"], &rows),
            "X       Y\na       long cell\nlonger  b"
        );
    }

    #[test]
    fn a_waiting_job_says_why() {
        let view = v1::JobView {
            job: "digits".to_owned(),
            state: "queued".to_owned(),
            reason: "waits for workers: 0 free, 2 needed".to_owned(),
            workers_min: 2,
            workers_max: 4,
            ..Default::default()
        };
        let text = jobs(&[view]);
        assert!(
            text.contains("0 of 2-4") && text.ends_with("waits for workers: 0 free, 2 needed"),
            "{text}"
        );
    }
}
