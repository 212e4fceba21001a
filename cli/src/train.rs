//! `muster train`: a cluster on this machine for one job. Starts a coordinator and workers as
//! children, submits the job, tells what happens, and leaves no process behind.

mod lend;
mod report;
mod run;

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use muster_cluster::plan::Patience;

use crate::failure::{Failure, Outcome};
use crate::jobfile::{JobArguments, prepare, state_folder};
use crate::local::{Tree, lock};
use lend::{Asked, lend};
use muster_worker::devices::Inventory;
use report::{Format, Reporter};
use run::Run;
pub(crate) use run::Signals;

/// Train a job on this machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster train examples/digits/job.toml
          muster train examples/digits/job.toml --workers 2 --set train.seed=7 --fresh

Ctrl-C ends the run at the next step, behind a checkpoint; the same command goes on from there. \
A second Ctrl-C ends it at once.

Exit code: 0 completed, 1 failed, 2 the input is wrong, 130 interrupted.")]
pub(crate) struct Train {
    #[command(flatten)]
    job: JobArguments,
    /// How many ranks, each on a worker of its own, beside spares; while some are lost the job goes
    /// on with as few as its workers.min [default: one per processor, or per GPU where the job runs
    /// on those, within the job's range]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// How many ranks one GPU has, where the job runs on GPUs: for tests, since ranks that share a GPU
    /// are no faster than one
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one::<std::num::NonZero<u32>>)]
    ranks_per_gpu: std::num::NonZero<u32>,
    /// How many coordinators: 3 go on without any one of them [default: as many as before, or 1]
    #[arg(long, value_name = "N", value_parser = one_three_or_five)]
    coordinators: Option<u32>,
    /// How many threads each computes with [default: its share of the processors]
    #[arg(long, value_name = "N", value_parser = at_least_one::<std::num::NonZero<usize>>)]
    threads: Option<std::num::NonZero<usize>>,
    /// A rank from which nothing comes for so long is missed, and the others go on without it: for
    /// machines on which processes stand still for long
    #[arg(long, value_name = "MS", default_value_t = Patience::default().detect_ms, value_parser = clap::value_parser!(u64).range(200..=20_000))]
    detect_ms: u64,
    /// Where jobs keep their state and, unless the job says otherwise, their checkpoints
    /// [default: muster in the XDG state folder]
    #[arg(long, value_name = "FOLDER", env = "MUSTER_STATE")]
    state: Option<PathBuf>,
    /// Print every event as one line of JSON, and nothing else
    #[arg(long)]
    json: bool,
}

impl Train {
    pub(crate) async fn run(self) -> Outcome {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let own = u32::try_from(processors).unwrap_or(u32::MAX);
        let mut lent = None;
        let prepared = prepare(&self.job, |workers| {
            let file = self.job.file.display();
            let refused = |why: String| Failure::bad_input(format!("{file}: {why}"));
            let asked = Asked {
                ranks: self.workers,
                per_gpu: self.ranks_per_gpu,
            };
            let looked = lend(workers, asked, own, Inventory::of_this_machine);
            let looked = lent.insert(looked.map_err(refused)?);
            Ok(Some(looked.ranks))
        })?;
        let (gpus, remark) = lent.map_or_else(Default::default, |lent| (lent.gpus, lent.remark));
        let ranks = prepared.spec.workers.max;
        let workers = match gpus.len() {
            0 => ranks + prepared.spec.workers.spares,
            number => u32::try_from(number).unwrap_or(u32::MAX),
        };
        let folder = state_folder(self.state.as_deref())?
            .join("train")
            .join(prepared.spec.name.to_string());
        let checkpoints = prepared
            .spec
            .checkpoint
            .folder
            .clone()
            .unwrap_or_else(|| folder.join("checkpoints"));
        muster_rank::check_checkpoint_folder(&checkpoints).map_err(Failure::bad_input)?;
        let _lock = lock(&folder)?;

        let mut signals = Signals::new()?;
        let format = match (self.json, std::io::stderr().is_terminal()) {
            (true, _) => Format::Json,
            (false, true) => Format::Terminal,
            (false, false) => Format::Lines,
        };
        if let Some(remark) = remark {
            tracing::warn!("{remark}");
        }
        let mut tree = Tree::new()?;
        let mut run = Run {
            prepared: &prepared,
            folder: &folder,
            workers,
            gpus: &gpus,
            shares_gpus: self.ranks_per_gpu.get() > 1,
            detect_ms: self.detect_ms,
            coordinators: self.coordinators.unwrap_or_else(|| num_before(&folder)),
            threads: self
                .threads
                .map_or((processors / ranks as usize).max(1), std::num::NonZero::get),
            reporter: Reporter::new(format),
            at_once: false,
        };
        let outcome = run.until_the_end(&mut tree, &mut signals).await;
        if run.at_once {
            // Whoever asked twice does not want to wait: children are killed as this process ends.
            return outcome;
        }
        tokio::select! {
            () = tree.end() => {}
            () = signals.next() => {}
        }
        outcome
    }
}

/// A number that cannot be zero, as its type says.
pub(crate) fn at_least_one<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse().ok();
    number.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// How many coordinators a group may have.
pub(crate) fn one_three_or_five(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ (1 | 3 | 5)) => Ok(number),
        _ => Err("expected 1, 3 or 5, of which a majority must be alive".to_owned()),
    }
}

/// How many coordinators kept their state in a folder before.
pub(crate) fn num_before(folder: &std::path::Path) -> u32 {
    let has = |id: &u32| folder.join(format!("coordinator-{id}")).exists();
    let number = (1u32..).take_while(has).last();
    number.unwrap_or(1)
}
