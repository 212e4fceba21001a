//! The one task that owns the agent: it feeds it with what the other tasks note, and carries out
//! what it says. It also keeps the records that the coordinator has not acknowledged, and the roster
//! of the processes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_proto::v1;
use muster_worker_core::agent::records::Unacked;
use muster_worker_core::agent::{Agent, Input, Output, Place, place};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use v1::from_worker::Message as ToCoordinator;
use v1::to_worker::Message as FromCoordinator;

use crate::alive::Handle;
use crate::child::{self, Care};
use crate::roster::{Entry, Exit, Roster};
use crate::run::Error;

/// How often the worker shows that it is there, until the coordinator says otherwise.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// How long processes that an earlier daemon started may take to come back before the coordinator
/// hears of this one.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the coordinator may take to read a worker's last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the ranks' lines go.
#[derive(Clone, Debug)]
pub(crate) struct Lines(pub(crate) mpsc::Sender<v1::LogLine>);

/// Where the other tasks note what happened. What waits is bounded by what they wait for: few
/// orders, and records that a rank stops making when too many are not acknowledged.
pub(crate) type Notes = mpsc::UnboundedSender<Note>;

/// What the other tasks note.
pub(crate) enum Note {
    Connected {
        control: mpsc::UnboundedSender<ToCoordinator>,
        records: mpsc::UnboundedSender<v1::StepRecord>,
    },
    /// The coordinator takes lines.
    Listens(Lines),
    Disconnected,
    FromCoordinator(FromCoordinator),
    Ack(v1::RecordAck),
    Knock {
        key: v1::RankKey,
        token: Vec<u8>,
        is_bulk: bool,
        /// Whether it has had no assignment yet.
        is_new: bool,
        sender: mpsc::UnboundedSender<v1::to_rank::Message>,
        admitted: oneshot::Sender<bool>,
    },
    FromRank(v1::RankReport),
    Record(v1::StepRecord),
    /// Something that no rank of ours says came in at the door.
    Stranger,
    Started {
        key: v1::RankKey,
        pid: u32,
    },
    Exited(v1::RankExited),
}

/// How ranks are started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    /// The file that tells where the door is.
    pub(crate) door: PathBuf,
    pub(crate) host: IpAddr,
    pub(crate) threads: usize,
    pub(crate) tree: bool,
    /// How long a rank goes on without its worker.
    pub(crate) orphan: Duration,
    /// The numbers of the GPUs that this worker sees, by index, where it lends any.
    pub(crate) gpus: Vec<String>,
    /// Whether several ranks have one GPU.
    pub(crate) shares_gpus: bool,
    pub(crate) logs: PathBuf,
    pub(crate) roster: Arc<Roster>,
}

/// One process, as the hub holds it.
struct Process {
    /// What it was told to be.
    key: watch::Sender<v1::RankKey>,
    token: String,
    kill: CancellationToken,
    control: Option<mpsc::UnboundedSender<v1::to_rank::Message>>,
    bulk: Option<mpsc::UnboundedSender<v1::to_rank::Message>>,
    /// An earlier daemon started it, and it has not come back yet.
    is_away: bool,
}

impl Process {
    fn new(key: v1::RankKey, token: String) -> Self {
        Self {
            key: watch::Sender::new(key),
            token,
            kill: CancellationToken::new(),
            control: None,
            bulk: None,
            is_away: false,
        }
    }
}

/// The task.
pub(crate) struct Hub {
    agent: Agent,
    start: Start,
    notes: Notes,
    processes: BTreeMap<Place, Process>,
    unacked: Unacked,
    control: Option<mpsc::UnboundedSender<ToCoordinator>>,
    records: Option<mpsc::UnboundedSender<v1::StepRecord>>,
    lines: watch::Sender<Option<Lines>>,
    heartbeat: Duration,
    /// Cancelled when the coordinator may hear which processes run here: one that is not there yet
    /// would read as one that is no more.
    is_complete: CancellationToken,
    num_strangers: u64,
    refused: Option<String>,
}

impl Hub {
    pub(crate) fn new(worker: v1::RegisterWorker, start: Start, notes: Notes) -> Self {
        Self {
            agent: Agent::new(worker),
            start,
            notes,
            processes: BTreeMap::new(),
            unacked: Unacked::default(),
            control: None,
            records: None,
            lines: watch::Sender::new(None),
            heartbeat: HEARTBEAT,
            is_complete: CancellationToken::new(),
            num_strangers: 0,
            refused: None,
        }
    }

    /// Cancelled when the coordinator may hear which processes run here.
    pub(crate) fn is_complete(&self) -> CancellationToken {
        self.is_complete.clone()
    }

    /// Takes a process of an earlier daemon over; one without a handle has ended.
    pub(crate) fn adopt(&mut self, entry: Entry, handle: Option<Handle>) {
        let Entry { key, token, .. } = entry;
        let pid = handle.as_ref().map(Handle::pid);
        self.input(Input::Adopted {
            key: key.clone(),
            pid: pid.unwrap_or_default(),
        });
        let mut process = Process::new(key.clone(), token);
        process.is_away = true;
        let adopted = child::adopt(
            self.care(&process),
            self.start.clone(),
            handle,
            entry.exited,
        );
        self.processes.insert(place(&key), process);
        tokio::spawn(adopted);
    }

    fn care(&self, process: &Process) -> Care {
        Care {
            present: process.key.subscribe(),
            kill: process.kill.clone(),
            lines: self.lines.subscribe(),
            notes: self.notes.clone(),
        }
    }

    /// Runs until `shutdown` or a refusal; all processes have ended then.
    pub(crate) async fn run(
        mut self,
        mut notes: mpsc::UnboundedReceiver<Note>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut beats = tokio::time::interval(self.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = std::pin::pin!(tokio::time::sleep(RETURN_TIMEOUT));
        loop {
            if !self.processes.values().any(|process| process.is_away) {
                self.is_complete.cancel();
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = &mut patience, if !self.is_complete.is_cancelled() => {
                    tracing::warn!("ranks of the daemon before this one did not come back yet");
                    self.is_complete.cancel();
                }
                _ = beats.tick() => self.beat(),
                Some(note) = notes.recv() => self.take(note),
            }
            if beats.period() != self.heartbeat {
                beats = tokio::time::interval(self.heartbeat);
                beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            if self.refused.is_some() {
                break;
            }
        }
        self.input(Input::Shutdown);
        while !self.processes.is_empty() {
            let Some(note) = notes.recv().await else {
                break;
            };
            if matches!(note, Note::Exited(_) | Note::Disconnected) {
                self.take(note);
            }
        }
        self.say_goodbye(&mut notes).await;
        self.refused
            .map_or(Ok(()), |reason| Err(Error::Refused(reason)))
    }

    /// Closes the streams, and waits until the coordinator has read all that was said.
    async fn say_goodbye(&mut self, notes: &mut mpsc::UnboundedReceiver<Note>) {
        let was_connected = self.control.take().is_some();
        self.records = None;
        self.lines.send_replace(None);
        let end = async {
            while was_connected && !matches!(notes.recv().await, Some(Note::Disconnected) | None) {}
        };
        if tokio::time::timeout(GOODBYE_TIMEOUT, end).await.is_err() {
            tracing::warn!(
                "the coordinator did not close the stream; it may learn late that this worker ended"
            );
        }
    }

    fn beat(&mut self) {
        if let Some(control) = &self.control {
            // When the stream has ended, a note says so.
            let _ = control.send(ToCoordinator::Heartbeat(v1::Heartbeat {}));
        }
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Connected { control, records } => {
                for record in self.unacked.iter() {
                    let _ = records.send(record.clone());
                }
                self.control = Some(control);
                self.records = Some(records);
                self.input(Input::Connected);
            }
            Note::Listens(lines) => {
                self.lines.send_replace(Some(lines));
            }
            Note::Disconnected => {
                self.control = None;
                self.records = None;
                self.lines.send_replace(None);
                self.input(Input::Disconnected);
            }
            Note::FromCoordinator(message) => {
                if let FromCoordinator::Welcome(welcome) = &message {
                    self.heartbeat = Duration::from_millis(welcome.heartbeat_ms.max(1));
                }
                self.input(Input::FromCoordinator(message));
            }
            Note::Ack(ack) => self.acknowledged(&ack),
            Note::Knock {
                key,
                token,
                is_bulk,
                is_new,
                sender,
                admitted,
            } => {
                let is_known = self.admit(&key, &token, is_bulk, sender);
                let _ = admitted.send(is_known);
                if is_known && !is_bulk {
                    self.input(if is_new {
                        Input::RankConnected(key)
                    } else {
                        Input::RankReturned(key)
                    });
                }
            }
            Note::FromRank(report) => self.input(Input::FromRank(report)),
            Note::Record(record) => {
                if self.unacked.keep(&record)
                    && let Some(records) = &self.records
                {
                    let _ = records.send(record);
                }
            }
            Note::Stranger => {
                self.num_strangers += 1;
                tracing::debug!(count = self.num_strangers, "refused at the ranks' port");
            }
            Note::Started { key, pid } => self.input(Input::Started { key, pid }),
            Note::Exited(exited) => {
                let place = exited.key.as_ref().map(place);
                if let Some(process) = place.and_then(|place| self.processes.remove(&place)) {
                    let key = process.key.borrow();
                    tracing::info!(
                        job = key.job,
                        process = key.process,
                        generation = key.generation,
                        rank = key.rank,
                        reason = exited.reason,
                        "a rank ended"
                    );
                    let exit = Exit {
                        reason: exited.reason.clone(),
                        log_tail: exited.log_tail.clone(),
                    };
                    self.start
                        .roster
                        .ended(&(key.job.clone(), key.process), exit);
                }
                self.input(Input::Exited(exited));
            }
        }
    }

    fn input(&mut self, input: Input) {
        let mut outputs = Vec::new();
        let num_refused = self.agent.num_refused();
        self.agent.handle(input, &mut outputs);
        if self.agent.num_refused() != num_refused {
            let count = self.agent.num_refused();
            tracing::warn!(
                count,
                "ignored a message for or of a rank that does not run here, or is in another world"
            );
        }
        for output in outputs {
            self.carry_out(output);
        }
        self.start.roster.keep(|place| self.agent.knows(place));
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Start(key, cuda) => self.start_rank(key, cuda),
            Output::Kill(key) => {
                if let Some(process) = self.processes.get(&place(&key)) {
                    process.kill.cancel();
                }
            }
            Output::ToRank(key, message) => {
                let process = self.processes.get(&place(&key));
                if let Some((process, control)) =
                    process.and_then(|process| Some((process, process.control.as_ref()?)))
                {
                    // Written down first: a history that the next daemon does not know would hide
                    // the end of this process.
                    self.start.roster.told(&key);
                    process.key.send_replace(key);
                    // When the rank is gone, its exit is noted.
                    let _ = control.send(message);
                }
            }
            Output::ToCoordinator(message) => {
                if let Some(control) = &self.control {
                    let _ = control.send(message);
                }
            }
            Output::Refused(reason) => self.refused = Some(reason),
        }
    }

    fn start_rank(&mut self, key: v1::RankKey, cuda: Option<u32>) {
        let token = match token() {
            Ok(token) => token,
            Err(error) => {
                let reason = format!("could not be started: /dev/urandom: {error}");
                let exited = v1::RankExited {
                    key: Some(key),
                    reason,
                    log_tail: String::new(),
                };
                return self.input(Input::Exited(exited));
            }
        };
        let process = Process::new(key.clone(), token);
        let care = self.care(&process);
        let run = child::run(care, process.token.clone(), cuda, self.start.clone());
        self.processes.insert(place(&key), process);
        tokio::spawn(run);
    }

    fn admit(
        &mut self,
        key: &v1::RankKey,
        token: &[u8],
        is_bulk: bool,
        sender: mpsc::UnboundedSender<v1::to_rank::Message>,
    ) -> bool {
        let process = self.processes.get_mut(&place(key));
        let Some(process) = process.filter(|process| process.token.as_bytes() == token) else {
            return false;
        };
        // Only the process itself knows its token: it comes again when its last connection ended.
        if is_bulk {
            process.bulk = Some(sender);
        } else {
            process.control = Some(sender);
            process.is_away = false;
            process.key.send_if_modified(|known| {
                let is_news = known != key;
                known.clone_from(key);
                is_news
            });
        }
        true
    }

    /// Tells every process of the history: each may become the one that sends the records.
    fn acknowledged(&mut self, ack: &v1::RecordAck) {
        self.unacked.acknowledged(ack);
        let of_history = |process: &&Process| {
            let key = process.key.borrow();
            key.job == ack.job && key.history == ack.history
        };
        for process in self.processes.values().filter(of_history) {
            if let Some(bulk) = &process.bulk {
                let _ = bulk.send(v1::to_rank::Message::Ack(ack.clone()));
            }
        }
    }
}

/// What a rank shows at the door, in hex.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests;
