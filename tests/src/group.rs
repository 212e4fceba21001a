//! Several coordinators that are one, started by hand: killed, stopped, started again, and asked who
//! leads. What is expected of them is the tests' business.

#![allow(
    clippy::missing_panics_doc,
    reason = "a helper that fails panics, as an assertion does"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::network::{Machine, Network};
use crate::wait::eventually;

/// Members are elected, catch up and end within this.
const DEADLINE: Duration = Duration::from_secs(60);

/// The first port of a group; below those that the system gives to whoever asks for any.
const FIRST_PORT: u16 = 4600;

/// How often something is done that an election disturbs.
const ATTEMPTS: usize = 8;

/// The groups of this process so far.
static NUM_GROUPS: AtomicU16 = AtomicU16::new(0);

/// A group in a sandbox, with workers and clients that know all its members.
#[derive(Debug)]
pub struct Group {
    /// Its sandbox, workers and commands; `address` has all members that are known.
    pub cluster: Cluster,
    /// What each member is told beside what it must be.
    pub settings: Vec<String>,
    members: BTreeMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    address: String,
    /// How it is told which group it belongs to.
    part: Vec<String>,
    /// Which of the cluster's children it is, while it runs.
    child: Option<usize>,
}

/// Where the members of a group listen: an address of this machine that is this process's own, so
/// that a member that comes back finds its port free.
fn own_addresses(number: u64) -> Vec<String> {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let group = NUM_GROUPS.fetch_add(1, Ordering::Relaxed);
    let first = u64::from(FIRST_PORT + 10 * group);
    let ports = first..first + number;
    ports
        .map(|port| format!("127.{}.{b}.{c}:{port}", 64 | a & 63))
        .collect()
}

impl Group {
    /// A group of so many members, all of which serve.
    #[must_use]
    pub fn new(binary: &str, number: u64) -> Self {
        let mut group = Self::addressed(binary, number);
        group.start_all();
        group
    }

    /// One whose members are to be started yet.
    #[must_use]
    pub fn addressed(binary: &str, number: u64) -> Self {
        Self::at(Cluster::without_processes(binary), own_addresses(number))
    }

    /// One that is to be started yet, with a machine of its own for each member (`coordinator-1` and
    /// so on) and for each of these workers.
    #[must_use]
    pub fn on_machines(binary: &str, network: Network, number: u64, workers: &[&str]) -> Self {
        let members: Vec<String> = (1..=number).map(name_of).collect();
        let members = members.iter().map(String::as_str);
        let names: Vec<&str> = members.chain(workers.iter().copied()).collect();
        let cluster = Cluster::on_machines(binary, network, &names);
        let ips = (1..=number).map(|id| cluster.machine(&name_of(id)).ip());
        let addresses = ips.map(|ip| format!("{ip}:{FIRST_PORT}")).collect();
        Self::at(cluster, addresses)
    }

    fn at(cluster: Cluster, addresses: Vec<String>) -> Self {
        let peers: Vec<String> = (1u64..)
            .zip(&addresses)
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let part = ["--peers".to_owned(), peers.join(",")];
        let members = (1..).zip(addresses).map(|(id, address)| {
            let member = Member {
                address,
                part: part.to_vec(),
                child: None,
            };
            (id, member)
        });
        let mut group = Self {
            cluster,
            settings: Vec::new(),
            members: members.collect(),
        };
        group.know_all();
        group
    }

    /// Workers and commands that come are told of all members.
    fn know_all(&mut self) {
        let members = self.members.values();
        let all: Vec<&str> = members.map(|member| member.address.as_str()).collect();
        self.cluster.address = all.join(",");
    }

    /// All members that are known, dead ones too.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// Where a member listens.
    #[must_use]
    pub fn address(&self, id: u64) -> &str {
        &self.members[&id].address
    }

    /// Its folder.
    #[must_use]
    pub fn data(&self, id: u64) -> PathBuf {
        self.cluster.sandbox.path().join(name_of(id))
    }

    /// The machine of a member.
    #[must_use]
    pub fn machine(&self, id: u64) -> Machine {
        self.cluster.machine(&name_of(id))
    }

    /// What starts a member.
    #[must_use]
    pub fn command(&self, id: u64) -> Command {
        let member = &self.members[&id];
        let mut command = self.cluster.sandbox.muster();
        command
            .args(["coordinator", "--ready-json", "--id", &id.to_string()])
            .args(["--listen", &member.address, "--data"])
            .arg(self.data(id))
            .args(&member.part)
            .args(&self.settings);
        command
    }

    /// Makes the folder of a member from a backup; what the command says.
    #[track_caller]
    pub fn restore(&self, id: u64, backup: &str) -> String {
        let mut command = self.cluster.sandbox.muster();
        command
            .args(["coordinator", "restore", backup, "--data"])
            .arg(self.data(id))
            .args(["--id", &id.to_string()])
            .args(&self.members[&id].part);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts all members.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            self.start(id);
        }
    }

    /// Starts a member, for the first time or again, and waits until it serves.
    #[track_caller]
    pub fn start(&mut self, id: u64) {
        let mut command = self.command(id);
        let child = self.cluster.children.len();
        self.cluster.serve(&name_of(id), &mut command);
        self.members.get_mut(&id).unwrap().child = Some(child);
    }

    /// One that is to join, and that has been taken in under this number; it is not started.
    pub fn expect(&mut self, id: u64, address: &str) {
        let join = vec!["--join".to_owned(), self.cluster.address.clone()];
        let member = Member {
            address: address.to_owned(),
            part: join,
            child: None,
        };
        self.members.insert(id, member);
        self.know_all();
    }

    /// An address that no member has yet.
    #[must_use]
    pub fn free_address(&self) -> String {
        own_addresses(1).remove(0)
    }

    /// The process id of a member that was started.
    #[must_use]
    #[track_caller]
    pub fn pid(&self, id: u64) -> u32 {
        let child = self.members[&id].child.expect("it was started");
        self.cluster.children[child].id()
    }

    /// Sends a signal to a member.
    #[track_caller]
    pub fn signal(&self, id: u64, signal: Signal) {
        self.cluster.sandbox.kill(self.pid(id), signal);
    }

    /// Kills a member, and waits for its end.
    #[track_caller]
    pub fn kill(&mut self, id: u64) {
        self.signal(id, Signal::KILL);
        self.end_of(id);
    }

    /// Waits until a member has ended.
    #[track_caller]
    pub fn end_of(&mut self, id: u64) -> ExitStatus {
        let child = self.members.get_mut(&id).unwrap().child.take();
        let child = &mut self.cluster.children[child.expect("it was started")];
        eventually(DEADLINE, "the end of a member", || {
            child.try_wait().unwrap()
        })
    }

    /// What a command says that is told of one member only, and runs where that is.
    #[must_use]
    pub fn at_member(&self, id: u64, arguments: &[&str]) -> Output {
        self.at_member_within(id, 30, arguments)
    }

    /// What such a command says that is refused for so many seconds. One that heard nothing in that
    /// time was not refused, and is given again.
    #[must_use]
    pub fn refused_at(&self, id: u64, timeout_s: u32, arguments: &[&str]) -> Output {
        for _ in 1..ATTEMPTS {
            let output = self.at_member_within(id, timeout_s, arguments);
            if !String::from_utf8_lossy(&output.stderr).contains("it is silent") {
                return output;
            }
        }
        self.at_member_within(id, timeout_s, arguments)
    }

    fn at_member_within(&self, id: u64, timeout_s: u32, arguments: &[&str]) -> Output {
        let timeout_s = timeout_s.to_string();
        let mut command = self.cluster.sandbox.muster();
        command
            .args(arguments)
            .args(["--timeout", &timeout_s, "--coordinator", self.address(id)]);
        if let Some(machines) = &self.cluster.machines {
            command = machines.network.on(self.machine(id), &command);
        }
        command.output().unwrap()
    }

    /// What `muster coordinator status --json` says; `None` where nobody answers.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let mut command = self.cluster.sandbox.muster();
        status_of(&mut command, &self.cluster.address)
    }

    /// Waits until somebody leads, and says so; who it is.
    #[must_use]
    #[track_caller]
    pub fn leader(&self) -> u64 {
        self.leader_but(0)
    }

    /// The same, until it is not this one.
    #[must_use]
    #[track_caller]
    pub fn leader_but(&self, other: u64) -> u64 {
        eventually(DEADLINE, "a leader", || {
            let leader = leader_of(&self.status()?)?["id"].as_u64()?;
            (leader != other).then_some(leader)
        })
    }

    /// Does something that does not disturb who leads; who that is, and what came of it. A leader that
    /// stands still for half a second, as on a machine that does other things, is followed by another
    /// one: then nothing follows from it, and it is done again.
    ///
    /// # Panics
    /// When another one was elected each time.
    #[track_caller]
    pub fn under_one_leader<T>(&self, mut act: impl FnMut(u64) -> T) -> (u64, T) {
        let mut elections = Vec::new();
        while elections.len() < ATTEMPTS {
            let before = self.led();
            let done = act(before.0);
            let after = self.led();
            if after == before {
                return (after.0, done);
            }
            elections.push((before, after));
        }
        panic!("another one was elected each time (leaders and terms): {elections:?}");
    }

    /// Who leads, and in which term.
    #[track_caller]
    fn led(&self) -> (u64, u64) {
        eventually(DEADLINE, "a leader and its term", || {
            let status = self.status()?;
            let leader = leader_of(&status)?["id"].as_u64()?;
            Some((leader, status["term"].as_u64()?))
        })
    }

    /// Waits until these members have applied the same entries, and all that are committed.
    #[track_caller]
    pub fn agree(&self, ids: &[u64]) {
        eventually(DEADLINE, "that all agree", || {
            let status = self.status()?;
            let members = status["members"].as_array()?.iter();
            let asked =
                members.filter(|one| one["id"].as_u64().is_some_and(|id| ids.contains(&id)));
            let applied: Vec<Option<u64>> = asked.map(|one| one["applied"].as_u64()).collect();
            let committed = status["committed"].as_u64();
            let is_all = |applied: &Option<u64>| applied.is_some() && *applied == committed;
            (applied.len() == ids.len() && applied.iter().all(is_all)).then_some(())
        });
    }
}

/// The name of a member's process, log and folder.
fn name_of(id: u64) -> String {
    format!("coordinator-{id}")
}

/// What the group at these addresses says of itself; `None` where nobody answers.
#[must_use]
pub fn status_of(muster: &mut Command, addresses: &str) -> Option<Value> {
    let arguments = ["coordinator", "status", "--json", "--timeout", "6"];
    let output = muster.args(arguments).args(["--coordinator", addresses]);
    let output = output.output().unwrap();
    let is_there = output.status.success();
    is_there.then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// The member that leads, of a status: one that says so itself, and that the others follow.
#[must_use]
pub fn leader_of(status: &Value) -> Option<&Value> {
    let leader = status["leader"].as_u64()?;
    let mut members = status["members"].as_array()?.iter();
    members.find(|member| member["id"] == leader && member["role"] == "leader")
}
