//! The harness itself, with `/bin/sh` in the place of `muster`: `sh train job.toml --json` runs a
//! script named `train`, which each test writes.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use muster_tests::{Sandbox, Signal, eventually, processes_of};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

fn sandbox(script: &str) -> Sandbox {
    let sandbox = Sandbox::new("/bin/sh");
    std::fs::write(sandbox.path().join("train"), script).unwrap();
    sandbox
}

fn panic_of(act: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(act)).unwrap_err();
    *panic.downcast::<String>().unwrap()
}

#[test]
fn events_errors_and_the_status_are_handed_over() {
    let sandbox = sandbox(
        r#"printf '{"args":"%s"}\n' "$*"
        printf '{"state":"%s","folder":"%s"}\n' "$MUSTER_STATE" "$PWD"
        echo 'a word for people' >&2
        exit 3"#,
    );
    let train = sandbox
        .train("job.toml")
        .workers(2)
        .set("train.steps=5")
        .start();
    let event = train.wait_for(|event| event["state"].is_string(), LONG);
    assert_eq!(event["state"], json!(sandbox.state_dir()));
    assert_eq!(
        event["folder"],
        json!(sandbox.path().canonicalize().unwrap())
    );
    let finished = train.finish();
    assert_eq!(finished.status.code(), Some(3));
    assert_eq!(
        finished.events[0],
        json!({"args": "job.toml --json --workers 2 --set train.steps=5 --detect-ms 10000"})
    );
    assert_eq!(finished.events.len(), 2);
    assert_eq!(finished.stderr, "a word for people\n");
}

#[test]
fn a_sandbox_holds_the_example_and_an_empty_state_folder() {
    let sandbox = Sandbox::new("/bin/sh");
    for file in ["job.toml", "mlp.toml", "digits.csv.gz"] {
        assert!(sandbox.path().join(file).is_file(), "{file}");
    }
    assert_eq!(std::fs::read_dir(sandbox.state_dir()).unwrap().count(), 0);
}

#[test]
fn a_dropped_run_takes_its_orphans_along_and_no_process_of_another_sandbox() {
    // The middle shell ends, so that the last one has lost its parent.
    let script = r#"sh -c 'sh -c "echo {\\\"orphan\\\":\$\$}; exec sleep 1000" & exit'
        exec sleep 1000"#;
    let (mine, other) = (sandbox(script), sandbox(script));
    let others = other.train("job.toml").start();
    others.wait_for(|event| event["orphan"].is_u64(), LONG);
    let train = mine.train("job.toml").start();
    let orphan = train.wait_for(|event| event["orphan"].is_u64(), LONG)["orphan"]
        .as_u64()
        .unwrap();
    let both = eventually(LONG, "the root and the orphan", || {
        let found = processes_of(&mine);
        let sleep = found
            .iter()
            .filter(|(_, command)| command == "sleep 1000")
            .count();
        (found.len() == 2 && sleep == 2).then_some(found)
    });
    assert!(
        both.iter().any(|(pid, _)| u64::from(*pid) == orphan),
        "{both:?}"
    );
    assert!(both.iter().any(|(pid, _)| *pid == train.pid()), "{both:?}");
    eventually(LONG, "the other root and its orphan", || {
        (processes_of(&other).len() == 2).then_some(())
    });
    drop(train);
    assert_eq!(processes_of(&mine), []);
    assert_eq!(processes_of(&other).len(), 2);
}

#[test]
fn an_interrupt_reaches_the_process_that_was_started() {
    let sandbox = sandbox(
        r#"trap 'echo "{\"event\":\"interrupted\"}"; kill $!; exit 130' INT
        sleep 1000 & echo '{"event":"ready"}'
        wait"#,
    );
    let train = sandbox.train("job.toml").start();
    train.wait_for(|event| event["event"] == "ready", LONG);
    train.interrupt();
    let finished = train.finish();
    assert_eq!(finished.status.code(), Some(130));
    assert_eq!(
        finished.events.last(),
        Some(&json!({"event": "interrupted"}))
    );
}

#[test]
fn a_failed_wait_tells_all_that_was_said() {
    let sandbox = sandbox(r#"echo '{"event":"only"}'; echo 'why it ended' >&2"#);
    let train = sandbox.train("job.toml").start();
    // Both pipes are read by threads of their own; the message is complete once both have ended.
    let text = eventually(LONG, "a message with both", || {
        let text = panic_of(|| drop(train.wait_for(|_| false, LONG)));
        text.contains("why it ended").then_some(text)
    });
    assert!(
        text.starts_with("the output ended before the event came"),
        "{text}"
    );
    assert!(text.contains(r#"{"event":"only"}"#), "{text}");
}

#[test]
fn a_line_that_is_no_json_fails_the_run() {
    let sandbox = sandbox("echo 'hello, people'");
    let train = sandbox.train("job.toml").start();
    let text = panic_of(|| drop(train.finish()));
    assert!(text.contains("hello, people"), "{text}");
}

#[test]
fn a_run_that_goes_on_fails_and_is_killed() {
    let sandbox = sandbox("echo '{}'; exec sleep 1000");
    let train = sandbox.train("job.toml").start();
    train.wait_for(Value::is_object, LONG);
    let text = panic_of(|| drop(train.finish_within(Duration::ZERO)));
    assert!(text.starts_with("the program goes on"), "{text}");
    assert_eq!(processes_of(&sandbox), []);
}

#[test]
fn a_stranger_is_never_signalled() {
    let sandbox = Sandbox::new("/bin/sh");
    let text = panic_of(|| sandbox.kill(std::process::id(), Signal::KILL));
    assert!(text.contains("none of the sandbox's"), "{text}");
}
