//! The driver for ranks on hosts that reach each other by TCP.
//!
//! Every two ranks share one connection. The lower rank dials; the higher one has bound its
//! [`Listener`] before it told anyone the address. Streams belong to one generation: a new
//! generation connects and shakes hands anew, on the same port ([`handshake`]). What an established
//! connection does is in `tcp/link.rs`, when one that stands counts as lost in `tcp/silence.rs`;
//! bytes are described in [`crate::frame`].

pub mod handshake;
mod link;
pub(crate) mod mesh;
pub mod seal;
mod silence;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::group::{self, Counters, Group, Revoker};
use crate::world::World;

/// What the ranks of one job know and strangers do not. It never crosses the wire: handshakes
/// are signed with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Connections that wait to be accepted; a whole world may dial at once.
const BACKLOG: i32 = 1024;

/// A bound port on which the lower ranks will dial.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
}

impl Listener {
    /// Binds a free port of `ip`.
    ///
    /// # Errors
    /// The system's, for example when `ip` is no address of this host.
    pub fn bind(ip: IpAddr) -> io::Result<Self> {
        let addr = SocketAddr::new(ip, 0);
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from(socket);
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr })
    }

    /// Where this listener can be reached, port included.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Connects this rank with every other of `world`; `peers` are their listeners' addresses, by
/// rank (this rank's own is not used). Returns when all connections stand. The port
/// stays bound for later worlds: who dials it in the meantime waits, and is refused or welcomed then.
///
/// Strangers, other generations and silent connections are refused and counted
/// ([`Group::counters`]); they disturb nobody. A peer that does not welcome this rank yet is dialled
/// again until the deadline; one at whose address nobody answers at all, for twice `detect`.
///
/// A peer of which nothing at all comes for `detect` is lost, as
/// [`LossReason::Silent`](crate::LossReason::Silent), although its connection stands; ranks that
/// have nothing to say tell each other so four times as often. All ranks of a world say the same
/// `detect`, which is a time in which no thread is held up and no packet is under way: below some
/// tens of milliseconds it finds busy machines rather than dead ones.
///
/// # Errors
/// [`Error::TimedOut`] with the ranks that are missing or cannot be reached, [`Error::Revoked`] when `revoker` (which
/// becomes the group's) is used meanwhile, [`Error::Invalid`] for arguments that fit no world or
/// a revoker of another group, [`Error::System`] when the system gives no socket or thread.
pub fn connect(
    listener: &Listener,
    world: World,
    peers: &[SocketAddr],
    token: Token,
    detect: Duration,
    revoker: &Revoker,
    deadline: Duration,
) -> Result<Group, Error> {
    let invalid = |what| Error::Invalid { what };
    if let Some(what) = world.problem() {
        return Err(invalid(what));
    }
    if peers.len() != world.len() {
        let (len, size) = (peers.len(), world.size);
        return Err(invalid(format!(
            "{len} addresses for a world of {size} ranks"
        )));
    }
    if detect.is_zero() {
        return Err(invalid("every peer is silent for no time".to_owned()));
    }
    if !revoker.claim() {
        return Err(invalid("the revoker belongs to another group".to_owned()));
    }
    let mut counters = Counters::default();
    if world.size == 1 {
        return Ok(group::alone(world, revoker.clone(), counters));
    }
    let door = mesh::Door {
        socket: &listener.socket,
        world,
        peers,
        token,
        detect,
    };
    let mut streams: Vec<Option<TcpStream>> = world.ranks().map(|_| None).collect();
    let opened = door.open(&mut streams, revoker, deadline, &mut counters);
    for stream in streams.iter().flatten() {
        stream
            .set_nonblocking(false)
            .map_err(Error::system("make a socket blocking"))?;
    }
    let links = link::Links::start(&world, streams, detect, &revoker.inbox())?;
    let group = Group::new(world, Box::new(links), revoker.clone(), counters);
    match opened {
        Ok(()) => Ok(group),
        // To those that are met already an end without a goodbye would look like a death.
        Err(error) => Err(group.give_up(error)),
    }
}
