//! Turns views into aligned text for people; [`json`] turns them into JSON for scripts.

pub(crate) mod json;

use muster_proto::v1;

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
    fn a_job_is_shown_with_its_ranks_checkpoints_and_worlds() {
        let file = |bytes| v1::FileRef {
            bytes,
            ..Default::default()
        };
        let view = v1::JobView {
            job: "digits".to_owned(),
            state: "running".to_owned(),
            step: 50,
            total_steps: 200,
            history: 1,
            generation: 2,
            world_size: 1,
            workers_min: 1,
            workers_max: 1,
            identity: "abc".to_owned(),
            ranks: vec![v1::RankView {
                worker: "a".to_owned(),
                pid: 77,
                state: "running".to_owned(),
                shards_end: 8,
                ..Default::default()
            }],
            manifests: vec![v1::Manifest {
                step: 25,
                files: vec![file(100), file(23)],
                arena_hash: "0123456789abcdef".to_owned(),
                folder: "/c".to_owned(),
                ..Default::default()
            }],
            ledger: vec![v1::LedgerView {
                generation: 2,
                history: 1,
                first_step: 25,
                world_size: 1,
                reason: "rank 1 is gone".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(
            job(&view),
            "job digits: running\n\
             step 50/200, history 1, generation 2, workers 1 of 1\n\
             identity abc\n\
             \n\
             RANK  WORKER  PID  STATE    SHARDS\n\
             0     a       77   running  0..8\n\
             \n\
             CHECKPOINT  BYTES  ARENA         FOLDER\n\
             25          123    0123456789ab  /c\n\
             \n\
             GENERATION  HISTORY  FROM STEP  RANKS  WHY\n\
             2           1        25         1      rank 1 is gone"
        );
        let script = json::job(&view);
        assert_eq!(
            script["checkpoints"][0]["arena_hash"], "0123456789abcdef",
            "whole"
        );
        assert_eq!(script["ranks"][0]["shards"], serde_json::json!([0, 8]));
    }

    #[test]
    fn a_silent_worker_says_for_how_long() {
        let node = v1::NodeView {
            worker: "a".to_owned(),
            num_devices: 2,
            num_busy: 1,
            host: "10.0.0.2".to_owned(),
            last_seen_ms_ago: 2_340,
            ..Default::default()
        };
        assert_eq!(
            nodes(&[node]),
            "WORKER  STATE             BUSY  HOST      CANARY\n\
             a       silent for 2.3 s  1/2   10.0.0.2"
        );
    }

    #[test]
    fn an_empty_list_says_how_to_fill_it() {
        assert!(jobs(&[]).contains("muster submit"));
        assert!(nodes(&[]).contains("muster worker --join"));
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
