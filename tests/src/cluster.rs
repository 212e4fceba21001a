//! A coordinator and workers that are started by hand, as on a cluster.

#![allow(
    clippy::missing_panics_doc,
    reason = "a helper that fails panics, as an assertion does"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::halts::Halts;
use crate::network::{Machine, Network};
use crate::sandbox::Sandbox;
use crate::wait::eventually;

const DEADLINE: Duration = Duration::from_secs(60);

const COORDINATOR: &str = "coordinator";

/// A cluster in a sandbox, which ends its processes.
#[derive(Debug)]
pub struct Cluster {
    /// Where its processes live.
    pub sandbox: Sandbox,
    /// Where its coordinator listens.
    pub address: String,
    /// The processes that were started, in that order.
    pub children: Vec<Child>,
    /// Which of them is its coordinator.
    coordinator: usize,
    /// What the coordinator is told beside what it must be.
    settings: Vec<String>,
    /// Environment variables of its workers.
    pub environment: Vec<(String, String)>,
    /// On which machine each of its processes runs, by name, where they are not all on this one.
    pub machines: Option<Machines>,
}

/// The machines of a cluster, by the names of its processes.
#[derive(Debug)]
pub struct Machines {
    /// What lies between them.
    pub network: Network,
    /// `coordinator` and the names of the workers.
    pub by_name: BTreeMap<String, Machine>,
}

impl Cluster {
    /// A coordinator of the binary at this path: `Cluster::new(env!("CARGO_BIN_EXE_muster"))`.
    #[must_use]
    pub fn new(binary: &str) -> Self {
        Self::with(binary, &[])
    }

    /// The same, with more arguments for the coordinator.
    #[must_use]
    pub fn with(binary: &str, settings: &[&str]) -> Self {
        let mut cluster = Self::without_processes(binary);
        cluster.settings = settings.iter().map(ToString::to_string).collect();
        cluster.start_coordinator();
        cluster
    }

    /// One whose coordinator is to be started yet.
    #[must_use]
    pub fn without_processes(binary: &str) -> Self {
        Self {
            sandbox: Sandbox::new(binary),
            address: "127.0.0.1:0".to_owned(),
            children: Vec::new(),
            coordinator: 0,
            settings: Vec::new(),
            environment: Vec::new(),
            machines: None,
        }
    }

    /// One that is to be started yet, with a machine of its own for each of these processes; the
    /// first is the coordinator's.
    #[must_use]
    pub fn on_machines(binary: &str, mut network: Network, names: &[&str]) -> Self {
        let by_name: BTreeMap<String, Machine> = names
            .iter()
            .map(|name| ((*name).to_owned(), network.join()))
            .collect();
        let address = format!("{}:0", by_name[names[0]].ip());
        let mut cluster = Self::without_processes(binary);
        cluster.address = address;
        cluster.machines = Some(Machines { network, by_name });
        cluster
    }

    /// Has the ranks of workers that are started from now on ask there whether they may go on.
    pub fn halted_by(&mut self, halts: &Halts) {
        let (name, value) = halts.variable();
        self.environment.push((name.to_owned(), value));
    }

    /// Waits until so many workers are connected, so that a job's first world can have them all.
    #[track_caller]
    pub fn wait_for_workers(&self, num: usize) {
        eventually(DEADLINE, "the workers", || {
            let nodes = self.text(&["nodes", "--json"]);
            (nodes.matches("\"connected\":true").count() == num).then_some(())
        });
    }

    /// The machine of a process.
    ///
    /// # Panics
    /// When it has none of its own.
    #[must_use]
    pub fn machine(&self, name: &str) -> Machine {
        self.machines.as_ref().unwrap().by_name[name]
    }

    /// What lies between the machines.
    ///
    /// # Panics
    /// When there is only this one.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.machines.as_ref().unwrap().network
    }

    /// Starts a process whose log is in `<name>.log`.
    pub fn spawn(&mut self, name: &str, command: &mut Command) -> &mut Child {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_of(name))
            .unwrap();
        let there = self.machines.as_ref().and_then(|machines| {
            let machine = machines.by_name.get(name)?;
            Some(machines.network.on(*machine, command))
        });
        let child = match there {
            // What a command does with its output cannot be asked of it.
            Some(mut there) if name.starts_with(COORDINATOR) => {
                there.stdout(Stdio::piped()).stderr(log).spawn()
            }
            Some(mut there) => there.stdout(Stdio::null()).stderr(log).spawn(),
            None => command.stderr(log).spawn(),
        };
        self.children.push(child.unwrap());
        self.children.last_mut().unwrap()
    }

    /// What a process says on standard error.
    #[must_use]
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(format!("{name}.log"))
    }

    /// Waits until the first process of a job on a worker has a log; where that is.
    #[must_use]
    #[track_caller]
    pub fn log_of_first_process(&self, worker: &str) -> PathBuf {
        eventually(DEADLINE, "a rank's log", || {
            let mut folders = vec![self.sandbox.state_dir().join(worker)];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(&folder).ok()?.flatten() {
                    let path = entry.path();
                    if path.is_dir() {
                        folders.push(path);
                    } else if path.file_name().is_some_and(|name| name == "p1.log") {
                        return Some(path);
                    }
                }
            }
            None
        })
    }

    /// Waits until a process has logged so many refusals.
    pub fn wait_for_refusals(&self, name: &str, num: usize) {
        eventually(DEADLINE, "the refusals", || {
            let log = std::fs::read_to_string(self.log_of(name)).unwrap();
            (log.matches("refused").count() == num).then_some(())
        });
    }

    /// Starts the coordinator, again at the same address; returns its process id.
    pub fn start_coordinator(&mut self) -> u32 {
        self.start_coordinator_with(&[])
    }

    /// The same, with more arguments.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_coordinator_with(&mut self, arguments: &[&str]) -> u32 {
        let data = self.data();
        self.coordinator = self.children.len();
        let mut command = self.sandbox.muster();
        command
            .args([
                "coordinator",
                "--ready-json",
                "--listen",
                &self.address,
                "--data",
            ])
            .arg(data)
            .args(&self.settings)
            .args(arguments);
        let (pid, address) = self.serve(COORDINATOR, &mut command);
        self.address = address;
        pid
    }

    /// Starts a coordinator by a command with `--ready-json`, and waits until it serves; its process
    /// id and address.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub(crate) fn serve(&mut self, name: &str, command: &mut Command) -> (u32, String) {
        let child = self.spawn(name, command.stdout(Stdio::piped()));
        let pid = child.id();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(self.log_of(name)).unwrap_or_default();
            panic!("{name} does not serve: {line:?} ({error})\n{log}")
        });
        (pid, ready["addr"].as_str().unwrap().to_owned())
    }

    /// The coordinator's folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.sandbox.path().join("data")
    }

    /// The process id of the coordinator.
    #[must_use]
    pub fn coordinator(&self) -> u32 {
        self.children[self.coordinator].id()
    }

    /// Kills the coordinator, and waits for its end.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill_coordinator(&mut self) {
        self.sandbox.kill(self.coordinator(), Signal::KILL);
        self.children[self.coordinator].wait().unwrap();
    }

    /// Starts a worker; returns its process id.
    pub fn start_worker(&mut self, name: &str, devices: u32) -> u32 {
        self.start_worker_as(name, name, &["--devices", &devices.to_string()])
    }

    /// The same, with these arguments and a state folder of this name.
    pub fn start_worker_as(&mut self, name: &str, folder: &str, arguments: &[&str]) -> u32 {
        let mut command = self.sandbox.muster();
        command.args(["worker", "--join", &self.address, "--name", name]);
        if self.machines.is_some() {
            command.args(["--host", &self.machine(name).ip()]);
        }
        // One machine's worker keeps its processes there; these are several on one machine.
        command
            .arg("--state")
            .arg(self.sandbox.state_dir().join(folder))
            .args(arguments)
            .envs(self.environment.clone())
            .stdout(Stdio::null());
        self.spawn(name, &mut command).id()
    }

    /// Where the coordinator listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What a command says that is told where the coordinator is.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.sandbox
            .muster()
            .args(arguments)
            .args(["--coordinator", &self.address])
            .output()
            .unwrap()
    }

    /// Standard output of a command that succeeds.
    #[must_use]
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Submits a job with these settings.
    ///
    /// # Panics
    /// When it is not taken as a new one.
    #[track_caller]
    pub fn submit(&self, job: &str, settings: &[&str]) {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = ["submit", job, "--json"]
            .into_iter()
            .chain(settings)
            .collect();
        assert_eq!(self.json(&arguments)["status"], "queued");
    }

    /// The events of a job so far.
    #[must_use]
    #[track_caller]
    pub fn events(&self, job: &str) -> Vec<Value> {
        let text = self.text(&["logs", job, "--events"]);
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The one JSON value that a command prints that succeeds.
    #[must_use]
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments)).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
