//! The thread and its handle, over a line without a device.

use std::sync::atomic::AtomicU64;

use super::*;

const PATIENT: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(20);

/// What a test lets happen, and sees.
#[derive(Default)]
struct Scene {
    is_connected: AtomicBool,
    /// How many transfers may complete.
    may_complete: AtomicU64,
    num_begun: AtomicU64,
    fails: AtomicBool,
    /// An abort finds memory in use.
    is_stuck: AtomicBool,
    /// Does not come to a clean end.
    lingers: AtomicBool,
    was_aborted: AtomicBool,
    was_closed: AtomicBool,
}

struct Played(Arc<Scene>);

impl Line for Played {
    fn is_connected(&mut self) -> Result<bool, BulkError> {
        Ok(self.0.is_connected.load(Ordering::SeqCst))
    }

    fn begin(&mut self, _: &Transfer, _: &Stop) -> Result<(), BulkError> {
        self.0.num_begun.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn num_completed(&mut self) -> Result<u64, BulkError> {
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(BulkError::new("remote process exited"));
        }
        let may = self.0.may_complete.load(Ordering::SeqCst);
        Ok(may.min(self.0.num_begun.load(Ordering::SeqCst)))
    }

    fn abort(self) -> bool {
        self.0.was_aborted.store(true, Ordering::SeqCst);
        !self.0.is_stuck.load(Ordering::SeqCst)
    }

    fn close(self, stop: &Stop, _: Instant) -> bool {
        let mut pace = Pace::default();
        while self.0.lingers.load(Ordering::SeqCst) {
            if stop.is_set() {
                return self.abort();
            }
            pace.wait();
        }
        self.0.was_closed.store(true, Ordering::SeqCst);
        true
    }
}

fn started() -> (Owner, Arc<Scene>) {
    let scene = Arc::new(Scene::default());
    let line = Played(Arc::clone(&scene));
    (Owner::start(move |_| Ok(line)).expect("a thread"), scene)
}

fn connected() -> (Owner, Arc<Scene>) {
    let (owner, scene) = started();
    scene.is_connected.store(true, Ordering::SeqCst);
    assert_eq!(owner.wait_ready(PATIENT), Ok(true));
    (owner, scene)
}

fn transfer() -> Transfer {
    Transfer::Exchange(Vec::new())
}

#[test]
fn transfers_complete_in_order_and_a_clean_end_follows() {
    let (mut owner, scene) = connected();
    assert_eq!(owner.begin(transfer()), Ok(1));
    assert_eq!(owner.begin(transfer()), Ok(2));
    assert_eq!(owner.wait(1, SOON), Ok(false));
    scene.may_complete.store(1, Ordering::SeqCst);
    assert_eq!(owner.wait(1, PATIENT), Ok(true));
    assert_eq!(owner.wait(2, SOON), Ok(false));
    scene.may_complete.store(2, Ordering::SeqCst);
    assert_eq!(owner.wait(2, PATIENT), Ok(true));
    owner.close(PATIENT);
    assert!(scene.was_closed.load(Ordering::SeqCst));
    assert!(!scene.was_aborted.load(Ordering::SeqCst));
    assert!(owner.begin(transfer()).is_err(), "it was ended");
}

#[test]
fn an_abort_ends_whatever_is_waited_for() {
    let (mut owner, scene) = started();
    assert_eq!(owner.wait_ready(SOON), Ok(false));
    assert!(owner.abort(PATIENT), "while it connects");
    assert!(scene.was_aborted.load(Ordering::SeqCst));
    assert!(owner.wait_ready(SOON).is_err());

    let (mut owner, scene) = connected();
    assert_eq!(owner.begin(transfer()), Ok(1));
    assert!(owner.abort(PATIENT), "while a transfer is under way");
    assert!(scene.was_aborted.load(Ordering::SeqCst));
    assert!(owner.wait(1, SOON).is_err());

    let (mut owner, scene) = connected();
    assert!(owner.abort(PATIENT), "while there is nothing to do");
    assert!(scene.was_aborted.load(Ordering::SeqCst));
    assert!(owner.abort(PATIENT), "a second time");
}

#[test]
fn a_failure_is_told_and_memory_is_free_only_after_an_abort() {
    let (mut owner, scene) = connected();
    scene.fails.store(true, Ordering::SeqCst);
    assert_eq!(owner.begin(transfer()), Ok(1));
    let failure = BulkError::new("remote process exited");
    assert_eq!(owner.wait(1, PATIENT), Err(failure.clone()));
    assert_eq!(owner.begin(transfer()), Err(failure));
    assert!(!scene.was_aborted.load(Ordering::SeqCst));
    assert!(owner.abort(PATIENT));
    assert!(scene.was_aborted.load(Ordering::SeqCst));

    let refused = BulkError::new("there is no device 7");
    let theirs = refused.clone();
    let owner = Owner::start::<Played>(move |_| Err(theirs));
    let mut owner = owner.expect("a thread");
    assert_eq!(owner.wait_ready(PATIENT), Err(refused));
    assert!(owner.abort(PATIENT), "nothing was made");
}

#[test]
fn memory_in_use_is_not_called_free() {
    let (mut owner, scene) = connected();
    scene.is_stuck.store(true, Ordering::SeqCst);
    assert!(!owner.abort(PATIENT));

    let owner = Owner::start::<Played>(|_| panic!("a test's own panic"));
    let mut owner = owner.expect("a thread");
    assert!(!owner.abort(PATIENT), "a thread that is gone says nothing");
}

#[test]
fn a_clean_end_that_others_hold_up_becomes_an_abort() {
    let (mut owner, scene) = connected();
    scene.lingers.store(true, Ordering::SeqCst);
    owner.close(SOON);
    // The second wait of the end may be over before the thread has heard of it.
    assert!(owner.abort(PATIENT));
    assert!(scene.was_aborted.load(Ordering::SeqCst));
    assert!(!scene.was_closed.load(Ordering::SeqCst));
}
