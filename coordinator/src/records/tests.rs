//! What a restart finds of the events, whole files, torn ones and damaged ones.

use muster_proto::event::What;

use super::*;

fn event(job: &str, step: u64) -> Event {
    let what = What::Damaged {
        step,
        reason: "a test".to_owned(),
    };
    Event {
        time: 1.0,
        job: job.to_owned(),
        history: 1,
        what,
    }
}

fn open(folder: &Path) -> (Records, Past) {
    Records::open(folder, |error| panic!("{error}")).unwrap()
}

/// Appends, and waits until it is durable.
fn append(records: &Records, index: Option<u64>, event: Event) {
    let mut acks = records.acks();
    records.append(index, event);
    let ack = v1::RecordAck::default();
    records.acknowledge(ack.clone());
    assert_eq!(acks.blocking_recv().unwrap(), ack);
}

#[test]
fn events_come_back_in_order_with_the_entries_they_tell_of() {
    let folder = tempfile::tempdir().unwrap();
    let (records, past) = open(folder.path());
    assert!(past.is_empty());
    append(&records, Some(7), event("job", 1));
    append(&records, None, event("job", 2));
    append(&records, None, event("other", 3));
    let (_, mut past) = open(folder.path());
    past.sort_by(|a, b| a.1.job.cmp(&b.1.job));
    assert_eq!(
        past,
        [
            (Some(7), event("job", 1)),
            (None, event("job", 2)),
            (None, event("other", 3))
        ]
    );
}

#[test]
fn an_event_is_shown_when_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    let (path, durable) = records.stream("job");
    assert_eq!(*durable.borrow(), Durable::default());
    append(&records, None, event("job", 1));
    assert_eq!(durable.borrow().bytes, fs::metadata(path).unwrap().len());
}

#[test]
fn a_torn_last_line_is_cut_off_and_written_over() {
    let folder = tempfile::tempdir().unwrap();
    append(&open(folder.path()).0, None, event("job", 1));
    let path = folder.path().join("job.jsonl");
    let whole = fs::read(&path).unwrap();
    for torn in 1..whole.len() {
        fs::write(&path, [&whole[..], &whole[..torn]].concat()).unwrap();
        let (records, past) = open(folder.path());
        assert_eq!(past.len(), 1, "{torn} bytes of a second line");
        append(&records, None, event("job", 2));
        assert_eq!(
            open(folder.path()).1,
            [(None, event("job", 1)), (None, event("job", 2))]
        );
    }
}

#[test]
fn a_damaged_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    append(&open(folder.path()).0, None, event("job", 1));
    let path = folder.path().join("job.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"event\":\"unknown\"}}\n{text}")).unwrap();
    let error = Records::open(folder.path(), |error| panic!("{error}"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("job.jsonl, line 2"), "{error}");
}
