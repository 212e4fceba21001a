//! Three coordinators that are started by hand: who leads, members that come and go, backups, and what
//! commands that wait print when the leader dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use muster_tests::{Group, Signal, eventually, leader_of};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);
const JOB: &str = "digits-mlp";

fn group() -> Group {
    Group::new(env!("CARGO_BIN_EXE_muster"), 3)
}

/// A job that has a few seconds to do.
fn submit(group: &Group) {
    let sets = ["train.steps=1500", "workers.max=1"];
    group.cluster.submit("mlp.toml", &sets);
}

fn member(status: &Value, id: u64) -> Option<Value> {
    let mut members = status["members"].as_array()?.iter();
    members.find(|member| member["id"] == id).cloned()
}

#[test]
fn the_status_names_the_leader_and_how_each_member_does() {
    let mut group = group();
    let leader = group.leader();
    group.agree(&[1, 2, 3]);
    let status = group.status().unwrap();
    let seen = leader_of(&status).unwrap();
    assert_eq!(seen["pid"], group.pid(leader), "{status:#}");
    assert!(seen["elected_why"].as_str() > Some(""), "{status:#}");
    for id in group.ids() {
        let one = member(&status, id).unwrap();
        assert_eq!(one["address"], group.address(id));
        assert_eq!((&one["kind"], &one["lag"]), (&"voter".into(), &0.into()));
        let role = if id == leader { "leader" } else { "follower" };
        assert_eq!(one["role"], role, "{status:#}");
        assert_eq!(one["term"], status["term"]);
        assert!(one["num_syncs"].as_u64() > Some(0), "{status:#}");
    }
    let text = group.cluster.text(&["coordinator", "status"]);
    assert!(text.contains(&format!("member {leader} leads")), "{text}");
    assert!(text.lines().all(|line| !line.contains("does not answer")));

    let dead = group.ids().into_iter().find(|id| *id != leader).unwrap();
    group.kill(dead);
    let text = group.cluster.text(&["coordinator", "status"]);
    let line = format!(
        "member {dead}  {}  voter  does not answer",
        group.address(dead)
    );
    assert!(text.contains(&line), "{text}");
    assert!(text.contains(&format!("member {leader} leads")), "{text}");
}

#[test]
fn the_lead_goes_where_it_is_told_to_and_not_to_a_member_that_is_dead() {
    let mut group = group();
    let first = group.leader();
    let [second, third] = [first % 3 + 1, (first + 1) % 3 + 1];
    let text = group
        .cluster
        .text(&["coordinator", "transfer", &second.to_string()]);
    assert!(text.contains("leads"), "{text}");
    assert_eq!(group.leader(), second);
    let status = group.status().unwrap();
    let why = leader_of(&status).unwrap()["elected_why"].as_str().unwrap();
    assert!(why.contains("hand"), "{why}");

    group.kill(third);
    let refused = |id: u64, words: &str| {
        let output = group
            .cluster
            .run(&["coordinator", "transfer", &id.to_string()]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    };
    refused(third, "has not taken the lead");
    refused(second, "leads already");
    refused(9, "its voters are 1, 2, 3");
    assert_eq!(group.leader(), second);
}

#[test]
fn a_machine_is_replaced_while_a_job_runs() {
    let mut group = group();
    group.cluster.start_worker("a", 1);
    submit(&group);
    let leader = group.leader();
    group.agree(&[1, 2, 3]);
    let gone = leader % 3 + 1;
    group.kill(gone);

    let address = group.free_address();
    let said = group.cluster.text(&["coordinator", "add", &address]);
    assert!(said.contains("member 4"), "{said}");
    let status = group.status().unwrap();
    assert_eq!(member(&status, 4).unwrap()["kind"], "learner", "{status:#}");
    group.expect(4, &address);
    group.start(4);
    eventually(DEADLINE, "its vote", || {
        let one = member(&group.status()?, 4)?;
        (one["kind"] == "voter").then_some(())
    });
    let said = group
        .cluster
        .text(&["coordinator", "remove", &gone.to_string()]);
    assert!(said.contains("3 voters"), "{said}");
    let kept: Vec<u64> = group.ids().into_iter().filter(|id| *id != gone).collect();
    let status = group.status().unwrap();
    let members = status["members"].as_array().unwrap().iter();
    let members: Vec<u64> = members.map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(members, kept);

    // The new member counts: with it two of the three are a majority.
    group.kill(leader);
    assert!(group.cluster.text(&["wait", JOB]).contains("completed"));
    let job = group.cluster.json(&["show", JOB, "--json"]);
    assert_eq!(job["worlds"].as_array().unwrap().len(), 1, "{job:#}");
    // It comes back, and is what it was.
    group.start(leader);
    group.agree(&kept);
}

#[test]
fn a_backup_of_a_running_group_begins_others() {
    let mut group = group();
    group.cluster.start_worker("a", 2);
    group.cluster.submit("mlp.toml", &["train.epochs=4"]);
    assert!(group.cluster.text(&["wait", JOB]).contains("completed"));
    let other = ["name=\"waits\"", "workers.min=8", "workers.max=8"];
    group.cluster.submit("mlp.toml", &other);
    let job = |group: &Group| group.cluster.json(&["show", JOB, "--json"]);
    let events = |group: &Group| group.cluster.text(&["logs", JOB, "--events"]);
    let ledger = |group: &Group| group.cluster.text(&["ledger", JOB, "--json"]);
    let backup = group.cluster.sandbox.path().join("backup");
    let backup = backup.display().to_string();
    let said = group.cluster.text(&["coordinator", "backup", &backup]);
    assert!(said.contains("holds all through entry"), "{said}");
    let before = (job(&group), events(&group), ledger(&group));
    let again = group.cluster.run(&["coordinator", "backup", &backup]);
    assert_eq!(again.status.code(), Some(2), "it is not written over");
    for id in group.ids() {
        group.kill(id);
    }

    for number in [3, 1] {
        let mut new = Group::addressed(env!("CARGO_BIN_EXE_muster"), number);
        for id in new.ids() {
            let restored = new.restore(id, &backup);
            assert!(restored.contains("2 jobs"), "{restored}");
        }
        new.start_all();
        let leader = new.leader();
        assert_eq!((job(&new), events(&new), ledger(&new)), before, "{number}");
        let verified = new.cluster.text(&["ledger", JOB, "--verify"]);
        assert!(verified.contains("verified up to step"), "{verified}");
        let waits = new.cluster.json(&["show", "waits", "--json"]);
        assert_eq!(waits["state"], "queued", "{waits:#}");
        // It is a group like any other: it takes jobs, and goes on without its leader.
        new.cluster.start_worker("b", 2);
        new.cluster
            .submit("mlp.toml", &["name=\"new\"", "train.epochs=4"]);
        if number == 3 {
            new.kill(leader);
        }
        assert!(new.cluster.text(&["wait", "new"]).contains("completed"));
    }
}

/// A command whose lines are read as they come.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // It ends with the pipe.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let seen = Vec::new();
        Self { child, lines, seen }
    }

    /// Reads until there are so many more lines.
    #[track_caller]
    fn read(&mut self, num: usize) {
        for _ in 0..num {
            let line = self.lines.recv_timeout(DEADLINE);
            self.seen.push(line.expect("another line"));
        }
    }

    /// Reads until the command ends, and returns all lines.
    fn rest(mut self) -> Vec<String> {
        let status = eventually(DEADLINE, "the end of a command", || {
            self.child.try_wait().unwrap()
        });
        assert!(status.success(), "{status}");
        self.seen.extend(self.lines.iter());
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn those_who_follow_a_job_see_all_of_it_though_its_leader_dies() {
    let mut group = group();
    group.cluster.start_worker("a", 1);
    let sets = [
        "train.steps=1500",
        "workers.max=1",
        "train.evaluate_every_steps=100",
    ];
    group.cluster.submit("mlp.toml", &sets);
    let follow = |arguments: &[&str]| {
        let mut command = group.cluster.sandbox.muster();
        command.args(arguments);
        Lines::of(command.args(["--coordinator", &group.cluster.address]))
    };
    let mut logs = follow(&["logs", JOB, "--follow", "--json"]);
    let mut events = follow(&["logs", JOB, "--follow", "--events"]);
    let wait = follow(&["wait", JOB]);
    // A rank prints little: these are lines as if it had printed them.
    let log = group.cluster.log_of_first_process("a");
    let print = |lines: &[&str]| {
        let mut log = File::options().append(true).open(&log).unwrap();
        log.write_all(format!("{}\n", lines.join("\n")).as_bytes())
            .unwrap();
    };
    let before = ["one", "two", "three"];
    print(&before);
    logs.read(before.len());
    events.read(20);
    let leader = group.leader();
    for id in group.ids() {
        let kept = group.data(id).join("logs").join(format!("{JOB}.jsonl"));
        eventually(DEADLINE, "the lines at every member", || {
            let kept = std::fs::read_to_string(&kept).ok()?;
            kept.contains("\"three\"").then_some(())
        });
    }
    let step_of = |group: &Group| group.cluster.json(&["show", JOB, "--json"])["step"].as_u64();
    let at = step_of(&group);
    group.kill(leader);
    eventually(DEADLINE, "steps behind the death", || {
        (step_of(&group) > at).then_some(())
    });
    let after = ["four", "five"];
    print(&after);
    logs.read(after.len());
    let job = group.cluster.json(&["show", JOB, "--json"]);
    assert_eq!(job["state"], "running", "the leader died in the middle");
    assert_eq!(wait.rest(), [format!("job {JOB}: completed")]);

    let text = group.cluster.text(&["logs", JOB, "--events"]);
    let all: Vec<&str> = text.lines().collect();
    events.read(all.len() - events.seen.len());
    assert_eq!(events.seen, all, "each event once, in their order");
    let parsed = all
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps = parsed.filter(|event| event["event"] == "step");
    let steps: Vec<u64> = steps.map(|event| event["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=1500).collect::<Vec<_>>());
    let text_of = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    let followed: Vec<String> = logs.seen.iter().map(|line| text_of(line)).collect();
    let printed = [&before[..], &after[..]].concat();
    assert_eq!(followed, printed, "each line once, in their order");
    let kept = group.cluster.text(&["logs", JOB, "--json"]);
    let kept: Vec<String> = kept.lines().take(printed.len()).map(text_of).collect();
    assert_eq!(kept, printed, "they are kept at the new leader, too");
}

#[test]
fn a_leader_that_is_stopped_and_wakes_answers_nothing_that_is_old() {
    let mut group = group();
    let first = group.leader();
    group.signal(first, Signal::STOP);
    let second = group.leader_but(first);
    group.cluster.submit("mlp.toml", &[]);
    group.signal(first, Signal::CONT);
    // It may have taken itself for the leader when it woke, and has asked the others before it says so.
    let seen = group.at_member(first, &["show", JOB, "--json"]);
    let stderr = String::from_utf8(seen.stderr).unwrap();
    assert!(seen.status.success(), "{stderr}");
    let job: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(job["state"], "queued");
    group.agree(&[1, 2, 3]);
    assert_eq!(group.leader(), second);
    group.kill(second);
    let _ = group.leader_but(second);
}
