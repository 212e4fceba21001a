//! Whether what a job's ledger claims is so: its samples counted again, its trace computed again
//! from the data, and every checkpoint read back. Asked by the command line; trains nothing.
//!
//! Not here: whether the worlds of a ledger follow each other; the command line looks at that.

use std::collections::BTreeMap;
use std::path::Path;

use muster_cluster::ids::Step;
use muster_cluster::job::{Identity, JobDraft, JobSpec};
use muster_cluster::state::Manifest;
use muster_cluster::{Device, error_chain};
use muster_proto::v1;
use muster_trainer::checkpoint::{self, Content};
use muster_trainer::{Dataset, Replay, Trainer};

use crate::prepare::Build;

/// What was found to be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The newest step whose trace was compared.
    pub step: u64,
    /// Its trace, in hex.
    pub trace: String,
    /// How many samples the job trains on.
    pub num_samples: u64,
    /// The epochs in which each of them was read exactly once.
    pub num_whole_epochs: u64,
    /// How many were read of the epoch behind those.
    pub num_of_next_epoch: u64,
    /// The steps of the checkpoints that were read back.
    pub checkpoints: Vec<u64>,
}

/// Computes again what a ledger says of the job's data and of its committed checkpoints.
///
/// # Errors
/// Everything that is otherwise, each with its step and its file.
pub fn verify(ledger: &v1::LedgerReply, build: Build) -> Result<Verified, Vec<String>> {
    let one = |fault: String| vec![fault];
    let spec = spec_of(ledger).map_err(one)?;
    let dataset = Dataset::load(&spec.data).map_err(|error| one(error_chain(&error)))?;
    let manifests: Vec<Manifest> = ledger.manifests.iter().cloned().map(Into::into).collect();
    let mut faults = Vec::new();
    let mut verified = count(&spec, &dataset, &claims(ledger), &mut faults).map_err(one)?;
    let learner = build(&spec, Device::Cpu).map_err(|error| one(error.to_string()))?;
    let mut trainer =
        Trainer::new(&spec, learner, dataset).map_err(|error| one(error_chain(&error)))?;
    for manifest in &manifests {
        match read_back(&mut trainer, manifest) {
            Ok(()) => verified.checkpoints.push(manifest.step.0),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        Ok(verified)
    } else {
        Err(faults)
    }
}

fn spec_of(ledger: &v1::LedgerReply) -> Result<JobSpec, String> {
    let submission = ledger.submission.as_ref();
    let submission = submission.ok_or("the ledger names no submission")?;
    let spec = JobDraft::parse(&submission.draft, "the submitted job", "", &[])
        .and_then(|draft| draft.check(Path::new(&submission.base_dir), &submission.data_digest))
        .map_err(|error| error.to_string())?;
    let identity = Identity::of(&spec).digest();
    if identity != ledger.identity {
        return Err(format!(
            "the submitted job has the identity {identity}, and the ledger says {}",
            ledger.identity
        ));
    }
    Ok(spec)
}

/// A trace that the ledger states.
struct Claim<'a> {
    step: Step,
    trace: &'a str,
    what: &'static str,
}

/// The traces of the committed checkpoints and of the end, by step.
fn claims(ledger: &v1::LedgerReply) -> Vec<Claim<'_>> {
    let manifests = ledger.manifests.iter().map(|manifest| Claim {
        step: Step(manifest.step),
        trace: &manifest.trace,
        what: "the manifest",
    });
    let outcome = ledger.outcome.iter().map(|outcome| Claim {
        step: Step(outcome.step),
        trace: &outcome.trace,
        what: "the end of the job",
    });
    // A job that rests without a checkpoint states none.
    let mut claims: Vec<_> = manifests
        .chain(outcome)
        .filter(|claim| !claim.trace.is_empty())
        .collect();
    claims.sort_by_key(|claim| claim.step);
    claims
}

/// Goes through all steps up to the newest claim, and compares on the way.
fn count(
    spec: &JobSpec,
    dataset: &Dataset,
    claims: &[Claim<'_>],
    faults: &mut Vec<String>,
) -> Result<Verified, String> {
    let mut replay = Replay::new(spec, dataset).ok_or("the data has no samples to train on")?;
    for claim in claims {
        while replay.step() < claim.step {
            replay.advance().map_err(|error| error.to_string())?;
        }
        let found = replay.trace();
        if found != claim.trace {
            faults.push(format!(
                "step {}: {} says that the trace of the samples is {}, and the data gives {found}",
                claim.step, claim.what, claim.trace
            ));
        }
    }
    Ok(Verified {
        step: replay.step().0,
        trace: replay.trace(),
        num_samples: dataset.train_len(),
        num_whole_epochs: replay.num_whole_epochs(),
        num_of_next_epoch: replay.num_had(),
        checkpoints: Vec::new(),
    })
}

/// Reads the files of a checkpoint, and compares what is in them with its manifest.
fn read_back(trainer: &mut Trainer, manifest: &Manifest) -> Result<(), String> {
    let step = manifest.step;
    let folder = Path::new(&manifest.folder);
    let mut files = BTreeMap::new();
    for file in &manifest.files {
        let bytes = checkpoint::read_verified(folder, file)
            .map_err(|error| format!("step {step}: {}", error_chain(&error)))?;
        let content = Content::of_file(&file.name);
        let content = content.ok_or_else(|| format!("step {step}: {:?} is no file", file.name))?;
        files.insert(content.to_string(), bytes);
    }
    let identity = trainer.identity().to_owned();
    trainer
        .restore(&files, &identity)
        .map_err(|error| format!("step {step}: {}", error_chain(&error)))?;
    let unread = |error| format!("step {step}: {error}");
    let pairs = [
        ("step", trainer.step().to_string(), step.to_string()),
        (
            "hash of the parameters",
            trainer.arena_hash().map_err(unread)?,
            manifest.arena_hash.clone(),
        ),
        (
            "hash of the optimizer's state",
            trainer
                .optimizer_hash()
                .map_err(unread)?
                .unwrap_or_default(),
            manifest.optimizer_hash.clone(),
        ),
        (
            "trace of the samples",
            trainer.trace(),
            manifest.trace.clone(),
        ),
    ];
    let differs = pairs.into_iter().find(|(_, found, said)| found != said);
    differs.map_or(Ok(()), |(what, found, said)| {
        Err(format!(
            "step {step}: the manifest says that the {what} is {said}, and the checkpoint in {} \
             holds {found}",
            folder.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits() -> JobSpec {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/digits"
        ));
        let text = std::fs::read_to_string(folder.join("mlp.toml")).unwrap();
        let draft = JobDraft::parse(&text, "mlp.toml", "", &[]).unwrap();
        let digest = Dataset::digest_file(&folder.join("digits.csv.gz")).unwrap();
        draft.check(folder, &digest).unwrap()
    }

    #[test]
    fn a_trace_that_was_tampered_with_is_named_by_its_step() {
        let spec = digits();
        let dataset = Dataset::load(&spec.data).unwrap();
        let mut replay = Replay::new(&spec, &dataset).unwrap();
        let mut traces = vec![replay.trace()];
        for _ in 0..30 {
            replay.advance().unwrap();
            traces.push(replay.trace());
        }
        let claim = |step, trace| Claim {
            step: Step(step),
            trace,
            what: "the manifest",
        };
        let mut faults = Vec::new();
        let sound = [claim(10, &traces[10]), claim(30, &traces[30])];
        let verified = count(&spec, &dataset, &sound, &mut faults).unwrap();
        assert_eq!(faults, [""; 0]);
        // 30 steps of 64 samples are one epoch of 1438 and 482 more.
        assert_eq!(
            (verified.num_whole_epochs, verified.num_of_next_epoch),
            (1, 482)
        );
        let tampered = [claim(10, &traces[11]), claim(30, &traces[30])];
        count(&spec, &dataset, &tampered, &mut faults).unwrap();
        assert_eq!(
            faults,
            [format!(
                "step 10: the manifest says that the trace of the samples is {}, and the data gives \
                 {}",
                traces[11], traces[10]
            )]
        );
    }
}
