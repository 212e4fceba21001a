//! Does NCCL work on this machine, and how fast is it: the check of [`crate::device::check`] among
//! processes, each with a device.
//!
//! [`check_rank`] is one rank, which can be started by hand on several machines. [`check()`] starts
//! all ranks of a check on this machine, as processes of whatever program calls [`check_rank`].
//! The last rank kills its own process: that is what is checked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::{Adder, Library, Options};
use crate::device::check::{self, CheckError, CheckOptions, Report, Rig};
use crate::device::{Bulk, BulkError, DeviceGroup, Kernels, Region};
use crate::error::Error;
use crate::group::Group;
use crate::tcp::Listener;
use crate::world::World;

/// Checks one rank of `size`, on the device of this number; rank 0 listens at `address`, where the
/// others find it.
///
/// Where `options.kills` is set, the process of the last rank ends by a signal and does not return.
///
/// # Errors
/// [`CheckError`], which says at what it ended.
pub fn check_rank(
    rank: RankId,
    size: u32,
    address: SocketAddr,
    device: &Options,
    options: &CheckOptions,
) -> Result<Report, CheckError> {
    let refused = |source| CheckError::Device {
        doing: format!("use device {}", device.ordinal),
        source,
    };
    let library =
        Library::find(device.library.as_deref()).map_err(|source| CheckError::Device {
            doing: "find NCCL".to_owned(),
            source,
        })?;
    let mut rig = NcclRig {
        adder: Adder::of(device.ordinal).map_err(refused)?,
        library,
        device: device.clone(),
    };
    let meeting = meet(rank, size, address, options.deadline);
    let (listener, peers) = meeting.map_err(|error| CheckError::Wrong {
        what: format!("could not meet the other ranks at {address}: {error}"),
    })?;
    check::run(&mut rig, &listener, rank, &peers, options)
}

/// A rank whose vectors are in the memory of a CUDA device.
struct NcclRig {
    adder: Adder,
    library: Library,
    device: Options,
}

impl Rig for NcclRig {
    fn alloc(&mut self, num_elements: usize) -> Result<Region, BulkError> {
        self.adder.memory().alloc(num_elements)
    }

    fn write(&mut self, region: Region, values: &[f32]) -> Result<(), BulkError> {
        self.adder.memory().write(region, values)
    }

    fn read(&mut self, region: Region) -> Result<Vec<f32>, BulkError> {
        self.adder.memory().read(region)
    }

    fn kernels(&mut self) -> &mut dyn Kernels {
        &mut self.adder
    }

    fn connect(
        &mut self,
        group: &mut Group,
        deadline: Duration,
    ) -> Result<Option<Box<dyn Bulk>>, Error> {
        let nccl = super::connect(group, &self.device, deadline)?;
        Ok(nccl.map(|nccl| Box::new(nccl) as Box<dyn Bulk>))
    }

    fn name(&self) -> String {
        let (version, place) = (self.library.version(), self.library.place());
        format!("NCCL {version} ({place}), device {}", self.device.ordinal)
    }

    fn die(&mut self, group: DeviceGroup) {
        // The signal leaves no time for a goodbye, or for anything else.
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        debug_assert!(killed.is_ok(), "a process may kill itself");
        drop(group);
    }
}

/// The longest text of an address.
const MAX_ADDRESS_BYTES: usize = 64;

/// How the ranks of a check learn of each other's listeners: each tells rank 0 its own, and gets
/// all of them.
///
/// Numbers are little-endian. A rank says its number (4 bytes) and its address (a byte for the
/// length, then text); the answer is all addresses, by rank, in the same form.
pub(super) fn meet(
    rank: RankId,
    size: u32,
    address: SocketAddr,
    deadline: Duration,
) -> io::Result<(Listener, Vec<SocketAddr>)> {
    let until = Instant::now() + deadline;
    if rank.0 >= size {
        let what = format!("rank {rank} is not one of {size}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    if rank.0 == 0 {
        return receive_all(size, address, until);
    }
    let mut stream = dial(address, until)?;
    let listener = Listener::bind(stream.local_addr()?.ip())?;
    stream.write_all(&rank.0.to_le_bytes())?;
    write_address(&mut stream, listener.addr())?;
    let peers: io::Result<Vec<SocketAddr>> = (0..size).map(|_| read_address(&mut stream)).collect();
    Ok((listener, peers?))
}

fn receive_all(
    size: u32,
    address: SocketAddr,
    until: Instant,
) -> io::Result<(Listener, Vec<SocketAddr>)> {
    let listener = Listener::bind(address.ip())?;
    let door = TcpListener::bind(address)?;
    door.set_nonblocking(true)?;
    let mut found: Vec<Option<(SocketAddr, Option<TcpStream>)>> = (0..size).map(|_| None).collect();
    found[0] = Some((listener.addr(), None));
    while found.iter().any(Option::is_none) {
        let mut stream = match door.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pause(until)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(left(until)?))?;
        // A stranger, or a rank that died on its way, is no reason to end.
        let mut number = [0; 4];
        if stream.read_exact(&mut number).is_ok()
            && let Ok(address) = read_address(&mut stream)
            && let Some(place @ None) = found.get_mut(u32::from_le_bytes(number) as usize)
        {
            *place = Some((address, Some(stream)));
        }
    }
    let mut streams = Vec::new();
    let mut peers = Vec::new();
    for (address, stream) in found.into_iter().flatten() {
        peers.push(address);
        streams.extend(stream);
    }
    for stream in &mut streams {
        for peer in &peers {
            write_address(stream, *peer)?;
        }
    }
    Ok((listener, peers))
}

/// Dials until somebody answers.
fn dial(address: SocketAddr, until: Instant) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => {
                stream.set_read_timeout(Some(left(until)?))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => pause(until)?,
            Err(error) => return Err(error),
        }
    }
}

/// Between two looks for somebody who is not there yet.
fn pause(until: Instant) -> io::Result<()> {
    thread::park_timeout(left(until)?.min(Duration::from_millis(10)));
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.checked_duration_since(Instant::now());
    left.filter(|left| !left.is_zero())
        .ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))
}

fn write_address(stream: &mut TcpStream, address: SocketAddr) -> io::Result<()> {
    let text = address.to_string();
    let len = u8::try_from(text.len()).map_err(io::Error::other)?;
    stream.write_all(&[len])?;
    stream.write_all(text.as_bytes())
}

fn read_address(stream: &mut TcpStream) -> io::Result<SocketAddr> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "no address");
    let mut len = [0];
    stream.read_exact(&mut len)?;
    let mut text = [0; MAX_ADDRESS_BYTES];
    let text = text.get_mut(..usize::from(len[0])).ok_or_else(garbled)?;
    stream.read_exact(text)?;
    let text = std::str::from_utf8(text).map_err(|_| garbled())?;
    text.parse().map_err(|_| garbled())
}

/// How the process of a rank ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// Which rank.
    pub rank: RankId,
    /// How it ended; the last rank of a check that kills ends by a signal.
    pub status: ExitStatus,
    /// Its standard output: the report that it printed.
    pub output: String,
}

/// Starts a process for each rank of a check on this machine, and waits for all of them.
///
/// `command` makes the process of a rank, which calls [`check_rank`] with the address it is given
/// and prints the report. Where `on_one_device` is set each process is made a host of its own to
/// NCCL. A process that does not end in time is killed.
///
/// # Errors
/// Where a process cannot be started, or is not over in time.
pub fn check(
    size: u32,
    on_one_device: bool,
    deadline: Duration,
    mut command: impl FnMut(RankId, SocketAddr) -> Command,
) -> io::Result<Vec<Ended>> {
    let until = Instant::now() + deadline;
    // Free a moment ago; rank 0 says so where somebody else was faster.
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let address = TcpListener::bind(local)?.local_addr()?;
    let mut children = Children(Vec::new());
    let (outputs, printed) = mpsc::channel();
    for rank in (0..size).map(RankId) {
        let mut command = command(rank, address);
        if on_one_device {
            command
                .env("NCCL_HOSTID", format!("muster-check-{rank}"))
                .env("NCCL_NET", "Socket")
                .env("NCCL_SOCKET_IFNAME", "lo");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take();
        children.0.push(child);
        let outputs = outputs.clone();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut bytes = Vec::new();
                // What was read before an error is worth as much.
                let _ = stdout.map(|mut stdout| stdout.read_to_end(&mut bytes));
                let _ = outputs.send((rank, bytes));
            })?;
    }
    let mut texts = vec![String::new(); size as usize];
    for _ in 0..size {
        let (rank, bytes) = printed
            .recv_timeout(left(until)?)
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        texts[World::index(rank)] = String::from_utf8_lossy(&bytes).into_owned();
    }
    let ranks = (0..size).map(RankId).zip(texts);
    ranks
        .zip(&mut children.0)
        .map(|((rank, output), child)| {
            // Its output has ended, and so, but for the time of its last steps, has it.
            let status = loop {
                match child.try_wait()? {
                    Some(status) => break status,
                    None => pause(until)?,
                }
            };
            Ok(Ended {
                rank,
                status,
                output,
            })
        })
        .collect()
}

/// Processes that end with the check, whatever way it ends.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended takes no signal, and is waited for once more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
