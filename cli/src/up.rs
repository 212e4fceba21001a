//! `muster up`: a cluster on this machine that stays until it is stopped, for development.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use std::path::{Path, PathBuf};

use muster_worker::devices::Inventory;

use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::jobfile::state_folder;
use crate::local::{Coordinators, Member, Tree, addresses, lock, worker};
use crate::output::print_lines;
use crate::train::{Signals, num_before, one_three_or_five};

/// How long the cluster may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_WAIT: Duration = Duration::from_millis(50);

/// Run a whole cluster on this machine until it is stopped
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster up --workers 2
          muster up --workers 4 --coordinators 3 --json

Jobs are submitted to it as to any cluster: muster submit JOB.toml. Ctrl-C ends all of it; the same command \
goes on with its jobs.")]
pub(crate) struct Up {
    /// How many workers, with one slot for a rank on processors each; GPUs are dealt among them
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: u32,
    /// How many coordinators: 3 go on without any one of them [default: as many as before, or 1]
    #[arg(long, value_name = "N", value_parser = one_three_or_five)]
    coordinators: Option<u32>,
    /// Where the first coordinator listens; the others on the ports above. 0 takes free ones
    #[arg(long, value_name = "PORT", default_value_t = 4600)]
    port: u16,
    /// How many threads a rank computes with [default: its share of the processors]
    #[arg(long, value_name = "N", value_parser = crate::train::at_least_one::<std::num::NonZero<usize>>)]
    threads: Option<std::num::NonZero<usize>>,
    /// Where it keeps its state and, unless jobs say otherwise, their checkpoints
    /// [default: muster in the XDG state folder]
    #[arg(long, value_name = "FOLDER", env = "MUSTER_STATE")]
    state: Option<PathBuf>,
    /// Print one line of JSON once it is ready
    #[arg(long)]
    json: bool,
}

/// The GPUs of one of some workers, as its command line says them.
fn dealt(num_gpus: usize, number: u32, workers: u32) -> String {
    let step = workers.max(1) as usize;
    let gpus = (number as usize..num_gpus).step_by(step);
    let gpus: Vec<String> = gpus.map(|gpu| gpu.to_string()).collect();
    if gpus.is_empty() {
        "none".to_owned()
    } else {
        gpus.join(",")
    }
}

impl Up {
    pub(crate) async fn run(self) -> Outcome {
        let folder = state_folder(self.state.as_deref())?.join("up");
        let _lock = lock(&folder)?;
        let mut signals = Signals::new()?;
        let mut tree = Tree::new()?;
        let outcome = tokio::select! {
            outcome = self.stay(&folder, &mut tree) => outcome,
            () = signals.next() => Ok(ExitCode::SUCCESS),
        };
        tokio::select! {
            () = tree.end() => {}
            () = signals.next() => {}
        }
        outcome
    }

    async fn stay(&self, folder: &Path, tree: &mut Tree) -> Outcome {
        let coordinators = Coordinators {
            folder: folder.to_owned(),
            number: self.coordinators.unwrap_or_else(|| num_before(folder)),
            port: self.port,
            arguments: vec![
                "--checkpoints".to_owned(),
                folder.join("checkpoints").display().to_string(),
            ],
        };
        let members = coordinators.start(tree).await?;
        let join = addresses(&members);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = (processors / self.workers.max(1) as usize).max(1);
        let threads = self
            .threads
            .map_or(share, std::num::NonZero::get)
            .to_string();
        let num_gpus = Inventory::of_this_machine().usable().len();
        let mut workers = Vec::new();
        for number in 0..self.workers {
            let gpus = dealt(num_gpus, number, self.workers);
            let role = worker(
                folder,
                number,
                &join,
                &["--threads", &threads, "--gpus", &gpus],
            );
            let name = role.name.clone();
            workers.push((name, tree.start(role)?));
        }
        let ready = tokio::select! {
            ready = self.until_ready(folder, &join) => ready,
            Some(failure) = tree.failed.recv() => Err(failure),
        };
        ready?;
        self.tell(&members, &workers);
        match tree.failed.recv().await {
            Some(failure) => Err(failure),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Waits until somebody leads and all workers are there.
    async fn until_ready(&self, folder: &Path, join: &[String]) -> Result<(), Failure> {
        let what_to_do = format!("the coordinators' logs are in {}", folder.display());
        let client = Client::of(join.to_vec(), READY_TIMEOUT, what_to_do)?;
        let start = Instant::now();
        loop {
            let nodes = client.nodes().await?.nodes;
            let num_connected = nodes.iter().filter(|node| node.connected).count();
            if num_connected >= self.workers as usize {
                return Ok(());
            }
            if start.elapsed() > READY_TIMEOUT {
                return Err(Failure::failed(format!(
                    "only {num_connected} of {} workers came; their logs are in the state folder",
                    self.workers
                )));
            }
            tokio::time::sleep(READY_WAIT).await;
        }
    }

    fn tell(&self, members: &[Member], workers: &[(String, u32)]) {
        if self.json {
            let members: Vec<_> = members
                .iter()
                .map(|member| {
                    serde_json::json!({ "id": member.id, "addr": member.address, "pid": member.pid })
                })
                .collect();
            let workers: Vec<_> = workers
                .iter()
                .map(|(name, pid)| serde_json::json!({ "name": name, "pid": pid }))
                .collect();
            let line = serde_json::json!({
                "event": "ready",
                "coordinators": members,
                "workers": workers,
            });
            print_lines([line.to_string()]);
            return;
        }
        let mut lines: Vec<String> = members
            .iter()
            .map(|Member { id, address, pid }| format!("coordinator {id}  {address}  pid {pid}"))
            .collect();
        lines.extend(
            workers
                .iter()
                .map(|(name, pid)| format!("{name}  pid {pid}")),
        );
        let all = addresses(members).join(",");
        lines.push(if all == "127.0.0.1:4600" {
            "ready: muster submit JOB.toml; Ctrl-C ends all of it".to_owned()
        } else {
            format!("ready: export MUSTER_COORDINATOR={all}, then muster submit JOB.toml; Ctrl-C ends all of it")
        });
        print_lines(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_is_dealt_to_one_worker() {
        let deal = |num_gpus, workers| -> Vec<String> {
            let numbers = 0..workers;
            numbers
                .map(|number| dealt(num_gpus, number, workers))
                .collect()
        };
        assert_eq!(deal(0, 2), ["none", "none"]);
        assert_eq!(deal(1, 2), ["0", "none"]);
        assert_eq!(deal(5, 2), ["0,2,4", "1,3"]);
    }
}
