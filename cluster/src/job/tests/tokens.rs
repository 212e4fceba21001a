//! Jobs that learn from tokens, and the keys that came with them.

use expect_test::expect;

use super::{JOB, SMALLEST, understand, understand_with};
use crate::job::spec::{DataFormat, DataSpec, ModelSpec, Precision, Recompute};
use crate::job::{Identity, JobSpec};

const GPT: &str = r#"name = "gpt"
[model]
family = "gpt"
layers = 2
heads = 4
width = 64
context = 128
[data]
source = "a.txt"
format = "text"
[train]
global_batch_size = 8
logical_shards = 4
steps = 100
[optimizer]
kind = "adamw"
learning_rate = 0.001
"#;

fn keys(spec: &JobSpec) -> String {
    let identity = Identity::of(spec);
    let lines = identity.keys.iter();
    let lines = lines.filter(|(key, _)| !key.starts_with("optim") && !key.starts_with("sched"));
    lines
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect()
}

#[test]
fn a_text_has_a_window_of_bytes_a_sample() {
    let spec = understand(GPT).unwrap();
    let DataSpec {
        format,
        shape,
        num_classes,
        ..
    } = &spec.data;
    assert_eq!(
        (*format, shape.as_slice(), *num_classes),
        (DataFormat::Text, &[128][..], 256)
    );
    assert_eq!(spec.train.precision, Precision::F32);
    expect![[r#"
        data.digest = d1be57
        data.format = text
        data.holdout = 0.2
        data.vocabulary = 256
        model.context = 128
        model.dropout = 0.0
        model.family = gpt
        model.heads = 4
        model.layers = 2
        model.width = 64
        train.global_batch_size = 8
        train.logical_shards = 4
        train.seed = 0
        workers.device = cpu
    "#]]
    .assert_eq(&keys(&spec));
}

#[test]
fn what_is_left_out_of_a_gpt_is_gpt2_of_124_million_parameters() {
    let set = [
        "model.layers=12",
        "data.format=tokens",
        "data.vocabulary=50257",
    ];
    let text = GPT
        .replace("layers = 2\n", "")
        .replace("heads = 4\n", "")
        .replace("width = 64\n", "")
        .replace("context = 128\n", "");
    let spec = understand_with(&text, &set).unwrap();
    assert_eq!(
        spec.model,
        ModelSpec::Gpt {
            layers: 12,
            heads: 12,
            width: 768,
            context: 1024,
            dropout: 0.0
        }
    );
    assert_eq!(spec.data.num_classes, 50257);
}

#[test]
fn precision_joins_the_identity_only_where_it_is_not_f32() {
    let with = |set: &str| Identity::of(&understand_with(GPT, &[set]).unwrap());
    assert_eq!(with("train.precision=f32"), with("train.seed=0"));
    let changed = with("train.seed=0").changed(&with("train.precision=bf16"));
    let changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["train.precision was not set and is bf16 now"]);
}

#[test]
fn reduction_joins_the_identity_only_where_it_is_fast() {
    let with = |set: &str| Identity::of(&understand_with(GPT, &[set]).unwrap());
    assert_eq!(with("train.reduction=canonical"), with("train.seed=0"));
    let changed = with("train.seed=0").changed(&with("train.reduction=fast"));
    let changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["train.reduction was not set and is fast now"]);
}

#[test]
fn what_is_computed_again_is_not_part_of_the_identity() {
    let with = |set: &str| understand_with(GPT, &[set]).unwrap();
    let (kept, again) = (with("train.recompute=none"), with("train.recompute=blocks"));
    assert_eq!(kept, with("train.seed=0"));
    assert_eq!(again.train.recompute, Recompute::Blocks);
    assert_eq!(Identity::of(&again), Identity::of(&kept));
}

#[test]
fn a_resnet_has_a_width_and_rows_of_images() {
    let set = ["model.family=resnet", "data.shape=[3, 32, 32]"];
    let spec = understand_with(SMALLEST, &set).unwrap();
    assert_eq!(spec.model, ModelSpec::Resnet { width: 64 });
    assert!(keys(&spec).contains("model.family = resnet\nmodel.width = 64\n"));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let gpt = |set: &[&str]| understand_with(GPT, set).unwrap_err().to_string();
    let cnn = |set: &[&str]| understand_with(JOB, set).unwrap_err().to_string();
    let without_format = GPT.replace("format = \"text\"\n", "");
    let refusals = [
        gpt(&["model.heads=3"]),
        gpt(&["data.vocabulary=255"]),
        gpt(&["data.format=tokens"]),
        gpt(&["data.vocabulary=65537"]),
        gpt(&["data.shape=[8]"]),
        gpt(&["data.format=parquet"]),
        gpt(&["train.precision=f16"]),
        gpt(&["train.reduction=quick"]),
        gpt(&["train.recompute=block"]),
        gpt(&["model.hidden=8"]),
        gpt(&["model.context=65536", "model.heads=64"]),
        gpt(&["model.layers=1024", "model.width=65536"]),
        understand(&without_format).unwrap_err().to_string(),
        cnn(&["model.layers=3"]),
        cnn(&["data.vocabulary=300"]),
        cnn(&["train.precision=bf16"]),
        cnn(&["train.recompute=blocks"]),
        understand_with(SMALLEST, &["model.family=resnet", "data.shape=[64]"])
            .unwrap_err()
            .to_string(),
        understand_with(SMALLEST, &["model.family=resnet", "model.dropout=0.5"])
            .unwrap_err()
            .to_string(),
        understand(
            &GPT.replace("family = \"gpt\"", "family = \"mlp\"")
                .replace("layers = 2\nheads = 4\nwidth = 64\ncontext = 128\n", ""),
        )
        .unwrap_err()
        .to_string(),
    ];
    expect![[r#"
        --set model.heads: heads = 3 does not divide width = 64; each head has its share of the width: change one of them
        --set data.vocabulary: data.vocabulary is 255; expected a whole number from 256 to 65536
        job.toml:8: [data] lacks vocabulary; add a line such as vocabulary = 50257
        --set data.vocabulary: data.vocabulary is 65537; expected a whole number from 256 to 65536
        --set data.shape: data.shape belongs to "csv", and format is "text"; remove it or change format
        --set data.format: unknown data format "parquet"; expected one of "csv", "text", "tokens"
        --set train.precision: unknown precision "f16"; expected one of "f32", "bf16"; did you mean "bf16"?
        --set train.reduction: unknown reduction "quick"; expected one of "canonical", "fast"
        --set train.recompute: unknown choice of train.recompute "block"; expected one of "none", "blocks"; did you mean "blocks"?
        --set model.hidden: model.hidden belongs to "cnn" and "mlp", and family is "gpt"; remove it or change family
        job.toml:12: a layer has 549755813888 values for the 2 samples of a logical shard; expected at most 2147483648: use more logical_shards or a smaller batch
        job.toml:3: the model has 52777455845376 parameters; expected at most 1073741824: make its layers narrower
        job.toml:8: family "gpt" cannot use format = "csv"; a "gpt" learns from tokens: write format = "text" or "tokens"
        --set model.layers: model.layers belongs to "gpt", and family is "cnn"; remove it or change family
        --set data.vocabulary: data.vocabulary belongs to "text" and "tokens", and format is "csv"; remove it or change format
        --set train.precision: precision = "bf16" is not offered by family "cnn"; only "gpt" has it: write precision = "f32"
        --set train.recompute: recompute = "blocks" is not offered by family "cnn"; only "gpt" has it: write recompute = "none"
        --set data.shape: shape = [64] is no image; a "resnet" expects [channels, height, width], e.g. shape = [3, 32, 32]
        --set model.dropout: model.dropout belongs to "cnn", "gpt" and "mlp", and family is "resnet"; remove it or change family
        job.toml:6: family "mlp" cannot use format = "text"; it needs rows of features: write format = "csv", or family = "gpt"
    "#]].assert_eq(&(refusals.join("\n") + "\n"));
}
