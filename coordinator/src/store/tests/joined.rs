//! Batches that share a sync.

use super::*;

#[test]
fn waiting_batches_leave_the_log_that_each_alone_would_leave() {
    let folder = tempfile::tempdir().unwrap();
    let (thread, open_gate, reports) = gated_thread(folder.path());
    thread.write(batch(1, entries(1..=5, 1))).unwrap();
    reports.recv().unwrap().0.unwrap();
    let promise = |batch, term| Batch {
        hard_state: Some(hard_state(term)),
        ..self::batch(batch, Vec::new())
    };
    // A promise, another tail, its continuation, and a tail of that one.
    let waiting = [
        promise(2, 2),
        batch(3, entries(4..=5, 2)),
        batch(4, entries(6..=7, 2)),
        promise(5, 3),
        batch(6, entries(6..=6, 3)),
    ];
    for batch in waiting {
        thread.write(batch).unwrap();
    }
    drop(open_gate);
    let after: Vec<_> = reports.iter().take(5).map(|(batch, _)| batch).collect();
    assert_eq!(after, (2..=6).map(Ok).collect::<Vec<_>>());
    thread.shutdown();
    let recovered = reopen(folder.path()).unwrap();
    let expected = [entries(1..=3, 1), entries(4..=5, 2), entries(6..=6, 3)];
    assert_eq!(recovered.entries, expected.concat());
    assert_eq!(recovered.hard_state, hard_state(3));
}
