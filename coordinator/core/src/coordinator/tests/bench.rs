//! A coordinator whose disk is a vector and whose workers are written down by the test. No test is
//! here.

use std::path::PathBuf;

use muster_cluster::command::Submission;
use muster_cluster::job::JobDraft;
use muster_cluster::shares::NUM_SHARES;
use muster_consensus::{Entry, HardState};
use muster_proto::event::Event;

use super::super::*;
use v1::from_worker::Message as From;
use v1::rank_report::Report;
use v1::to_worker::Message as To;

/// The only member of its group.
fn options() -> Options {
    let address = "127.0.0.1:4600".to_owned();
    Options {
        id: ReplicaId(1),
        address: address.clone(),
        store_id: [1; 16],
        cluster_id: [7; 16],
        founders: BTreeMap::from([(ReplicaId(1), address)]),
        moved: BTreeMap::new(),
        checkpoints: "/checkpoints".to_owned(),
    }
}

/// A coordinator with its disk and its clock.
pub(super) struct Bench {
    pub(super) coordinator: Coordinator,
    pub(super) now: Now,
    log: Vec<Entry>,
    hard_state: HardState,
    pub(super) events: Vec<Event>,
    pub(super) acks: Vec<v1::RecordAck>,
    pub(super) replies: Vec<Reply>,
    sent: Vec<(Session, To)>,
    next_session: u64,
}

impl Bench {
    pub(super) fn new() -> Self {
        let now = Now {
            monotonic_ms: 1_000,
            wall_ms: 1_700_000_000_000,
        };
        Self::start(now, Vec::new(), None)
    }

    fn start(now: Now, log: Vec<Entry>, hard_state: Option<HardState>) -> Self {
        let mut outputs = Vec::new();
        let genesis = Recovered::genesis([ReplicaId(1)]);
        let hard_state = hard_state.unwrap_or(genesis.hard_state);
        let recovered = Recovered {
            hard_state,
            entries: log.clone(),
            ..genesis
        };
        let coordinator = Coordinator::new(options(), recovered, None, &mut outputs).unwrap();
        let (acks, replies, sent) = (Vec::new(), Vec::new(), Vec::new());
        let mut bench = Self {
            coordinator,
            now,
            log,
            hard_state,
            events: Vec::new(),
            acks,
            replies,
            sent,
            next_session: 1,
        };
        bench.settle(outputs);
        bench
    }

    /// A coordinator that finds these entries in its log.
    pub(super) fn behind(entries: Vec<LogEntry>) -> Self {
        let now = Self::new().now;
        let entry = |(index, entry): (u64, LogEntry)| Entry {
            index,
            term: 1,
            kind: muster_consensus::EntryKind::Normal,
            data: entry.encode(),
        };
        let log: Vec<Entry> = (GENESIS_INDEX + 1..).zip(entries).map(entry).collect();
        let hard_state = HardState {
            term: 1,
            vote: 0,
            commit: GENESIS_INDEX + log.len() as u64,
        };
        Self::start(now, log, Some(hard_state))
    }

    /// The process ends, and another one starts from the same disk.
    pub(super) fn restart(self) -> Self {
        Self::start(self.now, self.log, Some(self.hard_state))
    }

    /// Does what the outputs ask for, and what that leads to.
    fn settle(&mut self, mut outputs: Vec<Output>) {
        while !outputs.is_empty() {
            let mut next = Vec::new();
            for output in outputs {
                match output {
                    Output::Persist {
                        batch,
                        entries,
                        hard_state,
                        ..
                    } => {
                        if let Some(first) = entries.first() {
                            self.log.truncate(usize::try_from(first.index - 2).unwrap());
                        }
                        self.log.extend(entries);
                        self.hard_state = hard_state.unwrap_or(self.hard_state);
                        self.coordinator
                            .handle(Input::Persisted { batch }, self.now, &mut next);
                    }
                    Output::Reply { reply, .. } => self.replies.push(reply),
                    Output::ToWorker { session, message } => self.sent.push((session, message)),
                    Output::Event { event, .. } => self.events.push(event),
                    Output::Ack(ack) => self.acks.push(ack),
                    Output::Leads(_) | Output::Members(_) => {}
                    Output::Send { .. }
                    | Output::SendSnapshot { .. }
                    | Output::Snapshot(_)
                    | Output::Discard { .. }
                    | Output::Restored { .. }
                    | Output::Readable { .. }
                    | Output::Removed => panic!("{output:?} in a group of one"),
                    Output::Broken { reason } => panic!("{reason}"),
                }
            }
            outputs = next;
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        self.inputs([input]);
    }

    pub(super) fn inputs(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let mut outputs = Vec::new();
        self.coordinator.handle_all(inputs, self.now, &mut outputs);
        self.settle(outputs);
    }

    /// Time goes on, with ticks that are on time; workers that are given show that they are there.
    pub(super) fn pass(&mut self, ms: u64, alive: &[Session]) {
        for _ in 0..ms / TICK_MS {
            self.now.monotonic_ms += TICK_MS;
            self.now.wall_ms += TICK_MS;
            for session in alive {
                self.say(*session, From::Heartbeat(v1::Heartbeat {}));
            }
            self.input(Input::Tick);
        }
    }

    pub(super) fn request(&mut self, request: u8, command: Command) -> Reply {
        let request = Some([request; 16]);
        self.input(Input::Request {
            reply_to: ReplyTo(9),
            request,
            command,
        });
        self.replies.pop().unwrap()
    }

    pub(super) fn hello(
        &mut self,
        worker: &str,
        incarnation: u64,
        ranks: Vec<v1::RunningRank>,
    ) -> Session {
        self.greet(worker, incarnation, ranks, Vec::new())
    }

    /// A worker that lends GPUs beside its slot.
    pub(super) fn hello_with(
        &mut self,
        worker: &str,
        incarnation: u64,
        gpus: Vec<v1::Gpu>,
    ) -> Session {
        self.greet(worker, incarnation, Vec::new(), gpus)
    }

    fn greet(
        &mut self,
        worker: &str,
        incarnation: u64,
        ranks: Vec<v1::RunningRank>,
        gpus: Vec<v1::Gpu>,
    ) -> Session {
        let session = Session(self.next_session);
        self.next_session += 1;
        let worker = v1::RegisterWorker {
            worker: worker.to_owned(),
            incarnation,
            num_devices: 1,
            class: Some(v1::NumericsClass::default()),
            host: "127.0.0.1".to_owned(),
            gpus,
        };
        let hello = v1::WorkerHello {
            worker: Some(worker),
            ranks,
        };
        self.input(Input::Hello { session, hello });
        session
    }

    pub(super) fn say(&mut self, session: Session, message: From) {
        self.input(Input::FromWorker { session, message });
    }

    pub(super) fn report(&mut self, session: Session, key: &v1::RankKey, report: Report) {
        let report = v1::RankReport {
            key: Some(key.clone()),
            report: Some(report),
        };
        self.say(session, From::Report(report));
    }

    /// The rank runs and listens.
    pub(super) fn ready(&mut self, session: Session, key: &v1::RankKey) {
        self.say(
            session,
            From::Started(v1::RankStarted {
                key: Some(key.clone()),
                pid: pid_of(key),
            }),
        );
        self.report(session, key, Report::Ready(ready_of(key)));
    }

    pub(super) fn step(&mut self, key: &v1::RankKey, step: u64) {
        let applied = v1::StepApplied {
            step,
            total_steps: 1000,
            wall_ms: 2.0,
            ..v1::StepApplied::default()
        };
        let record = Some(v1::step_record::Record::Applied(applied));
        self.input(Input::Record(v1::StepRecord {
            key: Some(key.clone()),
            time: 1.0,
            record,
        }));
    }

    /// Both files of a checkpoint, each from one of two ranks.
    pub(super) fn checkpoint(&mut self, ranks: &[(Session, v1::RankKey)], step: u64) {
        for (file, (session, key)) in ["optimizer", "params"].iter().zip(ranks.iter().cycle()) {
            let part = part(step, file, "arena");
            self.report(*session, key, Report::CheckpointPart(part));
        }
    }

    /// What was sent since the last call, to this stream.
    pub(super) fn sent_to(&mut self, session: Session) -> Vec<To> {
        let (mine, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|(to, _)| *to == session);
        self.sent = rest;
        mine.into_iter()
            .map(|(_, message): (Session, To)| message)
            .collect()
    }

    /// The newest assignment that was sent since the last call, to this stream.
    pub(super) fn assigned(&mut self, session: Session) -> Option<v1::Assignment> {
        self.sent_to(session)
            .into_iter()
            .rev()
            .find_map(|message| match message {
                To::Assignment(assignment) => Some(assignment),
                _ => None,
            })
    }

    /// The kinds of all events.
    pub(super) fn story(&self) -> Vec<String> {
        let kind = |event: &Event| {
            serde_json::to_value(event).unwrap()["event"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        self.events.iter().map(kind).collect()
    }
}

/// The number that the operating system of the bench gives a process.
pub(super) fn pid_of(key: &v1::RankKey) -> u32 {
    100 + u32::try_from(key.process).unwrap()
}

pub(super) fn address_of(key: &v1::RankKey) -> String {
    format!("127.0.0.1:{}", 4000 + key.process)
}

fn ready_of(key: &v1::RankKey) -> v1::Ready {
    v1::Ready {
        address: address_of(key),
        feed: feed_of(key.process),
    }
}

pub(super) fn feed_of(process: u64) -> String {
    format!("127.0.0.1:{}", 5000 + process)
}

pub(super) fn part(step: u64, file: &str, arena: &str) -> v1::CheckpointPart {
    v1::CheckpointPart {
        step,
        file: Some(v1::FileRef {
            name: format!("{step}.{file}"),
            bytes: 8,
            hash: "00".to_owned(),
        }),
        num_files: 2,
        folder: "/checkpoints/job".to_owned(),
        arena_hash: arena.to_owned(),
        share_digests: (0..NUM_SHARES).map(|share| (share, vec![7; 32])).collect(),
        ..v1::CheckpointPart::default()
    }
}

/// A rank closed its world at this step, and holds nothing of it.
pub(super) fn closed(step: Option<u64>, lost: &[u32], reason: &str) -> Report {
    Report::Closed(v1::Closed {
        lost: lost.to_vec(),
        reason: reason.to_owned(),
        holdings: Some(v1::Holdings {
            step,
            reduced: step.is_some_and(|step| step > 0),
            ..v1::Holdings::default()
        }),
        ..v1::Closed::default()
    })
}

/// A job on two workers.
pub(super) fn submit() -> Command {
    let text = include_str!("../../../../../examples/digits/mlp.toml");
    let set = [muster_cluster::job::Override::parse("workers.min=2").unwrap()];
    let draft = JobDraft::parse(text, "mlp.toml", "job", &set).unwrap();
    Command::submit(Submission {
        draft: draft.to_toml(),
        base_dir: PathBuf::from("/jobs"),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    })
}
