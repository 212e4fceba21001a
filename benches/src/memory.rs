//! What `workers.redundancy` saves: the peak memory of the ranks of one job, whoever keeps the
//! optimizer's state, and whether all end in the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::run::{Run, Waited};

/// Seventeen million parameters: with Adam's two vectors, 204 MB of state.
const SET: [&str; 8] = [
    "model.hidden=[4096, 4096]",
    "train.global_batch_size=32",
    "train.logical_shards=8",
    "train.steps=8",
    "schedule.warmup_steps=1",
    "checkpoint.every_steps=4",
    "workers.min=1",
    "optimizer.kind=adamw",
];

/// The table, for a world of four ranks.
pub(crate) fn run(muster: &Path) -> Result<String, String> {
    let mut lines = vec![
        "| redundancy | largest rank | mean of the ranks | parameters | optimizer |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for redundancy in ["full", "shadow", "none"] {
        let (peaks, end) = peaks_of(muster, redundancy)?;
        let largest = peaks.iter().copied().fold(0.0, f64::max);
        let mean = peaks.iter().sum::<f64>() / peaks.len().max(1) as f64;
        let hash = |name: &str| {
            let text = end[name].as_str().unwrap_or_default();
            text.chars().take(12).collect::<String>()
        };
        lines.push(format!(
            "| {redundancy} | {largest:.0} MB | {mean:.0} MB | {} | {} |",
            hash("arena_hash"),
            hash("optimizer_hash")
        ));
    }
    lines.push(String::new());
    lines.push(
        "Four ranks, 17 million parameters, AdamW: 204 MB of state, 68 MB of them parameters; peak \
         resident memory (VmHWM) of each rank's process, checkpoints included."
            .to_owned(),
    );
    Ok(lines.join("\n"))
}

/// The peak of each rank's process in MB, and the job's end.
fn peaks_of(muster: &Path, redundancy: &str) -> Result<(Vec<f64>, Value), String> {
    let mut arguments = vec!["--workers".to_owned(), "4".to_owned()];
    let redundancy = format!("workers.redundancy={redundancy}");
    for one in SET.iter().copied().chain([redundancy.as_str()]) {
        arguments.extend(["--set".to_owned(), one.to_owned()]);
    }
    let mut run = Run::start(muster, "mlp.toml", &arguments)?;
    let mut peaks = BTreeMap::new();
    // The last checkpoint's event comes while the ranks are still there.
    while let Waited::Event(_) = run.wait(None)? {
        for pid in run.pids() {
            if let Some(peak) = peak_mb(pid) {
                peaks.insert(pid, peak);
            }
        }
    }
    let events = run.finish()?;
    let mut ends = events.into_iter().rev();
    let end = ends.find(|event| event["event"] == "finished");
    let end = end.ok_or("the job has no end")?;
    Ok((peaks.into_values().collect(), end))
}

fn peak_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
