//! From a job file and the command line to a job that can be submitted, with every complaint made
//! before anything is written or started.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_cluster::job::spec::WorkersSpec;
use muster_cluster::job::{JobDraft, JobSpec, Override};
use muster_proto::v1;

use crate::failure::Failure;

/// What both `train` and `submit` take.
#[derive(Debug, Args)]
pub(crate) struct JobArguments {
    /// The job file; `muster job-reference` prints what it may say
    #[arg(value_name = "JOB.toml")]
    pub(crate) file: PathBuf,
    /// Replace a value of the job file, such as train.seed=7; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Start over, whatever was there under the job's name
    #[arg(long)]
    pub(crate) fresh: bool,
}

/// A job that was found to be one.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) draft: JobDraft,
    pub(crate) spec: JobSpec,
    base_dir: PathBuf,
    digest: String,
    fresh: bool,
}

impl Prepared {
    /// What is submitted.
    pub(crate) fn submit(&self) -> v1::Submit {
        v1::Submit {
            draft: self.draft.to_toml(),
            base_dir: self.base_dir.display().to_string(),
            data_digest: self.digest.clone(),
            fresh: self.fresh,
        }
    }
}

/// Reads and checks a job. `workers` says how many there are at most when it is given what the file
/// states; no more than those are the fewest, then.
pub(crate) fn prepare(
    arguments: &JobArguments,
    workers: impl FnOnce(&WorkersSpec) -> Result<Option<u32>, Failure>,
) -> Result<Prepared, Failure> {
    let file = &arguments.file;
    let text = read(file)?;
    let path = std::path::absolute(file)?;
    let base_dir = path.parent().unwrap_or(Path::new("/")).to_owned();
    let name = base_dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let bad = |error: muster_cluster::job::Error| Failure::bad_input(error.lines().join("\n"));
    let mut set = Vec::new();
    for text in &arguments.set {
        set.push(Override::parse(text).map_err(bad)?);
    }
    let parse = |set: &[Override]| {
        JobDraft::parse(&text, &file.display().to_string(), &name, set).map_err(bad)
    };
    let mut draft = parse(&set)?;
    // The file's own faults first, then those of the data that it names.
    let spec = draft.check(&base_dir, "").map_err(bad)?;
    if let Some(workers) = workers(&spec.workers)? {
        let min = spec.workers.min.min(workers);
        for (key, value) in [("workers.min", min), ("workers.max", workers)] {
            set.push(Override::parse(&format!("{key}={value}")).map_err(bad)?);
        }
        draft = parse(&set)?;
    }
    let source = draft.data_source(&base_dir).map_err(bad)?;
    let place = draft.place_of_data_source();
    let about_data = |reason: String| Failure::bad_input(format!("{place}: {reason}"));
    let digest = muster_rank::digest_file(&source).map_err(about_data)?;
    let spec = draft.check(&base_dir, &digest).map_err(bad)?;
    muster_rank::validate(&spec, muster_models::build).map_err(Failure::bad_input)?;
    Ok(Prepared {
        draft,
        spec,
        base_dir,
        digest,
        fresh: arguments.fresh,
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::bad_input(format!(
            "{}: {error}; expected a job file, such as examples/digits/job.toml",
            file.display()
        ))
    };
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let mut bytes = Vec::new();
    opened
        .take(JobDraft::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::bad_input(format!(
            "{}: not a text file: byte {at} is no UTF-8; expected TOML",
            file.display()
        ))
    })
}

/// Where this user's Muster keeps what must outlive a command: `--state` or `MUSTER_STATE`, else
/// `muster` in the XDG state folder.
pub(crate) fn state_folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return Ok(std::path::absolute(given)?);
    }
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(state) = std::env::var_os("MUSTER_STATE") {
        return Ok(std::path::absolute(state)?);
    }
    let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    let base = base.ok_or_else(|| {
        Failure::bad_input(
            "neither XDG_STATE_HOME nor HOME is set; say with --state where to keep state",
        )
    })?;
    Ok(base.join("muster"))
}
