//! The trainer over a hand-written learner: linear regression on the digits of a number.

mod not_finite;
mod refusals;

use std::collections::BTreeMap;
use std::path::Path;

use muster_cluster::JobName;
use muster_cluster::ids::History;
use muster_cluster::job::spec::{
    CheckpointSpec, DataFormat, DataSpec, DeviceSpec, ModelSpec, OptimizerKind, OptimizerSpec,
    Precision, Recompute, Reduction, Redundancy, ScheduleKind, TrainSpec, WorkersSpec,
};
use muster_cluster::tree::{self, Run};

use super::*;
use crate::arena::Group;
use crate::checkpoint::{Content, Meta};
use crate::learner::{Batch, LearnerError};
use crate::vector::Vector;

/// `label = features . weight + bias`, squared error; a buffer keeps the mean of the labels.
struct Regression {
    num_features: usize,
}

impl Learner for Regression {
    fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        layout.push("weight", [self.num_features, 1], Group::Weight);
        layout.push("bias", [1], Group::Bias);
        layout.push("mean", [1], Group::Buffer);
        layout
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.01 * (seed % 7) as f32; self.num_features];
        values.extend([0.0, 0.0]);
        values
    }

    fn contribute(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        _rng: &ShardRng,
        out: &mut [f32],
    ) -> Result<Metrics, LearnerError> {
        let Arena::Host(arena) = arena else {
            return Err(LearnerError("expected a host's arena".to_owned()));
        };
        let (n, count) = (self.num_features, batch.labels.len() as f32);
        out.fill(0.0);
        let mut loss = 0.0_f64;
        for (features, &label) in batch.inputs.features().chunks_exact(n).zip(&batch.labels) {
            let products = features.iter().zip(&arena[..n]).map(|(x, w)| x * w);
            let error = products.fold(arena[n], |sum, product| sum + product) - label as f32;
            for (out, x) in out.iter_mut().zip(features) {
                *out += 2.0 * error * x / count;
            }
            out[n] += 2.0 * error / count;
            out[n + 1] += label as f32 / count;
            loss += f64::from(error) * f64::from(error);
        }
        let sums = BTreeMap::from([("loss".to_owned(), loss)]);
        Ok(Metrics {
            num_samples: batch.labels.len() as u64,
            sums,
        })
    }

    fn evaluate(&mut self, arena: &Arena, batch: &Batch) -> Result<Metrics, LearnerError> {
        let mut gradient = vec![0.0; self.num_features + 2];
        self.contribute(arena, batch, &ShardRng::new(0, 0, 0), &mut gradient)
    }
}

const NUM_SHARDS: u32 = 4;
const NUM_ROWS: u64 = 50;

/// Writes rows `a,b,label` into `folder`, and a job over them.
pub(crate) fn job(folder: &Path, kind: OptimizerKind) -> JobSpec {
    let source = folder.join("rows.csv");
    let rows =
        (0..NUM_ROWS).map(|i| format!("{},{},{}\n", i % 8, i * 5 % 13, (i % 8 + i * 5 % 13) / 3));
    std::fs::write(&source, rows.collect::<String>()).expect("a writable folder");
    let digest = Dataset::digest_file(&source).expect("a readable file");
    JobSpec {
        name: JobName::new("rows").expect("a name"),
        model: ModelSpec::Mlp {
            hidden: vec![],
            dropout: 0.0,
        },
        data: DataSpec {
            source,
            format: DataFormat::Csv,
            shape: vec![2],
            num_classes: 10,
            scale: 10.0,
            holdout: 0.2,
            digest,
        },
        train: TrainSpec {
            seed: 3,
            global_batch_size: 16,
            logical_shards: NUM_SHARDS,
            stop: StopSpec::Epochs(10),
            clip_norm: Some(1.0),
            not_finite: NotFinitePolicy::Stop,
            evaluate_every_steps: None,
            audit_every: None,
            precision: Precision::F32,
            reduction: Reduction::Canonical,
            recompute: Recompute::None,
        },
        optimizer: OptimizerSpec {
            kind,
            learning_rate: 0.05,
            weight_decay: 0.01,
        },
        schedule: ScheduleSpec {
            warmup_steps: 3,
            kind: ScheduleKind::Cosine {
                decay_steps: None,
                final_factor: 0.1,
            },
        },
        workers: WorkersSpec {
            min: 1,
            max: 4,
            spares: 0,
            redundancy: Redundancy::Full,
            device: DeviceSpec::Cpu,
        },
        checkpoint: CheckpointSpec {
            folder: None,
            every_steps: 5,
            keep: 2,
        },
    }
}

pub(crate) const ADAMW: OptimizerKind = OptimizerKind::AdamW {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

pub(crate) fn trainer(spec: &JobSpec) -> Trainer {
    let dataset = Dataset::load(&spec.data).expect("good rows");
    Trainer::new(spec, Box::new(Regression { num_features: 2 }), dataset).expect("a fitting job")
}

fn reduced(trainer: &mut Trainer) -> (Vec<f32>, Vec<ShardNote>) {
    let mut sum = vec![0.0_f32; trainer.num_elements()];
    let mut notes = Vec::new();
    for shard in 0..NUM_SHARDS {
        let mut out = Vector::from(vec![f32::NAN; sum.len()]);
        notes.push(
            trainer
                .contribute(ShardId(shard), &mut out)
                .expect("a shard of the job"),
        );
        let out = out.host().expect("it is here");
        sum.iter_mut()
            .zip(&out[..])
            .for_each(|(sum, value)| *sum += value);
    }
    (sum, notes)
}

pub(crate) fn run(trainer: &mut Trainer, num_steps: u64) -> Vec<StepReport> {
    let steps = (0..num_steps).map(|_| {
        let (sum, notes) = reduced(trainer);
        trainer.apply(&sum, &notes).expect("a whole step")
    });
    steps.collect()
}

fn state(trainer: &Trainer) -> (Step, String, String, String) {
    (
        trainer.step(),
        trainer.arena_hash().expect("it is here"),
        optimizer_hash(trainer).expect("all of it is here"),
        trainer.trace(),
    )
}

fn optimizer_hash(trainer: &Trainer) -> Option<String> {
    trainer.optimizer_hash().expect("it is here")
}

fn files(trainer: &Trainer, is_shared: bool) -> BTreeMap<String, Vec<u8>> {
    let job = JobName::new("rows").expect("a name");
    let meta = Meta {
        job,
        identity: trainer.identity().to_owned(),
        history: History(1),
    };
    let encode = |content| {
        let snapshot = trainer.snapshot().expect("it is here");
        checkpoint::encode(&snapshot, content, &meta)
    };
    let files = Content::all(is_shared).into_iter();
    files
        .map(|content| (content.to_string(), encode(content)))
        .collect()
}

/// Each rank sums the subtrees of its run, and the sums of all ranks are folded along the tree.
fn reduced_over_ranks(trainer: &mut Trainer, num_ranks: u32) -> (Vec<f32>, Vec<ShardNote>) {
    let mut add = |mut left: Vec<f32>, right: Vec<f32>| {
        left.iter_mut()
            .zip(&right)
            .for_each(|(left, right)| *left += right);
        left
    };
    let mut notes = Vec::new();
    let mut held = BTreeMap::new();
    for run in tree::runs(NUM_SHARDS, num_ranks).expect("no more ranks than shards") {
        for subtree in tree::subtrees(NUM_SHARDS, run) {
            let mut single = |node: Run| {
                (node.num_shards() == 1).then(|| {
                    let mut out = Vector::from(vec![f32::NAN; trainer.num_elements()]);
                    let note = trainer.contribute(ShardId(node.start), &mut out);
                    notes.push(note.expect("a shard of the job"));
                    out.host().expect("it is here").into_owned()
                })
            };
            held.insert(
                subtree,
                tree::fold(subtree, &mut single, &mut add).expect("whole"),
            );
        }
    }
    let all = Run::new(0, NUM_SHARDS);
    let sum = tree::fold(all, &mut |node| held.remove(&node), &mut add).expect("all are held");
    (sum, notes)
}

#[test]
fn any_split_of_the_shards_over_ranks_ends_in_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    // Neither Adam's quotient nor clipping, which hide the last bits of a gradient.
    let mut spec = job(folder.path(), OptimizerKind::Sgd { momentum: 0.9 });
    spec.train.clip_norm = None;
    let mut ends = Vec::new();
    for num_ranks in [1, 2, 3, 4] {
        let mut trainer = trainer(&spec);
        let mut reports = Vec::new();
        for _ in 0..20 {
            let (sum, notes) = reduced_over_ranks(&mut trainer, num_ranks);
            reports.push(trainer.apply(&sum, &notes).expect("a whole step"));
        }
        ends.push((state(&trainer), reports));
    }
    assert!(ends.iter().all(|end| *end == ends[0]));

    // The order of additions matters here: one after another gives other sums.
    let mut trainer = trainer(&spec);
    let mut num_other = 0;
    for _ in 0..20 {
        let (chain, notes) = reduced(&mut trainer);
        num_other += u32::from(chain != reduced_over_ranks(&mut trainer, 1).0);
        trainer.apply(&chain, &notes).expect("a whole step");
    }
    assert!(num_other > 5, "{num_other} of 20");
}

/// A rank computes on a thread of its own.
#[test]
fn trainer_goes_to_another_thread() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    let moved = std::thread::spawn(move || run(&mut trainer, 1)[0].step);
    assert_eq!(moved.join().expect("no panic"), Step(1));
}

#[test]
fn steps_lower_the_loss_and_move_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    let before = state(&trainer);
    assert_eq!(
        trainer.total_steps(),
        25,
        "ten times 40 rows in batches of 16"
    );
    let reports = run(&mut trainer, 25);
    let after = state(&trainer);
    assert_eq!(after.0, Step(25));
    assert!(before.1 != after.1 && before.2 != after.2 && before.3 != after.3);
    assert!(
        reports[24].means["loss"] < 0.7 * reports[0].means["loss"],
        "{reports:?}"
    );
    assert_eq!(reports[0].step, Step(1));
    // Warm-up over 3 steps rises from 1/4.
    assert_eq!(
        reports[0].learning_rate,
        0.05 * schedule::factor(&trainer.schedule, 25, 0)
    );
    assert!(reports[1].learning_rate > reports[0].learning_rate);
}

#[test]
fn restored_state_goes_on_with_the_bits_of_an_undisturbed_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let kinds = [
        ADAMW,
        OptimizerKind::Sgd { momentum: 0.9 },
        OptimizerKind::Sgd { momentum: 0.0 },
    ];
    for kind in kinds {
        let spec = job(folder.path(), kind);
        let mut undisturbed = trainer(&spec);
        run(&mut undisturbed, 20);

        let mut stopped = trainer(&spec);
        run(&mut stopped, 8);
        let (at_8, files) = (
            state(&stopped),
            [false, true].map(|is_shared| files(&stopped, is_shared)),
        );
        run(&mut stopped, 3);
        for files in files {
            let mut resumed = trainer(&spec);
            let identity = resumed.identity().to_owned();
            resumed
                .restore(&files, &identity)
                .expect("a whole checkpoint");
            assert_eq!(state(&resumed), at_8);
            run(&mut resumed, 12);
            assert_eq!(state(&resumed), state(&undisturbed), "{kind:?}");
        }
    }
}

#[test]
fn snapshot_has_the_hashes_of_the_state_it_was_taken_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    run(&mut trainer, 2);
    let (snapshot, expected) = (trainer.snapshot().expect("it is here"), state(&trainer));
    run(&mut trainer, 1);
    let found = (
        snapshot.step(),
        snapshot.arena_hash().expect("it was copied"),
        snapshot.optimizer().hash().expect("all of it was copied"),
        snapshot.trace(),
    );
    assert_eq!(found, expected);
}

#[test]
fn parameters_move_where_their_share_is_kept_and_are_taken_over_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = job(folder.path(), ADAMW);
    let (mut keeper, mut other) = (trainer(&spec), trainer(&spec));
    // So small an arena is all in the last share.
    other.keep(&BTreeSet::from([0]));
    let before = other.arena_hash();
    for _ in 0..3 {
        let (sum, notes) = reduced(&mut keeper);
        let report = keeper.apply(&sum, &notes).expect("a whole step");
        let same = other.apply(&sum, &notes).expect("a whole step");
        assert_eq!(report, same);
        assert_eq!(
            (other.step(), other.trace()),
            (keeper.step(), keeper.trace())
        );
        assert_eq!(optimizer_hash(&other), None);
    }
    assert_eq!(other.arena_hash(), before);
    other.set_parameters(31, &keeper.parameters(31).expect("they are here"));
    let share = keeper.share(31).expect("it is here").expect("it is kept");
    let share = share.into_owned();
    other.take_share(31, share.clone()).expect("a whole share");
    other.take_share(30, share).expect_err("that one is empty");
    assert_eq!(other.arena_hash(), keeper.arena_hash());
    run(&mut keeper, 2);
    let (sum, notes) = reduced(&mut trainer(&spec));
    assert!(other.apply(&sum, &notes).is_ok());
    let copied = other.snapshot_of(false, &BTreeSet::from([31]));
    let copied = copied.expect("it is here");
    assert_eq!(
        (copied.arena_hash(), copied.optimizer().num_values()),
        (None, 8)
    );
}

#[test]
fn a_state_in_any_shares_becomes_the_same_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = job(folder.path(), ADAMW);
    let mut giver = trainer(&spec);
    run(&mut giver, 2);
    let len = giver.num_state_values();
    for first in 0..=len {
        for second in first..=len {
            let shares = [0..first, first..second, second..len];
            let shares = shares.map(|range| giver.values(range).expect("it is here"));
            let mut taker = trainer(&spec);
            taker.take_over(giver.head(), &shares).expect("all of it");
            assert_eq!(state(&taker), state(&giver), "cut at {first} and {second}");
        }
    }
    let mut taker = trainer(&spec);
    let before = state(&taker);
    let all = giver.values(0..len).expect("it is here");
    assert!(taker.take_over(giver.head(), &[all[1..].to_vec()]).is_err());
    assert_eq!(state(&taker), before);
}

#[test]
fn seed_decides_the_trace_and_the_arena() {
    let folder = tempfile::tempdir().expect("a folder");
    let of_seed = |seed| {
        let mut spec = job(folder.path(), ADAMW);
        spec.train.seed = seed;
        let mut trainer = trainer(&spec);
        run(&mut trainer, 3);
        (state(&trainer).1, trainer.trace())
    };
    let (first, again, other) = (of_seed(3), of_seed(3), of_seed(4));
    assert_eq!(first, again);
    assert!(first.0 != other.0 && first.1 != other.1);
}

#[test]
fn buffers_become_the_mean_over_the_shards_whatever_the_clipping() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut spec = job(folder.path(), ADAMW);
    spec.train.clip_norm = Some(1e-3);
    let mut trainer = trainer(&spec);
    let (sum, notes) = reduced(&mut trainer);
    trainer.apply(&sum, &notes).expect("a whole step");
    assert_eq!(trainer.arena.host().expect("it is here")[3], sum[3] / 4.0);
}

#[test]
fn notes_of_a_step_name_every_row_that_was_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    let (_, notes) = reduced(&mut trainer);
    for (shard, note) in (0..).zip(&notes) {
        let rows = trainer
            .order
            .ids(0, ShardId(shard))
            .into_iter()
            .map(|id| trainer.dataset.row(id));
        let bytes: Vec<u8> = rows.flat_map(u64::to_le_bytes).collect();
        assert_eq!(bytes.len(), 4 * 8);
        assert_eq!(note.digest, *blake3::hash(&bytes).as_bytes());
    }
}
