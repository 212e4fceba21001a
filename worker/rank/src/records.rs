//! Sends the records of rank 0 and hears which of them are durable, beside training.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::SystemTime;
use std::{io, thread};

use muster_proto::{frame, v1};
use v1::step_record::Record;

use crate::shared::{Shared, Trouble};

/// The sending end.
#[derive(Debug)]
pub(crate) struct Records {
    shared: Arc<Shared>,
    records: Sender<v1::StepRecord>,
}

impl Records {
    /// Starts the two threads on the connection for records.
    pub(crate) fn start(shared: &Arc<Shared>, bulk: TcpStream) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let reading = bulk.try_clone()?;
        let of_reader = Arc::clone(shared);
        thread::Builder::new()
            .name("acks".to_owned())
            .spawn(move || read_acks(&of_reader, reading))?;
        thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || send(&receiver, bulk))?;
        Ok(Self {
            shared: Arc::clone(shared),
            records: sender,
        })
    }

    /// Sends a record; the machine knows of it until it is acknowledged.
    pub(crate) fn send(&self, record: Record) {
        let place = match &record {
            Record::Applied(applied) => (applied.step, false),
            Record::Evaluated(evaluated) => (evaluated.step, true),
        };
        self.shared
            .tell(|machine| machine.recorded(place.0, place.1));
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = since_epoch
            .map(|time| time.as_secs_f64())
            .unwrap_or_default();
        let record = v1::StepRecord {
            key: Some(self.shared.key.clone()),
            time,
            record: Some(record),
        };
        // When the worker is gone, the thread that reads orders ends the rank.
        let _ = self.records.send(record);
    }
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
                if ack.job == shared.key.job && ack.history == shared.key.history {
                    shared.tell(|machine| machine.acked(ack.step, ack.evaluated));
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
