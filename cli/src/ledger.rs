//! `muster ledger`: which world ran which steps of a job, and with `--verify` the proof that the
//! ledger, the checkpoints and the data agree. What follows from the list of worlds alone is in
//! [`mod@spans`]; the data and the files are read by `muster-rank`.

mod spans;

use std::process::ExitCode;

use clap::Args;
use muster_proto::v1;
use muster_rank::Verified;
use serde_json::{Value, json};

use self::spans::{Span, spans};
use crate::client::{At, Client};
use crate::failure::{Failure, Outcome};
use crate::output::print_lines;
use crate::show;

/// Tell which worlds ran which steps of a job, and prove it
#[derive(Debug, Args)]
#[command(
    after_help = "A world runs steps FROM..TO: its state has seen FROM steps at its start and TO at \
                  its end. Steps are void where a later history went on below them.\n\n\
                  --verify reads the data and the checkpoints, which must be reachable from here. It \
                  computes the trace of the samples again and compares it with every committed \
                  checkpoint, counts that each epoch had each sample exactly once, checks the BLAKE3 \
                  of the data and of every checkpoint file, that the worlds follow each other, and \
                  that each is as its event told when it began. Steps above the newest checkpoint \
                  are not proved yet. Exit code: 0 all is so, 1 something differs, and is named.\n\n\
                  Examples: muster ledger digits; muster ledger digits --verify"
)]
pub(crate) struct Ledger {
    /// The job's name
    job: String,
    /// Compute the trace again and compare it, the data and the checkpoints with the ledger
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    at: At,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A running job may retire a checkpoint while it is read; then the ledger is asked again.
const MAX_TRIES: u32 = 5;

impl Ledger {
    pub(crate) async fn run(self) -> Outcome {
        let client = Client::looking(&self.at)?;
        let mut ledger = client.ledger(&self.job).await?;
        self.print(&ledger);
        if !self.verify {
            return Ok(ExitCode::SUCCESS);
        }
        let mut tries = 1;
        let faults = loop {
            let mut faults = spans::faults(&ledger);
            let read = muster_rank::verify(&ledger, muster_models::build);
            match read {
                Ok(verified) if faults.is_empty() => {
                    print_lines([if self.json {
                        as_json(&verified).to_string()
                    } else {
                        in_words(&verified)
                    }]);
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(_) => {}
                Err(others) => faults.extend(others),
            }
            let newer = client.ledger(&self.job).await?;
            if newer.manifests == ledger.manifests || tries == MAX_TRIES {
                break faults;
            }
            ledger = newer;
            tries += 1;
        };
        if self.json {
            print_lines([json!({ "verified": false, "faults": faults }).to_string()]);
        }
        Err(Failure::failed(faults.join("\n")))
    }

    fn print(&self, ledger: &v1::LedgerReply) {
        let worlds = ledger.worlds.iter().zip(spans(ledger));
        if self.json {
            print_lines(worlds.map(|(world, span)| world_as_json(world, span).to_string()));
        } else if ledger.worlds.is_empty() {
            print_lines([format!("job {} had no world yet", self.job)]);
        } else {
            let rows: Vec<Vec<String>> = worlds.map(|(world, span)| row(world, span)).collect();
            let head = ["HISTORY", "GENERATION", "STEPS", "RANKS", "WHY"];
            print_lines([show::table(&head, &rows)]);
        }
    }
}

fn row(world: &v1::WorldRecord, span: Span) -> Vec<String> {
    let rank = |rank: &v1::Placement| {
        format!("{} {}..{}", rank.worker, rank.shards_start, rank.shards_end)
    };
    let ranks: Vec<String> = world.ranks.iter().map(rank).collect();
    let mut steps = format!("{}..{}", span.first, span.counts_to);
    let beyond = format!("{}..{}", span.counts_to, span.last);
    if span.last > span.counts_to && span.is_void {
        steps += &format!(" ({beyond} void)");
    } else if span.last > span.counts_to {
        steps += &format!(" ({beyond} applied again)");
    }
    vec![
        world.history.to_string(),
        world.generation.to_string(),
        steps,
        ranks.join(", "),
        world.reason.clone(),
    ]
}

fn world_as_json(world: &v1::WorldRecord, span: Span) -> Value {
    let rank = |rank: &v1::Placement| {
        json!({
            "rank": rank.rank, "worker": rank.worker, "incarnation": rank.incarnation,
            "process": rank.process, "shards": [rank.shards_start, rank.shards_end],
        })
    };
    let beyond = (span.last > span.counts_to).then_some([span.counts_to, span.last]);
    json!({
        "history": world.history,
        "generation": world.generation,
        "steps": [span.first, span.counts_to],
        "void": beyond.filter(|_| span.is_void),
        "applied_again": beyond.filter(|_| !span.is_void),
        "ranks": world.ranks.iter().map(rank).collect::<Vec<_>>(),
        "reason": world.reason,
        "stamp_ms": world.stamp_ms,
        "hash": world.told_hash,
    })
}

fn as_json(verified: &Verified) -> Value {
    json!({
        "verified": true,
        "step": verified.step,
        "trace": verified.trace,
        "samples": verified.num_samples,
        "epochs": verified.num_whole_epochs,
        "of_next_epoch": verified.num_of_next_epoch,
        "checkpoints": verified.checkpoints,
    })
}

fn in_words(verified: &Verified) -> String {
    if verified.checkpoints.is_empty() && verified.step == 0 {
        return "verified: the data is the job's; no checkpoint is committed yet, so no step is \
                proved"
            .to_owned();
    }
    let steps: Vec<String> = verified.checkpoints.iter().map(u64::to_string).collect();
    let rest = match verified.num_of_next_epoch {
        0 => String::new(),
        rest => format!(", and {rest} of the next epoch once"),
    };
    format!(
        "verified up to step {}: trace {}\n\
         samples: each of {} exactly once in each of {} epochs{rest} (a batch may end one epoch and \
         begin the next; no tail is dropped)\n\
         checkpoints: the files of step {} are whole",
        verified.step,
        show::short(&verified.trace),
        verified.num_samples,
        verified.num_whole_epochs,
        steps.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_is_a_row_that_says_what_of_it_counts() {
        let rank = |rank, worker: &str, shards_start, shards_end| v1::Placement {
            rank,
            worker: worker.to_owned(),
            shards_start,
            shards_end,
            ..Default::default()
        };
        let world = v1::WorldRecord {
            history: 1,
            generation: 2,
            first_step: 3,
            ranks: vec![rank(0, "a", 0, 4), rank(1, "b", 4, 8)],
            reason: "rank 1 is gone".to_owned(),
            ..Default::default()
        };
        let span = |is_void| Span {
            first: 3,
            counts_to: 5,
            last: 9,
            is_void,
        };
        assert_eq!(
            row(&world, span(true)),
            [
                "1",
                "2",
                "3..5 (5..9 void)",
                "a 0..4, b 4..8",
                "rank 1 is gone"
            ]
        );
        assert_eq!(row(&world, span(false))[2], "3..5 (5..9 applied again)");
        let script = world_as_json(&world, span(true));
        assert_eq!(
            (&script["steps"], &script["void"], &script["applied_again"]),
            (&json!([3, 5]), &json!([5, 9]), &Value::Null)
        );
    }

    #[test]
    fn what_is_proved_is_said_in_numbers() {
        let verified = Verified {
            step: 40,
            trace: "0123456789abcdef".to_owned(),
            num_samples: 100,
            num_whole_epochs: 25,
            num_of_next_epoch: 60,
            checkpoints: vec![20, 40],
        };
        let text = in_words(&verified);
        assert!(
            text.starts_with("verified up to step 40: trace 0123456789ab\n")
                && text
                    .contains("each of 100 exactly once in each of 25 epochs, and 60 of the next")
                && text.ends_with("the files of step 20, 40 are whole"),
            "{text}"
        );
        assert!(in_words(&Verified::default()).contains("no step is proved"));
    }
}
