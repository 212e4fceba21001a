//! The one task that owns the coordinator's machine: it feeds it, keeps its clock, and carries out
//! what it says. Decides nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use muster_cluster::command::{Command, RequestId};
use muster_coordinator_core::coordinator::TICK_MS;
use muster_coordinator_core::{Coordinator, Input, Now, Output, Reply, ReplyTo, Session};
use muster_proto::event::What;
use muster_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::records::{Records, RecordsError};
use crate::store::StoreError;
use crate::store::thread::{Batch, Report, StoreThread};

/// Calls that may wait for the driver.
const MAX_WAITING_CALLS: usize = 1024;

/// Orders that may wait for a slow worker. A stream that is further behind is ended.
const MAX_WAITING_ORDERS: usize = 1024;

/// Where a worker's orders go.
pub(crate) type Orders = mpsc::Sender<v1::to_worker::Message>;

/// Reads what it wants of the machine, and sends it where it wants.
pub(crate) type Look = Box<dyn FnOnce(&Coordinator, Now) + Send>;

/// What the services ask of the driver.
pub(crate) enum Call {
    /// For the machine.
    Input(Input),
    /// A worker's stream began with this.
    Hello {
        session: Session,
        hello: v1::WorkerHello,
        orders: Orders,
    },
    /// A client's command.
    Request {
        request: Option<RequestId>,
        command: Command,
        answer: oneshot::Sender<Reply>,
    },
    /// A look at what is.
    Look(Look),
}

/// What other threads report.
pub(crate) enum Note {
    Persisted(u64),
    StoreFailed(StoreError),
    RecordsFailed(RecordsError),
}

/// The services' end.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    calls: mpsc::Sender<Call>,
}

/// The driver has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended;

impl Handle {
    pub(crate) async fn call(&self, call: Call) -> Result<(), Ended> {
        self.calls.send(call).await.map_err(|_| Ended)
    }

    /// What a look at the machine gives.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator, Now) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (sender, receiver) = oneshot::channel();
        let look = move |coordinator: &Coordinator, now| {
            // The caller may have gone meanwhile.
            let _ = sender.send(look(coordinator, now));
        };
        self.call(Call::Look(Box::new(look))).await?;
        receiver.await.map_err(|_| Ended)
    }
}

/// A queue of orders for one stream.
pub(crate) fn orders() -> (Orders, mpsc::Receiver<v1::to_worker::Message>) {
    mpsc::channel(MAX_WAITING_ORDERS)
}

/// Why a driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The events cannot be written.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The machine refuses to go on.
    #[error("the replicated log contradicts itself: {0}")]
    Broken(String),
}

/// The task.
pub(crate) struct Driver {
    coordinator: Coordinator,
    store: StoreThread,
    records: Records,
    calls: mpsc::Receiver<Call>,
    notes: mpsc::UnboundedReceiver<Note>,
    start: Instant,
    sessions: BTreeMap<Session, Orders>,
    answers: BTreeMap<ReplyTo, oneshot::Sender<Reply>>,
    next_answer: u64,
    /// Who waits for the log to be replayed.
    looks: Vec<Look>,
}

impl Driver {
    /// A driver, the services' handle to it, and what the machine wants first.
    pub(crate) fn new(
        coordinator: Coordinator,
        records: Records,
        notes: mpsc::UnboundedReceiver<Note>,
        store: StoreThread,
    ) -> (Self, Handle) {
        let (calls, receiver) = mpsc::channel(MAX_WAITING_CALLS);
        let driver = Self {
            coordinator,
            store,
            records,
            calls: receiver,
            notes,
            start: Instant::now(),
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_answer: 1,
            looks: Vec::new(),
        };
        (driver, Handle { calls })
    }

    /// Runs until it is told to end, or cannot go on. `first` is what the machine said at its start.
    pub(crate) async fn run(
        mut self,
        first: Vec<Output>,
        shutdown: CancellationToken,
    ) -> Result<(), DriverError> {
        self.carry_out(first)?;
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        // A machine that was held up must see the gap, not a burst that hides it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(note) = self.notes.recv() => match note {
                    Note::Persisted(batch) => self.input(Input::Persisted { batch })?,
                    Note::StoreFailed(error) => return Err(error.into()),
                    Note::RecordsFailed(error) => return Err(error.into()),
                },
                _ = ticks.tick() => self.input(Input::Tick)?,
                Some(call) = self.calls.recv() => self.take(call)?,
            }
        }
        self.store.shutdown();
        Ok(())
    }

    fn take(&mut self, call: Call) -> Result<(), DriverError> {
        match call {
            Call::Input(input) => {
                if let Input::WorkerGone { session } = input {
                    self.sessions.remove(&session);
                }
                self.input(input)
            }
            Call::Hello {
                session,
                hello,
                orders,
            } => {
                self.sessions.insert(session, orders);
                self.input(Input::Hello { session, hello })
            }
            Call::Request {
                request,
                command,
                answer,
            } => {
                let reply_to = ReplyTo(self.next_answer);
                self.next_answer += 1;
                self.answers.insert(reply_to, answer);
                self.input(Input::Request {
                    reply_to,
                    request,
                    command,
                })
            }
            Call::Look(look) => {
                self.looks.push(look);
                self.show();
                Ok(())
            }
        }
    }

    fn now(&self) -> Now {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            monotonic_ms: millis(self.start.elapsed()),
            wall_ms: wall.map(millis).unwrap_or_default(),
        }
    }

    fn input(&mut self, input: Input) -> Result<(), DriverError> {
        let mut outputs = Vec::new();
        let now = self.now();
        self.coordinator.handle(input, now, &mut outputs);
        self.carry_out(outputs)?;
        self.show();
        Ok(())
    }

    /// Lets those who wait look at the machine, once its state is not an older one.
    fn show(&mut self) {
        if self.coordinator.is_leader() {
            let now = self.now();
            for look in self.looks.drain(..) {
                look(&self.coordinator, now);
            }
        }
    }

    fn carry_out(&mut self, outputs: Vec<Output>) -> Result<(), DriverError> {
        for output in outputs {
            match output {
                Output::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => {
                    // When the thread has ended, its last note says why.
                    let _ = self.store.write(Batch {
                        batch,
                        entries,
                        hard_state,
                        restore,
                    });
                }
                Output::Reply { reply_to, reply } => {
                    if let Some(answer) = self.answers.remove(&reply_to) {
                        // The client may have gone meanwhile.
                        let _ = answer.send(reply);
                    }
                }
                Output::ToWorker { session, message } => self.order(session, message),
                Output::Event { index, event } => {
                    let (job, history) = (&event.job, event.history);
                    match &event.what {
                        What::Step { step, .. } => {
                            tracing::debug!(job, history, step, "a step was applied");
                        }
                        what => tracing::info!(job, history, ?what, "news of a job"),
                    }
                    self.records.append(index, event);
                }
                Output::Ack(ack) => self.records.acknowledge(ack),
                Output::Broken { reason } => return Err(DriverError::Broken(reason)),
            }
        }
        Ok(())
    }

    /// Gives an order to a stream. A stream that is behind by a thousand orders is ended: the
    /// worker comes back and is told what holds then.
    fn order(&mut self, session: Session, message: v1::to_worker::Message) {
        let is_last = matches!(message, v1::to_worker::Message::Refused(_));
        let Some(orders) = self.sessions.get(&session) else {
            return;
        };
        let is_full = orders.try_send(message).is_err();
        if is_last || is_full {
            self.sessions.remove(&session);
        }
    }
}

/// What the store's thread reports, as a note to the driver.
pub(crate) fn note_of(report: Report) -> Note {
    match report {
        Report::Durable { batch } => Note::Persisted(batch),
        Report::Failed(error) => Note::StoreFailed(error),
    }
}
