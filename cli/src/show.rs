//! Turns views into aligned text for people; [`json`] turns them into JSON for scripts.

pub(crate) mod json;

use muster_proto::event::RankTime;
use muster_proto::v1;

/// Rows in columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
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
    if let Some(time) = job.rank_time {
        text += &format!("\nrank time {}", rank_time(&time.into()));
    }
    for distrusted in &job.distrusted {
        let v1::DistrustedView { worker, reason } = distrusted;
        text += &format!("\nworker {worker} is used no more: {reason}");
    }
    if !job.ranks.is_empty() {
        let row = |rank: &v1::RankView| {
            vec![
                rank.rank.to_string(),
                place(&rank.worker, &rank.device),
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
        text.extend(job.ranks.iter().filter_map(slow));
    }
    if !job.standbys.is_empty() {
        let row = |standby: &v1::StandbyView| {
            vec![
                standby.process.to_string(),
                place(&standby.worker, &standby.device),
                standby.pid.to_string(),
                how_far(standby),
                standby.reason.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = job.standbys.iter().map(row).collect();
        text += &format!(
            "\n\n{}",
            table(&["WAITING", "WORKER", "PID", "STATE", "WHY"], &rows)
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

/// Where the time of a job's ranks went: all of it, and each part of it.
pub(crate) fn rank_time(time: &RankTime) -> String {
    let total_s = time.total_s();
    let share = |seconds: f64| 100.0 * seconds / total_s.max(f64::MIN_POSITIVE);
    let parts = time.parts().map(|(name, seconds)| {
        let percent = share(seconds);
        format!("{name} {percent:.1} % ({seconds:.1} s)")
    });
    format!("{total_s:.1} s: {}", parts.join(", "))
}

/// What a rank does more slowly than the others, as a line.
fn slow(rank: &v1::RankView) -> Option<String> {
    let v1::RankView {
        rank,
        worker,
        slow_in,
        slow_percent,
        ..
    } = rank;
    let times = f64::from(*slow_percent) / 100.0;
    (!slow_in.is_empty()).then(|| {
        format!("\nrank {rank} on {worker} is slow: {slow_in} takes it {times:.1} times as long as the others")
    })
}

/// What a process does that waits to enter a world.
fn how_far(standby: &v1::StandbyView) -> String {
    match standby.bytes_total {
        0 => standby.state.clone(),
        total => {
            let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
            let taken = megabytes(standby.bytes_taken);
            format!("{}: {taken} of {} MB", standby.state, megabytes(total))
        }
    }
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
        let mut state = if node.connected {
            "connected".to_owned()
        } else {
            format!("silent for {seconds:.1} s")
        };
        if node.draining {
            state += if node.jobs.is_empty() {
                ", drained"
            } else {
                ", draining"
            };
        }
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
    let mut text = table(&["WORKER", "STATE", "BUSY", "HOST", "CANARY"], &rows);
    let gpus: Vec<Vec<String>> = nodes.iter().flat_map(gpus).collect();
    if !gpus.is_empty() {
        text += "\n\n";
        text += &table(&["WORKER", "DEVICE", "NAME", "MEMORY", "JOB"], &gpus);
    }
    text
}

/// A row for each GPU of a worker.
fn gpus(node: &v1::NodeView) -> impl Iterator<Item = Vec<String>> {
    node.gpus.iter().map(|view| {
        let gpu = view.gpu.clone().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
        let gigabytes = gpu.memory_bytes as f64 / 1e9;
        let job = match view.job.as_str() {
            "" => "free",
            job => job,
        };
        vec![
            node.worker.clone(),
            format!("cuda:{}", gpu.index),
            gpu.name,
            format!("{gigabytes:.1} GB"),
            job.to_owned(),
        ]
    })
}

/// A worker, and which of its GPUs it is about, if it is about one.
fn place(worker: &str, device: &str) -> String {
    if device.starts_with("cuda") {
        format!("{worker}/{device}")
    } else {
        worker.to_owned()
    }
}

/// One line of a rank's output.
pub(crate) fn log(line: &v1::LogRecord) -> String {
    format!("[g{} rank {}] {}", line.generation, line.rank, line.text)
}

#[cfg(test)]
mod tests;
