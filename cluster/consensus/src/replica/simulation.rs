//! Three replicas on a network and on disks that fail by a seed, and what must hold all the same.
//!
//! A disk loses what was not synced, a whole batch at a time from the last one on; a network loses,
//! delays, doubles and reorders. What one replica does with one input is in `tests`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::StateRole;

use super::{Options, Replica, mix};
use crate::{Entry, HardState, Input, Output, Recovered, ReplicaId};

const NUM_REPLICAS: u64 = 3;

/// What was applied: index, term and data.
type Applied = (u64, u64, Vec<u8>);

/// One machine: what survives a crash, and what does not.
#[derive(Default)]
struct Machine {
    disk: Recovered,
    /// Batches that were handed over and are not synced.
    unsynced: VecDeque<(u64, Vec<Entry>, Option<HardState>)>,
    replica: Option<Replica>,
    applied: Vec<Applied>,
}

impl Machine {
    fn sync(&mut self, num_batches: usize) -> Option<u64> {
        let mut last = None;
        for (batch, entries, hard_state) in self.unsynced.drain(..num_batches) {
            if let Some(first) = entries.first() {
                self.disk.entries.truncate(first.index as usize - 1);
                self.disk.entries.extend(entries);
            }
            self.disk.hard_state = hard_state.unwrap_or(self.disk.hard_state);
            last = Some(batch);
        }
        last
    }
}

struct Simulation {
    seed: u64,
    draws: u64,
    now: u64,
    machines: BTreeMap<ReplicaId, Machine>,
    /// When it arrives, a tie breaker, from, to, bytes.
    network: BTreeMap<(u64, u64), (ReplicaId, ReplicaId, Vec<u8>)>,
    has_faults: bool,
    leader_of_term: BTreeMap<u64, ReplicaId>,
    /// The longest sequence that any replica applied.
    truth: Vec<Applied>,
    num_proposed: u64,
    acknowledged: BTreeSet<Vec<u8>>,
    dropped: BTreeSet<Vec<u8>>,
    num_crashes: u64,
    /// Folds every output, so that two runs can be compared.
    trace: u64,
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
            leader_of_term: BTreeMap::new(),
            truth: Vec::new(),
            num_proposed: 0,
            acknowledged: BTreeSet::new(),
            dropped: BTreeSet::new(),
            num_crashes: 0,
            trace: seed,
        };
        for id in simulation.ids() {
            simulation.machines.insert(id, Machine::default());
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
            voters: self.ids(),
            seed: self.seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
        };
        let mut outputs = Vec::new();
        let machine = self.machines.get_mut(&id).unwrap();
        let recovered = machine.disk.clone();
        machine.applied.clear();
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
                } => {
                    self.machines
                        .get_mut(&id)
                        .unwrap()
                        .unsynced
                        .push_back((batch, entries, hard_state));
                }
                Output::Send { to, bytes } => self.send(id, to, &bytes),
                Output::Apply {
                    index,
                    term,
                    data,
                    request,
                } => self.applied(id, (index, term, data), request),
                Output::Dropped { request, .. } => {
                    self.dropped.insert(data_of(request));
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

    fn send(&mut self, from: ReplicaId, to: ReplicaId, bytes: &[u8]) {
        for _ in 0..if self.fault(20) { 2 } else { 1 } {
            if !self.fault(10) {
                let longest = if self.fault(15) { 60 } else { 4 };
                let arrival = (self.now + 1 + self.draw(longest), self.draws);
                self.network.insert(arrival, (from, to, bytes.to_vec()));
            }
        }
    }

    fn applied(&mut self, id: ReplicaId, applied: Applied, request: Option<u64>) {
        let seed = self.seed;
        let machine = self.machines.get_mut(&id).unwrap();
        let on_disk = machine
            .disk
            .entries
            .get(applied.0 as usize - 1)
            .map(|entry| (entry.term, &entry.data));
        assert_eq!(
            on_disk,
            Some((applied.1, &applied.2)),
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
        self.num_crashes += 1;
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
            let (from, to, bytes) = entry.remove();
            self.handle(to, Input::Message { from, bytes });
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
    for _ in 0..200 {
        simulation.now += 100;
        for (_, (from, to, bytes)) in std::mem::take(&mut simulation.network) {
            simulation.handle(to, Input::Message { from, bytes });
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
    for (id, machine) in &simulation.machines {
        assert_eq!(
            &machine.applied, truth,
            "seed {seed}: {id:?} ended elsewhere"
        );
        assert_eq!(
            machine.replica.as_ref().unwrap().num_refused(),
            0,
            "seed {seed}: {id:?} refused a peer"
        );
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

#[test]
fn three_replicas_agree_whatever_the_network_and_the_disks_do() {
    let mut num_terms = 0;
    let mut num_crashes = 0;
    let mut num_acknowledged = 0;
    for seed in 0..100 {
        let simulation = run(seed);
        num_terms += simulation.leader_of_term.len();
        num_crashes += simulation.num_crashes;
        num_acknowledged += simulation.acknowledged.len();
    }
    // The faults were felt, and work went on: without this the oracles would have nothing to say.
    assert!(num_terms > 300, "{num_terms} terms");
    assert!(num_crashes > 1000, "{num_crashes} crashes");
    assert!(num_acknowledged > 10_000, "{num_acknowledged} acknowledged");
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    assert_eq!(run(7).trace, run(7).trace);
    assert_ne!(run(7).trace, run(8).trace);
}
