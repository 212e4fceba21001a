//! Training of a job in one process: the shards of a step are summed along the canonical tree, so that
//! the results are those of any cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use muster_trainer::job::{JobDraft, JobSpec, Override};
use muster_trainer::tree::{self, Run};
use muster_trainer::{Dataset, Metrics, ShardId, StepReport, Trainer};

/// The job of a file of an example, with some keys set anew.
pub(crate) fn job(folder: &str, file: &str, overrides: &[&str]) -> JobSpec {
    let text = fs::read_to_string(Path::new(folder).join(file)).expect("a job file");
    job_of(folder, &text, overrides)
}

/// The job of a text, whose relative paths begin in `folder`.
pub(crate) fn job_of(folder: &str, text: &str, overrides: &[&str]) -> JobSpec {
    let folder = Path::new(folder);
    let overrides: Result<Vec<_>, _> = overrides.iter().map(|text| Override::parse(text)).collect();
    let draft = JobDraft::parse(text, "job.toml", "example", &overrides.expect("overrides"));
    let draft = draft.unwrap_or_else(|error| panic!("{error}"));
    let source = draft.data_source(folder).expect("a source");
    let digest = Dataset::digest_file(&source).expect("readable data");
    draft
        .check(folder, &digest)
        .unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn trainer(spec: &JobSpec) -> Trainer {
    let dataset = Dataset::load(&spec.data).expect("good data");
    let learner = muster_models::build(spec, muster_trainer::Device::Cpu).expect("a good model");
    Trainer::new(spec, learner, dataset).expect("a fitting job")
}

/// Trains to the end; gives the report of every step, and the means over the samples held out.
pub(crate) fn train(spec: &JobSpec) -> (Vec<StepReport>, BTreeMap<String, f64>) {
    let mut trainer = trainer(spec);
    let reports = (0..trainer.total_steps()).map(|_| step(&mut trainer, spec.train.logical_shards));
    let reports = reports.collect();
    (reports, evaluate(&mut trainer))
}

/// The means over the samples held out.
pub(crate) fn evaluate(trainer: &mut Trainer) -> BTreeMap<String, f64> {
    let mut heldout = Metrics::default();
    for chunk in 0..trainer.num_eval_chunks() {
        heldout.add(&trainer.evaluate_chunk(chunk).expect("a chunk"));
    }
    heldout.means()
}

pub(crate) fn step(trainer: &mut Trainer, num_shards: u32) -> StepReport {
    let mut notes = Vec::new();
    let mut contribute = |node: Run| {
        (node.num_shards() == 1).then(|| {
            let mut out = vec![0.0; trainer.num_elements()].into();
            let note = trainer.contribute(ShardId(node.start), &mut out);
            notes.push(note.expect("good samples"));
            out.host().expect("it is here").into_owned()
        })
    };
    let mut add = |mut left: Vec<f32>, right: Vec<f32>| {
        left.iter_mut()
            .zip(&right)
            .for_each(|(left, right)| *left += right);
        left
    };
    let sum = tree::fold(Run::new(0, num_shards), &mut contribute, &mut add).expect("whole");
    trainer.apply(&sum, &notes).expect("a finite step")
}

pub(crate) fn mean_loss(reports: &[StepReport]) -> f64 {
    reports
        .iter()
        .map(|report| report.means["loss"])
        .sum::<f64>()
        / reports.len() as f64
}
