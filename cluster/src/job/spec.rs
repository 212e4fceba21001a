//! A job as understood: only what is true. [`JobSpec`] is made from a draft at one door, where
//! everything below was checked; nothing here can be wrong on its own any more.

use std::path::PathBuf;

use crate::ids::JobName;

pub use crate::device::DeviceSpec;

/// One job, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// The job's name.
    pub name: JobName,
    /// What is trained.
    pub model: ModelSpec,
    /// On what.
    pub data: DataSpec,
    /// For how long and in which slices.
    pub train: TrainSpec,
    /// How the parameters follow the gradients.
    pub optimizer: OptimizerSpec,
    /// How the learning rate moves.
    pub schedule: ScheduleSpec,
    /// On how many ranks, and on which device.
    pub workers: WorkersSpec,
    /// What is kept on disk.
    pub checkpoint: CheckpointSpec,
}

impl JobSpec {
    /// Whether a process that waits to enter a world follows the steps meanwhile. It can where every
    /// rank holds the whole state.
    #[must_use]
    pub fn standbys_follow(&self) -> bool {
        !self.workers.redundancy.is_shared()
    }
}

/// A model family and its options.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSpec {
    /// A multi-layer perceptron: linear layers with ReLU between them.
    Mlp {
        /// The widths of the hidden layers.
        hidden: Vec<u32>,
        /// The probability of dropping a hidden activation while training, in `[0, 1)`.
        dropout: f64,
    },
    /// A small convolutional network: per entry of `channels` one 3x3 convolution, ReLU and 2x2
    /// max-pooling; then a hidden linear layer and the output layer.
    Cnn {
        /// The output channels of each convolution.
        channels: Vec<u32>,
        /// The width of the hidden linear layer.
        hidden: u32,
        /// The probability of dropping an activation of the hidden layer, in `[0, 1)`.
        dropout: f64,
    },
    /// GPT-2's architecture (Radford et al. 2019): a decoder of transformer blocks that predicts
    /// each next token, with learned positions and output weights tied to the token embedding.
    Gpt {
        /// The number of blocks.
        layers: u32,
        /// The heads of each attention; divides `width`.
        heads: u32,
        /// The width of the residual stream.
        width: u32,
        /// The tokens of one sample, and of all that a position sees at most.
        context: u32,
        /// The probability of dropping an activation while training, in `[0, 1)`.
        dropout: f64,
    },
    /// ResNet-18 for small images (He et al. 2016): a 3x3 stem and four stages of two blocks, with
    /// batch norm; no max-pooling.
    Resnet {
        /// The channels of the stem and the first stage; each later stage has twice as many.
        width: u32,
    },
}

impl ModelSpec {
    /// The names of the families, as a job file writes them.
    pub const FAMILIES: [&'static str; 4] = ["cnn", "gpt", "mlp", "resnet"];

    /// The name of the family, as a job file writes it.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            ModelSpec::Mlp { .. } => "mlp",
            ModelSpec::Cnn { .. } => "cnn",
            ModelSpec::Gpt { .. } => "gpt",
            ModelSpec::Resnet { .. } => "resnet",
        }
    }
}

/// The samples of a job: rows of a labelled table, or windows of a run of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSpec {
    /// The file. Absolute.
    pub source: PathBuf,
    /// What its bytes are.
    pub format: DataFormat,
    /// One sample's shape. Of a table `[channels, height, width]` or `[features]`, whose product is
    /// the number of fields before the label; of tokens `[context]`.
    pub shape: Vec<u32>,
    /// Labels are `0..num_classes`; of tokens, which are each other's labels, the vocabulary.
    pub num_classes: u32,
    /// Features are divided by this; 1 for tokens.
    pub scale: f64,
    /// The share of samples that is held out for evaluation, in `(0, 1)`.
    pub holdout: f64,
    /// BLAKE3 of the file's bytes as they are on disk, in hex.
    pub digest: String,
}

/// What the bytes of a data file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// CSV without a header, one sample a row: its features and then its class. Gzipped where the
    /// file's name ends in `.gz`.
    Csv,
    /// Any text: each byte is a token.
    Text,
    /// Token ids, each a little-endian u16.
    Tokens,
}

impl DataFormat {
    /// The names of the formats, as a job file writes them.
    pub const NAMES: [&'static str; 3] = ["csv", "text", "tokens"];

    /// The name of the format, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DataFormat::Csv => "csv",
            DataFormat::Text => "text",
            DataFormat::Tokens => "tokens",
        }
    }

    /// Whether samples are windows of a run of tokens, and not rows of a table.
    #[must_use]
    pub fn is_tokens(self) -> bool {
        self != DataFormat::Csv
    }
}

/// Steps, batches and seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSpec {
    /// Decides every random draw of the job.
    pub seed: u64,
    /// Samples in one step.
    pub global_batch_size: u32,
    /// Slices of a step's batch; divides `global_batch_size`.
    pub logical_shards: u32,
    /// Where to stop.
    pub stop: StopSpec,
    /// The largest global norm of a gradient; larger ones are scaled down to it.
    pub clip_norm: Option<f64>,
    /// What comes of a step whose gradient is not finite.
    pub not_finite: NotFinitePolicy,
    /// Evaluate after every so many steps; always once at the end.
    pub evaluate_every_steps: Option<u64>,
    /// One shard of every so many steps is computed a second time, by another rank.
    pub audit_every: Option<u64>,
    /// In which numbers the model computes.
    pub precision: Precision,
    /// In which order ranks sum their contributions.
    pub reduction: Reduction,
    /// What the backward pass computes again. It decides no bits.
    pub recompute: Recompute,
}

impl TrainSpec {
    /// Samples in one logical shard.
    #[must_use]
    pub fn samples_per_shard(&self) -> u32 {
        self.global_batch_size / self.logical_shards
    }
}

/// In which numbers a model computes. Parameters, gradients and the optimizer's state are f32 in
/// any case, and so is what needs it in a model: norms, softmax and the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// All of it in f32.
    F32,
    /// Products of matrices, and what is kept of activations, in bf16.
    Bf16,
}

impl Precision {
    /// The names, as a job file writes them.
    pub const NAMES: [&'static str; 2] = ["f32", "bf16"];

    /// The name, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// In which order the contributions of a step are summed over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Along the canonical tree over logical shards: the same bits for any number of ranks.
    Canonical,
    /// On GPUs as NCCL's all-reduce does, which moves fewer bytes: the bits depend on the number of
    /// ranks. Where vectors go over the host it is the canonical order all the same.
    Fast,
}

impl Reduction {
    /// The names, as a job file writes them.
    pub const NAMES: [&'static str; 2] = ["canonical", "fast"];

    /// The name, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Canonical => "canonical",
            Reduction::Fast => "fast",
        }
    }
}

/// What of a model's activations is computed again in the backward pass, with the same bits, instead
/// of being kept for it (Chen et al. 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing.
    None,
    /// What is inside a transformer block, from its input: a second forward pass but for its last
    /// product, which is a quarter to a third more computation. Of all blocks but the one at hand only
    /// the inputs are in memory.
    Blocks,
}

impl Recompute {
    /// The names, as a job file writes them.
    pub const NAMES: [&'static str; 2] = ["none", "blocks"];

    /// The name, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Blocks => "blocks",
        }
    }
}

/// What comes of a step whose gradient holds NaN or an infinity. It is never applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFinitePolicy {
    /// The job fails.
    Stop,
    /// The step counts without an update, and the job goes on.
    Skip,
}

impl NotFinitePolicy {
    /// The names of the policies, as a job file writes them.
    pub const NAMES: [&'static str; 2] = ["skip", "stop"];

    /// The name of the policy, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            NotFinitePolicy::Stop => "stop",
            NotFinitePolicy::Skip => "skip",
        }
    }
}

/// Where a job ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StopSpec {
    /// After so many steps.
    Steps(u64),
    /// After so many passes over the training samples; the number of steps follows from the
    /// number of samples, rounded up.
    Epochs(u64),
}

/// An optimizer and its constants; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSpec {
    /// The rule.
    pub kind: OptimizerKind,
    /// The learning rate before the schedule.
    pub learning_rate: f64,
    /// Decay of the weights: added to the gradient by `sgd` and `adam` (L2), apart from it by
    /// `adamw`. Biases and buffers do not decay.
    pub weight_decay: f64,
}

/// The rule of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum, as in PyTorch: `v = momentum*v + g; p -= lr*v`.
    Sgd {
        /// 0 for none.
        momentum: f64,
    },
    /// Adam (Kingma and Ba 2015).
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// AdamW (Loshchilov and Hutter 2019).
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
}

impl OptimizerKind {
    /// The names of the rules, as a job file writes them.
    pub const NAMES: [&'static str; 3] = ["adam", "adamw", "sgd"];

    /// The name of the rule, as a job file writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            OptimizerKind::Sgd { .. } => "sgd",
            OptimizerKind::Adam { .. } => "adam",
            OptimizerKind::AdamW { .. } => "adamw",
        }
    }
}

/// A schedule multiplies the learning rate by a factor that depends on the step alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleSpec {
    /// The factor rises linearly from `1/(warmup_steps+1)` over so many steps.
    pub warmup_steps: u64,
    /// What happens after the warm-up.
    pub kind: ScheduleKind,
}

/// The shape of a schedule after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScheduleKind {
    /// Stays at 1.
    Constant,
    /// Half a cosine from 1 to `final_factor` over `decay_steps` steps counted from the first
    /// step of the job, warm-up included; stays there afterwards. `None`: over the whole job.
    Cosine {
        /// How long the decay takes.
        decay_steps: Option<u64>,
        /// Where it ends.
        final_factor: f64,
    },
}

impl ScheduleKind {
    /// The names of the kinds, as a job file writes them.
    pub const NAMES: [&'static str; 2] = ["constant", "cosine"];

    /// The name of the kind, as a job file writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ScheduleKind::Constant => "constant",
            ScheduleKind::Cosine { .. } => "cosine",
        }
    }
}

/// On how many ranks a job runs, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkersSpec {
    /// It does not run with fewer ranks.
    pub min: u32,
    /// It does not run with more ranks; at most `logical_shards`.
    pub max: u32,
    /// So many more processes are kept prepared, to take the place of ranks that die.
    pub spares: u32,
    /// How many ranks keep the optimizer's state.
    pub redundancy: Redundancy,
    /// What a rank runs on.
    pub device: DeviceSpec,
}

/// How many ranks keep each part of the optimizer's state. It decides what a job survives without a
/// checkpoint and how much memory a rank needs, and no bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// Every rank keeps all of it: any rank that is left goes on.
    Full,
    /// Two ranks keep each share: a job goes on after losses that leave one holder of each.
    Shadow,
    /// One rank keeps each share: a rank's death falls back to the last checkpoint.
    None,
}

impl Redundancy {
    /// The names, as a job file writes them.
    pub const NAMES: [&'static str; 3] = ["full", "shadow", "none"];

    /// The name, as a job file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Redundancy::Full => "full",
            Redundancy::Shadow => "shadow",
            Redundancy::None => "none",
        }
    }

    /// Whether ranks keep shares of the state, and not all of it.
    #[must_use]
    pub fn is_shared(self) -> bool {
        self != Redundancy::Full
    }
}

/// What is kept on disk, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// The folder that holds a folder per job; absolute. `None`: the state folder's default.
    pub folder: Option<PathBuf>,
    /// A checkpoint after every so many steps; always one at the end.
    pub every_steps: u64,
    /// How many of the newest are kept.
    pub keep: u32,
}
