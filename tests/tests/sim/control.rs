//! The coordinators of a run: which there are, who leads, how they come and go. The operator who
//! replaces them is in `operator`, what goes wrong with them in `faults`.

use std::collections::BTreeMap;

use muster_coordinator_core::consensus::ReplicaId;
use muster_coordinator_core::coordinator::Thresholds;

use super::cluster::Sim;
use super::coordinator::{Disk, End, Host, Manner, seat_of};
use super::env::Plant;
use super::net::{MS, Node, SECOND, Time, Timer, Weather};
use super::rng::Rng;
use faults::{Armed, GroupFault};
use operator::Replacement;

mod faults;
mod operator;

/// How often somebody asks what is true.
const LOOK: (Time, Time) = (50 * MS, 600 * MS);

/// The numbers of reads, beside those of requests.
const LOOKS: u64 = 1 << 32;

/// One member: it runs, is down with its disk, or has lost that.
#[derive(Debug)]
struct Member {
    seat: u32,
    host: Option<Host>,
    disk: Option<Disk>,
    /// Where all were when it moved, as it is told at each start since.
    moved: BTreeMap<u64, u32>,
}

/// The control plane of a run.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) chance: Rng,
    size: u64,
    seats: Vec<u32>,
    manner: Manner,
    faults: Vec<GroupFault>,
    gap: Time,
    first_fault: Time,
    weather: Weather,
    armed: Vec<Armed>,
    members: BTreeMap<u64, Member>,
    num_lives: u64,
    num_disks: u64,
    replacement: Option<Replacement>,
    num_looks: u64,
    /// The first read that was asked for after the last fault, and whether one of them was answered.
    first_calm_look: Option<u64>,
    has_looked: bool,
}

impl Control {
    /// What kind of group a seed has, and what kind of trouble.
    pub(super) fn of(seed: u64, size: Option<u64>) -> Self {
        let mut chance = Rng::new(seed ^ 0x6e0_f001);
        let drawn = match chance.below(100) {
            0..25 => 1,
            25..85 => 3,
            _ => 5,
        };
        let is_drawn = size.is_none();
        let size = size.unwrap_or(drawn);
        let has_spare = is_drawn && (size > 1 || chance.chance(30));
        let num_seats = u32::try_from(size).unwrap_or(1) + u32::from(has_spare);
        let rarely = |chance: &mut Rng, most: u64| {
            if chance.chance(50) {
                chance.below(most)
            } else {
                0
            }
        };
        let thresholds = if chance.chance(70) {
            Thresholds {
                min_log_bytes: 1 << chance.between(9, 14),
                max_log_entries: chance.between(3, 80),
                num_kept: chance.below(10),
            }
        } else {
            Thresholds::default()
        };
        Self {
            size,
            seats: (1..=num_seats).collect(),
            manner: Manner {
                thresholds,
                max_skew_ms: rarely(&mut chance, 2_000),
            },
            faults: if has_spare || size > 1 {
                faults::draw(&mut chance)
            } else {
                Vec::new()
            },
            gap: chance.between(50 * MS, 1_500 * MS),
            first_fault: chance.between(200 * MS, 2_000 * MS),
            weather: Weather {
                lost: rarely(&mut chance, 25),
                doubled: rarely(&mut chance, 20),
                late: rarely(&mut chance, 20),
            },
            armed: Vec::new(),
            members: BTreeMap::new(),
            num_lives: 0,
            num_disks: 0,
            replacement: None,
            num_looks: LOOKS,
            first_calm_look: None,
            has_looked: false,
            chance,
        }
    }

    /// Whether there is more to it than one coordinator.
    pub(super) fn is_group(&self) -> bool {
        self.size > 1
    }

    /// Where coordinators are, or may be.
    pub(super) fn seats(&self) -> Vec<u32> {
        self.seats.clone()
    }

    pub(super) fn seat_of(&self, id: u64) -> Option<u32> {
        self.members.get(&id).map(|member| member.seat)
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &Host> {
        let members = self.members.values();
        members.filter_map(|member| member.host.as_ref())
    }

    pub(super) fn host(&self, id: u64) -> Option<&Host> {
        self.members.get(&id)?.host.as_ref()
    }

    pub(super) fn host_mut(&mut self, id: u64) -> Option<&mut Host> {
        self.members.get_mut(&id)?.host.as_mut()
    }

    /// The one that leads. There may be another one for a while, of an older term.
    pub(super) fn leader(&self) -> Option<&Host> {
        let leaders = self.hosts().filter(|host| host.machine.is_leader());
        leaders.max_by_key(|host| host.machine.status().term)
    }

    fn is_up(&self, id: u64) -> bool {
        self.host(id).is_some()
    }

    fn new_disk(&mut self, founders: Vec<u64>) -> Disk {
        self.num_disks += 1;
        let [one, other] = [0, 1].map(|salt| super::rng::mix(self.num_disks << 1 | salt));
        let store_id = (u128::from(one) << 64 | u128::from(other)).to_le_bytes();
        Disk::new(store_id, founders)
    }

    /// Each member in a line.
    pub(super) fn view(&self) -> String {
        let members = self.members.iter().map(|(id, member)| {
            let Some(host) = &member.host else {
                return format!("{id} at {} is down", member.seat);
            };
            let status = host.machine.status();
            format!(
                "{id}.{} at {}: {:?} of {} in term {}, applied {} of {}, {} events, {:?}, {:?}",
                host.life,
                member.seat,
                status.role,
                status.leader.map_or(0, |leader| leader.0),
                status.term,
                status.applied,
                status.committed,
                host.events().len(),
                status.membership,
                host.machine.members(),
            )
        });
        let members: Vec<String> = members.collect();
        format!("{}; {:?}", members.join("\n"), self.replacement)
    }
}

impl Sim {
    /// The coordinators start for the first time.
    pub(super) fn found(&mut self) {
        let ids: Vec<u64> = (1..=self.control.size).collect();
        for (id, seat) in ids.iter().zip(self.control.seats()) {
            let disk = self.control.new_disk(ids.clone());
            let member = Member {
                seat,
                host: None,
                disk: Some(disk),
                moved: BTreeMap::new(),
            };
            self.control.members.insert(*id, member);
        }
        self.env.net.weather = self.control.weather;
        for id in ids {
            self.start_coordinator(id);
        }
        if !self.control.faults.is_empty() {
            let first = self.control.first_fault;
            self.env
                .net
                .timer(Node::Outside, first, Timer::DisturbGroup);
        }
        self.env.net.timer(Node::Outside, LOOK.1, Timer::Look);
    }

    pub(super) fn start_coordinator(&mut self, id: u64) {
        let manner = self.control.manner;
        let Some(member) = self.control.members.get_mut(&id) else {
            return;
        };
        let Some(disk) = member.disk.take() else {
            return;
        };
        self.control.num_lives += 1;
        let names = [id, self.control.num_lives];
        self.env.dark.remove(&member.seat);
        let node = Node::Coordinator {
            id,
            life: self.control.num_lives,
        };
        self.env.listening.insert(member.seat, node);
        let host = Host::start(
            names,
            member.seat,
            disk,
            &member.moved,
            manner,
            &mut self.env,
        );
        member.host = Some(host);
    }

    /// A coordinator's process is no more; what it had is in its disk.
    fn stop_coordinator(&mut self, id: u64) -> Option<(Node, Disk)> {
        let member = self.control.members.get_mut(&id)?;
        let host = member.host.take()?;
        let node = host.node();
        self.env.log(format_args!("-- {node:?} is no more"));
        self.env.listening.remove(&member.seat);
        Some((node, host.die(&mut self.env)))
    }

    pub(super) fn kill_coordinator(&mut self, id: u64, down: Time) {
        if let Some((node, disk)) = self.stop_coordinator(id) {
            self.env.net.die(node);
            self.rest(id, node, disk, down);
        }
    }

    /// The machine is gone at once, and nobody is told.
    fn crash_coordinator(&mut self, id: u64, down: Time) {
        if let Some((node, disk)) = self.stop_coordinator(id) {
            self.env.net.vanish(node);
            self.vanished.insert(node);
            self.env.dark.extend(self.control.seat_of(id));
            self.rest(id, node, disk, down);
        }
    }

    fn rest(&mut self, id: u64, node: Node, disk: Disk, down: Time) {
        self.env.oracle.counts.restarts += 1;
        if let Some(member) = self.control.members.get_mut(&id) {
            member.disk = Some(disk);
        }
        let timer = Timer::Restart(node);
        self.env.net.timer(Node::Outside, down, timer);
    }

    /// A coordinator that is down comes back elsewhere.
    fn move_coordinator(&mut self, id: u64, seat: u32) {
        if let Some(member) = self.control.members.get_mut(&id) {
            self.env.log(format_args!(
                "-- {id} moves from seat {} to {seat}",
                member.seat
            ));
            self.env.dark.remove(&member.seat);
            self.env.oracle.counts.moves += 1;
            member.seat = seat;
        }
        let members = self.control.members.iter();
        let seats = members.map(|(id, member)| (*id, member.seat)).collect();
        if let Some(member) = self.control.members.get_mut(&id) {
            member.moved = seats;
        }
    }

    /// A coordinator's disk is gone, or the store says that it is not what it was. It comes back as
    /// another member.
    fn lose_disk(&mut self, id: u64, down: Time) {
        let Some((node, _)) = self.stop_coordinator(id) else {
            return;
        };
        self.env.log(format_args!("-- the disk of {id} is lost"));
        self.env.oracle.counts.lost_disks += 1;
        self.env.net.die(node);
        if self.env.plant == Plant::ComeBackEmpty {
            let founders = (1..=self.control.size).collect();
            let disk = self.control.new_disk(founders);
            self.rest(id, node, disk, down);
            return;
        }
        let same = self.control.seat_of(id);
        let seat = if self.control.chance.chance(50) {
            same
        } else {
            self.free_seat().or(same)
        };
        if let Some(seat) = seat {
            self.replace(id, seat, down);
        }
    }

    /// Somebody asks some coordinator, mostly the leader, what is true.
    pub(super) fn look(&mut self) {
        self.env.net.timer_between(Node::Outside, LOOK, Timer::Look);
        let ids: Vec<u64> = self.control.hosts().map(|host| host.id).collect();
        let leader = self.control.leader().map(|host| host.id);
        let any = self.control.chance.pick(&ids);
        let id = leader.filter(|_| self.control.chance.chance(70)).or(any);
        self.control.num_looks += 1;
        let number = self.control.num_looks;
        if self.calm_since.is_some() {
            self.control.first_calm_look.get_or_insert(number);
        }
        if let Some(host) = id.and_then(|id| self.control.host_mut(id)) {
            let node = host.node();
            if self.env.net.is_paused(node) {
                return;
            }
            let member = id.and_then(|id| self.control.members.get_mut(&id));
            if let Some(host) = member.and_then(|member| member.host.as_mut()) {
                self.env.oracle.replicas.asks(number);
                host.look(number, &mut self.env);
            }
        }
    }

    /// What follows from what coordinators said.
    pub(super) fn after_coordinators(&mut self) {
        for id in self.control.members.keys().copied().collect::<Vec<_>>() {
            let Some(host) = self.control.host_mut(id) else {
                continue;
            };
            let readable = std::mem::take(&mut host.readable);
            let replies = std::mem::take(&mut host.replies);
            let end = host.end.clone();
            for read in &readable {
                self.env.oracle.replicas.reads(read.0, &host.machine);
            }
            if let Some(first) = self.control.first_calm_look {
                self.control.has_looked |= readable.iter().any(|read| read.0 >= first);
            }
            for (reply_to, reply) in replies {
                if reply_to.0 > 0 && reply_to.0 < LOOKS {
                    self.answered(reply_to.0, reply);
                }
            }
            if let Some(end) = end {
                self.ended_itself(id, &end);
            }
        }
        self.env.oracle.gather();
    }

    /// A coordinator that does not belong to the group ends; no other one does.
    fn ended_itself(&mut self, id: u64, end: &End) {
        let leader = self.control.leader();
        let is_member =
            leader.is_none_or(|host| host.machine.status().membership.has(ReplicaId(id)));
        let replaced = self.control.replacement.map(|replacement| replacement.old);
        if is_member && replaced != Some(id) {
            self.env.oracle.blame(format!("member {id} ended: {end:?}"));
        }
        // Somebody starts it again, until it is taken away.
        self.kill_coordinator(id, SECOND);
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm_group(&mut self) {
        self.control.armed.clear();
        self.env.net.weather = Weather::default();
        for member in self.control.members.values_mut() {
            if let Some(host) = &mut member.host {
                host.slow_until = 0;
            }
        }
    }

    /// Whether all members are there and at one, and somebody was told what is true.
    pub(super) fn is_group_healthy(&self) -> bool {
        let Some(leader) = self.control.leader() else {
            return false;
        };
        let membership = leader.machine.status().membership;
        let newest = self.env.oracle.replicas.newest();
        let num_events = self.env.oracle.replicas.num_events();
        // The log knows where each is, and its disk.
        let is_known = |id: &ReplicaId| {
            let member = leader.machine.members().get(*id);
            member.is_some_and(|member| {
                member.store_id.is_some() && seat_of(&member.address) == self.control.seat_of(id.0)
            })
        };
        let is_level = |id: &ReplicaId| {
            self.control
                .host(id.0)
                .is_some_and(|host| host.applied() == newest && host.events().len() == num_events)
        };
        self.control.replacement.is_none()
            && membership.voters.len() as u64 == self.control.size
            && membership.learners.is_empty()
            && membership.voters.iter().all(is_level)
            && membership.voters.iter().all(is_known)
            && self.control.members.len() as u64 == self.control.size
            && self.control.has_looked
    }
}
