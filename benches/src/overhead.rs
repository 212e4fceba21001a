//! Where the time of a step goes: the gradients, the reduction, the update, and all that is left,
//! which is the protocol's (records, orders, checkpoints' snapshots).

use std::path::Path;

use crate::run::{Run, median, number};

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

/// One run; the steps behind the warm-up.
fn train(muster: &Path, variant: &Variant) -> Result<Vec<Step>, String> {
    let arguments = ["--workers", variant.workers].map(str::to_owned);
    let mut steps = Vec::new();
    for event in Run::start(muster, "job.toml", &arguments)?.finish()? {
        if event["event"] != "step" {
            continue;
        }
        steps.push(Step {
            wall: number(&event, "wall_ms")?,
            contribute: number(&event, "contribute_ms")?,
            reduce: number(&event, "reduce_ms")?,
            update: number(&event, "update_ms")?,
        });
    }
    steps.drain(..WARM_UP_STEPS.min(steps.len()));
    Ok(steps)
}
