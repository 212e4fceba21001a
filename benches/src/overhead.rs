//! Where the time of a step goes: the gradients, the reduction, the update, and all that is left,
//! which is the protocol's (records, orders, checkpoints' snapshots).

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// The first steps of a run fill caches and pools.
const WARM_UP_STEPS: usize = 50;

/// One way to run the job.
struct Variant {
    name: &'static str,
    workers: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "1 rank",
        workers: "1",
    },
    Variant {
        name: "2 ranks",
        workers: "2",
    },
];

/// Milliseconds of a step, by part.
#[derive(Clone, Copy)]
struct Step {
    wall: f64,
    contribute: f64,
    reduce: f64,
    update: f64,
}

/// Runs the digits job in each variant, in turns, and prints medians over all steps.
pub(crate) fn run(muster: &Path, rounds: usize) -> Result<String, String> {
    let mut steps: Vec<Vec<Step>> = VARIANTS.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (variant, steps) in VARIANTS.iter().zip(&mut steps) {
            eprintln!("round {} of {rounds}: {}", round + 1, variant.name);
            steps.extend(train(muster, variant)?);
        }
    }
    let mut lines = vec![
        "| a step of digits | median | contribute | reduce | update | protocol | outside contribute |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for (variant, steps) in VARIANTS.iter().zip(&steps) {
        let share = |part: fn(&Step) -> f64| {
            100.0 * median(steps.iter().map(|step| part(step) / step.wall))
        };
        lines.push(format!(
            "| {} | {:.2} ms | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % |",
            variant.name,
            median(steps.iter().map(|step| step.wall)),
            share(|step| step.contribute),
            share(|step| step.reduce),
            share(|step| step.update),
            share(|step| step.wall - step.contribute - step.reduce - step.update),
            share(|step| step.wall - step.contribute),
        ));
    }
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    lines.push(String::new());
    lines.push(format!(
        "{} steps a row, medians over {rounds} interleaved runs, on {processors} processors; one thread a rank.",
        steps.first().map_or(0, Vec::len)
    ));
    Ok(lines.join("\n"))
}

/// One run in a state folder of its own; the steps behind the warm-up.
fn train(muster: &Path, variant: &Variant) -> Result<Vec<Step>, String> {
    static RUN: AtomicU32 = AtomicU32::new(0);
    let number = RUN.fetch_add(1, Ordering::Relaxed);
    let state = std::env::temp_dir().join(format!("muster-bench-{}-{number}", std::process::id()));
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/job.toml");
    let output = Command::new(muster)
        .args([
            "train",
            job,
            "--json",
            "--threads",
            "1",
            "--workers",
            variant.workers,
            "--state",
        ])
        .arg(&state)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", muster.display()))?;
    // What is left of a failed run may help to find out why.
    if !output.status.success() {
        return Err(format!(
            "the run ended with {}; its state is in {}",
            output.status,
            state.display()
        ));
    }
    std::fs::remove_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
    let events = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut steps = Vec::new();
    for line in events.lines() {
        let event: Value =
            serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
        if event["event"] != "step" {
            continue;
        }
        let number = |name: &str| {
            event[name]
                .as_f64()
                .ok_or_else(|| format!("no {name} in {line}"))
        };
        steps.push(Step {
            wall: number("wall_ms")?,
            contribute: number("contribute_ms")?,
            reduce: number("reduce_ms")?,
            update: number("update_ms")?,
        });
    }
    steps.drain(..WARM_UP_STEPS.min(steps.len()));
    Ok(steps)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
