//! What the threads of a rank share: the machine that decides, what the coordinator ordered, and
//! the socket that reports go out on.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use muster_collective::Revoker;
use muster_proto::{frame, v1};
use muster_worker_core::rank::RankMachine;
use v1::rank_report::Report;

/// How a rank's work ends before its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// The worker is gone, or wants this rank to go.
    Lost,
    /// The world cannot go on; the ranks that are proved dead.
    Broken { lost: Vec<u32>, reason: String },
    /// The checkpoint to start from is not whole.
    Damaged {
        history: u64,
        step: u64,
        reason: String,
    },
    /// The job cannot go on anywhere.
    Failed(String),
}

#[derive(Debug, Default)]
struct Inner {
    machine: Option<RankMachine>,
    peers: Option<Vec<String>>,
    is_dismissed: bool,
    trouble: Option<Trouble>,
}

/// See above.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) key: v1::RankKey,
    /// Called when the worker is gone, before anything else is done about it.
    on_lost: fn(),
    /// Ends the collectives of this rank.
    pub(crate) revoker: Revoker,
    /// Whether this rank was told to stop; it travels on the next step's note.
    pub(crate) stop: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
    control: Mutex<TcpStream>,
}

/// Records that may wait for their acknowledgement; a rank that has more waits, too.
const MAX_UNACKED: usize = 65_536;

impl Shared {
    pub(crate) fn new(key: v1::RankKey, control: TcpStream, on_lost: fn()) -> Self {
        Self {
            key,
            on_lost,
            revoker: Revoker::default(),
            stop: AtomicBool::new(false),
            inner: Mutex::new(Inner::default()),
            changed: Condvar::new(),
            control: Mutex::new(control),
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

    /// Says something to the coordinator. When the worker is gone, the thread that reads notices.
    pub(crate) fn report(&self, report: Report) {
        let report = v1::RankReport {
            key: Some(self.key.clone()),
            report: Some(report),
        };
        let message = v1::FromRank {
            message: Some(v1::from_rank::Message::Report(report)),
        };
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = control.write_all(&frame::encode(&message));
    }

    /// The machine begins.
    pub(crate) fn begin(&self, machine: RankMachine) {
        self.lock().machine = Some(machine);
    }

    /// Tells the machine something, and sends the reports that follow from it.
    pub(crate) fn tell<T>(&self, tell: impl FnOnce(&mut RankMachine) -> T) -> Option<T> {
        let (told, reports) = {
            let mut inner = self.lock();
            let machine = inner.machine.as_mut()?;
            (tell(machine), machine.take_reports())
        };
        self.changed.notify_all();
        for report in reports {
            self.report(report);
        }
        Some(told)
    }

    /// Takes an order of the coordinator's. Orders that come again change nothing.
    pub(crate) fn take(&self, order: v1::rank_order::Order) -> Option<v1::CheckpointCommitted> {
        use v1::rank_order::Order;
        match order {
            Order::Peers(peers) => {
                self.lock().peers = Some(peers.addresses);
            }
            Order::Stop(_) => self.stop.store(true, Ordering::SeqCst),
            Order::Committed(committed) => {
                self.tell(|machine| machine.committed(committed.step));
                return Some(committed);
            }
            Order::Dismiss(_) => self.lock().is_dismissed = true,
        }
        self.changed.notify_all();
        None
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
        }
        self.revoker.revoke();
        self.changed.notify_all();
    }

    /// The trouble that came from another thread.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        self.lock().trouble.clone().map_or(Ok(()), Err)
    }

    /// Waits for the addresses of the peers.
    pub(crate) fn wait_for_peers(&self) -> Result<Vec<String>, Trouble> {
        let mut inner = self.lock();
        loop {
            if let Some(trouble) = &inner.trouble {
                return Err(trouble.clone());
            }
            if let Some(peers) = &inner.peers {
                return Ok(peers.clone());
            }
            inner = self.wait(inner);
        }
    }

    /// Waits while too many records are not acknowledged.
    pub(crate) fn wait_for_acks(&self) -> Result<(), Trouble> {
        let mut inner = self.lock();
        loop {
            if let Some(trouble) = &inner.trouble {
                return Err(trouble.clone());
            }
            if inner
                .machine
                .as_ref()
                .is_none_or(|machine| machine.num_unacked() < MAX_UNACKED)
            {
                return Ok(());
            }
            inner = self.wait(inner);
        }
    }

    /// Waits until the coordinator dismisses this rank.
    pub(crate) fn wait_for_dismissal(&self) -> Result<(), Trouble> {
        let mut inner = self.lock();
        loop {
            if inner.is_dismissed {
                return Ok(());
            }
            if let Some(trouble) = &inner.trouble {
                return Err(trouble.clone());
            }
            inner = self.wait(inner);
        }
    }

    /// Waits until the worker ends this rank; what it has to say, it has said.
    pub(crate) fn wait_for_the_end(&self) {
        let mut inner = self.lock();
        while inner.trouble != Some(Trouble::Lost) && !inner.is_dismissed {
            inner = self.wait(inner);
        }
    }
}
