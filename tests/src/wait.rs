//! Waiting for a state of other processes, which nobody tells of.

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` finds something.
///
/// # Panics
/// When it found nothing before the deadline; the text names `what` was awaited.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < deadline,
            "{what}: not so after {deadline:?}"
        );
        std::thread::sleep(PAUSE);
    }
}
