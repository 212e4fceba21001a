//! What a job file may say and how it is understood. What is refused is in [`refusals`], what
//! holds for any text in [`properties`].

mod properties;
mod refusals;
mod tokens;

use std::path::Path;

use expect_test::expect;

use super::identity::Identity;
use super::spec::{ModelSpec, OptimizerKind, ScheduleKind, StopSpec};
use super::{Error, JobDraft, JobSpec, Override, reference};

const DIGITS: &str = include_str!("../../../examples/digits/job.toml");
const DIGITS_MLP: &str = include_str!("../../../examples/digits/mlp.toml");
const GPT2: &str = include_str!("../../../examples/gpt2/job.toml");
const GPT2_124M: &str = include_str!("../../../examples/gpt2/gpt2-124m.toml");

/// One key a line and no comments, so that a test can replace any of them.
const JOB: &str = r#"name = "digits"
[model]
family = "cnn"
channels = [16, 32]
hidden = 64
dropout = 0.1
[data]
source = "digits.csv.gz"
shape = [1, 8, 8]
num_classes = 10
scale = 16.0
holdout = 0.2
[train]
seed = 7
global_batch_size = 64
logical_shards = 8
epochs = 30
clip_norm = 1.0
evaluate_every_steps = 50
[optimizer]
kind = "adamw"
learning_rate = 0.003
weight_decay = 0.02
beta1 = 0.8
beta2 = 0.99
epsilon = 1e-7
[schedule]
kind = "cosine"
warmup_steps = 20
decay_steps = 600
final_factor = 0.1
[workers]
min = 1
max = 4
device = "cpu"
[checkpoint]
folder = "../checkpoints"
every_steps = 200
keep = 5
"#;

/// Without anything that has a default.
const SMALLEST: &str = r#"
[model]
family = "cnn"
[data]
source = "/data/digits.csv.gz"
shape = [1, 8, 8]
num_classes = 10
[train]
global_batch_size = 64
logical_shards = 8
epochs = 30
[optimizer]
kind = "adamw"
learning_rate = 0.001
"#;

fn overrides(texts: &[&str]) -> Vec<Override> {
    texts
        .iter()
        .map(|text| Override::parse(text).unwrap())
        .collect()
}

fn understand_with(text: &str, set: &[&str]) -> Result<JobSpec, Error> {
    JobDraft::parse(text, "job.toml", "folder", &overrides(set))?
        .check(Path::new("/jobs/digits"), "d1be57")
}

fn understand(text: &str) -> Result<JobSpec, Error> {
    understand_with(text, &[])
}

#[test]
fn overrides_replace_what_the_file_says() {
    let set = [
        "train.seed=9",
        "name = other",
        "data.source=2024.csv",
        "train.steps=50",
        "model.channels=[4]",
    ];
    let spec = understand_with(JOB, &set).unwrap();
    assert_eq!(spec.train.seed, 9);
    assert_eq!(spec.name.as_str(), "other");
    assert_eq!(spec.data.source, Path::new("/jobs/digits/2024.csv"));
    assert_eq!(spec.train.stop, StopSpec::Steps(50));
    assert_eq!(
        spec.model,
        ModelSpec::Cnn {
            channels: vec![4],
            hidden: 64,
            dropout: 0.1
        }
    );
    assert_eq!(
        understand_with(JOB, &["name=2024"]).unwrap().name.as_str(),
        "2024"
    );
    // A file may leave to the command line what it does not say.
    let without_rate = SMALLEST.replace("learning_rate = 0.001", "");
    assert!(understand_with(&without_rate, &["optimizer.learning_rate=1e-3"]).is_ok());
}

#[test]
fn what_is_left_out_has_a_default() {
    let spec = understand(SMALLEST).unwrap();
    expect![[r#"
        JobSpec {
            name: JobName(
                "folder",
            ),
            model: Cnn {
                channels: [
                    16,
                    32,
                ],
                hidden: 64,
                dropout: 0.0,
            },
            data: DataSpec {
                source: "/data/digits.csv.gz",
                format: Csv,
                shape: [
                    1,
                    8,
                    8,
                ],
                num_classes: 10,
                scale: 1.0,
                holdout: 0.2,
                digest: "d1be57",
            },
            train: TrainSpec {
                seed: 0,
                global_batch_size: 64,
                logical_shards: 8,
                stop: Epochs(
                    30,
                ),
                clip_norm: None,
                not_finite: Stop,
                evaluate_every_steps: None,
                audit_every: None,
                precision: F32,
                reduction: Canonical,
                recompute: None,
            },
            optimizer: OptimizerSpec {
                kind: AdamW {
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                },
                learning_rate: 0.001,
                weight_decay: 0.01,
            },
            schedule: ScheduleSpec {
                warmup_steps: 0,
                kind: Constant,
            },
            workers: WorkersSpec {
                min: 1,
                max: 8,
                spares: 0,
                redundancy: Full,
                device: Cpu,
            },
            checkpoint: CheckpointSpec {
                folder: None,
                every_steps: 100,
                keep: 3,
            },
        }
    "#]]
    .assert_debug_eq(&spec);
    let other = SMALLEST.replace("cnn", "mlp").replace("adamw", "sgd");
    let spec = understand(&other).unwrap();
    expect![[r#"
        (
            Mlp {
                hidden: [
                    64,
                ],
                dropout: 0.0,
            },
            OptimizerSpec {
                kind: Sgd {
                    momentum: 0.0,
                },
                learning_rate: 0.001,
                weight_decay: 0.0,
            },
        )
    "#]]
    .assert_debug_eq(&(spec.model, spec.optimizer));
}

#[test]
fn the_reference_is_a_job_file_and_names_every_key_once() {
    let text = reference();
    assert!(understand(&text).is_ok());
    for key in &super::keys::KEYS {
        let line = format!("{} = ", key.name());
        assert!(text.contains(&line), "{line}");
    }
    expect![[r##"
        # What the job is called; default: the name of the file's folder.
        # name = "digits"

        [model]
        # What is trained: "cnn", "gpt", "mlp" or "resnet".
        family = "cnn"
        # cnn: the output channels of each 3x3 convolution; each is followed by 2x2 max-pooling.
        # channels = [16, 32]
        # The width of the hidden layer of a cnn; for an mlp an array of widths, default [64].
        # hidden = 64
        # gpt: the number of transformer blocks.
        # layers = 12
        # gpt: the heads of each attention; divides width.
        # heads = 12
        # gpt: the width of the residual stream, default 768; resnet: the channels of the first stage, default 64.
        # width = 768
        # gpt: the tokens of one sample.
        # context = 1024
        # cnn, gpt, mlp: the probability of dr"##]].assert_eq(&text[..text.len().min(700)]);
}

#[test]
fn inline_tables_dotted_keys_and_windows_line_ends_say_the_same() {
    let plain = JobDraft::parse(SMALLEST, "job.toml", "folder", &[]).unwrap();
    let other = "model = { family = \"cnn\" }\r\n\
        data.source = \"/data/digits.csv.gz\"\r\n\
        data.shape = [\r\n  1, # channels\r\n  8,\r\n  8,\r\n]\r\n\
        data.num_classes = 10\r\n\
        optimizer.kind = \"adamw\"\r\n\
        optimizer.learning_rate = 1e-3\r\n\
        [train]\r\n\
        global_batch_size = 64\r\n\
        logical_shards = 8\r\n\
        epochs = 30";
    assert_eq!(
        JobDraft::parse(other, "job.toml", "folder", &[]).unwrap(),
        plain
    );
    let slip = other.replace("10\r\n", "1\r\n").replace("kind", "kinds");
    expect![[r#"job.toml:9: unknown key "kinds" in [optimizer]; did you mean "kind"?"#]]
        .assert_eq(&understand(&slip).unwrap_err().to_string());
    let slip = other.replace("num_classes = 10", "num_classes = 1");
    expect!["job.toml:8: data.num_classes is 1; expected a whole number from 2 to 65536"]
        .assert_eq(&understand(&slip).unwrap_err().to_string());
}

#[test]
fn the_canonical_text_is_short_and_complete() {
    let draft = JobDraft::parse(
        SMALLEST,
        "job.toml",
        "folder",
        &overrides(&["train.seed=3"]),
    )
    .unwrap();
    expect![[r#"
        name = "folder"

        [model]
        family = "cnn"

        [data]
        source = "/data/digits.csv.gz"
        shape = [1, 8, 8]
        num_classes = 10

        [train]
        seed = 3
        global_batch_size = 64
        logical_shards = 8
        epochs = 30

        [optimizer]
        kind = "adamw"
        learning_rate = 0.001
    "#]]
    .assert_eq(&draft.to_toml());
}

#[test]
fn the_examples_are_understood() {
    let spec = understand(DIGITS).unwrap();
    assert_eq!(spec.name.as_str(), "digits");
    assert_eq!(spec.model.family(), "cnn");
    assert_eq!(spec.data.source, Path::new("/jobs/digits/digits.csv.gz"));
    let spec = understand(DIGITS_MLP).unwrap();
    assert_eq!(spec.name.as_str(), "digits-mlp");
    assert_eq!(spec.model.family(), "mlp");
    for (text, format) in [(GPT2, "text"), (GPT2_124M, "tokens")] {
        let spec = understand(text).unwrap();
        assert_eq!(spec.model.family(), "gpt");
        assert_eq!(spec.data.format.name(), format);
    }
}

#[test]
fn every_name_that_is_listed_is_understood() {
    let with = |set: &str| understand_with(SMALLEST, &[set]).unwrap();
    for name in ModelSpec::FAMILIES {
        if name != "gpt" {
            assert_eq!(with(&format!("model.family={name}")).model.family(), name);
        }
    }
    for name in OptimizerKind::NAMES {
        assert_eq!(
            with(&format!("optimizer.kind={name}"))
                .optimizer
                .kind
                .name(),
            name
        );
    }
    for name in ScheduleKind::NAMES {
        assert_eq!(
            with(&format!("schedule.kind={name}")).schedule.kind.name(),
            name
        );
    }
    for name in ["auto", "cpu", "cuda", "cuda:0", "cuda:7"] {
        let device = with(&format!("workers.device={name}")).workers.device;
        assert_eq!(device.to_string(), name);
    }
    assert_eq!(
        Identity::of(&with("workers.device=cuda")),
        Identity::of(&with("workers.device=cpu")),
        "the class tells what decides the bits of a device"
    );
}
