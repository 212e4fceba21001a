//! Cuts the links of a machine's processes for a while, as a broken cable would: what comes to them
//! from others is dropped before they see it, so that connections stand and say nothing. No process
//! is stopped, no rule of the machine's network is changed, and what happens among them goes on.
//!
//! Each socket is taken hold of in its process (`pidfd_getfd`), which a system lets those do who may
//! trace that process, and gets a filter that drops everything. Where the other end is of this
//! machine and known, it gets one too. With another machine at the other end, what is sent still
//! arrives there until nothing more may be under way unacknowledged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{SockFilter, Socket, Type};

use super::victims::raw;

/// One instruction (`BPF_RET | BPF_K`): of every packet, nothing is kept.
const DROP_ALL: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];

/// A process whose links are cut, or whose links to such a process are.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    process: OwnedFd,
}

/// The links that are cut until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Cut {
    sockets: Vec<Filtered>,
    /// Those that were taken hold of, by number.
    known: BTreeSet<u64>,
}

/// A socket with a filter, which ends with this.
#[derive(Debug)]
struct Filtered(Socket);

/// A TCP socket of a process.
struct Link {
    inode: u64,
    socket: Socket,
    local: SocketAddr,
    /// None where it listens.
    peer: Option<SocketAddr>,
}

impl Process {
    /// The process of this number, if it is there.
    pub(super) fn open(pid: u32) -> Option<Self> {
        let process = pidfd_open(raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, process })
    }

    /// Its TCP sockets, but for those that have no other end yet.
    fn links(&self) -> Result<Vec<Link>, Errno> {
        let mut links = Vec::new();
        // It may have ended, or be another user's.
        let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", self.pid)) else {
            return Ok(links);
        };
        for file in files.flatten() {
            let Some(inode) = inode_of(&file.path()) else {
                continue;
            };
            let number = file.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            match pidfd_getfd(self.process.as_fd(), number, PidfdGetfdFlags::empty()) {
                Ok(socket) => links.extend(Link::new(inode, Socket::from(socket))),
                // It was closed, or the process has ended, since.
                Err(Errno::BADF | Errno::SRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(links)
    }
}

/// The number of the socket that a file of a process is.
fn inode_of(file: &std::path::Path) -> Option<u64> {
    let link = std::fs::read_link(file).ok()?;
    let number = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    number.parse().ok()
}

impl Link {
    fn new(inode: u64, socket: Socket) -> Option<Self> {
        if socket.r#type().ok()? != Type::STREAM {
            return None;
        }
        let local = socket.local_addr().ok()?.as_socket()?;
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        (peer.is_some() || socket.is_listener().ok()?).then_some(Self {
            inode,
            socket,
            local,
            peer,
        })
    }
}

impl Cut {
    /// Cuts the links that `inside` has with anyone else and that are not cut yet: `others` are the
    /// processes that may be at their other ends.
    pub(super) fn extend(&mut self, inside: &[Process], others: &[Process]) -> Result<(), String> {
        let all = |processes: &[Process]| {
            let links = processes.iter().map(Process::links);
            let links: Result<Vec<Vec<Link>>, Errno> = links.collect();
            links.map(|links| links.into_iter().flatten().collect::<Vec<Link>>())
        };
        let mine = all(inside).map_err(why_not)?;
        let ends: BTreeSet<SocketAddr> = mine.iter().map(|link| link.local).collect();
        // A connection among them has both of its ends here; at what they listen, their own come in,
        // too, and are let in by other sockets.
        let (cut, mut at) = (&mut *self, BTreeSet::new());
        for link in mine {
            let Some(peer) = link.peer else { continue };
            if !ends.contains(&peer) {
                at.insert(link.local);
                cut.filter(link)?;
            }
        }
        for link in all(others).map_err(why_not)? {
            if link.peer.is_some_and(|peer| at.contains(&peer)) {
                cut.filter(link)?;
            }
        }
        Ok(())
    }

    /// How many ends of connections are cut.
    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    fn filter(&mut self, link: Link) -> Result<(), String> {
        if self.known.insert(link.inode) {
            let attached = link.socket.attach_filter(&DROP_ALL);
            attached.map_err(|error| format!("cannot filter what a socket is sent: {error}"))?;
            self.sockets.push(Filtered(link.socket));
        }
        Ok(())
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        // The connection may have ended, and then nobody misses what is dropped.
        let _ = self.0.detach_filter();
    }
}

fn why_not(error: Errno) -> String {
    let what = "cannot reach into the sockets of another process";
    match error {
        Errno::PERM | Errno::ACCESS => format!(
            "{what}: this user may not trace it; run it as root, or as the same user where \
             /proc/sys/kernel/yama/ptrace_scope is 0"
        ),
        Errno::NOSYS => format!("{what}: that takes Linux 5.6"),
        error => format!("{what}: {error}"),
    }
}
