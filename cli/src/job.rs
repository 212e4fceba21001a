//! `muster job abandon-state`: what an operator knows of a job's lost machines and Muster cannot.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::client::{Client, To};
use crate::failure::Outcome;
use crate::output::print_lines;

/// Decide for a job what only an operator can know
#[derive(Debug, Args)]
pub(crate) struct Job {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    AbandonState(AbandonState),
}

/// Say that the machines which a job waits for will not come back, nor what their ranks hold
#[derive(Debug, Args)]
#[command(
    after_help = "A job whose last holders are silent waits for them, since silence is no death: they \
                  may come back with steps that no checkpoint has. With this it waits no longer, and \
                  falls back to its last committed checkpoint. What was done above it is void, also \
                  where the machines come back later.\n\nExample: muster job abandon-state digits"
)]
struct AbandonState {
    /// The job's name
    job: String,
    #[command(flatten)]
    to: To,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Job {
    pub(crate) async fn run(self) -> Outcome {
        let What::AbandonState(AbandonState { job, to, json }) = self.what;
        let reply = Client::new(&to)?.abandon_state(&job).await?;
        print_lines([if json {
            serde_json::json!({
                "job": job,
                "committed_step": reply.committed_step,
                "message": reply.message,
            })
            .to_string()
        } else {
            reply.message
        }]);
        Ok(ExitCode::SUCCESS)
    }
}
