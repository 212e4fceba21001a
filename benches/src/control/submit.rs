//! Distinct jobs a second that many clients submit, each durable before it is acknowledged.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tonic::Status;

use super::group::Group;
use super::load::{self, Round};
use super::system::{Client, System, random_id, submission};
use crate::run::median;

const IN_FLIGHT: [usize; 2] = [64, 512];

const ROUND: Duration = Duration::from_secs(5);

/// Prints the table, from so many rounds a row, each with a group of its own.
pub(crate) async fn run(muster: &Path, num_rounds: usize) -> Result<String, String> {
    let mut lines = vec![
        "| clients | jobs /s | p50 | p99 | computed |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for in_flight in IN_FLIGHT {
        let mut rounds: Vec<Round> = Vec::new();
        for number in 0..num_rounds {
            // The jobs of an earlier round would wait here too.
            let group = Group::start(System::Muster, muster, 3).await?;
            let round = load::through_leader(&group, in_flight, ROUND, submit).await?;
            let (number, per_s) = (number + 1, round.per_s);
            eprintln!("{in_flight} clients, round {number} of {num_rounds}: {per_s:.0}/s");
            rounds.push(round);
        }
        let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        lines.push(format!(
            "| {in_flight} | **{:.0}** | {:.1} ms | {:.1} ms | {:.0} us |",
            of(|round| round.per_s),
            of(|round| round.percentile(50)),
            of(|round| round.percentile(99)),
            of(|round| round.cpu_us),
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "Medians of {num_rounds} rounds of {} s, each through the leader of a new group of three; all jobs \
         stay queued. Computed: what all members used of the processors for one job. {}.",
        ROUND.as_secs(),
        load::machine()
    ));
    Ok(lines.join("\n"))
}

/// Submits a job that nobody submitted before.
async fn submit(mut client: Client) -> Result<(), Status> {
    static JOB: AtomicU64 = AtomicU64::new(0);
    let number = JOB.fetch_add(1, Ordering::Relaxed);
    client
        .submit(random_id(), submission(&format!("job-{number}")))
        .await
}
