//! The one binary: reads what it was asked for, and hands it to the part that does it.

mod chaos;
mod client;
mod daemons;
mod doctor;
mod elastic;
mod failure;
mod group;
mod job;
mod jobfile;
mod ledger;
mod local;
mod look;
mod manage;
mod output;
mod show;
mod train;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use failure::{Failure, Outcome};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Distributed training that never loses a step.
///
/// `muster train JOB.toml` trains on this machine. For a cluster, start `muster coordinator` once,
/// `muster worker --join ADDRESS` on every machine, and then `muster submit JOB.toml`.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Train),
    Up(up::Up),
    Coordinator(daemons::CoordinatorCommand),
    Worker(daemons::Worker),
    #[command(hide = true)]
    Rank(daemons::Rank),
    Submit(manage::Submit),
    Ps(look::Ps),
    Show(look::Show),
    Logs(look::Logs),
    Cancel(manage::Cancel),
    Wait(manage::Wait),
    Scale(elastic::Scale),
    Drain(elastic::Drain),
    Job(job::Job),
    Ledger(ledger::Ledger),
    Chaos(chaos::Chaos),
    Nodes(look::Nodes),
    Doctor(doctor::Doctor),
    #[cfg(feature = "cuda")]
    #[command(hide = true)]
    NcclRank(doctor::nccl::NcclRank),
    /// Print what a job file may say, with defaults
    JobReference,
    /// Print a completion script for a shell
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let logged = log_to_stderr(&arguments.command);
    let outcome = logged.and_then(|()| run(arguments.command));
    outcome.unwrap_or_else(Failure::exit)
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Rank(rank) => return Ok(rank.run()),
        Command::JobReference => {
            output::print_lines([muster_cluster::job::reference()]);
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "muster", &mut script);
            output::print_lines([String::from_utf8_lossy(&script).into_owned()]);
        }
        Command::Train(train) => return block_on(train.run()),
        Command::Up(up) => return block_on(up.run()),
        Command::Coordinator(coordinator) => return block_on(coordinator.run()),
        Command::Worker(worker) => return block_on(worker.run()),
        Command::Submit(submit) => return block_on(submit.run()),
        Command::Ps(ps) => return block_on(ps.run()),
        Command::Show(show) => return block_on(show.run()),
        Command::Logs(logs) => return block_on(logs.run()),
        Command::Cancel(cancel) => return block_on(cancel.run()),
        Command::Wait(wait) => return block_on(wait.run()),
        Command::Scale(scale) => return block_on(scale.run()),
        Command::Drain(drain) => return block_on(drain.run()),
        Command::Job(job) => return block_on(job.run()),
        Command::Ledger(ledger) => return block_on(ledger.run()),
        Command::Chaos(chaos) => return block_on(chaos.run()),
        Command::Nodes(nodes) => return block_on(nodes.run()),
        Command::Doctor(doctor) => return block_on(doctor.run()),
        #[cfg(feature = "cuda")]
        Command::NcclRank(rank) => return rank.run(),
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(command);
    // A thread that blocks on standard input must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// Daemons tell what they do; the other commands only what goes wrong. `MUSTER_LOG` says otherwise,
/// as a filter such as `debug` or `muster_worker=trace`.
fn log_to_stderr(command: &Command) -> Result<(), Failure> {
    let is_daemon = matches!(
        command,
        Command::Coordinator(_) | Command::Worker(_) | Command::Rank(_)
    );
    let default = if is_daemon { "info" } else { "warn" };
    let asked = std::env::var_os("MUSTER_LOG").filter(|text| !text.is_empty());
    let asked = asked.map(|text| text.to_string_lossy().into_owned());
    let asked = asked.as_deref().unwrap_or(default);
    let mut filter = log_filter(asked)?;
    // It tells each kernel again behind each of its passes: tens of megabytes a rank on a GPU.
    if filter.max_level_hint() >= Some(LevelFilter::INFO)
        && !asked.contains(KERNEL_COMPILER)
        && let Ok(quiet) = format!("{KERNEL_COMPILER}=warn").parse()
    {
        filter = filter.add_directive(quiet);
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A line that cannot be written is lost: telling so would write there too, and panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// The part of GPUs' kernel compiler that tells what it does.
const KERNEL_COMPILER: &str = "pliron";

/// What a filter says that a person wrote. A word alone is a level: a misspelt one would otherwise
/// be taken for a part of the program, and silence all others.
fn log_filter(text: &str) -> Result<EnvFilter, Failure> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let bad = |what: String| {
        Failure::bad_input(format!(
            "MUSTER_LOG: {what}; expected a level ({}), or parts with levels such as \
             `info,muster_worker=trace`",
            LEVELS.join(", ")
        ))
    };
    let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let mut words = text.split(',').map(str::trim);
    if let Some(word) = words.find(|word| !word.contains(['=', '[']) && !is_level(word)) {
        return Err(bad(format!("{word:?} is no level")));
    }
    EnvFilter::try_new(text).map_err(|error| bad(format!("{text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Arguments::command().debug_assert();
    }

    /// What is understood of a command line, or the exit code of its refusal.
    fn parse(line: &str) -> Result<Command, i32> {
        let words = std::iter::once("muster").chain(line.split_whitespace());
        Arguments::try_parse_from(words)
            .map(|arguments| arguments.command)
            .map_err(|error| error.exit_code())
    }

    #[test]
    fn every_command_of_the_help_is_understood() {
        for line in [
            "train job.toml",
            "train job.toml --workers 2 --set a.b=1 --set c=d --fresh --state s --threads 1 --json",
            "coordinator --data d --listen 127.0.0.1:0 --checkpoints c --tree --ready-json",
            "worker --join a:1,b:2 --name n --devices 2 --host 10.0.0.1 --state s --threads 2 --tree",
            "rank",
            "rank --probe",
            "submit job.toml --coordinator a:1 --set a=b --json --timeout 3",
            "ps --json --stale",
            "show digits --coordinator a:1,b:2 --json --stale",
            "logs digits --follow --rank 1 --json",
            "logs digits -f --events",
            "cancel digits --json",
            "wait digits --json",
            "nodes --json --stale",
            "doctor",
            "doctor --json --state s --coordinator a:1,b:2 --peer c:3 --peer d:4",
            "worker --join a:1 --gpus none",
            "worker --join a:1 --gpus 0,2",
            "scale digits 4 --coordinator a:1 --json",
            "drain a --json --wait",
            "drain a --undo",
            "chaos digits --kill-every 2s",
            "chaos digits --kill-every 500ms --what rank,worker,coordinator --for 2m --kills 3 --json",
            "chaos digits --kill-every 1m --pause --seed 7 --coordinator a:1",
            "job abandon-state digits --coordinator a:1 --json",
            "ledger digits --json --stale",
            "ledger digits --verify --coordinator a:1",
            "completions bash",
            "job-reference",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_command_line_that_makes_no_sense_is_bad_input() {
        for line in [
            "",
            "tarin job.toml",
            "train",
            "train job.toml --workers 0",
            "train job.toml --workers -1",
            "train job.toml --threads 0",
            "coordinator --data d --listen somewhere",
            "worker",
            "worker --join a:1 --devices 0",
            "worker --join a:1 --gpus some",
            "worker --join a:1 --gpus 1,1",
            "worker --join a:1 --host name",
            "logs digits --rank 0 --events",
            "ps --timeout soon",
            "cancel digits --stale",
            "scale digits",
            "scale digits 0",
            "scale digits -1",
            "chaos digits",
            "chaos digits --kill-every 0s",
            "chaos digits --kill-every 2s --kills 0",
            "chaos digits --kill-every 2s --what machine",
            "drain",
            "drain a --undo --wait",
            "job",
            "job abandon-state",
            "completions cobol",
        ] {
            assert_eq!(parse(line).map(|_| ()), Err(2), "{line:?}");
        }
    }

    #[test]
    fn coordinators_are_told_apart_at_commas() {
        let Ok(Command::Worker(worker)) = parse("worker --join a:1,b:2 --join c:3") else {
            panic!("a worker");
        };
        assert_eq!(worker.join, ["a:1", "b:2", "c:3"]);
    }

    #[test]
    fn a_log_filter_is_understood_or_refused_with_what_was_expected() {
        for text in [
            "debug",
            "INFO",
            "warn,muster_worker=trace",
            "muster[step]=debug",
            "off",
        ] {
            assert!(log_filter(text).is_ok(), "{text}");
        }
        for text in ["verbose", "info,verbos", "muster=loud", "info,", "a=b=c"] {
            let failure = log_filter(text).expect_err(text);
            assert!(
                failure.text.contains("expected a level"),
                "{}",
                failure.text
            );
        }
    }

    #[test]
    fn ranks_are_not_for_people() {
        let help = Arguments::command().render_help().to_string();
        assert!(
            !help.contains("  rank") && help.contains("  train"),
            "{help}"
        );
    }
}
