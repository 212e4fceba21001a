//! `muster chaos`: kills or pauses processes of a job, or cuts the links of a worker, at random, so
//! that users see what their own cluster makes of it. Bounded in time; touches only processes of
//! this machine that it knows for what they are ([`victims`], [`links`]).

mod dice;
mod links;
mod victims;

use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use muster_proto::v1;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::dice::Dice;
use self::links::Cut;
pub(crate) use self::victims::is_local;
use self::victims::{Machine, Victim};
use crate::client::{Client, To};
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::output::{print_lines, tell};

/// Kill processes of a job at random on this machine, to see it survive
#[derive(Debug, Args)]
#[command(
    after_help = "This KILLS processes, with SIGKILL and without asking: ranks of the job, and with \
                  --what the workers that run them and the coordinator. It sees only processes of \
                  this machine and this user. Ranks are started again by the cluster; a worker or a \
                  coordinator only if something on this machine does so, as `muster train` or a \
                  service manager. It ends with the job, after --for or --kills, or with Ctrl-C, \
                  and continues what it paused and mends what it cut unless it is killed with SIGKILL \
                  itself. --partition takes the right to trace these processes, as root has. The \
                  coordinator of a `muster train` is where its workers are told to --join, as \
                  `pgrep -af 'muster worker'` shows.\n\n\
                  Examples: muster chaos digits --kill-every 2s; \
                  muster chaos digits --kill-every 500ms --what rank,worker --kills 10 --seed 7; \
                  muster chaos digits --kill-every 5s --pause --for 2m; \
                  muster chaos digits --kill-every 10s --partition"
)]
pub(crate) struct Chaos {
    /// The job's name
    job: String,
    /// The mean time between two acts, such as 500ms, 2s or 1m; each waiting time is drawn from an
    /// exponential distribution
    #[arg(long, value_name = "TIME", value_parser = duration)]
    kill_every: Duration,
    /// Which processes
    #[arg(long, value_delimiter = ',', default_value = "rank")]
    what: Vec<What>,
    /// Stop each process for up to 3 s (SIGSTOP), and continue it, instead of killing it
    #[arg(long)]
    pause: bool,
    /// Cut a worker's daemon and its ranks off from the coordinator and from all other ranks for up
    /// to 3 s, instead of killing anything: what they are sent is dropped. A new connection lives for
    /// some milliseconds before it is cut, too
    #[arg(long, conflicts_with_all = ["pause", "what"])]
    partition: bool,
    /// End after this long [default: 60s, unless --kills is given]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    lasts: Option<Duration>,
    /// End after so many acts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    kills: Option<u32>,
    /// Draws the times and the victims
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    to: To,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which processes may be struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum What {
    Rank,
    Worker,
    Coordinator,
}

impl What {
    /// The role on its command line.
    fn as_str(self) -> &'static str {
        match self {
            What::Rank => "rank",
            What::Worker => "worker",
            What::Coordinator => "coordinator",
        }
    }
}

/// How long it lasts where nothing is said.
const DEFAULT_BOUND: Duration = Duration::from_secs(60);

/// The longest pause of a process, and the longest cut.
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// Between two looks for connections that are new while others are cut.
const CUT_EVERY: Duration = Duration::from_millis(10);

/// Why it ends.
enum End {
    JobEnded(String),
    TimeIsOver,
    Interrupted,
    EnoughActs,
}

impl Chaos {
    pub(crate) async fn run(self) -> Outcome {
        let client = Client::new(&self.to)?;
        let job = client.job(&self.job).await?;
        if job.outcome.is_some() {
            return Err(Failure::bad_input(format!(
                "job {} has ended ({}); there is nothing to strike",
                self.job, job.state
            )));
        }
        self.warn();
        let run = Run {
            start: Instant::now(),
            num_acts: Cell::new(0),
        };
        let end = self.strike(&client, &run).await;
        let (reason, code) = match &end {
            Ok(End::JobEnded(state)) => (format!("the job has ended ({state})"), 0),
            Ok(End::TimeIsOver) => ("the time is over".to_owned(), 0),
            Ok(End::EnoughActs) => ("it was enough".to_owned(), 0),
            Ok(End::Interrupted) => ("it was interrupted".to_owned(), INTERRUPTED),
            Err(failure) => (failure.text.clone(), 1),
        };
        let (seconds, num_acts) = (run.start.elapsed().as_secs_f64(), run.num_acts.get());
        print_lines([if self.json {
            json!({ "event": "ended", "after_s": seconds, "acts": num_acts, "reason": reason })
                .to_string()
        } else {
            let verb = match (self.pause, self.partition) {
                (true, _) => "paused",
                (_, true) => "cut",
                _ => "killed",
            };
            format!("{seconds:.1} s: ends, since {reason}; {verb} {num_acts} times")
        }]);
        match end {
            Ok(_) => Ok(ExitCode::from(code)),
            Err(failure) => Err(Failure::failed(failure.text)),
        }
    }

    /// Says what is about to happen before it does.
    fn warn(&self) {
        let names: Vec<&str> = self.what.iter().map(|what| what.as_str()).collect();
        let (verb, whose) = match (self.pause, self.partition) {
            (true, _) => ("PAUSES (SIGSTOP) processes", names.join(", ")),
            (_, true) => ("CUTS the links", "a worker with its ranks".to_owned()),
            _ => ("KILLS (SIGKILL) processes", names.join(", ")),
        };
        let bound = match (self.bound(), self.kills) {
            (Some(bound), Some(kills)) => format!("for {bound:?} or {kills} times"),
            (Some(bound), None) => format!("for {bound:?}"),
            (None, kills) => format!("{} times", kills.unwrap_or_default()),
        };
        tell(&format!(
            "{verb} of job {} on this machine ({whose}), every {:?} on average, {bound}; Ctrl-C ends \
             it",
            self.job, self.kill_every
        ));
    }

    fn bound(&self) -> Option<Duration> {
        self.lasts
            .or_else(|| self.kills.is_none().then_some(DEFAULT_BOUND))
    }

    /// One act after the other, until there is a reason to end.
    async fn strike(&self, client: &Client, run: &Run) -> Result<End, Failure> {
        let mut dice = Dice::new(self.seed);
        let mut signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        let [interrupt, terminate, hangup] = &mut signals;
        let bound = self.bound();
        let acts = async {
            loop {
                tokio::time::sleep(dice.wait(self.kill_every)).await;
                let job = client.job(&self.job).await?;
                let coordinator = client.nodes().await?.coordinator_pid;
                let is_here = client.is_on_this_machine().await;
                let coordinator = is_here.then_some(coordinator);
                let struck = if self.partition {
                    let machine = dice.one_of(victims::machines(&job, coordinator));
                    self.partition(machine, &job, run, &mut dice).await?
                } else {
                    let victim = dice.victim(victims::victims(&self.what, &job, coordinator));
                    self.act(victim, &job, run, &mut dice).await?
                };
                if !struck {
                    tell("no process of the job is here now");
                }
                if Some(run.num_acts.get()) == self.kills {
                    return Ok(End::EnoughActs);
                }
            }
        };
        tokio::select! {
            end = acts => end,
            end = client.end_of(&self.job) => Ok(End::JobEnded(end?.state)),
            () = time_is_over(bound) => Ok(End::TimeIsOver),
            _ = interrupt.recv() => Ok(End::Interrupted),
            _ = terminate.recv() => Ok(End::Interrupted),
            _ = hangup.recv() => Ok(End::Interrupted),
        }
    }

    /// Strikes one process, if there is one. A pause that is cut off ends with it.
    async fn act(
        &self,
        victim: Option<Victim>,
        job: &v1::JobView,
        run: &Run,
        dice: &mut Dice,
    ) -> Result<bool, Failure> {
        let Some(victim) = victim else {
            return Ok(false);
        };
        let whom = Whom {
            what: victim.what,
            name: &victim.name,
            pid: victim.pid,
        };
        if !self.pause {
            let event = if victim.kill()? { "killed" } else { "missed" };
            self.say(event, &whom, job, run, None);
            return Ok(true);
        }
        let lasts = dice.up_to(MAX_PAUSE);
        let stopped = victim.stop()?;
        self.say("paused", &whom, job, run, Some(lasts));
        tokio::time::sleep(lasts).await;
        drop(stopped);
        Ok(true)
    }

    /// Cuts the links of one worker, if there is one. They are mended whatever ends it.
    async fn partition(
        &self,
        machine: Option<Machine>,
        job: &v1::JobView,
        run: &Run,
        dice: &mut Dice,
    ) -> Result<bool, Failure> {
        let Some(machine) = machine else {
            return Ok(false);
        };
        let lasts = dice.up_to(MAX_PAUSE);
        let end = tokio::time::Instant::now() + lasts;
        let mut cut = Cut::default();
        cut.extend(&machine.inside, &machine.others)
            .map_err(Failure::failed)?;
        let name = format!("{} at {} ends of connections", machine.name, cut.len());
        let whom = Whom {
            what: What::Worker,
            name: if self.json { &machine.name } else { &name },
            pid: machine.pid,
        };
        self.say("cut", &whom, job, run, Some(lasts));
        while tokio::time::Instant::now() < end {
            tokio::time::sleep(CUT_EVERY).await;
            cut.extend(&machine.inside, &machine.others)
                .map_err(Failure::failed)?;
        }
        Ok(true)
    }

    /// Says what is done now, and counts it: whatever ends it, it has begun.
    fn say(
        &self,
        event: &str,
        whom: &Whom<'_>,
        job: &v1::JobView,
        run: &Run,
        lasts: Option<Duration>,
    ) {
        run.num_acts.set(run.num_acts.get() + 1);
        let after_s = run.start.elapsed().as_secs_f64();
        let for_s = lasts.map(|lasts| lasts.as_secs_f64());
        let Whom { what, name, pid } = whom;
        print_lines([if self.json {
            json!({
                "event": event, "after_s": after_s, "what": what.as_str(), "name": name,
                "pid": pid, "step": job.step, "for_s": for_s,
            })
            .to_string()
        } else {
            let lasts = for_s.map_or(String::new(), |for_s| format!(" for {for_s:.1} s"));
            format!(
                "{after_s:.1} s: {event} {name} (pid {pid}) at step {}{lasts}",
                job.step
            )
        }]);
    }
}

/// One run of the command.
struct Run {
    start: Instant,
    num_acts: Cell<u32>,
}

/// Who was struck, for people.
struct Whom<'a> {
    what: What,
    name: &'a str,
    pid: u32,
}

async fn time_is_over(bound: Option<Duration>) {
    match bound {
        Some(bound) => tokio::time::sleep(bound).await,
        None => std::future::pending().await,
    }
}

/// A time as people write it: `500ms`, `2s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time above zero, such as 500ms, 2s or 1m".to_owned();
    let digits = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(number * factor)
        .ok()
        .filter(|duration| *duration >= Duration::from_millis(1))
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, milliseconds) in [("500ms", 500), ("2s", 2_000), ("0.5s", 500), ("1m", 60_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in [
            "", "2", "s", "-1s", "0s", "2 days", "NaNs", "infs", "1e400s",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
