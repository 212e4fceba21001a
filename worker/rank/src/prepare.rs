//! From an assignment to a trainer in its first state, with every digest compared on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_cluster::command::NumericsClass;
use muster_cluster::job::{Identity, JobDraft, JobSpec};
use muster_cluster::{Device, error_chain};
use muster_proto::v1;
use muster_trainer::checkpoint::{self, CheckpointError, Content, FileRef};
use muster_trainer::{Dataset, Learner, LearnerError, Trainer};
use muster_worker_core::sharing::Sharing;

use crate::shared::Trouble;

/// Makes the learner of a job on the device that its rank was given.
pub type Build = fn(&JobSpec, Device) -> Result<Box<dyn Learner>, LearnerError>;

/// What a rank works with.
pub(crate) struct Prepared {
    pub(crate) spec: JobSpec,
    pub(crate) trainer: Trainer,
    /// Whether that is the state to begin with, and not one that another rank will give.
    pub(crate) has_state: bool,
    pub(crate) folder: PathBuf,
}

fn failed(text: String) -> Trouble {
    Trouble::Failed(text)
}

/// The index of a rank's GPU in its own process, if it has one: its worker shows it that one alone where it
/// can, and says which it is then.
pub(crate) fn gpu(assignment: &v1::Assignment) -> Result<Option<u32>, Trouble> {
    let Some(index) = assignment.cuda else {
        return Ok(None);
    };
    match std::env::var("MUSTER_RANK_CUDA") {
        Ok(shown) => shown.parse().map(Some).map_err(|_| {
            let what = format!("MUSTER_RANK_CUDA is {shown:?}, the index of a GPU was expected");
            Trouble::Fault(what)
        }),
        Err(_) => Ok(Some(index)),
    }
}

/// The job of an assignment, which is the one that the coordinator means.
pub(crate) fn understood(
    assignment: &v1::Assignment,
    class: &NumericsClass,
) -> Result<JobSpec, Trouble> {
    check_class(assignment, class)?;
    let spec = JobDraft::parse(&assignment.draft, "the assigned job", &assignment.job, &[])
        .and_then(|draft| draft.check(Path::new(&assignment.base_dir), &assignment.data_digest))
        .map_err(|error| failed(error.to_string()))?;
    let identity = Identity::of(&spec).digest();
    if identity != assignment.identity {
        let assigned = &assignment.identity;
        return Err(failed(format!(
            "the job's identity is {identity} here and {assigned} at the coordinator"
        )));
    }
    Ok(spec)
}

/// The state of a job before its first step.
pub(crate) fn fresh(
    spec: &JobSpec,
    assignment: &v1::Assignment,
    build: Build,
) -> Result<Trainer, Trouble> {
    let dataset = Dataset::load(&spec.data).map_err(|error| failed(error_chain(&error)))?;
    let device = Device::of(gpu(assignment)?);
    let learner = build(spec, device).map_err(|error| failed(error.to_string()))?;
    let trainer = Trainer::new(spec, learner, dataset);
    trainer.map_err(|error| failed(error_chain(&error)))
}

/// Builds everything that a rank needs.
pub(crate) fn prepare(
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
) -> Result<Prepared, Trouble> {
    let spec = understood(assignment, class)?;
    let mut trainer = fresh(&spec, assignment, build)?;
    if spec.workers.redundancy.is_shared() {
        // A process that enters a world later is given its shares there.
        let is_first = assignment.generation > 0 && assignment.finish.is_none();
        let sharing = if is_first {
            Sharing::of(assignment).map_err(|error| failed(error.to_string()))?
        } else {
            None
        };
        let kept = sharing.map(|sharing| sharing.kept());
        trainer.keep(&kept.unwrap_or_default());
    }
    let folder = PathBuf::from(&assignment.checkpoint_folder);
    if let Some(source) = &assignment.source {
        restore(&mut trainer, source)?;
    }
    let has_state = assignment.generation > 0 && assignment.finish.is_none();
    if has_state && trainer.step().0 != assignment.first_step {
        let (step, first) = (trainer.step(), assignment.first_step);
        return Err(failed(format!(
            "the assignment begins at step {first}, and its checkpoint holds step {step}"
        )));
    }
    Ok(Prepared {
        spec,
        trainer,
        has_state,
        folder,
    })
}

/// What a GPU is was told by the worker, which asked its driver; here only the build can be compared.
fn check_class(assignment: &v1::Assignment, class: &NumericsClass) -> Result<(), Trouble> {
    let assigned: NumericsClass = assignment.class.clone().unwrap_or_default().into();
    let of_gpu = NumericsClass {
        build: class.build.clone(),
        gpu: assigned.gpu.clone(),
        ..NumericsClass::default()
    };
    let class = if assignment.cuda.is_some() {
        &of_gpu
    } else {
        class
    };
    match class.difference(&assigned) {
        Some(difference) => Err(failed(format!(
            "this rank's program and machine are not those that its worker registered: {difference}"
        ))),
        None => Ok(()),
    }
}

/// Takes the state of a checkpoint over.
fn restore(trainer: &mut Trainer, source: &v1::Manifest) -> Result<(), Trouble> {
    let folder = Path::new(&source.folder);
    let all: Vec<FileRef> = source.files.iter().cloned().map(Into::into).collect();
    let mut files = BTreeMap::new();
    for file in &all {
        let content = Content::of_file(&file.name);
        let is_kept = |share| trainer.kept().contains(&share);
        let content = content.filter(|content| match content {
            Content::Share(share) => is_kept(*share),
            Content::Params | Content::Optimizer => true,
        });
        let Some(content) = content else { continue };
        let read = checkpoint::read_part(folder, file, &all);
        let bytes = read.map_err(|error| unusable(source, &error))?;
        files.insert(content.to_string(), bytes);
    }
    let identity = trainer.identity().to_owned();
    trainer
        .restore(&files, &identity)
        .map_err(|error| failed(error_chain(&error)))
}

/// What a file that cannot be used means: a checkpoint that counts no more where the file is damaged,
/// and else a fault of this machine, with which the checkpoint has nothing to do.
fn unusable(source: &v1::Manifest, error: &CheckpointError) -> Trouble {
    let reason = error_chain(error);
    if error.is_damage() {
        return Trouble::Damaged {
            history: source.history,
            step: source.step,
            reason,
        };
    }
    let folder = Path::new(&source.folder);
    let hint = match folder.try_exists() {
        Ok(false) => "its folder is not there, as when a file system is not mounted; ",
        _ => "",
    };
    let step = source.step;
    Trouble::Fault(format!(
        "{reason}; {hint}the checkpoint of step {step} still counts: make its files readable for this \
         worker, or start over with --fresh"
    ))
}
