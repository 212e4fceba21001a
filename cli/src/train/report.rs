//! Tells a run's events to whoever looks: a bar on a terminal, a few lines in a file, JSON for
//! scripts. JSON and the summary go to standard output, all else to standard error.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_proto::event::{Event, What};

use crate::output::{print_lines, tell};
use crate::show::{self, short};

/// How events are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Terminal,
    Lines,
}

/// Tells events.
pub(crate) struct Reporter {
    format: Format,
    bar: ProgressBar,
    /// The share of the steps, in tenths, that was told in a file of lines.
    told_tenths: u64,
    num_lost: u64,
}

impl Reporter {
    pub(crate) fn new(format: Format) -> Self {
        let target = if format == Format::Terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            format,
            bar,
            told_tenths: 0,
            num_lost: 0,
        }
    }

    /// A remark for a person.
    pub(crate) fn say(&self, text: &str) {
        match self.format {
            Format::Json => {}
            Format::Terminal => self.bar.suspend(|| tell(text)),
            Format::Lines => tell(text),
        }
    }

    /// Tells an event; `json` is its line.
    pub(crate) fn event(&mut self, event: &Event, json: &str) {
        if self.format == Format::Json {
            // A reader that went away is no reason to stop training.
            print_lines([json.to_owned()]);
            return;
        }
        match &event.what {
            What::Step {
                step,
                total_steps,
                loss,
                samples_per_s,
                skipped,
                ..
            } => {
                if let Some(why) = skipped {
                    self.say(&format!("step {step} made no update: {why}"));
                }
                self.bar.set_length(*total_steps);
                self.bar.set_position(*step);
                let text = format!("loss {loss:.4}  {samples_per_s:.0} samples/s");
                let tenths = step * 10 / (*total_steps).max(1);
                if self.format == Format::Lines && tenths > self.told_tenths {
                    self.told_tenths = tenths;
                    tell(&format!("step {step}/{total_steps}  {text}"));
                }
                self.bar.set_message(text);
            }
            What::Finished { .. } => {
                self.bar.finish_and_clear();
                print_lines(summary(event, self.num_lost));
            }
            what => {
                self.num_lost += u64::from(matches!(what, What::Lost { .. }));
                if let Some(text) = remark(what) {
                    self.say(&text);
                }
            }
        }
    }
}

/// What a person wants to know of an event, if anything.
fn remark(what: &What) -> Option<String> {
    match what {
        What::Submitted { from_step: 0, .. }
        | What::Step { .. }
        | What::Rank { .. }
        | What::Finished { .. } => None,
        What::Submitted { from_step, .. } => Some(format!("goes on from step {from_step}")),
        What::Generation {
            generation,
            world_size,
            from_step,
            reason,
            ..
        } => {
            let ranks = if *world_size == 1 { "rank" } else { "ranks" };
            Some(format!(
                "world {generation}: {world_size} {ranks} from step {from_step} ({reason})"
            ))
        }
        What::Evaluated { step, metrics } => {
            Some(format!("step {step}: held-out {}", numbers(metrics)))
        }
        What::Checkpoint { step, .. } => Some(format!("step {step}: checkpoint")),
        What::Damaged { step, reason } => Some(format!(
            "the checkpoint of step {step} is damaged: {reason}"
        )),
        What::Unwritten {
            step,
            rank,
            worker,
            reason,
        } => Some(format!(
            "step {step}: no checkpoint, since rank {rank} on {worker} cannot write its files: {reason}"
        )),
        What::Distrusted { worker, reason } => {
            Some(format!("worker {worker} is used no more: {reason}"))
        }
        What::Lost {
            rank,
            worker,
            reason,
        } => Some(format!("rank {rank} on {worker} is lost: {reason}")),
    }
}

fn numbers(metrics: &BTreeMap<String, f64>) -> String {
    let number = |(name, value): (&String, &f64)| match name.as_str() {
        "accuracy" => format!("{name} {:.2} %", value * 100.0),
        _ => format!("{name} {value:.4}"),
    };
    metrics.iter().map(number).collect::<Vec<_>>().join(", ")
}

/// The end of a run in a few lines.
fn summary(event: &Event, num_lost: u64) -> Vec<String> {
    let What::Finished {
        state,
        step,
        steps_run,
        steps_skipped,
        arena_hash,
        trace,
        metrics,
        goodput,
        rank_time,
        wall_s,
        peak_memory_bytes,
        reason,
        path,
        ..
    } = &event.what
    else {
        return Vec::new();
    };
    let why = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    let mut lines = vec![format!("{} {state} at step {step}{why}", event.job)];
    if !metrics.is_empty() {
        lines.push(format!("held-out    {}", numbers(metrics)));
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = *steps_run as f64 / wall_s.max(f64::MIN_POSITIVE);
    let lost = match num_lost {
        0 => String::new(),
        1 => ", 1 rank was lost".to_owned(),
        num => format!(", {num} ranks were lost"),
    };
    lines.push(format!("time        {wall_s:.1} s, {steps_run} steps run, {rate:.0} steps/s, goodput {goodput:.2}{lost}"));
    if rank_time.total_s() > 0.0 {
        lines.push(format!("rank time   {}", show::rank_time(rank_time)));
    }
    match steps_skipped {
        0 => {}
        1 => lines.push("skipped     1 step, whose gradient was not finite".to_owned()),
        num => lines.push(format!(
            "skipped     {num} steps, whose gradients were not finite"
        )),
    }
    if !peak_memory_bytes.is_empty() {
        lines.push(format!("memory      {}", peaks(peak_memory_bytes)));
    }
    if !arena_hash.is_empty() {
        lines.push(format!(
            "bits        parameters {}, samples {}",
            short(arena_hash),
            short(trace)
        ));
    }
    if !path.is_empty() {
        lines.push(format!("checkpoint  {path}"));
    }
    if state == "interrupted" {
        lines.push("the same command goes on from here".to_owned());
    }
    lines
}

/// The most memory of each rank, or of the least and the most of many.
fn peaks(bytes: &[u64]) -> String {
    const MAX_NAMED: usize = 8;
    let mib = |bytes: &u64| (bytes >> 20).to_string();
    match (bytes.iter().min(), bytes.iter().max()) {
        (Some(least), Some(most)) if bytes.len() > MAX_NAMED => {
            let (num, least, most) = (bytes.len(), mib(least), mib(most));
            format!("at most {least} to {most} MiB on each of {num} ranks")
        }
        _ => {
            let all: Vec<String> = bytes.iter().map(mib).collect();
            format!("at most {} MiB, by rank", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
