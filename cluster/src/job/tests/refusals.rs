//! The refusals of a job file, in full.

use std::path::Path;

use expect_test::{Expect, expect};

use super::{JOB, understand, understand_with};
use crate::job::{JobDraft, Override};

/// The refusals of [`JOB`] after each edit, `old => new` for a line of it; a new line `-` removes
/// the old one.
fn check_refusals(edits: &str, expected: &Expect) {
    let mut out = String::new();
    for edit in edits.trim().lines() {
        let (old, new) = edit
            .trim()
            .split_once(" => ")
            .expect("an edit is `old => new`");
        assert_eq!(
            JOB.lines().filter(|line| *line == old).count(),
            1,
            "{old} is one line"
        );
        let lines = JOB.lines().filter(|line| *line != old || new != "-");
        let lines = lines.map(|line| if line == old { new } else { line });
        let text = lines.collect::<Vec<_>>().join("\n").replace("\\n", "\n");
        match understand(&text) {
            Ok(_) => out.push_str(&format!("{new}\n    accepted\n")),
            Err(error) => {
                let lines = error.to_string().replace('\n', "\n    ");
                out.push_str(&format!("{}\n    {lines}\n", edit.trim()));
            }
        }
    }
    expected.assert_eq(&out);
}

#[test]
fn unknown_keys_and_sections_are_refused_with_the_nearest_known_one() {
    check_refusals(
        r#"
        global_batch_size = 64 => global_batchsize = 64
        seed = 7 => colour = 7
        seed = 7 => lr = 0.1
        seed = 7 => every_steps = 3
        [optimizer] => [optimiser]
        [optimizer] => [fruit]
        name = "digits" => seed = 7
        name = "digits" => title = "digits"
        name = "digits" => train = 3
        [workers] => [[workers]]
        seed = 7 => "a\"b\u001b" = 1
        "#,
        &expect![[r#"
            global_batch_size = 64 => global_batchsize = 64
                job.toml:15: unknown key "global_batchsize" in [train]; did you mean "global_batch_size"?
            seed = 7 => colour = 7
                job.toml:14: unknown key "colour" in [train]; expected one of seed, global_batch_size, logical_shards, epochs, steps, clip_norm, not_finite, evaluate_every_steps, audit_every, precision, reduction, recompute
            seed = 7 => lr = 0.1
                job.toml:14: unknown key "lr" in [train]; did you mean "learning_rate" in [optimizer]?
            seed = 7 => every_steps = 3
                job.toml:14: unknown key "every_steps" in [train]; did you mean "evaluate_every_steps"?
            [optimizer] => [optimiser]
                job.toml:20: unknown section [optimiser]; did you mean [optimizer]?
            [optimizer] => [fruit]
                job.toml:20: unknown section [fruit]; expected one of model, data, train, optimizer, schedule, workers, checkpoint
            name = "digits" => seed = 7
                job.toml:1: unknown key "seed" at the top; did you mean "seed" in [train]?
            name = "digits" => title = "digits"
                job.toml:1: unknown key "title" at the top; expected name or a section: model, data, train, optimizer, schedule, workers, checkpoint
            name = "digits" => train = 3
                job.toml:13: this is not TOML: duplicate key; mend this line
            [workers] => [[workers]]
                job.toml:32: workers is an array of tables; expected a section: [workers] and its keys below
            seed = 7 => "a\"b\u001b" = 1
                job.toml:14: unknown key "a\"b\u{1b}" in [train]; expected one of seed, global_batch_size, logical_shards, epochs, steps, clip_norm, not_finite, evaluate_every_steps, audit_every, precision, reduction, recompute
        "#]],
    );
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    check_refusals(
        r#"
        seed = 7 => seed = = 7
        seed = 7 => seed 7
        seed = 7 => seed = 7 7
        seed = 7 => seed = "7
        seed = 7 => seed = 7\nseed = 8
        [workers] => [train]
        seed = 7 => seed = 99999999999999999999
        [workers] => [workers
        keep = 5 => keep = [1,
        keep = 5 => keep =
        "#,
        &expect![[r#"
            seed = 7 => seed = = 7
                job.toml:14: this is not TOML: extra `=`, expected nothing; mend this line
            seed = 7 => seed 7
                job.toml:14: this is not TOML: key with no value, expected `=`; mend this line
            seed = 7 => seed = 7 7
                job.toml:14: this is not TOML: string values must be quoted, expected literal string; mend this line
            seed = 7 => seed = "7
                job.toml:14: this is not TOML: invalid basic string, expected `"`; mend this line
            seed = 7 => seed = 7\nseed = 8
                job.toml:15: this is not TOML: duplicate key; mend this line
            [workers] => [train]
                job.toml:32: this is not TOML: duplicate key; mend this line
            seed = 7 => seed = 99999999999999999999
                job.toml:14: this is not TOML: integer number overflowed; mend this line
            [workers] => [workers
                job.toml:32: this is not TOML: unclosed table, expected `]`; mend this line
            keep = 5 => keep = [1,
                job.toml:39: this is not TOML: unclosed array, expected `]`; mend this line
            keep = 5 => keep =
                job.toml:39: this is not TOML: string values must be quoted, expected literal string; mend this line
        "#]],
    );
}

#[test]
fn values_of_the_wrong_type_are_refused_with_the_expected_one() {
    check_refusals(
        r#"
        seed = 7 => seed = "7"
        seed = 7 => seed = 7.0
        seed = 7 => seed = true
        seed = 7 => seed = 2026-01-01
        seed = 7 => seed = [7]
        seed = 7 => seed = {}
        seed = 7 => seed.value = 7
        shape = [1, 8, 8] => shape = 64
        shape = [1, 8, 8] => shape = [1, "8", 8]
        shape = [1, 8, 8] => shape = [1, [8], 8]
        scale = 16.0 => scale = "16"
        scale = 16.0 => scale = nan
        scale = 16.0 => scale = -inf
        source = "digits.csv.gz" => source = 3
        hidden = 64 => hidden = "64"
        hidden = 64 => hidden = [64]
        family = "cnn" => family = "mlp"
        "#,
        &expect![[r#"
            seed = 7 => seed = "7"
                job.toml:14: train.seed is the string "7"; expected a whole number, e.g. seed = 0
            seed = 7 => seed = 7.0
                job.toml:14: train.seed is the number 7.0; expected a whole number, e.g. seed = 0
            seed = 7 => seed = true
                job.toml:14: train.seed is the boolean true; expected a whole number, e.g. seed = 0
            seed = 7 => seed = 2026-01-01
                job.toml:14: train.seed is a date; expected a whole number, e.g. seed = 0
            seed = 7 => seed = [7]
                job.toml:14: train.seed is an array; expected a whole number, e.g. seed = 0
            seed = 7 => seed = {}
                job.toml:14: train.seed is a table; expected a whole number, e.g. seed = 0
            seed = 7 => seed.value = 7
                job.toml:14: train.seed is a table; expected a whole number, e.g. seed = 0
            shape = [1, 8, 8] => shape = 64
                job.toml:9: data.shape is the whole number 64; expected an array of whole numbers, e.g. shape = [1, 8, 8]
            shape = [1, 8, 8] => shape = [1, "8", 8]
                job.toml:9: data.shape is an array with the string "8"; expected an array of whole numbers, e.g. shape = [1, 8, 8]
            shape = [1, 8, 8] => shape = [1, [8], 8]
                job.toml:9: data.shape is an array with an array; expected an array of whole numbers, e.g. shape = [1, 8, 8]
            scale = 16.0 => scale = "16"
                job.toml:11: data.scale is the string "16"; expected a finite number, e.g. scale = 1.0
            scale = 16.0 => scale = nan
                job.toml:11: data.scale is the number NaN; expected a finite number, e.g. scale = 1.0
            scale = 16.0 => scale = -inf
                job.toml:11: data.scale is the number -inf; expected a finite number, e.g. scale = 1.0
            source = "digits.csv.gz" => source = 3
                job.toml:8: data.source is the whole number 3; expected a string, e.g. source = "digits.csv.gz"
            hidden = 64 => hidden = "64"
                job.toml:5: model.hidden is the string "64"; expected a whole number or an array of them, e.g. hidden = 64
            hidden = 64 => hidden = [64]
                job.toml:5: model.hidden of "cnn" is one width; write e.g. hidden = 64
            family = "cnn" => family = "mlp"
                job.toml:4: model.channels belongs to "cnn", and family is "mlp"; remove it or change family
                job.toml:5: model.hidden of "mlp" is an array of widths; write hidden = [64]
        "#]],
    );
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    check_refusals(
        r#"
        seed = 7 => seed = -1
        global_batch_size = 64 => global_batch_size = 0
        global_batch_size = 64 => global_batch_size = 16777217
        logical_shards = 8 => logical_shards = -8
        logical_shards = 8 => logical_shards = 65537
        epochs = 30 => epochs = 0
        epochs = 30 => epochs = 9223372036854775807
        clip_norm = 1.0 => clip_norm = 0
        evaluate_every_steps = 50 => evaluate_every_steps = 0
        learning_rate = 0.003 => learning_rate = 0.0
        learning_rate = 0.003 => learning_rate = -0.1
        weight_decay = 0.02 => weight_decay = -1
        beta1 = 0.8 => beta1 = 1.0
        epsilon = 1e-7 => epsilon = 0
        final_factor = 0.1 => final_factor = 1.5
        dropout = 0.1 => dropout = 1
        channels = [16, 32] => channels = []
        channels = [16, 32] => channels = [16, 0]
        channels = [16, 32] => channels = [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]
        hidden = 64 => hidden = 65537
        num_classes = 10 => num_classes = 1
        scale = 16.0 => scale = 0
        scale = 16.0 => scale = 1e-300
        holdout = 0.2 => holdout = 0
        holdout = 0.2 => holdout = 1.0
        min = 1 => min = 0
        keep = 5 => keep = 0
        keep = 5 => keep = 4294967297
        every_steps = 200 => every_steps = 0
        "#,
        &expect![[r#"
            seed = 7 => seed = -1
                job.toml:14: train.seed is -1; expected a whole number from 0 to 9223372036854775807
            global_batch_size = 64 => global_batch_size = 0
                job.toml:15: train.global_batch_size is 0; expected a whole number from 1 to 16777216
            global_batch_size = 64 => global_batch_size = 16777217
                job.toml:15: train.global_batch_size is 16777217; expected a whole number from 1 to 16777216
            logical_shards = 8 => logical_shards = -8
                job.toml:16: train.logical_shards is -8; expected a whole number from 1 to 65536
            logical_shards = 8 => logical_shards = 65537
                job.toml:16: train.logical_shards is 65537; expected a whole number from 1 to 65536
            epochs = 30 => epochs = 0
                job.toml:17: train.epochs is 0; expected a whole number from 1 to 1000000
            epochs = 30 => epochs = 9223372036854775807
                job.toml:17: train.epochs is 9223372036854775807; expected a whole number from 1 to 1000000
            clip_norm = 1.0 => clip_norm = 0
                job.toml:18: train.clip_norm is 0.0; expected a number of at least 1e-30 and at most 1e30
            evaluate_every_steps = 50 => evaluate_every_steps = 0
                job.toml:19: train.evaluate_every_steps is 0; expected a whole number from 1 to 1000000000000
            learning_rate = 0.003 => learning_rate = 0.0
                job.toml:22: optimizer.learning_rate is 0.0; expected a number above 0.0 and at most 1000000.0
            learning_rate = 0.003 => learning_rate = -0.1
                job.toml:22: optimizer.learning_rate is -0.1; expected a number above 0.0 and at most 1000000.0
            weight_decay = 0.02 => weight_decay = -1
                job.toml:23: optimizer.weight_decay is -1.0; expected a number of at least 0.0 and at most 1000000.0
            beta1 = 0.8 => beta1 = 1.0
                job.toml:24: optimizer.beta1 is 1.0; expected a number of at least 0.0 and below 1.0
            epsilon = 1e-7 => epsilon = 0
                job.toml:26: optimizer.epsilon is 0.0; expected a number of at least 1e-30 and at most 1.0
            final_factor = 0.1 => final_factor = 1.5
                job.toml:31: schedule.final_factor is 1.5; expected a number of at least 0.0 and at most 1.0
            dropout = 0.1 => dropout = 1
                job.toml:6: model.dropout is 1.0; expected a number of at least 0.0 and below 1.0
            channels = [16, 32] => channels = []
                job.toml:4: model.channels is []; expected 1 to 16 whole numbers, each from 1 to 65536
            channels = [16, 32] => channels = [16, 0]
                job.toml:4: model.channels is [16, 0]; expected 1 to 16 whole numbers, each from 1 to 65536
            channels = [16, 32] => channels = [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]
                job.toml:4: model.channels is [1, 1, 1, 1, 1, 1, 1, 1] and more; expected 1 to 16 whole numbers, each from 1 to 65536
            hidden = 64 => hidden = 65537
                job.toml:5: model.hidden is 65537; expected a whole number from 1 to 65536
            num_classes = 10 => num_classes = 1
                job.toml:10: data.num_classes is 1; expected a whole number from 2 to 65536
            scale = 16.0 => scale = 0
                job.toml:11: data.scale is 0.0; expected a number of at least 1e-30 and at most 1e30
            scale = 16.0 => scale = 1e-300
                job.toml:11: data.scale is 1e-300; expected a number of at least 1e-30 and at most 1e30
            holdout = 0.2 => holdout = 0
                job.toml:12: data.holdout is 0.0; expected a number above 0.0 and below 1.0
            holdout = 0.2 => holdout = 1.0
                job.toml:12: data.holdout is 1.0; expected a number above 0.0 and below 1.0
            min = 1 => min = 0
                job.toml:33: workers.min is 0; expected a whole number from 1 to 65536
            keep = 5 => keep = 0
                job.toml:39: checkpoint.keep is 0; expected a whole number from 1 to 1000
            keep = 5 => keep = 4294967297
                job.toml:39: checkpoint.keep is 4294967297; expected a whole number from 1 to 1000
            every_steps = 200 => every_steps = 0
                job.toml:38: checkpoint.every_steps is 0; expected a whole number from 1 to 1000000000000
        "#]],
    );
}

#[test]
fn unknown_choices_are_refused_with_the_list() {
    check_refusals(
        r#"
        family = "cnn" => family = "CNN"
        family = "cnn" => family = "transformer"
        kind = "adamw" => kind = "adamax"
        kind = "cosine" => kind = "cosin"
        device = "cpu" => device = "gpu"
        device = "cpu" => device = "cuda0"
        name = "digits" => name = "my digits"
        name = "digits" => name = ""
        source = "digits.csv.gz" => source = ""
        source = "digits.csv.gz" => source = "~/digits.csv.gz"
        folder = "../checkpoints" => folder = "a\u0000b"
        "#,
        &expect![[r#"
            family = "cnn" => family = "CNN"
                job.toml:3: unknown model family "CNN"; expected one of "cnn", "gpt", "mlp", "resnet"; did you mean "cnn"?
            family = "cnn" => family = "transformer"
                job.toml:3: unknown model family "transformer"; expected one of "cnn", "gpt", "mlp", "resnet"
            kind = "adamw" => kind = "adamax"
                job.toml:21: unknown optimizer "adamax"; expected one of "adam", "adamw", "sgd"; did you mean "adam"?
            kind = "cosine" => kind = "cosin"
                job.toml:28: unknown schedule "cosin"; expected one of "constant", "cosine"; did you mean "cosine"?
            device = "cpu" => device = "gpu"
                job.toml:35: unknown device "gpu"; expected one of "auto", "cpu", "cuda", "cuda:N"; did you mean "cpu"?
            device = "cpu" => device = "cuda0"
                job.toml:35: unknown device "cuda0"; expected one of "auto", "cpu", "cuda", "cuda:N"; did you mean "cuda"?
            name = "digits" => name = "my digits"
                job.toml:1: "my digits" is no name: expected 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit; write one, e.g. name = "digits"
            name = "digits" => name = ""
                job.toml:1: "" is no name: expected 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit; write one, e.g. name = "digits"
            source = "digits.csv.gz" => source = ""
                job.toml:8: data.source is ""; expected a path of 1 to 4096 bytes without a zero byte
            source = "digits.csv.gz" => source = "~/digits.csv.gz"
                job.toml:8: data.source is "~/digits.csv.gz"; "~" is not expanded here; write the whole path, or one relative to the job file
            folder = "../checkpoints" => folder = "a\u0000b"
                job.toml:37: checkpoint.folder is "a\0b"; expected a path of 1 to 4096 bytes without a zero byte
        "#]],
    );
}

#[test]
fn options_of_another_choice_are_refused() {
    check_refusals(
        r#"
        beta1 = 0.8 => momentum = 0.9
        kind = "adamw" => kind = "sgd"
        kind = "cosine" => kind = "constant"
        hidden = 64 => hidden = 64\nwidth = 3
        "#,
        &expect![[r#"
            beta1 = 0.8 => momentum = 0.9
                job.toml:24: optimizer.momentum belongs to "sgd", and kind is "adamw"; remove it or change kind
            kind = "adamw" => kind = "sgd"
                job.toml:24: optimizer.beta1 belongs to "adam" and "adamw", and kind is "sgd"; remove it or change kind
                job.toml:25: optimizer.beta2 belongs to "adam" and "adamw", and kind is "sgd"; remove it or change kind
                job.toml:26: optimizer.epsilon belongs to "adam" and "adamw", and kind is "sgd"; remove it or change kind
            kind = "cosine" => kind = "constant"
                job.toml:30: schedule.decay_steps belongs to "cosine", and kind is "constant"; remove it or change kind
                job.toml:31: schedule.final_factor belongs to "cosine", and kind is "constant"; remove it or change kind
            hidden = 64 => hidden = 64\nwidth = 3
                job.toml:6: model.width belongs to "gpt" and "resnet", and family is "cnn"; remove it or change family
        "#]],
    );
}

#[test]
fn values_at_odds_with_each_other_are_refused_together() {
    check_refusals(
        r#"
        logical_shards = 8 => logical_shards = 7
        logical_shards = 8 => logical_shards = 128
        logical_shards = 8 => logical_shards = 2
        seed = 7 => steps = 100
        epochs = 30 => -
        min = 1 => min = 5
        max = 4 => max = 9
        warmup_steps = 20 => warmup_steps = 600
        shape = [1, 8, 8] => shape = [64]
        shape = [1, 8, 8] => shape = [1, 8, 3]
        shape = [1, 8, 8] => shape = [1, 1, 1]
        shape = [1, 8, 8] => shape = [16777216, 2, 2]
        shape = [1, 8, 8] => shape = [1, 4096, 4096]
        shape = [1, 8, 8] => shape = [16777216, 16777216, 16777216]
        "#,
        &expect![[r#"
            logical_shards = 8 => logical_shards = 7
                job.toml:16: logical_shards = 7 does not divide global_batch_size = 64; the nearest that do are 4 and 8
            logical_shards = 8 => logical_shards = 128
                job.toml:16: logical_shards = 128 does not divide global_batch_size = 64; the nearest that does is 64
            logical_shards = 8 => logical_shards = 2
                job.toml:34: max = 4 is more than logical_shards = 2; each rank needs a shard: lower max or raise logical_shards
            seed = 7 => steps = 100
                job.toml:14: both epochs and steps say where to stop; remove one of them
            epochs = 30 => -
                job.toml:13: [train] lacks epochs; add a line such as epochs = 30, or steps = 600
            min = 1 => min = 5
                job.toml:33: min = 5 is more than max = 4; lower min or raise max
            max = 4 => max = 9
                job.toml:34: max = 9 is more than logical_shards = 8; each rank needs a shard: lower max or raise logical_shards
            warmup_steps = 20 => warmup_steps = 600
                job.toml:29: warmup_steps = 600 leaves no step for the decay; expected fewer than the 600 that both take together
            shape = [1, 8, 8] => shape = [64]
                job.toml:9: shape = [64] is no image; a "cnn" expects [channels, height, width], e.g. shape = [1, 8, 8]
            shape = [1, 8, 8] => shape = [1, 8, 3]
                job.toml:9: shape = [1, 8, 3] is too small for 2 convolutions, each of which halves height and width; shorten model.channels to at most 1
            shape = [1, 8, 8] => shape = [1, 1, 1]
                job.toml:9: shape = [1, 1, 1] is too small for 2 convolutions, each of which halves height and width; expected a height and a width of at least 2
            shape = [1, 8, 8] => shape = [16777216, 2, 2]
                job.toml:9: shape = [16777216, 2, 2] has too many values; expected at most 16777216 in one sample
            shape = [1, 8, 8] => shape = [1, 4096, 4096]
                job.toml:3: the model has 2147489162 parameters; expected at most 1073741824: make its layers narrower
            shape = [1, 8, 8] => shape = [16777216, 16777216, 16777216]
                job.toml:9: shape = [16777216, 16777216, 16777216] has too many values; expected at most 16777216 in one sample
        "#]],
    );
}

#[test]
fn a_step_of_absurd_size_is_refused_before_anything_is_allocated() {
    let set = ["train.global_batch_size=16777216", "train.logical_shards=4"];
    let refused = understand_with(JOB, &set).unwrap_err().to_string();
    expect!["--set train.global_batch_size: a layer has 4294967296 values for the 4194304 samples of a logical shard; expected at most 2147483648: use more logical_shards or a smaller batch"].assert_eq(&refused);
}

#[test]
fn missing_keys_are_refused_with_an_example_line() {
    let refusal = |text: &str| understand(text).unwrap_err().to_string();
    expect![[r#"
        job.toml: there is no model.family; add a section [model] with a line such as family = "cnn"
        job.toml: there is no data.source; add a section [data] with a line such as source = "digits.csv.gz"
        job.toml: there is no data.shape; add a section [data] with a line such as shape = [1, 8, 8]
        job.toml: there is no data.num_classes; add a section [data] with a line such as num_classes = 10
        job.toml: there is no train.epochs; add a section [train] with a line such as epochs = 30, or steps = 600
        job.toml: there is no train.global_batch_size; add a section [train] with a line such as global_batch_size = 64
        job.toml: there is no train.logical_shards; add a section [train] with a line such as logical_shards = 8
        job.toml: there is no optimizer.kind; add a section [optimizer] with a line such as kind = "adamw"
        job.toml: there is no optimizer.learning_rate; add a section [optimizer] with a line such as learning_rate = 0.001"#]].assert_eq(&refusal(""));
    check_refusals(
        r#"
        family = "cnn" => -
        shape = [1, 8, 8] => -
        source = "digits.csv.gz" => -
        logical_shards = 8 => -
        learning_rate = 0.003 => -
        "#,
        &expect![[r#"
            family = "cnn" => -
                job.toml:2: [model] lacks family; add a line such as family = "cnn"
            shape = [1, 8, 8] => -
                job.toml:7: [data] lacks shape; add a line such as shape = [1, 8, 8]
            source = "digits.csv.gz" => -
                job.toml:7: [data] lacks source; add a line such as source = "digits.csv.gz"
            logical_shards = 8 => -
                job.toml:13: [train] lacks logical_shards; add a line such as logical_shards = 8
            learning_rate = 0.003 => -
                job.toml:20: [optimizer] lacks learning_rate; add a line such as learning_rate = 0.001
        "#]],
    );
}

#[test]
fn overrides_are_refused_like_lines_of_the_file() {
    let mut out = String::new();
    for text in [
        "train.sed=1",
        "seed=1",
        "trian.seed=1",
        "train=1",
        "train.seed",
        "=1",
        "train.seed.x=1",
        "train.seed=abc",
        "train.seed=",
        "train.seed=-1",
        "train.seed=1\nseed = 2",
        "model.family=cmn",
        "optimizer.momentum=0.5",
        "train.logical_shards=7",
    ] {
        let refused = Override::parse(text).and_then(|one| {
            JobDraft::parse(JOB, "job.toml", "folder", &[one])?.check(Path::new("/"), "")
        });
        out.push_str(&format!("{text:?}\n    {}\n", refused.unwrap_err()));
    }
    let both = understand_with(JOB, &["train.steps=3", "train.epochs=3"]).unwrap_err();
    out.push_str(&format!("both\n    {both}\n"));
    expect![[r#"
        "train.sed=1"
            --set train.sed: unknown key "sed" in [train]; did you mean "seed"?
        "seed=1"
            --set seed: unknown key "seed" at the top; did you mean "seed" in [train]?
        "trian.seed=1"
            --set trian.seed: unknown section [trian]; did you mean [train]?
        "train=1"
            --set train: train is a section; set one of its keys, e.g. --set train.seed=...
        "train.seed"
            --set: "train.seed" is no override; expected section.key=value, e.g. --set train.seed=7
        "=1"
            --set: "=1" is no override; expected section.key=value, e.g. --set train.seed=7
        "train.seed.x=1"
            --set train.seed.x: unknown key "seed.x" in [train]; did you mean "seed"?
        "train.seed=abc"
            --set train.seed: train.seed is the string "abc"; expected a whole number, e.g. seed = 0
        "train.seed="
            --set train.seed: train.seed is the string ""; expected a whole number, e.g. seed = 0
        "train.seed=-1"
            --set train.seed: train.seed is -1; expected a whole number from 0 to 9223372036854775807
        "train.seed=1\nseed = 2"
            --set train.seed: train.seed is the string "1\nseed = 2"; expected a whole number, e.g. seed = 0
        "model.family=cmn"
            --set model.family: unknown model family "cmn"; expected one of "cnn", "gpt", "mlp", "resnet"; did you mean "cnn"?
        "optimizer.momentum=0.5"
            --set optimizer.momentum: optimizer.momentum belongs to "sgd", and kind is "adamw"; remove it or change kind
        "train.logical_shards=7"
            --set train.logical_shards: logical_shards = 7 does not divide global_batch_size = 64; the nearest that do are 4 and 8
        both
            --set train.steps: both epochs and steps say where to stop; remove one of them
    "#]].assert_eq(&out);
}
