//! Durable commands a second through the leader, by how many are in flight.

use std::path::Path;
use std::time::Duration;

use super::group::Group;
use super::load::{self, Round};
use super::system::{self, Client, System, etcd, random_id};
use crate::run::median;

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

const ROUND: Duration = Duration::from_secs(3);

/// The rounds of one system at one number of requests in flight.
#[derive(Default)]
struct Measured {
    rounds: Vec<Round>,
}

impl Measured {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }
}

/// Prints the table, from so many rounds a row.
pub(crate) async fn run(muster: &Path, num_rounds: usize) -> Result<String, String> {
    let mut groups = vec![Group::start(System::Muster, muster, 3).await?];
    if let Some(etcd) = etcd() {
        groups.push(Group::start(System::Etcd, &etcd, 3).await?);
    }
    let mut lines = head(groups.len() > 1);
    let mut num_failed = 0;
    for in_flight in IN_FLIGHT {
        let mut all: Vec<Measured> = groups.iter().map(|_| Measured::default()).collect();
        for number in 0..num_rounds {
            for (group, measured) in groups.iter().zip(&mut all) {
                let call = |mut client: Client| async move { client.command(random_id()).await };
                let round = load::through_leader(group, in_flight, ROUND, call).await?;
                eprintln!(
                    "{in_flight} in flight, round {} of {num_rounds}: {} {:.0}/s",
                    number + 1,
                    group.system.name(),
                    round.per_s
                );
                measured.rounds.push(round);
            }
        }
        let rounds = all.iter().flat_map(|measured| &measured.rounds);
        num_failed += rounds.map(|round| round.num_failed).sum::<usize>();
        lines.push(row(in_flight, &all));
    }
    lines.push(String::new());
    lines.push(format!(
        "Medians of {num_rounds} rounds of {} s a cell, in turns, all members of both systems running; \
         the ratio is the median of the ratios of neighbouring rounds. At most 8 connections to the \
         leader. Computed: what all three members used of the processors for one command. A \
         command of Muster is the submission of a queued job under a new request id: {} bytes, to which \
         the entry adds how the job was understood, and which is answered ALREADY_RUNNING; one of etcd is \
         a put of 256 bytes to one key. {num_failed} rounds in which a request failed were done again. {}.",
        ROUND.as_secs(),
        system::submission_bytes(),
        load::machine()
    ));
    Ok(lines.join("\n"))
}

fn head(has_etcd: bool) -> Vec<String> {
    let (mut head, mut line) = (
        "| in flight | Muster /s | p50 | p99 | computed |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    );
    if has_etcd {
        head += " etcd /s | p50 | p99 | computed | Muster / etcd |";
        line += "---|---|---|---|---|";
    }
    vec![head, line]
}

fn row(in_flight: usize, all: &[Measured]) -> String {
    let mut row = format!("| {in_flight} |");
    for measured in all {
        row += &format!(
            " {:.0} | {:.2} ms | {:.2} ms | {:.0} us |",
            measured.median(|round| round.per_s),
            measured.median(|round| round.percentile(50)),
            measured.median(|round| round.percentile(99)),
            measured.median(|round| round.cpu_us),
        );
    }
    if let [muster, etcd] = all {
        let pairs = muster.rounds.iter().zip(&etcd.rounds);
        let ratios = pairs.map(|(muster, etcd)| muster.per_s / etcd.per_s);
        row += &format!(" **{:.2}** |", median(ratios));
    }
    row
}
