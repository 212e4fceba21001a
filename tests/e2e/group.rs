//! Three coordinators that are started by hand: who leads, members that come and go, backups, and what
//! commands that wait print when the leader dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use muster_tests::{Group, Halts, Signal, eventually, leader_of};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);
const JOB: &str = "digits-mlp";

/// The step behind which a leader dies.
const DEATH: u64 = 200;

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

/// The leader, and a status in which it leads, and all others follow it and have all that it has.
fn settled(group: &Group) -> (u64, Value) {
    eventually(DEADLINE, "that all follow one", || {
        let status = group.status()?;
        let leader = leader_of(&status)?["id"].as_u64()?;
        let is_settled = |id: u64| {
            let one = member(&status, id)?;
            let role = if id == leader { "leader" } else { "follower" };
            let is_it = one["role"] == role && one["term"] == status["term"];
            (is_it && one["lag"] == 0).then_some(())
        };
        group.ids().into_iter().try_for_each(is_settled)?;
        Some((leader, status))
    })
}

#[test]
fn the_status_names_the_leader_and_how_each_member_does() {
    let mut group = group();
    let (leader, status) = settled(&group);
    let seen = leader_of(&status).unwrap();
    assert_eq!(seen["pid"], group.pid(leader), "{status:#}");
    assert!(seen["elected_why"].as_str() > Some(""), "{status:#}");
    for id in group.ids() {
        let one = member(&status, id).unwrap();
        assert_eq!(one["address"], group.address(id));
        assert_eq!(one["kind"], "voter");
        assert!(one["num_syncs"].as_u64() > Some(0), "{status:#}");
    }
    // One that does not run for a second does not answer.
    let text_of = |group: &Group, num_silent: usize| {
        eventually(DEADLINE, "who leads, in words", || {
            let text = || group.cluster.text(&["coordinator", "status"]);
            let (leader, text) = group.under_one_leader(|_| text());
            let is_right = text.contains(&format!("member {leader} leads"))
                && text.matches("does not answer").count() == num_silent;
            is_right.then_some(text)
        })
    };
    let _ = text_of(&group, 0);

    let dead = group.ids().into_iter().find(|id| *id != leader).unwrap();
    group.kill(dead);
    let text = text_of(&group, 1);
    let line = format!(
        "member {dead}  {}  voter  does not answer",
        group.address(dead)
    );
    assert!(text.contains(&line), "{text}");
}

#[test]
fn the_lead_goes_where_it_is_told_to_and_not_to_a_member_that_is_dead() {
    let mut group = group();
    let transfer = |group: &Group, to: u64| {
        let to = to.to_string();
        let arguments = ["coordinator", "transfer", &to, "--timeout", "30"];
        group.cluster.run(&arguments)
    };
    // One that does not run for a while is not followed by whom it names, but by whoever comes first.
    let (second, said, why) = eventually(DEADLINE, "that another one leads", || {
        let second = group.leader() % 3 + 1;
        let said = transfer(&group, second);
        let status = group.status()?;
        let leader = leader_of(&status)?;
        let is_done = said.status.success() && leader["id"] == second;
        let why = leader["elected_why"].as_str()?.to_owned();
        is_done.then_some((second, said, why))
    });
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains("leads"), "{text}");
    assert!(why.contains("hand"), "{why}");

    let third = second % 3 + 1;
    group.kill(third);
    let refused = |(_, said): (u64, Output), words: &str| {
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    };
    let to_dead = group.under_one_leader(|_| transfer(&group, third));
    refused(to_dead, "has not taken the lead");
    let to_itself = group.under_one_leader(|leader| transfer(&group, leader));
    refused(to_itself, "leads already");
    let to_nobody = group.under_one_leader(|_| transfer(&group, 9));
    refused(to_nobody, "its voters are 1, 2, 3");
}

/// Changes the group. One that leads no more when it is asked may refuse that, and another one is
/// asked.
#[track_caller]
fn change(group: &Group, arguments: &[&str]) -> String {
    let arguments = [&["coordinator"][..], arguments].concat();
    eventually(DEADLINE, "a change of the group", || {
        let said = group.cluster.run(&arguments);
        let stderr = String::from_utf8(said.stderr).unwrap();
        let is_too_soon = ["try again", "ask it", "answer"].map(|words| stderr.contains(words));
        let is_done = said.status.success();
        assert!(is_done || is_too_soon.contains(&true), "{stderr}");
        is_done.then(|| String::from_utf8(said.stdout).unwrap())
    })
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
    let said = change(&group, &["add", &address]);
    assert!(said.contains("member 4"), "{said}");
    // Whoever says who belongs to the group may hear of a change later.
    let of_4 = |group: &Group| member(&group.status()?, 4);
    let new = eventually(DEADLINE, "the new member", || of_4(&group));
    assert_eq!(new["kind"], "learner", "{new:#}");
    group.expect(4, &address);
    group.start(4);
    eventually(DEADLINE, "its vote", || {
        (of_4(&group)?["kind"] == "voter").then_some(())
    });
    let said = change(&group, &["remove", &gone.to_string()]);
    assert!(said.contains("3 voters"), "{said}");
    let kept: Vec<u64> = group.ids().into_iter().filter(|id| *id != gone).collect();
    eventually(DEADLINE, "a group without the one that is gone", || {
        let status = group.status()?;
        let members = status["members"].as_array()?.iter();
        let members: Vec<u64> = members.filter_map(|one| one["id"].as_u64()).collect();
        (members == kept).then_some(())
    });

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
    let (mut group, halts) = (group(), Halts::new());
    group.cluster.halted_by(&halts);
    group.cluster.start_worker("a", 1);
    // Where the leader dies, and where the job waits until all has been seen that it is to run for.
    let [at_death, last] = [DEATH, 1400].map(|step| halts.hold_at(0, step));
    // Checkpoints that wait to count until there is a leader would be lines of the rank's log.
    let sets = [
        "train.steps=1500",
        "workers.max=1",
        "train.evaluate_every_steps=100",
        "checkpoint.every_steps=1500",
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
    group.kill(leader);
    drop(at_death);
    // Told by the worker to the next one: what is printed before it knows of that one may be lost.
    eventually(DEADLINE, "steps behind the death", || {
        let job = group.cluster.json(&["show", JOB, "--json"]);
        (job["step"].as_u64() > Some(DEATH)).then_some(())
    });
    let after = ["four", "five"];
    print(&after);
    logs.read(after.len());
    let job = group.cluster.json(&["show", JOB, "--json"]);
    assert_eq!(job["state"], "running", "the leader died in the middle");
    drop(last);
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
    let _ = group.leader_but(first);
    group.cluster.submit("mlp.toml", &[]);
    let (second, ()) = group.under_one_leader(|_| {
        // Where it is done again, it runs.
        group.signal(first, Signal::STOP);
        let _ = group.leader_but(first);
        group.signal(first, Signal::CONT);
        // It may have taken itself for the leader when it woke, and has asked the others before it
        // says so.
        let seen = group.at_member(first, &["show", JOB, "--json"]);
        let stderr = String::from_utf8(seen.stderr).unwrap();
        assert!(seen.status.success(), "{stderr}");
        let job: Value = serde_json::from_slice(&seen.stdout).unwrap();
        assert_eq!(job["state"], "queued");
        group.agree(&[1, 2, 3]);
    });
    assert_ne!(second, first, "it does not disturb who leads");
    group.kill(second);
    let _ = group.leader_but(second);
}
