//! Jobs, workers and checkpoints for the tests of `apply` and `plan`. No test is here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::command::{Node, NumericsClass, Outcome, OutcomeKind, Submission};
use crate::device::Gpu;
use crate::ids::{Generation, History, Incarnation, JobName, Step, WorkerName};
use crate::state::Manifest;

/// A small job; `set` holds overrides of the job file, such as `workers.max=2`.
pub(crate) fn submission(name: &str, set: &[&str]) -> Submission {
    let text = format!(
        r#"
        name = "{name}"
        [model]
        family = "mlp"
        hidden = [8]
        [data]
        source = "digits.csv.gz"
        shape = [64]
        num_classes = 10
        [train]
        global_batch_size = 64
        logical_shards = 8
        steps = 1000
        [optimizer]
        kind = "sgd"
        learning_rate = 0.1
        [workers]
        max = 8
        [checkpoint]
        keep = 2
        "#
    );
    let set: Vec<_> = set
        .iter()
        .map(|one| crate::job::Override::parse(one).unwrap())
        .collect();
    let draft = crate::job::JobDraft::parse(&text, "job.toml", name, &set).unwrap();
    Submission {
        draft: draft.to_toml(),
        base_dir: PathBuf::from("/jobs"),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    }
}

pub(crate) fn job(name: &str) -> JobName {
    JobName::new(name).unwrap()
}

pub(crate) fn worker(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

/// A worker whose class differs from others' by `build`.
pub(crate) fn node(incarnation: u64, num_devices: u32, build: &str) -> Node {
    Node {
        incarnation: Incarnation(incarnation),
        num_devices,
        gpus: Vec::new(),
        class: NumericsClass {
            build: build.to_owned(),
            ..NumericsClass::default()
        },
        host: "127.0.0.1".to_owned(),
    }
}

/// The GPUs of a worker, from index 0 on; those of one `model` are of one class in one build.
pub(crate) fn gpus(number: u32, model: &str, build: &str) -> Vec<Gpu> {
    let gpu = |index| Gpu {
        index,
        name: model.to_owned(),
        memory_bytes: 80 << 30,
        uuid: format!("GPU-{index}"),
        class: NumericsClass {
            build: build.to_owned(),
            gpu: model.to_owned(),
            ..NumericsClass::default()
        },
    };
    (0..number).map(gpu).collect()
}

pub(crate) fn manifest(history: History, generation: Generation, step: u64) -> Manifest {
    Manifest {
        history,
        generation,
        step: Step(step),
        part: 0,
        folder: "/checkpoints".to_owned(),
        files: Vec::new(),
        arena_hash: format!("arena of {step}"),
        optimizer_hash: format!("optimizer of {step}"),
        trace: format!("trace of {step}"),
    }
}

pub(crate) fn outcome(kind: OutcomeKind, step: u64) -> Outcome {
    Outcome {
        kind,
        reason: String::new(),
        step: Step(step),
        arena_hash: String::new(),
        optimizer_hash: String::new(),
        trace: String::new(),
        peak_memory_bytes: Vec::new(),
        metrics: BTreeMap::new(),
    }
}
