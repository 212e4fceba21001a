//! Sends records to the worker and hears which of them are durable, beside training.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::{io, thread};

use muster_proto::{frame, v1};

use crate::shared::{Shared, Trouble};

/// Starts the two threads on the connection for records.
pub(crate) fn start(
    shared: &Arc<Shared>,
    records: Receiver<v1::StepRecord>,
    bulk: TcpStream,
) -> io::Result<()> {
    let reading = bulk.try_clone()?;
    let of_reader = Arc::clone(shared);
    thread::Builder::new()
        .name("acks".to_owned())
        .spawn(move || read_acks(&of_reader, reading))?;
    thread::Builder::new()
        .name("records".to_owned())
        .spawn(move || send(&records, bulk))?;
    Ok(())
}

fn send(records: &Receiver<v1::StepRecord>, mut bulk: TcpStream) {
    while let Ok(record) = records.recv() {
        let message = v1::FromRank {
            message: Some(v1::from_rank::Message::Record(record)),
        };
        if bulk.write_all(&frame::encode(&message)).is_err() {
            return;
        }
    }
}

fn read_acks(shared: &Shared, mut bulk: TcpStream) {
    loop {
        match frame::read::<v1::ToRank>(&mut bulk) {
            Ok(Some(v1::ToRank {
                message: Some(v1::to_rank::Message::Ack(ack)),
            })) => {
                let key = shared.key();
                if ack.job == key.job && ack.history == key.history {
                    shared.tell(|machine| machine.acked((ack.step, ack.evaluated)));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return shared.fail(Trouble::Lost),
            Err(error) => {
                tracing::warn!(%error, "the worker's connection for records failed");
                return shared.fail(Trouble::Lost);
            }
        }
    }
}
