//! Steps whose gradient is not finite: what is refused, what is skipped, and with which bits.

use super::*;
use crate::clip;
use crate::finite::NoNumber;

/// Gives `value` for the second weight wherever a shard has the sample with these features.
struct Poisoned {
    inner: Regression,
    sample: Vec<f32>,
    value: f32,
}

impl Learner for Poisoned {
    fn layout(&self) -> Layout {
        self.inner.layout()
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        self.inner.init(seed)
    }

    fn contribute(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
        out: &mut [f32],
    ) -> Result<Metrics, LearnerError> {
        let metrics = self.inner.contribute(arena, batch, rng, out)?;
        let mut samples = batch.inputs.features().chunks_exact(self.sample.len());
        if samples.any(|sample| sample == self.sample) {
            out[1] = self.value;
        }
        Ok(metrics)
    }

    fn evaluate(&mut self, arena: &Arena, batch: &Batch) -> Result<Metrics, LearnerError> {
        self.inner.evaluate(arena, batch)
    }
}

/// A trainer of a job in which the training sample `id` gives a value that is no number.
fn poisoned(spec: &JobSpec, id: u64, value: f32) -> Trainer {
    let dataset = Dataset::load(&spec.data).expect("good rows");
    let sample = dataset.batch(&[id]).inputs.features().to_vec();
    let inner = Regression { num_features: 2 };
    let learner = Poisoned {
        inner,
        sample,
        value,
    };
    Trainer::new(spec, Box::new(learner), dataset).expect("a fitting job")
}

fn skipping(folder: &Path) -> JobSpec {
    let mut spec = job(folder, ADAMW);
    spec.train.not_finite = NotFinitePolicy::Skip;
    spec
}

/// The step and shard that read a training sample first.
fn first_reader(trainer: &Trainer, id: u64) -> (u64, ShardId) {
    let places = (0..25).flat_map(|step| (0..NUM_SHARDS).map(move |shard| (step, ShardId(shard))));
    let mut places = places.filter(|(step, shard)| trainer.order.ids(*step, *shard).contains(&id));
    places.next().expect("an epoch reads every sample")
}

#[test]
fn a_job_that_stops_names_step_shard_samples_and_value_and_applies_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = job(folder.path(), ADAMW);
    for (value, word) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut trainer = poisoned(&spec, 7, value);
        let (step, shard) = first_reader(&trainer, 7);
        run(&mut trainer, step);
        let before = state(&trainer);
        let (sum, notes) = reduced(&mut trainer);
        let refusal = trainer.apply(&sum, &notes).expect_err("not finite");
        let rows = trainer.order.ids(step, shard);
        let rows: Vec<_> = rows.iter().map(|id| trainer.dataset.row(*id)).collect();
        assert!(rows.contains(&trainer.dataset.row(7)));
        let fault = Fault::Contribution {
            shard,
            what: format!("{word} in weight, element 1"),
            rows,
            num_others: 0,
        };
        let step = Step(step);
        assert_eq!(refusal, Error::NotFinite { step, fault });
        assert_eq!(state(&trainer), before);
    }
}

#[test]
fn a_sum_that_overflows_is_told_from_a_contribution_that_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    run(&mut trainer, 2);
    let before = state(&trainer);
    let (sum, notes) = reduced(&mut trainer);
    for (at, entry) in [(1, "weight, element 1"), (2, "bias, element 0")] {
        let mut bad = sum.clone();
        // What two contributions of this size add up to.
        bad[at] = f32::MAX + f32::MAX;
        let refusal = trainer.apply(&bad, &notes).expect_err("not finite");
        let what = format!("inf in {entry}");
        let fault = Fault::Sum { what };
        let step = Step(2);
        assert_eq!(refusal, Error::NotFinite { step, fault });
        assert_eq!(state(&trainer), before);
    }
    trainer
        .apply(&sum, &notes)
        .expect("the good vector still fits");
}

#[test]
fn a_skipped_step_moves_neither_parameters_nor_optimizer_and_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = skipping(folder.path());
    let mut trainer = poisoned(&spec, 7, f32::NAN);
    let mut whole = super::trainer(&spec);
    let (bad, shard) = first_reader(&trainer, 7);
    run(&mut trainer, bad);
    run(&mut whole, bad);
    assert_eq!(state(&trainer), state(&whole), "up to the bad step");
    let before = state(&trainer);
    let report = run(&mut trainer, 1).remove(0);
    let healthy = run(&mut whole, 1).remove(0);
    let after = state(&trainer);
    assert_eq!((&after.1, &after.2), (&before.1, &before.2));
    assert_eq!(
        (report.step, trainer.step()),
        (Step(bad + 1), Step(bad + 1))
    );
    assert_eq!(trainer.trace(), whole.trace(), "its samples were read");
    assert_eq!(report.learning_rate, healthy.learning_rate);
    assert_eq!(report.means, healthy.means);
    assert!(report.grad_norm.is_nan());
    let skipped = report.skipped.expect("it is skipped");
    assert!(matches!(skipped, Fault::Contribution { shard: found, .. } if found == shard));
    // The optimizer's count of updates goes on with the step.
    let (sum, notes) = reduced(&mut trainer);
    let mut arena = trainer.arena.host().expect("it is here").into_owned();
    let mut optimizer = trainer.optimizer.host().expect("it is on the host").clone();
    let report = trainer.apply(&sum, &notes).expect("a good step");
    assert_eq!(report.skipped, None);
    let mut gradient: Vec<f32> = sum.iter().map(|value| value / 4.0).collect();
    if let Some(factor) = clip::factor(report.grad_norm, 1.0) {
        clip::scale(&trainer.layout, &mut gradient, 0..4, factor);
    }
    optimizer.step(&mut arena, &gradient, report.learning_rate, bad + 2);
    assert_eq!(trainer.arena.host().expect("it is here"), arena);
}

/// Ranks of any number, and a rank that is given a step's sum and notes by another one, decide alike.
#[test]
fn a_job_that_skips_ends_in_the_same_bits_on_any_split_and_after_any_heal() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = skipping(folder.path());
    let mut ends = Vec::new();
    for num_ranks in [1, 2, 3, 4] {
        let mut trainer = poisoned(&spec, 7, f32::INFINITY);
        let mut healed = poisoned(&spec, 7, f32::INFINITY);
        let mut skipped = Vec::new();
        for step in 0..25 {
            let (sum, notes) = reduced_over_ranks(&mut trainer, num_ranks);
            let report = trainer.apply(&sum, &notes).expect("a whole step");
            let mut bytes = Vec::new();
            notes.iter().for_each(|note| note.encode(&mut bytes));
            let mut bytes = &bytes[..];
            let given: Vec<_> = (0..NUM_SHARDS)
                .map(|_| ShardNote::decode(&mut bytes).expect("a note"))
                .collect();
            let again = healed.apply(&sum, &given).expect("a whole step");
            assert_eq!(again.skipped, report.skipped);
            skipped.extend(report.skipped.map(|_| step));
        }
        assert_eq!(state(&healed), state(&trainer));
        ends.push((state(&trainer), skipped));
    }
    assert_eq!(ends[0].1.len(), 10, "once in each of ten epochs");
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:#?}");
}

#[test]
fn all_shards_with_values_that_are_no_numbers_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&skipping(folder.path()));
    let (sum, mut notes) = reduced(&mut trainer);
    for (shard, at) in [(1, 2), (3, 0)] {
        notes[shard].not_finite = Some(NotFinite {
            at,
            value: NoNumber::Nan,
        });
    }
    let report = trainer.apply(&sum, &notes).expect("it is skipped");
    let skipped = report.skipped.map(|fault| fault.to_string());
    let skipped = skipped.expect("a reason");
    assert!(
        skipped.starts_with("the gradient of shard 1 is not finite (NaN in bias, element 0)"),
        "{skipped}"
    );
    assert!(
        skipped.ends_with("; nor is that of 1 other shard"),
        "{skipped}"
    );
}
