//! What the threads of a rank share: the machine that decides, what the coordinator ordered, and
//! the sockets that reports and records go out on.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use muster_collective::Revoker;
use muster_proto::{frame, v1};
use muster_worker_core::rank::{Cause, RankMachine, RankPlan};
use v1::rank_report::Report;

use crate::follow::{Event, Mail, News};
use crate::records::ToBulk;
use crate::said::Said;

/// How a rank's work ends before its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// The worker is gone for too long.
    Lost,
    /// This world is closed: what comes next is another one.
    Closed,
    /// The checkpoint to start from is not whole.
    Damaged {
        history: u64,
        step: u64,
        reason: String,
    },
    /// This process cannot go on; another one may, perhaps on another machine.
    Fault(String),
    /// The job cannot go on anywhere.
    Failed(String),
    /// Nor here, since ranks have different results, and nobody can tell whose are right.
    Undecided { message: String, ranks: Vec<u32> },
}

#[derive(Debug)]
struct Inner {
    /// What this process is at present.
    key: v1::RankKey,
    machine: RankMachine,
    /// What another daemon of the worker has to hear again.
    said: Said,
    /// The world that it is to enter.
    assignment: Option<v1::Assignment>,
    /// Where the ranks of a world listen, and of which world.
    peers: Option<(u64, v1::Peers)>,
    /// Whom it is to follow while it waits, where it has not heard so yet; and what comes from them.
    follow: Option<v1::Follow>,
    mail: Mail,
    /// Ends the collectives of the world that it is part of.
    revoker: Option<Revoker>,
    /// Why the world is to be closed behind the step that runs.
    pause: Option<String>,
    is_dismissed: bool,
    /// A snapshot is being written.
    is_writing: bool,
    trouble: Option<Trouble>,
}

/// See above.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Called when the worker is gone for too long, before anything else is done about it.
    on_lost: fn(),
    /// Whether this rank was told to stop; it travels on the next step's note.
    pub(crate) stop: AtomicBool,
    /// Why vectors go over the host from now on, where what moves them between devices has failed here.
    refusal: OnceLock<String>,
    inner: Mutex<Inner>,
    changed: Condvar,
    control: Mutex<TcpStream>,
    records: Sender<ToBulk>,
}

/// Records that may wait for their acknowledgement; a rank that has more waits, too.
const MAX_UNACKED: usize = 65_536;

impl Shared {
    pub(crate) fn new(
        assignment: v1::Assignment,
        control: TcpStream,
        records: Sender<ToBulk>,
        on_lost: fn(),
    ) -> Self {
        let inner = Inner {
            key: assignment.key(),
            said: Said::default(),
            machine: RankMachine::new(assignment.generation),
            assignment: (assignment.generation > 0).then_some(assignment),
            peers: None,
            follow: None,
            mail: Mail::default(),
            revoker: None,
            pause: None,
            is_dismissed: false,
            is_writing: false,
            trouble: None,
        };
        Self {
            on_lost,
            stop: AtomicBool::new(false),
            refusal: OnceLock::new(),
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            control: Mutex::new(control),
            records,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What this process is at present.
    pub(crate) fn key(&self) -> v1::RankKey {
        self.lock().key.clone()
    }

    /// What this process is, as it was in an earlier world.
    pub(crate) fn key_in(&self, generation: u64) -> v1::RankKey {
        v1::RankKey {
            generation,
            ..self.key()
        }
    }

    /// Says something to the coordinator.
    pub(crate) fn report(&self, report: Report) {
        let key = {
            let mut inner = self.lock();
            let key = inner.key.clone();
            inner.said.keep(&key, &report);
            key
        };
        let report = v1::RankReport {
            key: Some(key),
            report: Some(report),
        };
        send(&mut self.control(), report);
    }

    /// Tells the coordinator of something that changes nothing. It may be lost with a connection.
    pub(crate) fn mention(&self, report: Report) {
        let report = v1::RankReport {
            key: Some(self.key()),
            report: Some(report),
        };
        send(&mut self.control(), report);
    }

    fn control(&self) -> MutexGuard<'_, TcpStream> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is another daemon of the worker: it hears again what counts.
    pub(crate) fn talk_to(&self, stream: TcpStream) {
        let mut control = self.control();
        *control = stream;
        // Whoever reports meanwhile has kept it, and says it once more behind this.
        let again = {
            let inner = self.lock();
            inner.said.again(&inner.key)
        };
        for report in again {
            send(&mut control, report);
        }
    }

    /// Records go to another daemon of the worker, from the first that is not acknowledged.
    pub(crate) fn record_to(&self, stream: TcpStream) {
        self.tell_inner(|inner| {
            // In the channel all that is sent anew is behind the connection, and all else before.
            let _ = self.records.send(ToBulk::Connection(stream));
            inner.machine.send_records_again();
        });
    }

    /// Tells the machine something, and sends the reports and records that follow from it. Where it
    /// closes the world, the collectives end.
    pub(crate) fn tell<T>(&self, tell: impl FnOnce(&mut RankMachine) -> T) -> T {
        self.tell_inner(|inner| tell(&mut inner.machine))
    }

    fn tell_inner<T>(&self, tell: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let told = tell(&mut inner);
        let key = inner.key.clone();
        let reports = inner.machine.take_reports();
        for report in &reports {
            inner.said.keep(&key, report);
        }
        // Under the lock, so that records keep their order; the channel takes them at once.
        for mut record in inner.machine.take_records() {
            // What came with a state was made by another process; it is this one that says it now.
            let is_own = |made: &v1::RankKey| made.process == inner.key.process;
            if !record.key.as_ref().is_some_and(is_own) {
                record.key = Some(inner.key.clone());
            }
            // The thread that sends them ends with the process.
            let _ = self.records.send(ToBulk::Record(record));
        }
        if !inner.machine.is_open()
            && let Some(revoker) = &inner.revoker
        {
            revoker.revoke();
        }
        drop(inner);
        self.changed.notify_all();
        for report in reports {
            let report = v1::RankReport {
                key: Some(key.clone()),
                report: Some(report),
            };
            send(&mut self.control(), report);
        }
        told
    }

    /// This world cannot go on.
    pub(crate) fn close(&self, generation: u64, cause: Cause) {
        self.tell(|machine| machine.close(generation, cause));
    }

    /// Enters a world, whose collectives `revoker` ends; `false` where it is closed already.
    pub(crate) fn enter(&self, plan: RankPlan, revoker: Revoker) -> bool {
        self.tell_inner(|inner| {
            inner.revoker = Some(revoker);
            inner.machine.enter(plan)
        })
    }

    /// Takes what the worker says.
    pub(crate) fn take(&self, message: v1::to_rank::Message) -> Option<v1::CheckpointCommitted> {
        use v1::to_rank::Message;
        match message {
            Message::Assignment(assignment) => {
                self.tell_inner(|inner| {
                    inner.key = assignment.key();
                    // Orders for this world follow it, and may come before it is entered.
                    inner.pause = None;
                    inner.said.enters(&inner.key);
                    inner.machine.assigned(assignment.generation);
                    inner.assignment = Some(assignment);
                });
                None
            }
            Message::Order(order) => self.take_order(order),
            Message::Ack(_) => None,
        }
    }

    /// Takes an order of the coordinator's. Orders that come again change nothing.
    fn take_order(&self, order: v1::RankOrder) -> Option<v1::CheckpointCommitted> {
        use v1::rank_order::Order;
        let generation = order.key?.generation;
        match order.order? {
            Order::Peers(peers) => self.lock().peers = Some((generation, peers)),
            Order::Follow(follow) => self.lock().follow = Some(follow),
            Order::Stop(_) => self.stop.store(true, Ordering::SeqCst),
            Order::Committed(committed) => {
                self.tell_inner(|inner| {
                    inner.said.committed(committed.step);
                    inner.machine.committed(committed.step);
                });
                return Some(committed);
            }
            Order::Dismiss(_) => self.lock().is_dismissed = true,
            Order::Close(close) => {
                let cause = Cause {
                    reason: close.reason,
                    ..Cause::default()
                };
                self.close(generation, cause);
            }
            Order::Pause(pause) => {
                let mut inner = self.lock();
                if inner.machine.generation() == generation {
                    inner.pause = Some(pause.reason);
                }
            }
        }
        self.changed.notify_all();
        None
    }

    /// Why the world is to be closed behind the step that runs, if it is.
    pub(crate) fn pause(&self) -> Option<String> {
        self.lock().pause.clone()
    }

    /// Has the vectors of later worlds go over the host; the first reason stays.
    pub(crate) fn refuse_devices(&self, why: &str) {
        let _ = self.refusal.set(why.to_owned());
    }

    /// Why they do, if they do.
    #[cfg(feature = "devices")]
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    /// Ends the rank's work; the first trouble counts, but that the worker is gone outweighs all.
    pub(crate) fn fail(&self, trouble: Trouble) {
        if trouble == Trouble::Lost {
            // No goodbye to the peers: a connection that just ends is the proof of death that they
            // can pass on.
            (self.on_lost)();
        }
        {
            let mut inner = self.lock();
            if inner.trouble.is_none() || trouble == Trouble::Lost {
                inner.trouble = Some(trouble);
            }
            if let Some(revoker) = &inner.revoker {
                revoker.revoke();
            }
        }
        self.changed.notify_all();
    }

    /// Whether the work may go on: no other thread is in trouble, and the world is not closed.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        let inner = self.lock();
        match &inner.trouble {
            Some(trouble) => Err(trouble.clone()),
            None if !inner.machine.is_open() => Err(Trouble::Closed),
            None => Ok(()),
        }
    }

    fn wait_until<T>(
        &self,
        mut ready: impl FnMut(&mut Inner) -> Option<Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let mut inner = self.lock();
        loop {
            if let Some(result) = ready(&mut inner) {
                return result;
            }
            if let Some(trouble) = &inner.trouble {
                return Err(trouble.clone());
            }
            inner = self.wait(inner);
        }
    }

    /// Waits for the next world, or for the dismissal (`None`).
    pub(crate) fn wait_for_world(&self) -> Result<Option<v1::Assignment>, Trouble> {
        self.wait_until(|inner| match inner.assignment.take() {
            Some(assignment) => Some(Ok(Some(assignment))),
            None => inner.is_dismissed.then_some(Ok(None)),
        })
    }

    /// Waits for the next thing that concerns a process that waits to enter a world.
    pub(crate) fn wait_for_news(&self) -> Result<News, Trouble> {
        let news = self.wait_until(|inner| {
            let mail = &inner.mail;
            let enters = inner
                .assignment
                .take_if(|assignment| !mail.brings(assignment.first_step));
            if let Some(assignment) = enters {
                return Some(Ok(News::World(assignment)));
            }
            if inner.is_dismissed {
                return Some(Ok(News::Dismissed));
            }
            let follow = inner.follow.take().map(News::Follow);
            let news = follow.or_else(|| inner.mail.take().map(News::Event));
            news.map(Ok)
        });
        // Somebody may wait for room.
        self.changed.notify_all();
        news
    }

    /// Puts an event into the mail of the thread that follows, and waits for room if need be; `false`
    /// where nobody reads it any more.
    pub(crate) fn offer(&self, event: Event) -> bool {
        let is_step = matches!(event, Event::Step { .. });
        let mut inner = self.lock();
        while is_step && inner.mail.is_full() && !inner.mail.is_closed() {
            inner = self.wait(inner);
        }
        let is_open = !inner.mail.is_closed();
        if is_open {
            inner.mail.put(event);
        }
        drop(inner);
        self.changed.notify_all();
        is_open
    }

    /// A step begins to arrive for the thread that follows.
    pub(crate) fn step_begins(&self, step: u64) {
        self.lock().mail.begins(step);
    }

    /// Nobody follows any more.
    pub(crate) fn close_mail(&self) {
        self.lock().mail.close();
        self.changed.notify_all();
    }

    /// Waits for the addresses of the peers.
    pub(crate) fn wait_for_peers(&self, generation: u64) -> Result<v1::Peers, Trouble> {
        self.wait_until(|inner| {
            if !inner.machine.is_open() {
                return Some(Err(Trouble::Closed));
            }
            let peers = inner.peers.as_ref().filter(|(of, _)| *of == generation);
            peers.map(|(_, peers)| Ok(peers.clone()))
        })
    }

    /// Waits until the thread that writes checkpoints is free, and takes it.
    pub(crate) fn wait_for_writer(&self) -> Result<(), Trouble> {
        self.wait_until(|inner| {
            if !inner.machine.is_open() {
                return Some(Err(Trouble::Closed));
            }
            (!std::mem::replace(&mut inner.is_writing, true)).then_some(Ok(()))
        })
    }

    /// The thread that writes checkpoints is free.
    pub(crate) fn writer_waits(&self) {
        self.lock().is_writing = false;
        self.changed.notify_all();
    }

    /// Waits while too many records are not acknowledged.
    pub(crate) fn wait_for_acks(&self) -> Result<(), Trouble> {
        self.wait_until(|inner| {
            if !inner.machine.is_open() {
                return Some(Err(Trouble::Closed));
            }
            (inner.machine.num_unacked() < MAX_UNACKED).then_some(Ok(()))
        })
    }

    /// Waits until the worker ends this rank; what it has to say, it has said.
    pub(crate) fn wait_for_the_end(&self) {
        let mut inner = self.lock();
        while inner.trouble != Some(Trouble::Lost) && !inner.is_dismissed {
            inner = self.wait(inner);
        }
    }
}

/// When the worker is gone, the thread that reads orders notices, and looks for another daemon.
fn send(control: &mut TcpStream, report: v1::RankReport) {
    let message = v1::FromRank {
        message: Some(v1::from_rank::Message::Report(report)),
    };
    let _ = control.write_all(&frame::encode(&message));
}
