//! Sends records to the worker and hears which of them are durable, beside training.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::{io, thread};

use muster_proto::{frame, v1};

use crate::door::{Door, Side};
use crate::shared::{Shared, Trouble};

/// What the thread that sends is handed.
#[derive(Debug)]
pub(crate) enum ToBulk {
    /// From here on records go to another connection.
    Connection(TcpStream),
    Record(v1::StepRecord),
}

/// Starts the two threads on the connection for records.
pub(crate) fn start(
    shared: &Arc<Shared>,
    records: Receiver<ToBulk>,
    bulk: TcpStream,
    door: Door,
) -> io::Result<()> {
    let reading = bulk.try_clone()?;
    let of_reader = Arc::clone(shared);
    thread::Builder::new()
        .name("acks".to_owned())
        .spawn(move || hear(&of_reader, reading, &door))?;
    thread::Builder::new()
        .name("records".to_owned())
        .spawn(move || send(&records, bulk))?;
    Ok(())
}

fn send(records: &Receiver<ToBulk>, bulk: TcpStream) {
    let mut bulk = Some(bulk);
    while let Ok(message) = records.recv() {
        let record = match message {
            ToBulk::Connection(stream) => {
                bulk = Some(stream);
                continue;
            }
            ToBulk::Record(record) => record,
        };
        let message = v1::FromRank {
            message: Some(v1::from_rank::Message::Record(record)),
        };
        // What does not arrive is not acknowledged, and sent again behind the next connection.
        let bytes = frame::encode(&message);
        bulk = bulk.and_then(|mut stream| stream.write_all(&bytes).ok().map(|()| stream));
    }
}

/// Hears acknowledgements from one daemon of the worker after another.
fn hear(shared: &Shared, mut bulk: TcpStream, door: &Door) {
    let mut visits = door.visits(Side::Bulk);
    loop {
        read_acks(shared, &mut bulk);
        let next = visits.next(&shared.key());
        let next = next.and_then(|stream| Some((stream.try_clone().ok()?, stream)));
        let Some((writing, reading)) = next else {
            return shared.fail(Trouble::Lost);
        };
        shared.record_to(writing);
        bulk = reading;
    }
}

/// Hears acknowledgements until the connection ends.
fn read_acks(shared: &Shared, bulk: &mut TcpStream) {
    loop {
        match frame::read::<v1::ToRank>(bulk) {
            Ok(Some(v1::ToRank {
                message: Some(v1::to_rank::Message::Ack(ack)),
            })) => {
                let key = shared.key();
                if ack.job == key.job && ack.history == key.history {
                    shared.tell(|machine| machine.acked((ack.step, ack.evaluated)));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the worker's connection for records failed");
                return;
            }
        }
    }
}
