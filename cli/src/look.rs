//! `muster ps`, `show`, `nodes` and `logs`: what is, without changing it.

use std::process::ExitCode;

use clap::Args;
use muster_proto::v1;

use crate::client::{At, Client, To};
use crate::failure::Outcome;
use crate::output::print_lines;
use crate::show;

/// List the jobs, and why each that waits does so
#[derive(Debug, Args)]
#[command(after_help = "Example: muster ps --coordinator 10.0.0.1:4600,10.0.0.2:4600")]
pub(crate) struct Ps {
    #[command(flatten)]
    at: At,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Ps {
    pub(crate) async fn run(self) -> Outcome {
        let jobs = Client::looking(&self.at)?.jobs().await?;
        if self.json {
            print_lines(jobs.iter().map(|job| show::json::job(job).to_string()));
        } else {
            print_lines([show::jobs(&jobs)]);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Show one job: its ranks, checkpoints and worlds
#[derive(Debug, Args)]
#[command(after_help = "Example: muster show digits")]
pub(crate) struct Show {
    /// The job's name
    job: String,
    #[command(flatten)]
    at: At,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) async fn run(self) -> Outcome {
        let job = Client::looking(&self.at)?.job(&self.job).await?;
        print_lines([if self.json {
            show::json::job(&job).to_string()
        } else {
            show::job(&job)
        }]);
        Ok(ExitCode::SUCCESS)
    }
}

/// List the workers
#[derive(Debug, Args)]
#[command(after_help = "Example: muster nodes --json")]
pub(crate) struct Nodes {
    #[command(flatten)]
    at: At,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Nodes {
    pub(crate) async fn run(self) -> Outcome {
        let nodes = Client::looking(&self.at)?.nodes().await?.nodes;
        if self.json {
            print_lines(nodes.iter().map(|node| show::json::node(node).to_string()));
        } else {
            print_lines([show::nodes(&nodes)]);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what a job's ranks printed, or its events
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: muster logs digits --follow --rank 0; muster logs digits --events"
)]
pub(crate) struct Logs {
    /// The job's name
    job: String,
    #[command(flatten)]
    to: To,
    /// Stay, and print what comes
    #[arg(long, short)]
    follow: bool,
    /// Only the output of this rank
    #[arg(long, conflicts_with = "events")]
    rank: Option<u32>,
    /// The job's events instead, one JSON object a line
    #[arg(long)]
    events: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub(crate) async fn run(self) -> Outcome {
        let client = Client::new(&self.to)?;
        if self.events {
            let mut events = client.events(&self.job, 0, self.follow);
            while let Some(record) = events.next().await? {
                if !print_lines([record.json]) {
                    break;
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let request = v1::LogsRequest {
            job: self.job.clone(),
            rank: self.rank,
            follow: self.follow,
            from: 0,
        };
        let mut lines = client.logs(request);
        while let Some(line) = lines.next().await? {
            let text = if self.json {
                show::json::log(&line).to_string()
            } else {
                show::log(&line)
            };
            if !print_lines([text]) {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
