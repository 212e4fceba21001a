//! A job on a device beside the same job on the host: the losses follow each other, and on the device
//! too any division of the shards over ranks ends in the same bits. The device here is CubeCL's
//! processor, which runs the kernels that a GPU would; `muster doctor` runs the same on a GPU.

#![cfg(feature = "cube-cpu")]

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use muster_trainer::job::{JobDraft, JobSpec, Override};
use muster_trainer::tree::{self, Run};
use muster_trainer::{Dataset, ShardId, Trainer, Vector};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits");

fn job(overrides: &[&str]) -> JobSpec {
    let folder = Path::new(FOLDER);
    let text = fs::read_to_string(folder.join("job.toml")).expect("a job file");
    let overrides: Result<Vec<_>, _> = overrides.iter().map(|text| Override::parse(text)).collect();
    let draft = JobDraft::parse(&text, "job.toml", "digits", &overrides.expect("overrides"));
    let draft = draft.expect("a good job");
    let source = draft.data_source(folder).expect("a source");
    let digest = Dataset::digest_file(&source).expect("readable data");
    draft.check(folder, &digest).expect("a good job")
}

fn trainer(spec: &JobSpec, device: &Device) -> Trainer {
    let dataset = Dataset::load(&spec.data).expect("good data");
    let (shape, classes) = (&spec.data.shape, spec.data.num_classes);
    let (precision, recompute) = (spec.train.precision, spec.train.recompute);
    let learner =
        muster_models::build_on(&spec.model, shape, classes, device, precision, recompute);
    Trainer::new(spec, learner.expect("a good model"), dataset).expect("a fitting job")
}

/// The losses of some steps, each reduced as `num_ranks` ranks would, with everything on the device
/// that is there.
fn losses(trainer: &mut Trainer, num_shards: u32, num_ranks: u32, num_steps: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    for _ in 0..num_steps {
        let mut notes = Vec::new();
        let mut held = std::collections::BTreeMap::new();
        for run in tree::runs(num_shards, num_ranks).expect("no more ranks than shards") {
            for subtree in tree::subtrees(num_shards, run) {
                let mut one = |node: Run| {
                    (node.num_shards() == 1).then(|| {
                        let mut out = Vector::from(vec![0.0; trainer.num_elements()]);
                        let note = trainer.contribute(ShardId(node.start), &mut out);
                        notes.push(note.expect("good samples"));
                        out
                    })
                };
                let sum = tree::fold(subtree, &mut one, &mut Vector::sum);
                held.insert(subtree, sum.expect("whole"));
            }
        }
        let all = Run::new(0, num_shards);
        let sum = tree::fold(all, &mut |node| held.remove(&node), &mut Vector::sum);
        let report = trainer.apply(&sum.expect("all are held"), &notes);
        losses.push(report.expect("a finite step").means["loss"]);
    }
    losses
}

#[test]
fn a_job_on_a_device_follows_the_same_job_on_the_host() {
    // Without dropout, so that a rounding does not decide what is dropped further down.
    for family in [
        &["model.dropout=0.0"][..],
        &[
            "model.dropout=0.0",
            "optimizer.kind=sgd",
            "optimizer.learning_rate=0.05",
        ],
    ] {
        let spec = job(family);
        let num_shards = spec.train.logical_shards;
        let host = losses(&mut trainer(&spec, &Device::flex()), num_shards, 1, 12);
        let device = losses(&mut trainer(&spec, &Device::cpu()), num_shards, 1, 12);
        for (step, (host, device)) in host.iter().zip(&device).enumerate() {
            // Sums of up to 576 products in another order: a few roundings of 6e-8 a layer and step,
            // and each step builds on the one before.
            let tolerance = 2e-5 * (1.0 + step as f64);
            assert!(
                (host - device).abs() <= tolerance * host.abs(),
                "step {step}: {host} on the host, {device} on the device"
            );
        }
    }
}

#[test]
fn any_division_over_ranks_ends_in_the_same_bits_on_a_device() {
    let spec = job(&[]);
    let num_shards = spec.train.logical_shards;
    let ends: Vec<_> = [1, 2, 3, 8]
        .into_iter()
        .map(|num_ranks| {
            let mut trainer = trainer(&spec, &Device::cpu());
            losses(&mut trainer, num_shards, num_ranks, 3);
            let arena = trainer.arena_hash().expect("readable");
            (arena, trainer.optimizer_hash().expect("readable"))
        })
        .collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

#[test]
fn a_state_goes_from_the_device_to_the_host_and_back() {
    let spec = job(&[]);
    let num_shards = spec.train.logical_shards;
    let mut giver = trainer(&spec, &Device::cpu());
    losses(&mut giver, num_shards, 1, 2);
    let values = giver.values(0..giver.num_state_values()).expect("readable");
    let mut taker = trainer(&spec, &Device::flex());
    taker
        .take_over(giver.head(), std::slice::from_ref(&values))
        .expect("whole");
    let hashes = |trainer: &Trainer| {
        let arena = trainer.arena_hash().expect("readable");
        (
            arena,
            trainer.optimizer_hash().expect("readable"),
            trainer.step(),
        )
    };
    assert_eq!(hashes(&taker), hashes(&giver));
    let mut back = trainer(&spec, &Device::cpu());
    let third = values.len() / 3;
    let parts = [values[..third].to_vec(), values[third..].to_vec()];
    back.take_over(taker.head(), &parts).expect("whole");
    assert_eq!(hashes(&back), hashes(&giver));
    // Shares that come back after they were given up.
    let kept = (0..16).chain(20..32).collect();
    let share = back
        .share(17)
        .expect("readable")
        .expect("kept")
        .into_owned();
    back.keep(&kept);
    assert_eq!(back.kept().len(), 28);
    assert_eq!(back.optimizer_hash().expect("readable"), None);
    back.take_share(17, share).expect("a share's length");
    let (mine, theirs) = (back.share_digest(17), giver.share_digest(17));
    assert_eq!(mine.expect("readable"), theirs.expect("readable"));
}
