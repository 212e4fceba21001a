//! Coordinators that cannot reach each other, in network namespaces: a leader that is cut off from
//! everybody, and a worker that reaches nobody but a leader of old.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use muster_tests::{Group, Halts, Held, Hold, Machine, Network, Sandbox, eventually};
use serde_json::Value;

const JOB: &str = "digits";
const STEPS: u64 = 600;
const DEADLINE: Duration = Duration::from_secs(90);

/// The step behind which a member is cut off, and the one behind which the job waits until all has been
/// seen that it is to run for.
const CUT: u64 = 40;
const LAST: u64 = 550;

/// `detect_ms` of the coordinators. A pause of a process, as on a machine that does other things, is
/// mostly shorter.
const DETECT: Duration = Duration::from_secs(5);

/// One shard a rank, so that none moves while one of them stands.
const SHARDS: [&str; 2] = ["train.logical_shards=2", "workers.max=2"];

fn steps() -> String {
    format!("train.steps={STEPS}")
}

fn undisturbed() -> [String; 3] {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = sandbox.train("job.toml").workers(2).set(&steps());
    let train = train.set(SHARDS[0]).set(SHARDS[1]);
    train.arg("--threads").arg("1").start().finish().bits()
}

struct Site {
    group: Group,
    halts: Halts,
}

impl Site {
    /// Three coordinators and two workers with a machine each.
    fn new(network: Network) -> Self {
        let workers = ["a", "b"];
        let mut group = Group::on_machines(env!("CARGO_BIN_EXE_muster"), network, 3, &workers);
        let detect_ms = DETECT.as_millis().to_string();
        group.settings = vec!["--detect-ms".to_owned(), detect_ms];
        let halts = Halts::at(Network::HOST);
        let (name, value) = halts.variable();
        group.cluster.environment = vec![(name.to_owned(), value)];
        group.start_all();
        for worker in workers {
            let cluster = &mut group.cluster;
            cluster.start_worker_as(worker, worker, &["--threads", "1"]);
        }
        Self { group, halts }
    }

    /// A job of two ranks, which has come to where a member is to be cut off and waits there; and where
    /// it is to wait next.
    fn submit(&self) -> (Held, Hold<'_>) {
        let [cut, last] = [CUT, LAST].map(|step| self.halts.hold_at(0, step));
        let sets = [&steps()[..], "workers.min=2", "checkpoint.every_steps=100"];
        let sets = [&sets[..], &SHARDS[..]].concat();
        self.group.cluster.submit("job.toml", &sets);
        (cut.wait("a job that runs", DEADLINE), last)
    }

    fn show(&self) -> Value {
        self.group.cluster.json(&["show", JOB, "--json"])
    }

    /// Shows that one that is cut off, and comes back, does not disturb who leads.
    fn come_back(&self, old: u64, cut: impl Fn(), mend: impl Fn()) {
        let mut is_cut = true;
        let (leader, ()) = self.group.under_one_leader(|_| {
            if !std::mem::take(&mut is_cut) {
                cut();
                self.leads_no_more(old);
            }
            mend();
            self.group.agree(&[1, 2, 3]);
        });
        assert_ne!(leader, old);
    }

    /// Waits until a member that is cut off knows that.
    fn leads_no_more(&self, old: u64) {
        eventually(DEADLINE, "that it leads no more", || {
            let status = self.group.at_member(old, &["coordinator", "status"]);
            let status = String::from_utf8(status.stdout).unwrap();
            status.contains("nobody leads").then_some(())
        });
    }

    /// The newest step that a process has made the update of, as it says itself.
    fn updated(&self, process: u64) -> u64 {
        let passed = self.halts.passed().into_iter();
        let updated = passed.filter(|point| point.process == process && point.place == "updated");
        updated.map(|point| point.step + 1).max().unwrap_or(0)
    }

    /// The jobs as a member has them, whether it leads or not.
    fn stale_jobs(&self, id: u64) -> Vec<Value> {
        let output = self.group.at_member(id, &["ps", "--stale", "--json"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let jobs = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        jobs.collect()
    }

    /// The job ends as if nothing had happened, in one world, and all members say the same of it.
    fn finish(&self) {
        let cluster = &self.group.cluster;
        assert!(cluster.text(&["wait", JOB]).contains("completed"));
        let events = cluster.events(JOB);
        let of_kind = |kind: &str| -> Vec<&Value> {
            let events = events.iter();
            events.filter(|event| event["event"] == kind).collect()
        };
        assert_eq!(of_kind("generation").len(), 1, "one world");
        assert_eq!(of_kind("lost").len(), 0);
        let steps = of_kind("step").into_iter();
        let steps: Vec<u64> = steps.map(|step| step["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
        let end = of_kind("finished")[0];
        let bits = ["arena_hash", "optimizer_hash", "trace"];
        let bits = bits.map(|name| end[name].as_str().unwrap().to_owned());
        assert_eq!(bits, undisturbed());
        self.group.agree(&[1, 2, 3]);
        let jobs = [1, 2, 3].map(|id| self.stale_jobs(id));
        assert_eq!(jobs[0], jobs[1]);
        assert_eq!(jobs[1], jobs[2]);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_that_must_be_true_and_the_others_go_on() {
    let name = "a_leader_that_is_cut_off_answers_nothing_that_must_be_true_and_the_others_go_on";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let site = Site::new(network);
    let (held, last) = site.submit();
    let old = site.group.leader();
    let cluster = &site.group.cluster;
    let machine = site.group.machine(old);
    cluster.network().cut(machine);
    let cut = Instant::now();
    drop(held);
    let _ = site.group.leader_but(old);
    println!("{:?} from the cut to another leader", cut.elapsed());
    eventually(DEADLINE, "steps that the leader knows of", || {
        (site.show()["step"].as_u64()? > CUT + 20).then_some(())
    });
    println!("{:?} from the cut to steps that it knows of", cut.elapsed());
    assert_eq!(
        site.show()["state"],
        "running",
        "it was cut off in the middle"
    );
    // The majority commits.
    cluster.submit("mlp.toml", &["workers.min=8", "workers.max=8"]);

    let read = site.group.refused_at(old, 10, &["show", JOB]);
    let stderr = String::from_utf8(read.stderr).unwrap();
    assert_eq!(read.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("majority"), "{stderr}");
    let write = site.group.refused_at(old, 2, &["submit", "mlp.toml"]);
    assert_eq!(write.status.code(), Some(2), "it takes nothing");
    let known = site.stale_jobs(old);
    assert_eq!(known.len(), 1, "it knows what it knew: {known:#?}");
    assert_eq!(known[0]["job"], JOB);
    site.leads_no_more(old);

    let cut = || cluster.network().cut(machine);
    site.come_back(old, cut, || cluster.network().mend(machine));
    drop(last);
    assert_eq!(site.stale_jobs(old).len(), 2);
    // What a job waits for only a leader says.
    let _ = cluster.text(&["cancel", "digits-mlp"]);
    site.finish();
}

#[test]
fn a_worker_that_reaches_nobody_but_a_leader_of_old_keeps_its_ranks_in_their_world() {
    let name = "a_worker_that_reaches_nobody_but_a_leader_of_old_keeps_its_ranks_in_their_world";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let site = Site::new(network);
    let (held, last) = site.submit();
    let old = site.group.leader();
    let network = site.group.cluster.network();
    let others = site.group.ids().into_iter().filter(|id| *id != old);
    let others: Vec<Machine> = others.map(|id| site.group.machine(id)).collect();
    let away = [site.group.machine(old), site.group.cluster.machine("a")];
    let ends_of = |one: Machine| others.iter().map(move |other| (one, *other));
    let links: Vec<(Machine, Machine)> = away.into_iter().flat_map(ends_of).collect();
    let cut = || {
        for (one, other) in &links {
            network.cut_between(*one, *other);
        }
    };
    let mend = || {
        for (one, other) in &links {
            network.mend_between(*one, *other);
        }
    };
    cut();
    let since = Instant::now();
    drop(held);
    let _ = site.group.leader_but(old);
    // Until it would have taken them for lost, were silence a proof.
    eventually(DEADLINE, "steps of a world that is led in part", || {
        let is_on = [1, 2].map(|process| site.updated(process) >= CUT + 50);
        (is_on == [true, true] && since.elapsed() > 3 * DETECT).then_some(())
    });
    let expected = [(Some("a"), Some(false)), (Some("b"), Some(true))];
    eventually(DEADLINE, "that one of them is connected", || {
        let nodes = site.group.cluster.text(&["nodes", "--json"]);
        let nodes: Vec<Value> = nodes
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let connected = nodes
            .iter()
            .map(|node| (node["worker"].as_str(), node["connected"].as_bool()));
        let connected: Vec<_> = connected.collect();
        (connected == expected).then_some(())
    });
    let job = site.show();
    assert_eq!(job["generation"], 1, "no second world is made");
    assert_eq!(job["state"], "running", "{job:#}");
    site.come_back(old, cut, mend);
    drop(last);
    site.finish();
}
