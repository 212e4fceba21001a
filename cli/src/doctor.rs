//! `muster doctor`: looks at this machine, and says what to do about what it finds. [`gather`] collects
//! [`facts`] and judges none; [`mod@judge`] judges them and looks at nothing; [`compute`] tries what GPUs
//! compute, where that is asked for.

mod compute;
mod facts;
mod gather;
mod judge;
#[cfg(feature = "cuda")]
pub(crate) mod nccl;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::jobfile::state_folder;
use crate::output::print_lines;
use crate::show::table;
use facts::Facts;
use judge::{Finding, Status, judge};
use muster_cluster::Device;

/// Check this machine, and say what to do about what is found
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster doctor
          muster doctor --coordinator 10.0.0.1:4600 --peer 10.0.0.2:4600 --peer 10.0.0.3:4600
          muster doctor --json
          muster doctor --compute --nccl 2

Where the device code of CUDA's maths functions (libdevice.10.bc) is looked for: in \
$CUDA_PATH/nvvm/libdevice if CUDA_PATH is set, else in the same folder of /usr/local/cuda, /opt/cuda, \
/usr/lib/cuda and /usr. One in a Python package (site-packages/nvidia/...) or a toolkit elsewhere is \
pointed to: set CUDA_PATH to the folder that holds its nvvm.

Exit code: 0 nothing fails, 1 something does.")]
pub(crate) struct Doctor {
    /// Compare this machine's clock with that of the coordinator that leads
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    coordinator: Vec<String>,
    /// Connect to this address, such as another machine's coordinator; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    peer: Vec<String>,
    /// The folder that would keep state [default: muster in the XDG state folder]
    #[arg(long, value_name = "FOLDER", env = "MUSTER_STATE")]
    state: Option<PathBuf>,
    /// Compute on each GPU, beside the host: every operation of the models, and the kernels that move
    /// a job's state; takes about a minute the first time, since kernels are compiled
    #[arg(long)]
    compute: bool,
    /// Run this many ranks of NCCL's self-check on the GPUs, one of which is killed; more ranks than
    /// GPUs share them
    #[arg(long, value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..=64))]
    nccl: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) async fn run(self) -> Outcome {
        let folder = state_folder(self.state.as_deref())?;
        let facts = gather::gather(&folder, &self.coordinator, &self.peer).await?;
        let mut findings = judge(&facts);
        findings.extend(self.tried(&facts));
        let fails = findings.iter().any(|one| one.status == Status::Fail);
        print_lines([if self.json {
            as_json(&findings).to_string()
        } else {
            as_text(&findings)
        }]);
        Ok(ExitCode::from(u8::from(fails)))
    }
}

impl Doctor {
    /// What comes of using the GPUs that this build can use.
    fn tried(&self, facts: &Facts) -> Vec<Finding> {
        if !self.compute && self.nccl.is_none() {
            return Vec::new();
        }
        if !facts.gpus.has_cuda {
            return vec![Finding {
                check: "compute",
                status: Status::Fail,
                found: "this build of muster has no CUDA".to_owned(),
                advice: "build it with `cargo build --release --features cuda`".to_owned(),
            }];
        }
        // CUDA counts those that it may see.
        let devices: Vec<u32> = (0u32..)
            .zip(&facts.gpus.inventory.visible)
            .map(|(index, _)| index)
            .collect();
        if devices.is_empty() {
            return vec![Finding {
                check: "compute",
                status: Status::Fail,
                found: "there is no GPU to compute on".to_owned(),
                advice: "see what is said of GPUs above".to_owned(),
            }];
        }
        let mut findings = Vec::new();
        if self.compute {
            let devices = devices.iter().map(|index| Device::Cuda(*index));
            findings.extend(devices.flat_map(compute::on));
        }
        #[cfg(feature = "cuda")]
        if let Some(size) = self.nccl {
            findings.extend(nccl::among(size, &devices));
        }
        findings
    }
}

/// A table of what was found, and behind it what to do, in the same order.
fn as_text(findings: &[Finding]) -> String {
    let row = |one: &Finding| {
        vec![
            one.status.as_str().to_owned(),
            one.check.to_owned(),
            one.found.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
    let mut text = table(&["", "CHECK", "FOUND"], &rows);
    let advised = findings.iter().filter(|one| !one.advice.is_empty());
    let advice: Vec<String> = advised
        .map(|one| format!("{} {}: {}", one.status.as_str(), one.check, one.advice))
        .collect();
    if advice.is_empty() {
        text += "\n\nnothing to do";
    } else {
        text += "\n\n";
        text += &advice.join("\n");
    }
    text
}

fn as_json(findings: &[Finding]) -> Value {
    let finding = |one: &Finding| {
        json!({
            "check": one.check,
            "status": one.status.as_str(),
            "found": one.found,
            "advice": (!one.advice.is_empty()).then_some(&one.advice),
        })
    };
    json!({
        "ok": findings.iter().all(|one| one.status != Status::Fail),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
