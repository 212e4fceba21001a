//! What a trainer does not take, and that it stays as it was.

use super::*;

#[test]
fn notes_out_of_order_or_missing_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    let before = state(&trainer);
    let (sum, notes) = reduced(&mut trainer);
    let swapped: Vec<_> = [0, 2, 1, 3]
        .iter()
        .map(|&i: &usize| notes[i].clone())
        .collect();
    for bad in [&notes[..3], &swapped[..], &[]] {
        let refusal = trainer
            .apply(&sum, bad)
            .expect_err("not the shards in order");
        assert!(matches!(refusal, Error::WrongNotes { .. }), "{refusal}");
    }
    let refusal = trainer.apply(&sum[1..], &notes).expect_err("too short");
    assert_eq!(
        refusal,
        Error::WrongLength {
            step: Step(0),
            expected: 4,
            found: 3
        }
    );
    assert_eq!(state(&trainer), before);
}

#[test]
fn shards_and_chunks_beyond_the_last_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = trainer(&job(folder.path(), ADAMW));
    let mut out = vec![0.0; 4].into();
    let refusal = trainer
        .contribute(ShardId(4), &mut out)
        .expect_err("shards 0 to 3");
    assert_eq!(
        refusal,
        Error::NoSuchShard {
            shard: ShardId(4),
            num_shards: 4
        }
    );
    assert_eq!(trainer.num_eval_chunks(), 1);
    assert_eq!(trainer.evaluate_chunk(0).expect("a chunk").num_samples, 10);
    let refusal = trainer.evaluate_chunk(1).expect_err("one chunk");
    assert_eq!(
        refusal,
        Error::NoSuchChunk {
            chunk: 1,
            num_chunks: 1
        }
    );
}

/// A learner of that layout and those first values, which is never asked for more.
struct Fixed(Layout, Vec<f32>);

impl Learner for Fixed {
    fn layout(&self) -> Layout {
        self.0.clone()
    }

    fn init(&self, _seed: u64) -> Vec<f32> {
        self.1.clone()
    }

    fn contribute(
        &mut self,
        _arena: &Arena,
        _batch: &Batch,
        _rng: &ShardRng,
        _out: &mut [f32],
    ) -> Result<Metrics, LearnerError> {
        Err(LearnerError("nothing is learnt here".to_owned()))
    }

    fn evaluate(&mut self, _arena: &Arena, _batch: &Batch) -> Result<Metrics, LearnerError> {
        Err(LearnerError("nothing is learnt here".to_owned()))
    }
}

#[test]
fn models_and_data_that_cannot_be_trained_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = job(folder.path(), ADAMW);
    let refusal = |spec: &JobSpec, names: &[&str], values: &[f32]| {
        let mut layout = Layout::default();
        names.iter().for_each(|&name| {
            layout.push(name, [1], Group::Weight);
        });
        let dataset = Dataset::load(&spec.data).expect("good rows");
        let made = Trainer::new(spec, Box::new(Fixed(layout, values.to_vec())), dataset);
        made.map(|_| String::new())
            .unwrap_or_else(|error| error.to_string())
    };
    assert_eq!(refusal(&spec, &["a", "b"], &[0.0, 1.0]), "");
    assert!(
        refusal(&spec, &["a", "b"], &[0.0])
            .contains("has 2 elements and its initial values have 1")
    );
    assert!(refusal(&spec, &["a", "a"], &[0.0, 1.0]).contains("second entry \"a\""));
    assert!(refusal(&spec, &["a", "b"], &[0.0, f32::NAN]).contains("NaN in b, element 0"));
    let mut little = spec.clone();
    little.data.holdout = 0.001;
    assert!(
        refusal(&little, &["a"], &[0.0]).contains("leaves 50 samples to train and 0 to evaluate")
    );
    let mut endless = spec;
    endless.train.stop = StopSpec::Epochs(u64::MAX);
    assert!(refusal(&endless, &["a"], &[0.0]).contains("more steps than can be counted"));
}

#[test]
fn error_of_the_learner_names_step_and_shard() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = job(folder.path(), ADAMW);
    let mut layout = Layout::default();
    layout.push("a", [1], Group::Weight);
    let dataset = Dataset::load(&spec.data).expect("good rows");
    let mut trainer =
        Trainer::new(&spec, Box::new(Fixed(layout, vec![0.0])), dataset).expect("it fits");
    let refusal = trainer
        .contribute(ShardId(2), &mut vec![0.0].into())
        .expect_err("it refuses all");
    assert_eq!(
        refusal.to_string(),
        "step 0, shard 2: the model refused the samples"
    );
    let refusal = trainer.evaluate_chunk(0).expect_err("it refuses all");
    assert!(
        refusal
            .to_string()
            .starts_with("evaluation after step 0, chunk 0")
    );
}
