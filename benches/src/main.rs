//! Measurements of the built binary, printed as tables.
//!
//! `cargo run --release -p muster-bench -- overhead` says where the time of a step goes, `-- faults`
//! what deaths cost, `-- pause` how long the survivors of one stand still, `-- join` how long a new
//! rank takes to enter, `-- memory` what a rank needs where the optimizer's state is shared, and
//! `-- control` what a group of coordinators does, beside etcd where that is installed.
//! Timings are shares and
//! ratios, from interleaved runs where a run is short, so that a slow minute of the machine hits all
//! of them.

mod control;
mod faults;
mod join;
mod memory;
mod overhead;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run --release -p muster-bench -- overhead [ROUNDS=5] \
| faults [STEPS=200] [\"0.3 s\" | \"2 s\"] | pause [KILLS=50] \
| join [STATE_MB=100] | memory \
| control [commits | failover | steps | submit | workers | jobs] [NUMBER]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(table) = measure(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match table {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures what is asked for; `None` where nobody can know what that is.
fn measure(arguments: &[&str]) -> Option<Result<String, String>> {
    let (which, rest) = arguments.split_first()?;
    let number = |default: u64| match rest.first() {
        None => Some(default),
        Some(text) => text.parse::<u64>().ok().filter(|number| *number > 0),
    };
    let size = |number: u64| usize::try_from(number).ok();
    Some(match *which {
        "overhead" => {
            let rounds = size(number(5)?)?;
            muster().and_then(|muster| overhead::run(&muster, rounds))
        }
        "faults" => {
            let steps = number(200)?;
            muster().and_then(|muster| faults::run(&muster, steps, rest.get(1).copied()))
        }
        "pause" => {
            let kills = size(number(50)?)?;
            muster().and_then(|muster| faults::pause(&muster, kills))
        }
        "memory" => muster().and_then(|muster| memory::run(&muster)),
        "join" => {
            let megabytes = number(100)?;
            muster().and_then(|muster| join::run(&muster, megabytes))
        }
        "control" => {
            let what = control::What::parse(rest)?;
            muster().and_then(|muster| control::run(&muster, &what))
        }
        _ => return None,
    })
}

/// The binary beside this one.
fn muster() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let muster = own.with_file_name("muster");
    if muster.exists() {
        Ok(muster)
    } else {
        Err(format!(
            "{} is not there; build it first: cargo build --release -p muster",
            muster.display()
        ))
    }
}
