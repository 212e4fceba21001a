//! `muster scale` and `muster drain`: how many ranks a job has, and on which machines none may be.
//! Both act at step boundaries; no step is lost by them.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use muster_proto::v1;

use crate::client::{Client, To};
use crate::failure::{Failure, Outcome};
use crate::output::{print_lines, tell};

/// Change how many ranks a job may have, while it runs
#[derive(Debug, Args)]
#[command(
    after_help = "Ranks enter and leave at a step boundary; no step is lost, and the bits stay the \
                  same.\n\nExample: muster scale digits 4"
)]
pub(crate) struct Scale {
    /// The job's name
    job: String,
    /// The most ranks from now on; workers.min of the job file to its logical_shards
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
    #[command(flatten)]
    to: To,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Scale {
    pub(crate) async fn run(self) -> Outcome {
        let reply = Client::new(&self.to)?.scale(&self.job, self.max).await?;
        print_lines([if self.json {
            serde_json::json!({
                "job": self.job,
                "workers": { "min": reply.workers_min, "max": reply.workers_max },
                "world_size": reply.world_size,
                "message": reply.message,
            })
            .to_string()
        } else {
            reply.message
        }]);
        Ok(ExitCode::SUCCESS)
    }
}

/// Free a worker of ranks, so that its machine can be stopped; or give it back
#[derive(Debug, Args)]
#[command(
    after_help = "The ranks there leave at a step boundary: no step is lost. A job that would have \
                  fewer than workers.min ranks keeps them there until other workers have room.\n\n\
                  Examples: muster drain gpu-7 --wait; muster drain gpu-7 --undo"
)]
pub(crate) struct Drain {
    /// The worker's name, as `muster nodes` prints it
    #[arg(value_name = "NODE")]
    worker: String,
    /// Give it back: jobs may use it again
    #[arg(long)]
    undo: bool,
    /// Return when no job has a process there any more
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    #[command(flatten)]
    to: To,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Between two looks at a node that is to become free.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Drain {
    pub(crate) async fn run(self) -> Outcome {
        let client = Client::new(&self.to)?;
        let reply = client.drain(&self.worker, !self.undo).await?;
        let mut jobs = reply.jobs;
        if !self.json {
            print_lines([reply.message.clone()]);
        }
        let has_waited = self.wait && !jobs.is_empty();
        let mut told = String::new();
        while self.wait && !jobs.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
            let node = self.node(&client).await?;
            if node.drains != told && !node.jobs.is_empty() && !self.json {
                tell(&format!("still waits: {}", node.drains));
                told = node.drains;
            }
            jobs = node.jobs;
        }
        if self.json {
            print_lines([serde_json::json!({
                "worker": self.worker,
                "draining": !self.undo,
                "jobs": jobs,
                "message": reply.message,
            })
            .to_string()]);
        } else if has_waited {
            print_lines([format!("worker {} is free", self.worker)]);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The worker, while it drains.
    async fn node(&self, client: &Client) -> Result<v1::NodeView, Failure> {
        let nodes = client.nodes().await?.nodes;
        let node = nodes.into_iter().find(|node| node.worker == self.worker);
        node.filter(|node| node.draining).ok_or_else(|| {
            Failure::failed(format!("worker {} was given back meanwhile", self.worker))
        })
    }
}
