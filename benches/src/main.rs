//! Measurements of the built binary, printed as tables.
//!
//! `cargo run --release -p muster-bench -- overhead` says where the time of a step goes. Timings are
//! shares and ratios from interleaved runs, so that a slow minute of the machine hits all of them.

mod overhead;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let which = arguments.next();
    let rounds = arguments.next().map_or(Ok(5), |text| text.parse::<usize>());
    match (which.as_deref(), rounds) {
        (Some("overhead"), Ok(rounds)) if rounds > 0 => {
            match muster().and_then(|muster| overhead::run(&muster, rounds)) {
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
        _ => {
            eprintln!("usage: cargo run --release -p muster-bench -- overhead [ROUNDS=5]");
            ExitCode::from(2)
        }
    }
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
