//! Checks NCCL on this machine, with a process for each rank, and prints what each has measured.
//!
//! ```text
//! cargo run --release -p muster-collective --features nccl --example nccl_check -- 2 0,1
//! ```
//!
//! The first argument is the number of ranks; the second lists the devices, which the ranks take in
//! turn. With fewer devices than ranks every rank is made a host of its own, and they talk over the
//! loopback interface.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use muster_cluster::RankId;
use muster_collective::device::check::CheckOptions;
use muster_collective::nccl::{Options, check};

/// All phases of all ranks, the slowest network included.
const DEADLINE: Duration = Duration::from_secs(300);

const USAGE: &str = "usage: nccl_check RANKS DEVICE[,DEVICE...]  (for example: nccl_check 2 0,1)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["rank", rank, size, address, device] => one(rank, size, address, device),
        [size, devices] => all(size, devices),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\" is no number; {USAGE}"))
}

/// The process of one rank.
fn one(rank: &str, size: &str, address: &str, device: &str) -> Result<(), String> {
    let address: SocketAddr = address
        .parse()
        .map_err(|_| format!("\"{address}\" is no address"))?;
    let options = Options {
        ordinal: number(device)?,
        ..Options::default()
    };
    let (rank, size) = (RankId(number(rank)?), number(size)?);
    let checked = check::check_rank(rank, size, address, &options, &CheckOptions::default());
    let report = checked.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("rank {rank}: {error}{}", cause.unwrap_or_default())
    })?;
    print!("{report}");
    Ok(())
}

/// Starts them all; the last one ends by a signal.
fn all(size: &str, devices: &str) -> Result<(), String> {
    let size = number(size)?;
    let devices: Vec<u32> = devices.split(',').map(number).collect::<Result<_, _>>()?;
    let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let is_shared = (devices.len() as u64) < u64::from(size);
    let command = |rank: RankId, address: SocketAddr| {
        let device = devices[rank.0 as usize % devices.len()];
        let numbers = [rank.0.to_string(), size.to_string()];
        let mut command = Command::new(&program);
        command.arg("rank").args(numbers).arg(address.to_string());
        command.arg(device.to_string());
        command
    };
    let ended = check::check(size, is_shared, DEADLINE, command);
    let ended = ended.map_err(|error| format!("run the ranks: {error}"))?;
    let mut failed = Vec::new();
    for rank in ended {
        print!("{}", rank.output);
        let is_victim = size > 1 && rank.rank.0 == size - 1 && rank.status.code().is_none();
        if !rank.status.success() && !is_victim {
            failed.push(format!("rank {} ended with {}", rank.rank, rank.status));
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("; "))
    }
}
