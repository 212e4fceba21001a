//! A group on a network and on disks that fail by a seed, and what must hold all the same. Replicas
//! come and go, snapshots are taken and sent, leaders hand over, and some ask what is true now.
//!
//! A disk loses what was not synced, a whole batch at a time from the last one on; a network loses,
//! delays, doubles and reorders. What one replica does with one input is in `tests`.

mod acts;
mod machine;

use std::collections::{BTreeMap, BTreeSet};

use raft::StateRole;

use super::{Options, Replica, mix};
use crate::{Input, Output, Recovered, ReplicaId, Role};
use machine::{Applied, Machine, Packet};

/// Those that the group begins with; others may join.
const NUM_FOUNDERS: u64 = 3;
const NUM_REPLICAS: u64 = 6;

struct Simulation {
    seed: u64,
    draws: u64,
    now: u64,
    machines: BTreeMap<ReplicaId, Machine>,
    /// When it arrives, a tie breaker, from, to, bytes.
    network: BTreeMap<(u64, u64), (ReplicaId, ReplicaId, Packet)>,
    has_faults: bool,
    /// Whether replicas come and go.
    changes: bool,
    joined: u64,
    leader_of_term: BTreeMap<u64, ReplicaId>,
    /// The longest sequence that any replica applied.
    truth: Vec<Applied>,
    num_proposed: u64,
    acknowledged: BTreeSet<Vec<u8>>,
    /// The newest of them.
    acknowledged_index: u64,
    /// What a read must see.
    reads: BTreeMap<u64, u64>,
    dropped: BTreeSet<Vec<u8>>,
    counts: Counts,
    /// Folds every output, so that two runs can be compared.
    trace: u64,
}

/// What happened, so that a test can see that it did.
#[derive(Default, Debug)]
struct Counts {
    crashes: u64,
    reads: u64,
    snapshots_sent: u64,
    restores: u64,
    changes: u64,
    transfers: u64,
}

fn data_of(request: u64) -> Vec<u8> {
    request.to_le_bytes().to_vec()
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            seed,
            draws: 0,
            now: 0,
            machines: BTreeMap::new(),
            network: BTreeMap::new(),
            has_faults: true,
            changes: seed.is_multiple_of(2),
            joined: NUM_FOUNDERS,
            leader_of_term: BTreeMap::new(),
            truth: Vec::new(),
            num_proposed: 0,
            acknowledged: BTreeSet::new(),
            acknowledged_index: 0,
            reads: BTreeMap::new(),
            dropped: BTreeSet::new(),
            counts: Counts::default(),
            trace: seed,
        };
        for id in simulation.ids() {
            let founders = (1..=NUM_FOUNDERS).map(ReplicaId);
            let mut machine = Machine::default();
            if id.0 <= NUM_FOUNDERS {
                machine.disk = Recovered::genesis(founders);
                machine.snapshots.insert(1, Vec::new());
            }
            simulation.machines.insert(id, machine);
            simulation.start(id);
        }
        simulation
    }

    fn ids(&self) -> Vec<ReplicaId> {
        (1..=NUM_REPLICAS).map(ReplicaId).collect()
    }

    /// A number below `bound`.
    fn draw(&mut self, bound: u64) -> u64 {
        self.draws += 1;
        mix(mix(self.seed) ^ self.draws) % bound
    }

    fn fault(&mut self, one_in: u64) -> bool {
        self.has_faults && self.draw(one_in) == 0
    }

    fn start(&mut self, id: ReplicaId) {
        let options = Options {
            id,
            seed: self.seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
        };
        let mut outputs = Vec::new();
        let machine = self.machines.get_mut(&id).unwrap();
        let recovered = machine.disk.clone();
        let start = machine.disk.start.index;
        machine.applied = machine.snapshots.get(&start).cloned().unwrap_or_default();
        machine.replica = Some(Replica::new(options, recovered, &mut outputs).unwrap());
        self.take(id, outputs);
    }

    fn handle(&mut self, id: ReplicaId, input: Input) {
        let mut outputs = Vec::new();
        if let Some(replica) = &mut self.machines.get_mut(&id).unwrap().replica {
            replica.handle(input, &mut outputs);
            self.take(id, outputs);
        }
    }

    fn take(&mut self, id: ReplicaId, outputs: Vec<Output>) {
        for output in outputs {
            for byte in format!("{}{id:?}{output:?}", self.now).bytes() {
                self.trace = mix(self.trace ^ u64::from(byte));
            }
            match output {
                Output::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine
                        .unsynced
                        .push_back((batch, entries, hard_state, restore));
                }
                Output::Discard { through } => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.disk.entries.retain(|entry| entry.index > through);
                }
                Output::Send { to, bytes } => self.send(id, to, &Packet::Message(bytes)),
                Output::SendSnapshot { to, index, bytes } => {
                    self.counts.snapshots_sent += 1;
                    let content = self.machines[&id].snapshots[&index].clone();
                    let packet = Packet::Snapshot {
                        index,
                        content,
                        bytes,
                    };
                    self.send(id, to, &packet);
                }
                Output::Restore { mark } => {
                    self.counts.restores += 1;
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.applied = machine.snapshots[&mark.index].clone();
                }
                Output::Changed {
                    index,
                    term,
                    change,
                    membership,
                    data,
                    ..
                } => {
                    assert_eq!(data, b"data", "seed {}", self.seed);
                    let told = format!("{change:?} {membership:?}").into_bytes();
                    self.applied(id, (index, term, told), None, false);
                }
                Output::Readable { request } => {
                    self.counts.reads += 1;
                    let Some(least) = self.reads.remove(&request) else {
                        continue;
                    };
                    let seen = self.machines[&id].replica.as_ref().unwrap().mark().index;
                    assert!(
                        seen >= least,
                        "seed {}: {id:?} read what is true at {seen}, and {least} was acknowledged",
                        self.seed
                    );
                }
                Output::Apply {
                    index,
                    term,
                    data,
                    request,
                } => self.applied(id, (index, term, data), request, true),
                Output::Dropped { request, .. } => {
                    if self.reads.remove(&request).is_none() {
                        self.dropped.insert(data_of(request));
                    }
                }
                Output::Leader { .. } => {}
                Output::Broken { reason } => panic!("seed {}: {reason}", self.seed),
            }
        }
        let raft = &self.machines[&id].replica.as_ref().unwrap().node.raft;
        if raft.state == StateRole::Leader {
            let first = *self.leader_of_term.entry(raft.term).or_insert(id);
            assert_eq!(
                first, id,
                "seed {}: two leaders of term {}",
                self.seed, raft.term
            );
        }
    }

    fn send(&mut self, from: ReplicaId, to: ReplicaId, packet: &Packet) {
        for _ in 0..if self.fault(20) { 2 } else { 1 } {
            if !self.fault(10) {
                let longest = if self.fault(15) { 60 } else { 4 };
                let arrival = (self.now + 1 + self.draw(longest), self.draws);
                self.network.insert(arrival, (from, to, packet.clone()));
            } else if let Packet::Snapshot { .. } = packet {
                let failed = Input::SnapshotSent {
                    to,
                    is_there: false,
                };
                self.handle(from, failed);
            }
        }
    }

    fn arrives(&mut self, from: ReplicaId, to: ReplicaId, packet: Packet) {
        match packet {
            Packet::Message(bytes) => self.handle(to, Input::Message { from, bytes }),
            Packet::Snapshot {
                index,
                content,
                bytes,
            } => {
                let is_there = self.machines[&to].replica.is_some();
                if is_there {
                    let machine = self.machines.get_mut(&to).unwrap();
                    machine.snapshots.insert(index, content);
                    self.handle(to, Input::Message { from, bytes });
                }
                self.handle(from, Input::SnapshotSent { to, is_there });
            }
        }
    }

    fn applied(&mut self, id: ReplicaId, applied: Applied, request: Option<u64>, is_data: bool) {
        let seed = self.seed;
        let machine = self.machines.get_mut(&id).unwrap();
        assert!(
            !is_data || machine.has_on_disk(&applied),
            "seed {seed}: {id:?} applied what is not durable"
        );
        let at = machine.applied.len();
        machine.applied.push(applied.clone());
        match self.truth.get(at) {
            Some(before) => assert_eq!(
                before, &applied,
                "seed {seed}: {id:?} applied another sequence"
            ),
            None => self.truth.push(applied.clone()),
        }
        if let Some(request) = request {
            assert_eq!(
                data_of(request),
                applied.2,
                "seed {seed}: another proposal's number"
            );
            self.acknowledged.insert(applied.2);
            self.acknowledged_index = self.acknowledged_index.max(applied.0);
        }
    }

    fn propose(&mut self, id: ReplicaId) {
        self.num_proposed += 1;
        let request = self.num_proposed;
        self.handle(
            id,
            Input::Propose {
                request,
                data: data_of(request),
            },
        );
    }

    fn crash(&mut self, id: ReplicaId) {
        self.counts.crashes += 1;
        let most = self.machines[&id].unsynced.len() as u64 + 1;
        // The disk may have got as far as any batch before the power went.
        let num_written = self.draw(most) as usize;
        let machine = self.machines.get_mut(&id).unwrap();
        machine.sync(num_written);
        machine.unsynced.clear();
        machine.replica = None;
    }

    fn step(&mut self) {
        self.now += 1;
        while let Some(entry) = self
            .network
            .first_entry()
            .filter(|entry| entry.key().0 <= self.now)
        {
            let (from, to, packet) = entry.remove();
            self.arrives(from, to, packet);
        }
        for id in self.ids() {
            if self.machines[&id].replica.is_none() {
                if !self.has_faults || self.draw(20) == 0 {
                    self.start(id);
                }
                continue;
            }
            if self.draw(3) == 0 {
                self.handle(id, Input::Tick);
            }
            if self.draw(4) == 0 {
                self.propose(id);
            }
            if self.draw(10) == 0 {
                self.read(id);
            }
            if self.draw(60) == 0 {
                self.snapshot(id);
            }
            let num_waiting = self.machines[&id].unsynced.len();
            if num_waiting > 0 && self.draw(3) == 0 {
                let num_batches = 1 + self.draw(num_waiting as u64) as usize;
                let last = self.machines.get_mut(&id).unwrap().sync(num_batches);
                self.handle(
                    id,
                    Input::Persisted {
                        batch: last.unwrap(),
                    },
                );
            }
            if self.fault(150) {
                self.crash(id);
            }
        }
        if self.changes && self.fault(20) {
            self.change();
        }
        if self.fault(100)
            && let Some(leader) = self.leader()
        {
            self.counts.transfers += 1;
            let to = ReplicaId(1 + self.draw(NUM_REPLICAS));
            self.handle(leader, Input::Transfer { to });
        }
    }

    fn leader(&self) -> Option<ReplicaId> {
        let is_leader =
            |machine: &Machine| machine.replica.as_ref().is_some_and(Replica::is_leader);
        self.machines
            .iter()
            .find(|(_, machine)| is_leader(machine))
            .map(|(id, _)| *id)
    }
}

/// Runs a seed: faults first, then a quiet time in which everybody must get to the same end.
fn run(seed: u64) -> Simulation {
    let mut simulation = Simulation::new(seed);
    for _ in 0..1500 {
        simulation.step();
    }
    simulation.has_faults = false;
    let num_before = simulation.truth.len();
    for _ in 0..1500 {
        simulation.step();
    }
    assert!(
        simulation.truth.len() > num_before,
        "seed {seed}: no progress without faults"
    );
    // One more proposal, and then only time, until everybody has applied it.
    let leader = simulation
        .leader()
        .unwrap_or_else(|| panic!("seed {seed}: no leader without faults"));
    simulation.propose(leader);
    let last = data_of(simulation.num_proposed);
    simulation.reads.clear();
    simulation.read(leader);
    for _ in 0..200 {
        simulation.now += 100;
        for (_, (from, to, packet)) in std::mem::take(&mut simulation.network) {
            simulation.arrives(from, to, packet);
        }
        for id in simulation.ids() {
            simulation.handle(id, Input::Tick);
            let machine = simulation.machines.get_mut(&id).unwrap();
            let num_waiting = machine.unsynced.len();
            if let Some(batch) = machine.sync(num_waiting) {
                simulation.handle(id, Input::Persisted { batch });
            }
        }
    }
    assert!(
        simulation.acknowledged.contains(&last),
        "seed {seed}: the last proposal was not acknowledged"
    );
    assert_eq!(
        simulation.reads.len(),
        0,
        "seed {seed}: a read was not answered"
    );

    let truth = &simulation.truth;
    let applied: BTreeSet<&Vec<u8>> = truth.iter().map(|(_, _, data)| data).collect();
    assert_eq!(
        applied.len(),
        truth.len(),
        "seed {seed}: a proposal was applied twice"
    );
    assert!(
        truth
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1)
    );
    let membership = simulation.membership_at(leader);
    for (id, machine) in &simulation.machines {
        let replica = machine.replica.as_ref().unwrap();
        if membership.has(*id) {
            assert_eq!(
                &machine.applied, truth,
                "seed {seed}: {id:?} ended elsewhere"
            );
            assert_eq!(replica.mark().membership, membership, "seed {seed}: {id:?}");
            let is_learner = membership.learners.contains(id);
            assert_eq!(replica.status().role == Role::Learner, is_learner);
        }
        // Who was removed may still answer.
        if !simulation.changes {
            assert_eq!(
                replica.num_refused(),
                0,
                "seed {seed}: {id:?} refused a peer"
            );
        }
    }
    for data in &simulation.acknowledged {
        assert!(
            applied.contains(data),
            "seed {seed}: {data:?} was acknowledged and lost"
        );
        assert!(
            !simulation.dropped.contains(data),
            "seed {seed}: {data:?} was acknowledged and dropped"
        );
    }
    for data in &simulation.dropped {
        assert!(
            !applied.contains(data),
            "seed {seed}: {data:?} was dropped and applied"
        );
    }
    simulation
}

/// Runs the seeds of `SEEDS=from..to`.
#[test]
#[ignore = "for minutes, not for seconds"]
#[expect(clippy::disallowed_methods, reason = "a test is told what to run")]
fn many_seeds() {
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "0..5000".to_owned());
    let (from, to) = range.split_once("..").unwrap();
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        run(seed);
    }
}

#[test]
fn a_group_agrees_whatever_the_network_and_the_disks_do() {
    let (mut num_terms, mut num_acknowledged) = (0, 0);
    let mut all = Counts::default();
    for seed in 0..100 {
        let simulation = run(seed);
        num_terms += simulation.leader_of_term.len();
        num_acknowledged += simulation.acknowledged.len();
        let counts = &simulation.counts;
        all.crashes += counts.crashes;
        all.reads += counts.reads;
        all.snapshots_sent += counts.snapshots_sent;
        all.restores += counts.restores;
        all.changes += counts.changes;
        all.transfers += counts.transfers;
    }
    // The faults were felt, and work went on: without this the oracles would have nothing to say.
    println!("{num_terms} terms, {num_acknowledged} acknowledged, {all:?}");
    assert!(num_terms > 300, "{num_terms} terms");
    assert!(num_acknowledged > 10_000, "{num_acknowledged} acknowledged");
    assert!(all.crashes > 1000 && all.reads > 1000, "{all:?}");
    assert!(
        all.restores > 100 && all.changes > 100 && all.transfers > 100,
        "{all:?}"
    );
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    assert_eq!(run(7).trace, run(7).trace);
    assert_ne!(run(7).trace, run(8).trace);
}
