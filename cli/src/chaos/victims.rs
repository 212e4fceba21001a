//! Which processes `muster chaos` may strike, and how it does. The coordinator says process ids,
//! which may be of other machines: a process is held by a descriptor first, so that its number
//! cannot become another's, and is struck only if it is what it was said to be.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;

use muster_proto::v1;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::What;
use super::links::Process;
use crate::failure::Failure;

/// A process of this machine that may be struck.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) what: What,
    pub(super) pid: u32,
    /// For people, such as `rank 1 on b`.
    pub(super) name: String,
    process: OwnedFd,
}

/// What a worker runs on this machine, and what it may be linked with.
#[derive(Debug)]
pub(super) struct Machine {
    /// For people, such as `worker b`.
    pub(super) name: String,
    /// Its daemon's, or where that is not known a rank's.
    pub(super) pid: u32,
    pub(super) inside: Vec<Process>,
    pub(super) others: Vec<Process>,
}

/// A process that is stopped until this is dropped.
#[derive(Debug)]
pub(super) struct Stopped<'a>(&'a Victim);

/// The processes of these kinds of a job that are here now, in an order that only the job decides.
/// `coordinator`: the one that leads, if it is on this machine.
pub(super) fn victims(what: &[What], job: &v1::JobView, coordinator: Option<u32>) -> Vec<Victim> {
    let mut victims: Vec<Victim> = Vec::new();
    let wants = |one| what.contains(&one);
    for (found, worker) in ranks(job) {
        let daemon = daemon_of(found.pid).filter(|_| wants(What::Worker));
        if wants(What::Rank) {
            victims.push(found);
        }
        let is_new = |pid: &u32| victims.iter().all(|known| known.pid != *pid);
        if let Some(daemon) = daemon.filter(is_new) {
            let name = format!("worker {worker}");
            victims.extend(Victim::find(What::Worker, daemon, name, None));
        }
    }
    if let Some(coordinator) = coordinator.filter(|_| wants(What::Coordinator)) {
        let name = "the coordinator".to_owned();
        victims.extend(Victim::find(What::Coordinator, coordinator, name, None));
    }
    victims
}

/// The workers of a job that have ranks here, by name.
pub(super) fn machines(job: &v1::JobView, coordinator: Option<u32>) -> Vec<Machine> {
    let mut pids: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (found, worker) in ranks(job) {
        let name = || format!("worker {worker}");
        let daemon = daemon_of(found.pid);
        let daemon = daemon.and_then(|pid| Victim::find(What::Worker, pid, name(), None));
        let of_worker = pids.entry(worker).or_default();
        // The daemon first: it gives the machine its number.
        let daemon = daemon.map(|daemon| daemon.pid);
        of_worker.extend(daemon.filter(|pid| !of_worker.contains(pid)));
        of_worker.push(found.pid);
    }
    let machines = pids.iter().map(|(worker, own)| {
        let of_others = pids.iter().filter(|(other, _)| *other != worker);
        let of_others = of_others.flat_map(|(_, pids)| pids).copied();
        Machine {
            name: format!("worker {worker}"),
            pid: own[0],
            inside: own.iter().filter_map(|pid| Process::open(*pid)).collect(),
            others: of_others
                .chain(coordinator)
                .filter_map(Process::open)
                .collect(),
        }
    });
    machines.collect()
}

/// The processes of a job that are here, its ranks first, each with its worker.
fn ranks(job: &v1::JobView) -> impl Iterator<Item = (Victim, &str)> {
    let of_job = Some(job.job.as_str());
    let ranks = job.ranks.iter().filter_map(move |rank| {
        let name = format!("rank {} on {}", rank.rank, rank.worker);
        let found = Victim::find(What::Rank, rank.pid, name, of_job)?;
        Some((found, rank.worker.as_str()))
    });
    let standbys = job.standbys.iter().filter_map(move |standby| {
        let name = format!("standby {} on {}", standby.process, standby.worker);
        let found = Victim::find(What::Rank, standby.pid, name, of_job)?;
        Some((found, standby.worker.as_str()))
    });
    ranks.chain(standbys)
}

impl Victim {
    /// The process of this number, if it is `muster <what>`, and of this job where one is given.
    fn find(what: What, pid: u32, name: String, job: Option<&str>) -> Option<Self> {
        let process = pidfd_open(raw(pid)?, PidfdFlags::empty()).ok()?;
        let is_it = is_muster(&read(pid, "cmdline")?, what.as_str())
            && job.is_none_or(|job| {
                let mark = format!("MUSTER_RANK_JOB={job}");
                read(pid, "environ").is_some_and(|all| words(&all).any(|one| one == mark))
            });
        is_it.then_some(Self {
            what,
            pid,
            name,
            process,
        })
    }

    /// Kills it; false where it has ended meanwhile.
    pub(super) fn kill(&self) -> Result<bool, Failure> {
        self.send(Signal::KILL)
    }

    /// Stops it until what is returned is dropped.
    pub(super) fn stop(&self) -> Result<Stopped<'_>, Failure> {
        // Made first: whatever happens from here on, it is continued.
        let stopped = Stopped(self);
        self.send(Signal::STOP)?;
        Ok(stopped)
    }

    fn send(&self, signal: Signal) -> Result<bool, Failure> {
        match pidfd_send_signal(&self.process, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(Failure::failed(format!(
                "send a signal to {} (pid {}): {error}",
                self.name, self.pid
            ))),
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // It may have been ended meanwhile.
        let _ = self.0.send(Signal::CONT);
    }
}

/// Whether an address is one of this machine's: only those can be bound.
pub(crate) fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

pub(super) fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

fn read(pid: u32, name: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('\0')
}

/// Whether a command line is this binary's in this role.
fn is_muster(command: &str, role: &str) -> bool {
    let mut words = words(command);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    program == "muster" && words.next() == Some(role)
}

/// The daemon of a rank's worker, which need not be the one that started it: whose door the rank knows.
fn daemon_of(rank: u32) -> Option<u32> {
    let environment = read(rank, "environ")?;
    let door = words(&environment).find_map(|word| word.strip_prefix("MUSTER_RANK_DOOR="))?;
    // `<address> <process id> <its start time>`
    let says = std::fs::read_to_string(door).ok()?;
    says.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn only_a_process_that_is_what_it_was_said_to_be_is_struck() {
        assert!(is_muster("/usr/bin/muster\0rank\0", "rank"));
        assert!(is_muster("muster\0worker\0--join\0a:1\0", "worker"));
        for other in [
            "",
            "muster\0",
            "/usr/bin/muster\0worker\0",
            "/usr/bin/muster-bench\0rank\0",
            "vi\0muster\0rank\0",
        ] {
            assert!(!is_muster(other, "rank"), "{other:?}");
        }
        // A number that is another process's here: this test's own.
        let me = v1::RankView {
            pid: std::process::id(),
            ..Default::default()
        };
        let job = v1::JobView {
            ranks: vec![me],
            ..Default::default()
        };
        let all = [What::Rank, What::Worker, What::Coordinator];
        for coordinator in [Some(std::process::id()), Some(0), None] {
            assert!(victims(&all, &job, coordinator).is_empty());
        }
    }

    #[test]
    fn a_process_is_continued_whatever_ends_its_pause_and_ends_when_it_is_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = child.id();
        let victim = Victim {
            what: What::Rank,
            pid,
            name: "sleep".to_owned(),
            process: pidfd_open(raw(pid).unwrap(), PidfdFlags::empty()).unwrap(),
        };
        let is_stopped = || read(pid, "status").unwrap().contains("State:\tT");
        let stopped = victim.stop().unwrap();
        muster_tests::eventually(std::time::Duration::from_secs(10), "the stop", || {
            is_stopped().then_some(())
        });
        drop(stopped);
        muster_tests::eventually(std::time::Duration::from_secs(10), "the end of it", || {
            (!is_stopped()).then_some(())
        });
        assert!(victim.kill().unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!victim.kill().unwrap(), "it has ended");
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        // TEST-NET-1 (RFC 5737) is nobody's.
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }
}
