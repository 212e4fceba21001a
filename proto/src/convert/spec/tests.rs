//! A job as understood comes back as it was, and what makes no sense is named.

use super::*;

const JOBS: [&str; 4] = [
    r#"
    name = "a"
    [model]
    family = "mlp"
    hidden = [8, 4]
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
    "#,
    r#"
    name = "b"
    [model]
    family = "cnn"
    channels = [4]
    hidden = 8
    dropout = 0.3
    [data]
    source = "/elsewhere/digits.csv"
    shape = [1, 8, 8]
    num_classes = 10
    scale = 16
    holdout = 0.1
    [train]
    seed = 7
    global_batch_size = 64
    logical_shards = 8
    epochs = 3
    clip_norm = 1.5
    not_finite = "skip"
    evaluate_every_steps = 5
    audit_every = 6
    [optimizer]
    kind = "adamw"
    learning_rate = 1e-3
    weight_decay = 0.02
    beta1 = 0.8
    [schedule]
    kind = "cosine"
    warmup_steps = 2
    decay_steps = 99
    final_factor = 0.25
    [workers]
    min = 2
    max = 4
    spares = 1
    redundancy = "shadow"
    [checkpoint]
    folder = "kept"
    every_steps = 9
    keep = 2
    "#,
    r#"
    name = "c"
    [model]
    family = "gpt"
    layers = 2
    heads = 4
    width = 32
    context = 64
    dropout = 0.1
    [data]
    source = "train.tokens"
    format = "tokens"
    vocabulary = 50304
    [train]
    global_batch_size = 8
    logical_shards = 4
    steps = 10
    precision = "bf16"
    reduction = "fast"
    recompute = "blocks"
    [optimizer]
    kind = "adamw"
    learning_rate = 1e-3
    "#,
    r#"
    name = "d"
    [model]
    family = "resnet"
    width = 16
    [data]
    source = "images.csv.gz"
    shape = [3, 32, 32]
    num_classes = 10
    [train]
    global_batch_size = 8
    logical_shards = 4
    steps = 10
    [optimizer]
    kind = "sgd"
    learning_rate = 0.1
    "#,
];

fn submission(draft: &str) -> Submission {
    Submission {
        draft: draft.to_owned(),
        base_dir: PathBuf::from("/jobs"),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    }
}

#[test]
fn a_spec_comes_back_as_it_was() {
    for draft in JOBS {
        let submission = submission(draft);
        let spec = submission.check().unwrap();
        assert_eq!(spec_from(spec_to(&spec), &submission).unwrap(), spec);
    }
}

#[test]
fn what_makes_no_sense_is_named() {
    let submission = submission(JOBS[1]);
    let spec = spec_to(&submission.check().unwrap());
    let fault = |spoil: fn(&mut v1::JobSpec)| {
        let mut spec = spec.clone();
        spoil(&mut spec);
        spec_from(spec, &submission).unwrap_err().to_string()
    };
    assert_eq!(
        [
            fault(|spec| spec.model = None),
            fault(|spec| spec.train.as_mut().unwrap().logical_shards = 0),
            fault(|spec| spec.workers.as_mut().unwrap().device = "abacus".to_owned()),
            fault(|spec| spec.data.as_mut().unwrap().format = "scroll".to_owned()),
            fault(|spec| spec.train.as_mut().unwrap().precision = "f31".to_owned()),
            fault(|spec| spec.train.as_mut().unwrap().recompute = "all".to_owned()),
        ],
        [
            "the message has no model",
            "the message's job makes no sense: 2 to 4 workers share 0 shards",
            "the message's device makes no sense: \"abacus\" is none",
            "the message's format makes no sense: \"scroll\" is none",
            "the message's precision makes no sense: \"f31\" is none",
            "the message's recompute makes no sense: \"all\" is none",
        ]
    );
}
