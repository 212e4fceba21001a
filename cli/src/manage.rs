//! `muster submit`, `muster cancel` and `muster wait`: commands that change a job, or wait for it.

use std::process::ExitCode;

use clap::Args;
use muster_proto::v1;

use crate::client::{Client, To};
use crate::failure::{INTERRUPTED, Outcome};
use crate::jobfile::{JobArguments, prepare};
use crate::output::print_lines;

/// Submit a job to a cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Example: muster submit examples/digits/job.toml --coordinator 10.0.0.1:4600 --set train.seed=7"
)]
pub(crate) struct Submit {
    #[command(flatten)]
    job: JobArguments,
    #[command(flatten)]
    to: To,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Submit {
    pub(crate) async fn run(self) -> Outcome {
        let prepared = prepare(&self.job, |_| Ok(None))?;
        let reply = Client::new(&self.to)?.submit(prepared.submit()).await?;
        let status = match reply.status() {
            v1::SubmitStatus::Resumed => "resumed",
            v1::SubmitStatus::AlreadyFinished => "already_finished",
            v1::SubmitStatus::AlreadyRunning => "already_running",
            v1::SubmitStatus::Queued | v1::SubmitStatus::Unspecified => "queued",
        };
        let (job, step) = (&reply.job, reply.step);
        if self.json {
            print_lines([
                serde_json::json!({ "job": job, "status": status, "step": step }).to_string(),
            ]);
            return Ok(ExitCode::SUCCESS);
        }
        print_lines([match reply.status() {
            v1::SubmitStatus::Resumed => format!("job {job} goes on from step {step}"),
            v1::SubmitStatus::AlreadyFinished => {
                format!("job {job} finished before, at step {step}; --fresh starts over")
            }
            v1::SubmitStatus::AlreadyRunning => format!("job {job} is running already"),
            v1::SubmitStatus::Queued | v1::SubmitStatus::Unspecified => {
                format!("job {job} is queued")
            }
        }]);
        Ok(ExitCode::SUCCESS)
    }
}

/// End a job at the next step boundary, behind a checkpoint
#[derive(Debug, Args)]
#[command(
    after_help = "Example: muster cancel digits; the same submission goes on from the checkpoint."
)]
pub(crate) struct Cancel {
    /// The job's name
    job: String,
    #[command(flatten)]
    to: To,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(crate) async fn run(self) -> Outcome {
        let reply = Client::new(&self.to)?
            .stop(&self.job, v1::StopWhy::Cancelled)
            .await?;
        print_lines([if self.json {
            serde_json::json!({ "job": self.job, "message": reply.message }).to_string()
        } else {
            reply.message
        }]);
        Ok(ExitCode::SUCCESS)
    }
}

/// Wait for the end of a job
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 completed, 1 failed or cancelled, 130 interrupted.")]
pub(crate) struct Wait {
    /// The job's name
    job: String,
    #[command(flatten)]
    to: To,
    /// Print the `finished` event as JSON
    #[arg(long)]
    json: bool,
}

impl Wait {
    pub(crate) async fn run(self) -> Outcome {
        let end = Client::new(&self.to)?.end_of(&self.job).await?;
        print_lines([if self.json {
            end.json
        } else if end.reason.is_empty() {
            format!("job {}: {}", self.job, end.state)
        } else {
            format!("job {}: {}: {}", self.job, end.state, end.reason)
        }]);
        Ok(exit_code_of(&end.state))
    }
}

/// What a job's end means to a script.
pub(crate) fn exit_code_of(state: &str) -> ExitCode {
    match state {
        "completed" => ExitCode::SUCCESS,
        "interrupted" => ExitCode::from(INTERRUPTED),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_completed_job_is_a_success() {
        assert_eq!(exit_code_of("completed"), ExitCode::SUCCESS);
        assert_eq!(exit_code_of("interrupted"), ExitCode::from(130));
        for state in ["failed", "cancelled", "", "a state of a later version"] {
            assert_eq!(exit_code_of(state), ExitCode::from(1), "{state:?}");
        }
    }
}
