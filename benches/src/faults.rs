//! What deaths cost: a job whose ranks are killed again and again, against the same job undisturbed.
//!
//! Published figures of torchft beside it: 300 L40S GPUs, a kill every 15 s on average with steps of
//! 11 to 15 s: 30.2 % of the steps committed, 13.4 % training efficiency (its authors' own run).

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::run::{Dice, Run, Waited, median, number};

/// A kill comes after so many undisturbed step times, on average.
const STEPS_PER_KILL: f64 = 1.5;

/// A job by the length of its steps, for four ranks on two processors.
pub(crate) struct Load {
    name: &'static str,
    channels: &'static str,
    hidden: &'static str,
    batch: u32,
}

pub(crate) const LOADS: [Load; 2] = [
    Load {
        name: "0.3 s",
        channels: "[64, 128]",
        hidden: "512",
        batch: 1600,
    },
    Load {
        name: "2 s",
        channels: "[208, 416]",
        hidden: "512",
        batch: 1600,
    },
];

fn arguments(load: &Load, steps: u64) -> Vec<String> {
    let mut arguments = vec!["--workers".to_owned(), "4".to_owned()];
    let set = [
        format!("train.steps={steps}"),
        format!("train.global_batch_size={}", load.batch),
        "train.logical_shards=64".to_owned(),
        format!("train.evaluate_every_steps={}", steps.max(1)),
        format!("model.channels={}", load.channels),
        format!("model.hidden={}", load.hidden),
        "workers.min=1".to_owned(),
        "workers.spares=2".to_owned(),
        "checkpoint.every_steps=100".to_owned(),
    ];
    for one in set {
        arguments.extend(["--set".to_owned(), one]);
    }
    arguments
}

/// What one run came to.
struct Outcome {
    /// From the first applied step to the last, in seconds.
    wall_s: f64,
    /// The median of a step, in seconds.
    step_s: f64,
    num_kills: u32,
    num_worlds: usize,
    steps_run: u64,
    bits: [String; 3],
}

/// Prints the table of all loads that are named, each run undisturbed and then disturbed.
pub(crate) fn run(muster: &Path, steps: u64, only: Option<&str>) -> Result<String, String> {
    let mut lines = vec![
        "| steps of | undisturbed | disturbed | kills | worlds | steps run | efficiency | same bits |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let loads = LOADS
        .iter()
        .filter(|load| only.is_none_or(|name| name == load.name));
    let loads: Vec<&Load> = loads.collect();
    if loads.is_empty() {
        let names: Vec<&str> = LOADS.iter().map(|load| load.name).collect();
        let names = names.join("\" or \"");
        return Err(format!("the steps of a load are \"{names}\""));
    }
    for load in loads {
        let calm = train(muster, load, steps, None)?;
        eprintln!("undisturbed: a step takes {:.3} s", calm.step_s);
        let mean = Duration::from_secs_f64(STEPS_PER_KILL * calm.step_s);
        let wild = train(muster, load, steps, Some(mean))?;
        // What the machine does meanwhile beside this counts for both alike.
        let again = train(muster, load, steps, None)?;
        eprintln!("undisturbed: a step takes {:.3} s", again.step_s);
        let calm_s = f64::midpoint(calm.wall_s, again.wall_s);
        lines.push(format!(
            "| {:.2} s | {:.1} s | {:.1} s | {} | {} | {} of {steps} | **{:.3}** | {} |",
            calm.step_s,
            calm_s,
            wild.wall_s,
            wild.num_kills,
            wild.num_worlds,
            wild.steps_run,
            calm_s / wild.wall_s,
            if calm.bits == wild.bits && again.bits == wild.bits {
                "yes"
            } else {
                "NO"
            },
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "Four ranks with two spares share {} processors, one thread a rank; kills come every \
         {STEPS_PER_KILL} undisturbed step times on average (exponential, seed 1), each at a rank \
         of the newest world. Efficiency: wall_undisturbed / wall_disturbed, from the first step \
         applied to the last; undisturbed is the mean of a run before and one behind it.",
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
    ));
    lines.push(
        "Published by torchft of its own: 300 GPUs, a kill every 15 s, steps of 11 to 15 s: 30.2 % \
         of the steps committed, training efficiency 0.134."
            .to_owned(),
    );
    Ok(lines.join("\n"))
}

fn train(
    muster: &Path,
    load: &Load,
    steps: u64,
    kill_every: Option<Duration>,
) -> Result<Outcome, String> {
    let mut run = Run::start(muster, "job.toml", &arguments(load, steps))?;
    let mut dice = Dice(1);
    let mut next_kill = None;
    let mut num_kills = 0;
    loop {
        match run.wait(next_kill)? {
            Waited::Ended => break,
            Waited::TimedOut => {
                if let Some(pid) = dice.pick(&run.pids())
                    && kill(pid)
                {
                    num_kills += 1;
                }
                next_kill = kill_every.map(|mean| Instant::now() + dice.wait(mean));
            }
            Waited::Event(event) => {
                let is_last = event["step"].as_u64() >= Some(steps);
                if event["event"] == "step" && is_last {
                    next_kill = None;
                } else if event["event"] == "step" && next_kill.is_none() {
                    next_kill = kill_every.map(|mean| Instant::now() + dice.wait(mean));
                }
            }
        }
    }
    let events = run.finish()?;
    outcome(&events, num_kills)
}

/// Kills a process; whether it was there.
pub(crate) fn kill(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

fn outcome(events: &[Value], num_kills: u32) -> Result<Outcome, String> {
    let of_kind = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let mut times = Vec::new();
    for step in of_kind("step") {
        times.push(number(step, "time")?);
    }
    let finished = of_kind("finished")
        .next_back()
        .ok_or("the job has no end")?;
    let text = |name: &str| finished[name].as_str().unwrap_or_default().to_owned();
    let (first, last) = (
        times.first().copied().unwrap_or(f64::NAN),
        times.last().copied().unwrap_or(f64::NAN),
    );
    Ok(Outcome {
        wall_s: last - first,
        step_s: median(times.windows(2).map(|pair| pair[1] - pair[0])),
        num_kills,
        num_worlds: of_kind("generation").count(),
        steps_run: finished["steps_run"].as_u64().unwrap_or_default(),
        bits: ["arena_hash", "optimizer_hash", "trace"].map(text),
    })
}

/// How long the survivors of a death stand still: many kills of one rank of four in a job whose steps
/// take milliseconds, so that the missing shards' computation hardly counts.
pub(crate) fn pause(muster: &Path, num_kills: usize) -> Result<String, String> {
    let mut arguments = vec!["--workers".to_owned(), "4".to_owned()];
    for set in ["train.steps=1000000", "workers.min=1", "workers.spares=1"] {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    let mut run = Run::start(muster, "mlp.toml", &arguments)?;
    let mut dice = Dice(1);
    let mut pauses: Vec<f64> = Vec::new();
    let mut calm: Vec<f64> = Vec::new();
    let mut last_step = None;
    let mut next_kill = None;
    let mut size = 0;
    let mut killed = None;
    while pauses.len() < num_kills {
        match run.wait(next_kill)? {
            Waited::Ended => return Err("the job ended before it was killed enough".to_owned()),
            Waited::TimedOut => {
                next_kill = None;
                if let Some(pid) = dice.pick(&run.pids())
                    && kill(pid)
                {
                    killed = Some(now_s());
                }
            }
            Waited::Event(event) if event["event"] == "generation" => {
                size = event["world_size"].as_u64().unwrap_or_default();
            }
            Waited::Event(event) if event["event"] == "step" => {
                let time = number(&event, "time")?;
                let gap = last_step.replace(time).map_or(0.0, |last| time - last);
                match killed {
                    Some(at) if time > at => {
                        pauses.push(gap);
                        killed = None;
                    }
                    Some(_) => {}
                    None => calm.push(gap),
                }
                // Again when the world is whole, and has run for a while.
                if size == 4 && next_kill.is_none() && killed.is_none() {
                    let wait = Duration::from_millis(300) + dice.wait(Duration::from_millis(200));
                    next_kill = Some(Instant::now() + wait);
                }
            }
            Waited::Event(_) => {}
        }
    }
    run.end();
    let step = median(calm.iter().copied());
    let worst = pauses.iter().copied().fold(0.0, f64::max);
    Ok(format!(
        "{num_kills} kills, one rank of four each: between the step before and the step after it, \
         median {:.0} ms, worst {:.0} ms; an undisturbed step of this job takes {:.1} ms.",
        1000.0 * median(pauses.iter().copied()),
        1000.0 * worst,
        1000.0 * step
    ))
}

fn now_s() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
