//! NCCL among processes of this machine, a rank each: the phases of its self-check, the last of which
//! loses a rank.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use muster_cluster::{RankId, error_chain};
use muster_rank::nccl::{CheckOptions, Options, check, check_rank};

use super::judge::{Finding, Status};
use crate::failure::{Failure, Outcome};
use crate::output::print_lines;

/// All phases of all ranks, a slow network included.
const DEADLINE: Duration = Duration::from_secs(300);

/// One rank of the check, as `muster doctor --nccl` starts it
#[derive(Debug, Args)]
pub(crate) struct NcclRank {
    rank: u32,
    size: u32,
    address: SocketAddr,
    device: u32,
}

impl NcclRank {
    pub(crate) fn run(&self) -> Outcome {
        let options = Options {
            ordinal: self.device,
            ..Options::default()
        };
        let (rank, size) = (RankId(self.rank), self.size);
        let report = check_rank(rank, size, self.address, &options, &CheckOptions::default());
        let report = report.map_err(|error| {
            Failure::failed(format!("check rank {rank}: {}", error_chain(&error)))
        })?;
        print_lines([report.to_string().trim_end().to_owned()]);
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs `size` ranks over `devices`, which they take in turn.
pub(super) fn among(size: u32, devices: &[u32]) -> Vec<Finding> {
    let result = run(size, devices);
    let finding = |status, found: String, advice: &str| Finding {
        check: "nccl",
        status,
        found,
        advice: advice.to_owned(),
    };
    match result {
        Ok(lines) => lines
            .into_iter()
            .map(|line| finding(Status::Ok, line, ""))
            .collect(),
        Err(error) => vec![finding(
            Status::Fail,
            format!("{error:#}"),
            "run it again with NCCL_DEBUG=INFO, which says what NCCL tried",
        )],
    }
}

fn run(size: u32, devices: &[u32]) -> anyhow::Result<Vec<String>> {
    if devices.is_empty() {
        bail!("there is no GPU for a rank to use");
    }
    let program = std::env::current_exe().context("find this program")?;
    let is_shared = devices.len() < size as usize;
    let command = |rank: RankId, address: SocketAddr| {
        let device = devices[rank.0 as usize % devices.len()];
        let numbers = [rank.0, size].map(|number| number.to_string());
        let mut command = Command::new(&program);
        command.arg("nccl-rank").args(numbers);
        command.arg(address.to_string()).arg(device.to_string());
        command
    };
    let ended = check(size, is_shared, DEADLINE, command).context("run the ranks")?;
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for rank in ended {
        lines.extend(rank.output.lines().map(str::to_owned));
        // The last rank's part is to be killed.
        let is_victim = size > 1 && rank.rank.0 == size - 1 && rank.status.code().is_none();
        if !rank.status.success() && !is_victim {
            failed.push(format!("rank {} ended with {}", rank.rank, rank.status));
        }
    }
    if failed.is_empty() {
        Ok(lines)
    } else {
        lines.extend(failed);
        bail!(lines.join("; "))
    }
}
