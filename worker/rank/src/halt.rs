//! Where a test may hold a rank up, to strike it or another process at a known moment. For tests
//! only: unless the environment names a listener in `MUSTER_RANK_HALT`, which nothing in real use
//! does, a point is passed without a look at anything.
//!
//! At each point the thread that comes to it connects, says one line, `process rank generation step
//! pid place` with a tab between two of them, and waits until the listener ends the connection.
//! The rank's other threads go on meanwhile, so that its peers do not take it for silent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

use muster_collective::OnSent;
use muster_proto::v1;
use v1::rank_order::Order;
use v1::to_rank::Message;

use crate::shared::Shared;

fn listener() -> Option<SocketAddr> {
    static LISTENER: OnceLock<Option<SocketAddr>> = OnceLock::new();
    *LISTENER.get_or_init(|| std::env::var("MUSTER_RANK_HALT").ok()?.parse().ok())
}

/// A point of a process that has no state yet.
pub(crate) fn without_state(key: &v1::RankKey, place: &str) {
    if let Some(listener) = listener() {
        halt(listener, key, 0, place);
    }
}

/// A point on the way of the checkpoint of a step.
pub(crate) fn of_checkpoint(shared: &Shared, step: u64, place: &str) {
    if let Some(listener) = listener() {
        halt(listener, &shared.key(), step, place);
    }
}

/// A point on the way from the step that is applied to the next one.
pub(crate) fn at(shared: &Shared, place: &str) {
    if let Some(listener) = listener() {
        let step = shared.tell(|machine| machine.step());
        halt(listener, &shared.key(), step, place);
    }
}

/// The point before the contribution of a shard is computed, such as `compute 3`.
pub(crate) fn at_shard(shared: &Shared, shard: u32) {
    if listener().is_some() {
        at(shared, &format!("compute {shard}"));
    }
}

/// The name of the point behind an order, where there is one.
pub(crate) fn name(message: &Message) -> Option<&'static str> {
    listener()?;
    let Message::Order(order) = message else {
        return None;
    };
    match order.order.as_ref()? {
        Order::Peers(_) => Some("told peers"),
        Order::Close(_) => Some("told to close"),
        Order::Pause(_) => Some("told to pause"),
        Order::Stop(_) => Some("told to stop"),
        Order::Committed(_) | Order::Dismiss(_) | Order::Follow(_) => None,
    }
}

/// A point behind every frame of a collective, the first of which are `sent 1 to R`, `sent 2 to R`.
pub(crate) fn behind_frames(shared: &Arc<Shared>) -> Option<OnSent> {
    listener()?;
    let shared = Arc::clone(shared);
    Some(OnSent::new(move |number, to| {
        at(&shared, &format!("sent {number} to {to}"));
    }))
}

fn halt(listener: SocketAddr, key: &v1::RankKey, step: u64, place: &str) {
    // Where nobody listens any more, nobody wants it held.
    let Ok(mut stream) = TcpStream::connect(listener) else {
        return;
    };
    let v1::RankKey {
        process,
        rank,
        generation,
        ..
    } = key;
    let pid = std::process::id();
    let line = format!("{process}\t{rank}\t{generation}\t{step}\t{pid}\t{place}\n");
    if stream.write_all(line.as_bytes()).is_ok() {
        let _ = stream.read(&mut [0]);
    }
}
