//! How long it takes from `muster worker --join` to the first step with the new rank, and how long the
//! others stand still meanwhile: around the copy of the state, and around the new world.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::run::{median, number};

const JOB: &str = "digits-mlp";

/// The steps that are looked at before the worker joins, and behind the first with it.
const STEPS_AROUND: usize = 20;

/// For one wait.
const DEADLINE: Duration = Duration::from_secs(300);

/// Values of the state per parameter: AdamW keeps two beside it.
const VALUES_PER_PARAMETER: f64 = 3.0;

/// A coordinator and workers, which end with it.
struct Cluster {
    muster: PathBuf,
    state: PathBuf,
    address: String,
    children: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // Ranks end with their worker.
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

impl Cluster {
    fn start(muster: &Path) -> Result<Self, String> {
        let state = std::env::temp_dir().join(format!("muster-join-{}", std::process::id()));
        let mut coordinator = Command::new(muster)
            .args(["coordinator", "--ready-json", "--listen", "127.0.0.1:0"])
            .arg("--data")
            .arg(state.join("data"))
            .env("MUSTER_STATE", &state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let stdout = coordinator.stdout.take();
        let mut cluster = Self {
            muster: muster.to_owned(),
            state,
            address: String::new(),
            children: vec![coordinator],
        };
        let mut line = String::new();
        BufReader::new(stdout.ok_or("the coordinator has no output")?)
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        let ready: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        cluster.address = ready["addr"].as_str().unwrap_or_default().to_owned();
        Ok(cluster)
    }

    /// Starts a worker with one device; when.
    fn join(&mut self, name: &str) -> Result<f64, String> {
        let began = now_s()?;
        let worker = Command::new(&self.muster)
            .args(["worker", "--join", &self.address, "--name", name])
            .args(["--devices", "1", "--state"])
            .arg(self.state.join(name))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        self.children.push(worker);
        Ok(began)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.muster)
            .args(arguments)
            .args(["--coordinator", &self.address])
            .env("MUSTER_STATE", &self.state)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{arguments:?}: {said}"))
        }
    }

    /// The events of the job, as they come, until the cluster ends.
    fn follow(&mut self) -> Result<Followed, String> {
        let mut child = Command::new(&self.muster)
            .args([
                "logs",
                JOB,
                "--events",
                "--follow",
                "--coordinator",
                &self.address,
            ])
            .env("MUSTER_STATE", &self.state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let lines = child.stdout.take().ok_or("the events have no output")?;
        self.children.push(child);
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(lines).lines().map_while(Result::ok);
            let mut events = lines.filter_map(|line| serde_json::from_str(&line).ok());
            events.try_for_each(|event| sender.send(event).ok())
        });
        Ok(Followed {
            events,
            known: Vec::new(),
        })
    }
}

/// What a job told so far, and where more comes from.
struct Followed {
    events: Receiver<Value>,
    known: Vec<Value>,
}

impl Followed {
    /// Waits until the steps of the newest world are so many, and it has this size.
    fn wait_for(&mut self, world_size: u64, num_steps: usize) -> Result<(), String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let mut worlds = self.known.iter();
            let last = worlds.rfind(|event| event["event"] == "generation");
            if let Some(last) = last.filter(|last| last["world_size"] == world_size)
                && steps_of(&self.known, &last["generation"])?.len() >= num_steps
            {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.map_err(|_| format!("no {num_steps} steps with {world_size} ranks"));
            self.known.push(event?);
        }
    }
}

fn now_s() -> Result<f64, String> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since
        .map(|since| since.as_secs_f64())
        .map_err(|error| error.to_string())
}

/// When each step of a generation was applied.
fn steps_of(events: &[Value], generation: &Value) -> Result<Vec<f64>, String> {
    let steps = events
        .iter()
        .filter(|event| event["event"] == "step" && event["generation"] == *generation);
    steps.map(|step| number(step, "time")).collect()
}

fn gaps(times: &[f64]) -> impl Iterator<Item = f64> {
    times.windows(2).map(|pair| pair[1] - pair[0])
}

fn longest(gaps: impl Iterator<Item = f64>) -> f64 {
    gaps.fold(0.0, f64::max)
}

/// Measures one join to a job of two ranks with so large a state.
pub(crate) fn run(muster: &Path, megabytes: u64) -> Result<String, String> {
    // Two hidden layers of this width between 64 inputs and 10 classes.
    let parameters = megabytes as f64 * 1e6 / 4.0 / VALUES_PER_PARAMETER;
    let width = (parameters + 37.0 * 37.0).sqrt() - 37.0;
    let hidden = format!("model.hidden=[{width:.0}, {width:.0}]");
    let mut cluster = Cluster::start(muster)?;
    cluster.join("a")?;
    cluster.join("b")?;
    let job = format!("{}/../examples/digits/mlp.toml", env!("CARGO_MANIFEST_DIR"));
    let mut arguments = vec!["submit", &job];
    for set in [
        hidden.as_str(),
        "train.epochs=100000",
        "train.logical_shards=4",
        "train.evaluate_every_steps=1000000",
        "checkpoint.every_steps=1000000",
        "workers.min=2",
        "workers.max=3",
    ] {
        arguments.extend(["--set", set]);
    }
    cluster.ask(&arguments)?;
    let mut told = cluster.follow()?;
    told.wait_for(2, STEPS_AROUND)?;
    let joined = cluster.join("c")?;
    told.wait_for(3, STEPS_AROUND)?;
    let events = told.known;
    let world = |size: u64| {
        let mut worlds = events.iter().filter(|event| event["event"] == "generation");
        let last = worlds.rfind(|world| world["world_size"] == size);
        last.map(|world| world["generation"].clone())
    };
    let old = steps_of(&events, &world(2).ok_or("no world of two ranks")?)?;
    let new = steps_of(&events, &world(3).ok_or("no world of three ranks")?)?;
    let (before, meanwhile): (Vec<f64>, Vec<f64>) = old.iter().partition(|time| **time < joined);
    let (Some(last), Some(first)) = (old.last(), new.first()) else {
        return Err("no steps".to_owned());
    };
    Ok([
        format!(
            "state of {megabytes} MB (AdamW, {width:.0} wide), two ranks, a third one joins; s"
        ),
        "| | |".to_owned(),
        "|---|---|".to_owned(),
        format!(
            "| median step of two ranks | {:.3} |",
            median(gaps(&before))
        ),
        format!(
            "| median step while the third one prepares and follows | {:.3} |",
            median(gaps(&meanwhile))
        ),
        format!("| longest step then | {:.3} |", longest(gaps(&meanwhile))),
        format!(
            "| from the last step of two to the first of three | {:.3} |",
            first - last
        ),
        format!("| median step of three ranks | {:.3} |", median(gaps(&new))),
        format!(
            "| from `muster worker --join` to the first step of three | {:.3} |",
            first - joined
        ),
    ]
    .join("\n"))
}
