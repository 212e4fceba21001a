//! A job's identity: everything that decides its bits, and nothing else.
//!
//! The same identity resumes; another one under the same name is refused, by the keys that
//! changed. Left out are what changes only where a job runs and how long: its name, its workers,
//! its folders, when it evaluates, audits and checkpoints, and where it stops.

use std::collections::BTreeMap;
use std::fmt;

use super::spec::{
    DataFormat, JobSpec, ModelSpec, NotFinitePolicy, OptimizerKind, Precision, Reduction,
    ScheduleKind, StopSpec,
};

/// What decides a job's bits, as texts by the key of the job file.
///
/// Defaults are filled in, and numbers are written so that equal bits mean equal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The texts, by key.
    pub keys: BTreeMap<String, String>,
}

/// A key that two identities do not agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key of the job file; `data.digest` where the bytes of the data file changed.
    pub key: String,
    /// The text it had; `None` where the key did not apply.
    pub old: Option<String>,
    /// The text it has now; `None` where the key does not apply any more.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |side: &Option<String>| side.clone().unwrap_or_else(|| "not set".to_owned());
        write!(
            f,
            "{} was {} and is {} now",
            self.key,
            text(&self.old),
            text(&self.new)
        )
    }
}

impl Identity {
    /// The identity of a job.
    #[must_use]
    pub fn of(spec: &JobSpec) -> Self {
        let mut identity = Self {
            keys: BTreeMap::new(),
        };
        identity.model(&spec.model);
        // Every field is named, so that a new one cannot be forgotten here.
        let super::spec::DataSpec {
            source: _,
            format,
            shape,
            num_classes,
            scale,
            holdout,
            digest,
        } = &spec.data;
        identity.set("data.digest", digest);
        match format {
            // As it was before there were other formats.
            DataFormat::Csv => {
                identity.set("data.shape", format!("{shape:?}"));
                identity.set("data.num_classes", num_classes);
                identity.set("data.scale", float(*scale));
            }
            // The shape of a sample is the model's context.
            DataFormat::Text | DataFormat::Tokens => {
                identity.set("data.format", format.name());
                identity.set("data.vocabulary", num_classes);
            }
        }
        identity.set("data.holdout", float(*holdout));
        let super::spec::TrainSpec {
            seed,
            global_batch_size,
            logical_shards,
            stop,
            clip_norm,
            not_finite,
            evaluate_every_steps: _,
            audit_every: _,
            precision,
            reduction,
            // The same operations in the same order: the same bits.
            recompute: _,
        } = &spec.train;
        identity.set("train.seed", seed);
        identity.set("train.global_batch_size", global_batch_size);
        identity.set("train.logical_shards", logical_shards);
        if let Some(clip_norm) = clip_norm {
            identity.set("train.clip_norm", float(*clip_norm));
        }
        // A job that stops has applied every step, so the default decides no bits.
        if *not_finite == NotFinitePolicy::Skip {
            identity.set("train.not_finite", not_finite.name());
        }
        // As it was before there was a choice.
        if *precision != Precision::F32 {
            identity.set("train.precision", precision.name());
        }
        if *reduction != Reduction::Canonical {
            identity.set("train.reduction", reduction.name());
        }
        identity.optimizer(&spec.optimizer);
        identity.schedule(&spec.schedule, *stop);
        // The device decides bits through the numerics class, not here. Jobs said so when there were
        // only processors: the line stays as it was, so that their checkpoints remain theirs.
        identity.set("workers.device", "cpu");
        identity
    }

    /// BLAKE3, in hex, over the keys and texts in order, each behind its length.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        text("muster job identity 1");
        for (key, value) in &self.keys {
            text(key);
            text(value);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The keys on which `self`, the old identity, and `new` do not agree, in alphabetical order.
    #[must_use]
    pub fn changed(&self, new: &Identity) -> Vec<Change> {
        let mut keys: Vec<&String> = self.keys.keys().chain(new.keys.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let change = |key: &String| {
            let (old, new) = (self.keys.get(key), new.keys.get(key));
            (old != new).then(|| Change {
                key: key.clone(),
                old: old.cloned(),
                new: new.cloned(),
            })
        };
        keys.into_iter().filter_map(change).collect()
    }

    fn set(&mut self, key: &str, value: impl fmt::Display) {
        self.keys.insert(key.to_owned(), value.to_string());
    }

    fn model(&mut self, model: &ModelSpec) {
        self.set("model.family", model.family());
        match model {
            ModelSpec::Mlp { hidden, dropout } => {
                self.set("model.hidden", format!("{hidden:?}"));
                self.set("model.dropout", float(*dropout));
            }
            ModelSpec::Cnn {
                channels,
                hidden,
                dropout,
            } => {
                self.set("model.channels", format!("{channels:?}"));
                self.set("model.hidden", hidden);
                self.set("model.dropout", float(*dropout));
            }
            ModelSpec::Gpt {
                layers,
                heads,
                width,
                context,
                dropout,
            } => {
                self.set("model.layers", layers);
                self.set("model.heads", heads);
                self.set("model.width", width);
                self.set("model.context", context);
                self.set("model.dropout", float(*dropout));
            }
            ModelSpec::Resnet { width } => self.set("model.width", width),
        }
    }

    fn optimizer(&mut self, optimizer: &super::spec::OptimizerSpec) {
        let super::spec::OptimizerSpec {
            kind,
            learning_rate,
            weight_decay,
        } = optimizer;
        self.set("optimizer.kind", kind.name());
        self.set("optimizer.learning_rate", float(*learning_rate));
        self.set("optimizer.weight_decay", float(*weight_decay));
        match kind {
            OptimizerKind::Sgd { momentum } => self.set("optimizer.momentum", float(*momentum)),
            OptimizerKind::Adam {
                beta1,
                beta2,
                epsilon,
            }
            | OptimizerKind::AdamW {
                beta1,
                beta2,
                epsilon,
            } => {
                self.set("optimizer.beta1", float(*beta1));
                self.set("optimizer.beta2", float(*beta2));
                self.set("optimizer.epsilon", float(*epsilon));
            }
        }
    }

    fn schedule(&mut self, schedule: &super::spec::ScheduleSpec, stop: StopSpec) {
        let super::spec::ScheduleSpec { warmup_steps, kind } = schedule;
        self.set("schedule.kind", kind.name());
        self.set("schedule.warmup_steps", warmup_steps);
        match kind {
            ScheduleKind::Constant => {}
            ScheduleKind::Cosine {
                decay_steps,
                final_factor,
            } => {
                self.set("schedule.final_factor", float(*final_factor));
                // A decay over the whole job has another rate when the job ends elsewhere, so
                // where to stop decides bits here, and only here.
                match (decay_steps, stop) {
                    (Some(decay_steps), _) => self.set("schedule.decay_steps", decay_steps),
                    (None, StopSpec::Steps(steps)) => {
                        self.set("schedule.decay_steps", format!("steps:{steps}"));
                    }
                    (None, StopSpec::Epochs(epochs)) => {
                        self.set("schedule.decay_steps", format!("epochs:{epochs}"));
                    }
                }
            }
        }
    }
}

/// The shortest text that reads back to the same bits.
fn float(value: f64) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;

    use super::*;
    use crate::job::{JobDraft, Override};

    const JOB: &str = include_str!("../../testdata/identity.toml");

    fn identity(set: &str, base_dir: &str, data_digest: &str) -> Identity {
        let set: Vec<_> = set
            .split_whitespace()
            .map(|one| Override::parse(one).unwrap())
            .collect();
        let draft = JobDraft::parse(JOB, "job.toml", "folder", &set).unwrap();
        Identity::of(&draft.check(Path::new(base_dir), data_digest).unwrap())
    }

    #[test]
    fn what_decides_bits_changes_the_identity_and_nothing_else_does() {
        let old = identity("", "/a", "d1");
        let mut out = String::new();
        for set in [
            "name=other workers.min=2 workers.max=3",
            "checkpoint.folder=/x checkpoint.every_steps=7 checkpoint.keep=1",
            "train.evaluate_every_steps=5 train.audit_every=3 data.source=other.csv",
            "optimizer.beta1=0.9 model.dropout=1e-1 schedule.final_factor=-0.0",
            "train.seed=7",
            "train.logical_shards=16 train.global_batch_size=128",
            "train.clip_norm=1",
            "train.not_finite=stop",
            "train.not_finite=skip",
            "model.channels=[16,33] model.hidden=65 model.dropout=0.0",
            "optimizer.kind=adam",
            "optimizer.kind=sgd",
            "data.scale=1 data.holdout=0.25",
            "train.epochs=31",
            "train.steps=600",
            "schedule.decay_steps=600",
            "schedule.kind=constant",
        ] {
            let new = identity(set, "/b", "d1");
            out.push_str(&format!("{set}\n"));
            let changed = old.changed(&new);
            assert_eq!(changed.is_empty(), old.digest() == new.digest());
            for change in changed {
                out.push_str(&format!("    {change}\n"));
            }
        }
        expect![[r#"
            name=other workers.min=2 workers.max=3
            checkpoint.folder=/x checkpoint.every_steps=7 checkpoint.keep=1
            train.evaluate_every_steps=5 train.audit_every=3 data.source=other.csv
            optimizer.beta1=0.9 model.dropout=1e-1 schedule.final_factor=-0.0
            train.seed=7
                train.seed was 0 and is 7 now
            train.logical_shards=16 train.global_batch_size=128
                train.global_batch_size was 64 and is 128 now
                train.logical_shards was 8 and is 16 now
            train.clip_norm=1
                train.clip_norm was not set and is 1.0 now
            train.not_finite=stop
            train.not_finite=skip
                train.not_finite was not set and is skip now
            model.channels=[16,33] model.hidden=65 model.dropout=0.0
                model.channels was [16, 32] and is [16, 33] now
                model.dropout was 0.1 and is 0.0 now
                model.hidden was 64 and is 65 now
            optimizer.kind=adam
                optimizer.kind was adamw and is adam now
            optimizer.kind=sgd
                optimizer.beta1 was 0.9 and is not set now
                optimizer.beta2 was 0.999 and is not set now
                optimizer.epsilon was 1e-8 and is not set now
                optimizer.kind was adamw and is sgd now
                optimizer.momentum was not set and is 0.0 now
            data.scale=1 data.holdout=0.25
                data.holdout was 0.2 and is 0.25 now
                data.scale was 16.0 and is 1.0 now
            train.epochs=31
                schedule.decay_steps was epochs:30 and is epochs:31 now
            train.steps=600
                schedule.decay_steps was epochs:30 and is steps:600 now
            schedule.decay_steps=600
                schedule.decay_steps was epochs:30 and is 600 now
            schedule.kind=constant
                schedule.decay_steps was epochs:30 and is not set now
                schedule.final_factor was 0.0 and is not set now
                schedule.kind was cosine and is constant now
        "#]]
        .assert_eq(&out);
        let changed = old.changed(&identity("", "/a", "d2"));
        assert_eq!(changed[0].to_string(), "data.digest was d1 and is d2 now");
    }

    #[test]
    fn where_to_stop_is_free_unless_the_schedule_spans_the_whole_job() {
        for schedule in ["schedule.kind=constant", "schedule.decay_steps=600"] {
            let with = |stop: &str| identity(&format!("{schedule} {stop}"), "/", "d1");
            assert_eq!(with("train.epochs=1"), with("train.steps=1000"));
        }
        assert_ne!(
            identity("train.steps=600", "/", "d1"),
            identity("train.steps=601", "/", "d1")
        );
    }

    /// A digest that moves strands every stored job: it changes only with the text in front.
    #[test]
    fn the_digest_of_an_identity_stays_what_it_is() {
        let identity = identity("", "/", "d1");
        let lines = identity
            .keys
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        expect![[r#"
            data.digest = d1
            data.holdout = 0.2
            data.num_classes = 10
            data.scale = 16.0
            data.shape = [1, 8, 8]
            model.channels = [16, 32]
            model.dropout = 0.1
            model.family = cnn
            model.hidden = 64
            optimizer.beta1 = 0.9
            optimizer.beta2 = 0.999
            optimizer.epsilon = 1e-8
            optimizer.kind = adamw
            optimizer.learning_rate = 0.003
            optimizer.weight_decay = 0.01
            schedule.decay_steps = epochs:30
            schedule.final_factor = 0.0
            schedule.kind = cosine
            schedule.warmup_steps = 20
            train.global_batch_size = 64
            train.logical_shards = 8
            train.seed = 0
            workers.device = cpu
        "#]]
        .assert_eq(&lines.collect::<String>());
        expect!["44cdd3c3b2195a5acbffc540e115f451f1eada081d155fecf9b2c952769fd7b2"]
            .assert_eq(&identity.digest());
    }

    #[test]
    fn keys_and_texts_do_not_run_into_each_other() {
        let of = |key: &str, value: &str| {
            let keys = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            Identity { keys }.digest()
        };
        assert_ne!(of("a", "bc"), of("ab", "c"));
    }
}
