//! Every key of a job file: its place, its type, an example and what it means.
//!
//! The one table that reading, refusing, writing and explaining a draft share. Which values make
//! sense is not here but in [`super::check`].

/// What a person may write after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A TOML integer.
    Whole,
    /// A finite TOML float or integer.
    Number,
    /// A TOML string.
    Text,
    /// A TOML array of integers.
    Wholes,
    /// Either of the two, depending on another key.
    WholeOrWholes,
}

impl Kind {
    /// For "expected ...".
    pub(super) fn words(self) -> &'static str {
        match self {
            Kind::Whole => "a whole number",
            Kind::Number => "a finite number",
            Kind::Text => "a string",
            Kind::Wholes => "an array of whole numbers",
            Kind::WholeOrWholes => "a whole number or an array of them",
        }
    }
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.name`, or the name alone at the top of the file.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// Whether a file without it is refused (of `epochs` and `steps` it needs one).
    pub(super) required: bool,
    /// The right side of an example line; the default where there is one.
    pub(super) example: &'static str,
    /// One sentence for a reader of the reference.
    pub(super) about: &'static str,
}

impl Key {
    /// The section, or `""` at the top of the file.
    pub(super) fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    pub(super) fn name(&self) -> &'static str {
        self.path
            .split_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// A line as a person would write it.
    pub(super) fn example_line(&self) -> String {
        format!("{} = {}", self.name(), self.example)
    }
}

/// The sections, in the order in which a draft is written.
pub(super) const SECTIONS: [&str; 7] = [
    "model",
    "data",
    "train",
    "optimizer",
    "schedule",
    "workers",
    "checkpoint",
];

const fn required(
    path: &'static str,
    kind: Kind,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key {
        path,
        kind,
        required: true,
        example,
        about,
    }
}

const fn optional(
    path: &'static str,
    kind: Kind,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key {
        path,
        kind,
        required: false,
        example,
        about,
    }
}

/// The keys, section by section, in the order in which a draft is written.
#[rustfmt::skip] // A table: a key in two lines.
pub(super) const KEYS: [Key; 47] = [
    optional("name", Kind::Text, "\"digits\"",
        "What the job is called; default: the name of the file's folder."),
    required("model.family", Kind::Text, "\"cnn\"",
        "What is trained: \"cnn\", \"gpt\", \"mlp\" or \"resnet\"."),
    optional("model.channels", Kind::Wholes, "[16, 32]",
        "cnn: the output channels of each 3x3 convolution; each is followed by 2x2 max-pooling."),
    optional("model.hidden", Kind::WholeOrWholes, "64",
        "The width of the hidden layer of a cnn; for an mlp an array of widths, default [64]."),
    optional("model.layers", Kind::Whole, "12",
        "gpt: the number of transformer blocks."),
    optional("model.heads", Kind::Whole, "12",
        "gpt: the heads of each attention; divides width."),
    optional("model.width", Kind::Whole, "768",
        "gpt: the width of the residual stream, default 768; resnet: the channels of the first stage, default 64."),
    optional("model.context", Kind::Whole, "1024",
        "gpt: the tokens of one sample."),
    optional("model.dropout", Kind::Number, "0.0",
        "cnn, gpt, mlp: the probability of dropping an activation while training."),
    required("data.source", Kind::Text, "\"digits.csv.gz\"",
        "The file with the samples; relative to this file."),
    optional("data.format", Kind::Text, "\"csv\"",
        "\"csv\": rows without a header, features and then the class, may be gzipped; \"text\": each byte is a token; \"tokens\": u16 token ids, little-endian."),
    required("data.shape", Kind::Wholes, "[1, 8, 8]",
        "csv: one sample, [channels, height, width] or [features]."),
    required("data.num_classes", Kind::Whole, "10",
        "csv: classes are the numbers from 0 to one less than this."),
    optional("data.vocabulary", Kind::Whole, "50257",
        "text, tokens: token ids are the numbers from 0 to one less than this; default for text: 256."),
    optional("data.scale", Kind::Number, "1.0",
        "csv: features are divided by this."),
    optional("data.holdout", Kind::Number, "0.2",
        "The share of samples that is kept for evaluation."),
    optional("train.seed", Kind::Whole, "0",
        "Decides every random draw."),
    required("train.global_batch_size", Kind::Whole, "64",
        "Samples in one step, over all ranks together."),
    required("train.logical_shards", Kind::Whole, "8",
        "Slices of a step's batch that are handed to ranks; divides global_batch_size, decides bits, bounds workers.max."),
    optional("train.epochs", Kind::Whole, "30",
        "Stop after so many passes over the training samples; either this or steps."),
    optional("train.steps", Kind::Whole, "600",
        "Stop after so many steps; either this or epochs."),
    optional("train.clip_norm", Kind::Number, "1.0",
        "Scale a gradient down to this global norm; default: no clipping."),
    optional("train.not_finite", Kind::Text, "\"stop\"",
        "What comes of a step whose gradient holds NaN or an infinity: \"stop\" the job, or \"skip\" the step."),
    optional("train.evaluate_every_steps", Kind::Whole, "100",
        "Evaluate on the held-out samples so often; default: at the end alone."),
    optional("train.audit_every", Kind::Whole, "100",
        "Compute one shard of every so many steps a second time, on another rank, and compare; default: never."),
    optional("train.precision", Kind::Text, "\"f32\"",
        "gpt: \"f32\", or \"bf16\" for matrix products and activations (parameters stay f32)."),
    optional("train.reduction", Kind::Text, "\"canonical\"",
        "The order of a step's sum: \"canonical\", the same bits for any number of ranks; \"fast\", on GPUs NCCL's own."),
    optional("train.recompute", Kind::Text, "\"none\"",
        "gpt: \"none\", or \"blocks\" to compute a block's activations again in the backward pass instead of keeping them: about a third more computation, far less memory, the same bits."),
    required("optimizer.kind", Kind::Text, "\"adamw\"",
        "The rule: \"adam\", \"adamw\" or \"sgd\"."),
    required("optimizer.learning_rate", Kind::Number, "0.001",
        "The learning rate before the schedule."),
    optional("optimizer.weight_decay", Kind::Number, "0.01",
        "Decay of the weights; default: 0.01 for adamw, else 0."),
    optional("optimizer.momentum", Kind::Number, "0.0",
        "sgd: the share of the last update that is kept."),
    optional("optimizer.beta1", Kind::Number, "0.9",
        "adam, adamw: decay of the first moment."),
    optional("optimizer.beta2", Kind::Number, "0.999",
        "adam, adamw: decay of the second moment."),
    optional("optimizer.epsilon", Kind::Number, "1e-8",
        "adam, adamw: added to the root of the second moment."),
    optional("schedule.kind", Kind::Text, "\"constant\"",
        "How the learning rate moves after the warm-up: \"constant\" or \"cosine\"."),
    optional("schedule.warmup_steps", Kind::Whole, "0",
        "The learning rate rises over so many steps."),
    optional("schedule.decay_steps", Kind::Whole, "600",
        "cosine: how long the decay takes, warm-up included; default: the whole job."),
    optional("schedule.final_factor", Kind::Number, "0.0",
        "cosine: the share of the learning rate that is left at the end."),
    optional("workers.min", Kind::Whole, "1",
        "The job does not run with fewer ranks."),
    optional("workers.max", Kind::Whole, "8",
        "The job does not run with more ranks; default: logical_shards."),
    optional("workers.spares", Kind::Whole, "0",
        "So many more processes are kept prepared, to take the place of ranks that die."),
    optional("workers.redundancy", Kind::Text, "\"full\"",
        "The optimizer's state is kept by all ranks (\"full\"), each share by two (\"shadow\") or by one (\"none\")."),
    optional("workers.device", Kind::Text, "\"cpu\"",
        "What a rank runs on: \"cpu\"; \"cuda\": a GPU; \"cuda:N\": on each worker the GPU N; \"auto\": GPUs where enough are."),
    optional("checkpoint.folder", Kind::Text, "\"checkpoints\"",
        "Where checkpoints go, a folder per job; relative to this file; default: in the state folder."),
    optional("checkpoint.every_steps", Kind::Whole, "100",
        "A checkpoint after every so many steps, and one at the end."),
    optional("checkpoint.keep", Kind::Whole, "3",
        "How many of the newest checkpoints are kept."),
];

pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The keys of a section; `""` for the top of the file.
pub(super) fn of_section(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

/// A job file that explains every key: a template that is valid as it stands. Keys with a default
/// are commented out and show it, or an example where the default is to do without.
#[must_use]
pub fn reference() -> String {
    let mut out = String::new();
    for section in [""].into_iter().chain(SECTIONS) {
        if !section.is_empty() {
            out.push_str(&format!("\n[{section}]\n"));
        }
        for key in of_section(section) {
            let is_written = key.required || key.path == "train.epochs";
            let mark = if is_written { "" } else { "# " };
            out.push_str(&format!("# {}\n{mark}{}\n", key.about, key.example_line()));
        }
    }
    out
}
