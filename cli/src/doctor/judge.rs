//! What to think of the facts about a machine: a finding each, with advice where something is to be
//! done. Looks at nothing itself.

mod gpus;

use super::facts::{Clock, Disk, Facts, Limits, Peer, System};

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// It works, and could be better, or cannot be told.
    Warn,
    /// Muster does not work so, or not with what was asked about.
    Fail,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    /// What to do, in one sentence; empty for nothing.
    pub(super) advice: String,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    finding(check, Status::Ok, found, "")
}

fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Status::Warn, found, advice)
}

fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Status::Fail, found, advice)
}

fn finding(
    check: &'static str,
    status: Status,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding {
        check,
        status,
        found: found.into(),
        advice: advice.into(),
    }
}

/// Judges a machine, from its hardware to its links.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = system(&facts.system);
    findings.extend(gpus::gpus(&facts.gpus));
    findings.extend(disk(&facts.disk));
    findings.extend(clock(&facts.clock));
    findings.extend(facts.peers.iter().map(peer));
    let uses_gpus = !facts.gpus.inventory.usable().is_empty();
    findings.extend(limits(&facts.limits, uses_gpus));
    findings
}

const GIB: u64 = 1 << 30;

/// A size as people read it.
fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let bytes = bytes as f64;
    match bytes {
        bytes if bytes >= 1e12 => format!("{:.1} TB", bytes / 1e12),
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

/// A time as people read it.
fn time(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let us = us as f64;
    if us >= 1_000.0 {
        format!("{:.1} ms", us / 1_000.0)
    } else {
        format!("{us:.0} us")
    }
}

fn system(system: &System) -> Vec<Finding> {
    /// With less, the smallest job of the examples and its daemons begin to swap.
    const LITTLE_MEMORY: u64 = GIB;
    let System {
        name,
        kernel,
        architecture,
        processor,
        num_processors,
        features,
        memory_bytes,
        available_bytes,
        class,
    } = system;
    let features = match features.as_slice() {
        [] => "no vector instructions that are known".to_owned(),
        known => known.join(", "),
    };
    let processors = format!("{num_processors} x {processor} ({features})");
    let is_slow = architecture == "x86_64" && !system.features.contains(&"avx2");
    let mut findings = vec![
        ok("system", format!("{name}, Linux {kernel}, {architecture}")),
        if is_slow {
            let advice = "ranks on these processors compute several times more slowly than with AVX2; in a \
                          virtual machine, let it see its host's processor";
            warn("processors", processors, advice)
        } else {
            ok("processors", processors)
        },
    ];
    findings.push(match class {
        Ok(class) => ok(
            "numerics",
            format!(
                "canary {}, features {}; machines of one job are alike in both",
                crate::show::short(&class.canary),
                class.cpu
            ),
        ),
        Err(error) => fail(
            "numerics",
            format!("this program cannot read its own file: {error}"),
            "let this user read the file of the program",
        ),
    });
    let memory = match (memory_bytes, available_bytes) {
        (Some(all), Some(available)) => {
            let found = format!("{} of {} available", size(*available), size(*all));
            if *available < LITTLE_MEMORY {
                let advice = "end what needs it, or train where there is more";
                warn("memory", found, advice)
            } else {
                ok("memory", found)
            }
        }
        _ => warn("memory", "/proc/meminfo does not tell", "mount /proc"),
    };
    findings.push(memory);
    findings
}

/// What the kernel calls kinds of file systems (`include/uapi/linux/magic.h`).
fn file_system(magic: u64) -> Option<&'static str> {
    let known = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x2fc1_2fc1, "zfs"),
        (0x794c_7630, "overlay"),
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (0x6969, "nfs"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x6573_5546, "fuse"),
        (0x0bd0_0bd0, "lustre"),
        (0x00c3_6400, "ceph"),
        (0x0102_1997, "9p"),
    ];
    let found = known.into_iter().find(|(known, _)| *known == magic);
    found.map(|(_, name)| name)
}

fn disk(disk: &Disk) -> Vec<Finding> {
    /// A few checkpoints of a small model; below it, the next one may not fit.
    const LITTLE: u64 = GIB;
    const SOME: u64 = 10 * GIB;
    /// Each commit of a coordinator waits for a write; at more, a group is slower than its heartbeats.
    const SLOW_US: u64 = 20_000;
    let folder = disk.folder.display();
    let kind = disk.magic.and_then(file_system);
    let name = match (kind, disk.magic) {
        (Some(kind), _) => kind.to_owned(),
        (None, Some(magic)) => format!("file system {magic:#x}"),
        (None, None) => "unknown file system".to_owned(),
    };
    let on = format!("{folder} ({name})");
    let elsewhere = "name another folder with --state or MUSTER_STATE";
    let mut findings = vec![match kind {
        Some("tmpfs" | "ramfs") => warn(
            "state folder",
            on,
            format!("it is in memory, and gone after a reboot; {elsewhere}"),
        ),
        Some("nfs" | "cifs" | "smb2" | "9p") => warn(
            "state folder",
            on,
            format!(
                "a coordinator's log must be on a disk of its own machine, since it is locked and synced \
                 there; {elsewhere} (checkpoints may stay on a shared one)"
            ),
        ),
        _ => ok("state folder", on),
    }];
    findings.push(match disk.free_bytes {
        None => warn("disk space", "the system does not tell", "look with df"),
        Some(free) => {
            let found = format!("{} free", size(free));
            let advice = format!("make room, or {elsewhere}");
            match free {
                free if free < LITTLE => fail("disk space", found, advice),
                free if free < SOME => warn("disk space", found, advice),
                _ => ok("disk space", found),
            }
        }
    });
    findings.push(match &disk.sync_us {
        Ok(us) => {
            let found = format!("a small write reaches the disk in {}", time(*us));
            if *us > SLOW_US {
                let advice = format!(
                    "coordinators here would be slow, since each entry of their log waits for that; \
                     {elsewhere}, on a solid-state disk"
                );
                warn("disk sync", found, advice)
            } else {
                ok("disk sync", found)
            }
        }
        Err(error) => fail(
            "disk sync",
            format!("nothing can be written to {folder}: {error}"),
            format!("let this user write there, or {elsewhere}"),
        ),
    });
    findings
}

fn clock(clock: &Clock) -> Vec<Finding> {
    /// Nothing is decided by comparing clocks of machines; people compare logs and events.
    const FAR_MS: u64 = 500;
    let keep = "run chrony or systemd-timesyncd, or have the host of this container do it";
    let mut findings = vec![match clock.is_synchronized {
        Some(true) => ok("clock", "synchronized"),
        Some(false) => warn("clock", "not synchronized", keep),
        None => warn(
            "clock",
            "nobody here tells whether it is synchronized",
            keep,
        ),
    }];
    match &clock.coordinator {
        None => {}
        Some(Err(why)) => findings.push(fail(
            "coordinator",
            why.clone(),
            "start one with muster coordinator, or correct --coordinator",
        )),
        Some(Ok(drift)) => {
            let side = if drift.ms < 0 { "behind" } else { "ahead of" };
            let apart = drift.ms.unsigned_abs();
            let found = format!(
                "this clock is {apart} ms {side} the coordinator's, give or take {} ms",
                drift.uncertain_ms
            );
            findings.push(if apart > FAR_MS + drift.uncertain_ms {
                let advice = format!(
                    "times in logs of both machines do not fit each other: {keep}, on both"
                );
                warn("coordinator", found, advice)
            } else {
                ok("coordinator", found)
            });
        }
    }
    findings
}

fn peer(peer: &Peer) -> Finding {
    /// Ranks exchange thousands of messages a step's reduction waits for; more is another city.
    const FAR_US: u64 = 10_000;
    /// Ethernet's; a smaller one is a tunnel's.
    const USUAL_MTU: u32 = 1_500;
    let address = &peer.address;
    let link = match &peer.link {
        Ok(link) => link,
        Err(error) => {
            return fail(
                "peer",
                format!("{address}: {error}"),
                "see that something listens there, and that no firewall is between",
            );
        }
    };
    let mtu = link
        .mtu
        .map_or_else(String::new, |mtu| format!(", packets of {mtu} bytes"));
    let found = format!("{address}: connects in {}{mtu}", time(link.connect_us));
    if link.connect_us > FAR_US {
        let advice =
            "a step waits for several round trips; use machines that are nearer to each other";
        warn("peer", found, advice)
    } else if link.mtu.is_some_and(|mtu| mtu < USUAL_MTU) {
        let advice = "a tunnel on the way makes packets small; where machines share a network, use its \
                      own addresses";
        warn("peer", found, advice)
    } else {
        ok("peer", found)
    }
}

fn limits(limits: &Limits, uses_gpus: bool) -> Vec<Finding> {
    /// A coordinator has a connection per worker and client, a rank one per peer.
    const FEW_FILES: u64 = 4_096;
    /// What collectives of GPUs pin for the network.
    const LITTLE_LOCKED: u64 = 64 << 20;
    /// Ranks of one machine exchange vectors of GPUs there; containers often have 64 MB.
    const LITTLE_SHARED: u64 = GIB;
    let Limits {
        open_files,
        locked_bytes,
        shm_bytes,
    } = limits;
    let files = match open_files {
        None => ok("open files", "any number"),
        Some(number) if *number < FEW_FILES => warn(
            "open files",
            number.to_string(),
            format!(
                "large clusters need more: ulimit -n {FEW_FILES}, or LimitNOFILE= of a service"
            ),
        ),
        Some(number) => ok("open files", number.to_string()),
    };
    let locked = match locked_bytes {
        Some(bytes) if uses_gpus && *bytes < LITTLE_LOCKED => warn(
            "locked memory",
            size(*bytes),
            "GPUs that exchange over InfiniBand need more: ulimit -l unlimited, or --ulimit memlock=-1 of \
             a container",
        ),
        Some(bytes) => ok("locked memory", size(*bytes)),
        None => ok("locked memory", "any amount"),
    };
    let shared = match shm_bytes {
        Some(bytes) if uses_gpus && *bytes < LITTLE_SHARED => warn(
            "shared memory",
            format!("/dev/shm has {}", size(*bytes)),
            "GPUs of one machine exchange through it: --shm-size=1g of a container, or a larger tmpfs",
        ),
        Some(bytes) => ok("shared memory", format!("/dev/shm has {}", size(*bytes))),
        None if uses_gpus => warn(
            "shared memory",
            "there is no /dev/shm",
            "mount a tmpfs there: GPUs of one machine exchange through it",
        ),
        None => ok("shared memory", "there is no /dev/shm"),
    };
    vec![files, locked, shared]
}
