//! What goes wrong with the coordinators, and when: half of it at a moment that is of interest, such
//! as an election. A majority always comes back.

use super::super::clients::CLIENTS;
use super::super::cluster::Sim;
use super::super::coordinator::{Host, seat_of};
use super::super::env::{GROUP_POINTS, Point};
use super::super::net::{MS, Node, SECOND, Time, Timer, seat_place};
use super::super::rng::Rng;

/// Something that goes wrong with coordinators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupFault {
    KillLeader,
    KillAny,
    KillTwo,
    KillAll,
    CrashMachine,
    Pause,
    IsolateLeader,
    Split,
    CutPair,
    CutOneWay,
    CutWorker,
    CutClients,
    SlowDisk,
    LoseDisk,
    Replace,
    Move,
    Transfer,
    Disconnect,
}

/// With how often each of them is drawn.
const FAULTS: [(GroupFault, u64); 18] = [
    (GroupFault::KillLeader, 10),
    (GroupFault::KillAny, 8),
    (GroupFault::KillTwo, 4),
    (GroupFault::KillAll, 2),
    (GroupFault::CrashMachine, 6),
    (GroupFault::Pause, 8),
    (GroupFault::IsolateLeader, 8),
    (GroupFault::Split, 6),
    (GroupFault::CutPair, 5),
    (GroupFault::CutOneWay, 5),
    (GroupFault::CutWorker, 5),
    (GroupFault::CutClients, 3),
    (GroupFault::SlowDisk, 5),
    (GroupFault::LoseDisk, 5),
    (GroupFault::Replace, 6),
    (GroupFault::Move, 3),
    (GroupFault::Transfer, 6),
    (GroupFault::Disconnect, 4),
];

/// What strikes when a coordinator reaches a point, after `skip` others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Armed {
    point: Point,
    skip: u64,
    fault: GroupFault,
}

/// Each seed has its own kinds of trouble.
pub(super) fn draw(chance: &mut Rng) -> Vec<GroupFault> {
    let percent = chance.between(15, 80);
    let mut faults = Vec::new();
    for (fault, weight) in FAULTS {
        if chance.chance(percent) {
            faults.extend((0..weight).map(|_| fault));
        }
    }
    faults
}

impl Sim {
    /// One more fault, and when the next one comes.
    pub(in super::super) fn disturb_group(&mut self) {
        if self.calm_since.is_some() {
            return;
        }
        let control = &mut self.control;
        let after = control.chance.between(MS, 2 * control.gap);
        self.env
            .net
            .timer(Node::Outside, after, Timer::DisturbGroup);
        let Some(fault) = control.chance.pick(&control.faults) else {
            return;
        };
        if control.armed.len() < 2 && control.chance.chance(50) {
            let point = control.chance.pick(&GROUP_POINTS);
            let skip = control.chance.below(4);
            let point = point.unwrap_or(Point::Decided);
            control.armed.push(Armed { point, skip, fault });
        } else {
            self.strike_group(fault, None);
        }
    }

    /// A coordinator reached a point.
    pub(in super::super) fn reached_group(&mut self, point: Point, node: Node) {
        let Node::Coordinator { id, .. } = node else {
            return;
        };
        let mut struck = Vec::new();
        self.control.armed.retain_mut(|armed| {
            if armed.point != point {
                return true;
            }
            let is_due = armed.skip == 0;
            if is_due {
                struck.push(armed.fault);
            }
            armed.skip = armed.skip.saturating_sub(1);
            !is_due
        });
        for fault in struck {
            self.env.log(format_args!("-- {node:?} is at {point:?}"));
            self.strike_group(fault, Some(id));
        }
    }

    /// The coordinator that is near, or the leader, or any other one.
    pub(in super::super) fn some_coordinator(&mut self, near: Option<Node>) -> Option<u64> {
        if let Some(Node::Coordinator { id, .. }) = near
            && self.control.is_up(id)
        {
            return Some(id);
        }
        let ids: Vec<u64> = self.control.hosts().map(|host| host.id).collect();
        let leader = self.control.leader().map(|host| host.id);
        let is_leader = ids.len() < 2 || self.control.chance.chance(60);
        let any = self.control.chance.pick(&ids);
        leader.filter(|_| is_leader).or(any)
    }

    /// `near` is the member that it strikes, where it can choose.
    fn strike_group(&mut self, fault: GroupFault, near: Option<u64>) {
        self.env.oracle.counts.faults += 1;
        self.env.log(format_args!("-- {fault:?} near {near:?}"));
        let down = if self.control.chance.chance(80) {
            self.control.chance.between(20 * MS, 2 * SECOND)
        } else {
            self.control.chance.between(2 * SECOND, 6 * SECOND)
        };
        let length = self.control.chance.between(50 * MS, 4 * SECOND);
        let near = near.filter(|id| self.control.is_up(*id));
        let ids: Vec<u64> = self.control.hosts().map(|host| host.id).collect();
        let any = near.or_else(|| self.control.chance.pick(&ids));
        let leader = self.control.leader().map(|host| host.id).or(any);
        let (Some(any), Some(leader)) = (any, leader) else {
            return;
        };
        match fault {
            GroupFault::KillLeader => self.kill_coordinator(leader, down),
            GroupFault::KillAny => self.kill_coordinator(any, down),
            GroupFault::KillTwo => {
                self.kill_coordinator(leader, down);
                let other = self.control.chance.pick(&ids).unwrap_or(any);
                self.kill_coordinator(other, length);
            }
            GroupFault::KillAll => {
                for id in ids {
                    let down = self.control.chance.between(20 * MS, 2 * SECOND);
                    self.kill_coordinator(id, down);
                }
            }
            GroupFault::CrashMachine => self.crash_coordinator(any, down),
            GroupFault::Pause => {
                let node = self.control.host(any).map(Host::node);
                self.pause(node);
            }
            GroupFault::IsolateLeader => self.isolate(leader, length),
            GroupFault::Split => self.split(length),
            GroupFault::CutPair | GroupFault::CutOneWay => {
                let other = self.control.chance.pick(&ids).unwrap_or(any);
                let seats = [any, other].map(|id| self.control.seat_of(id));
                if let [Some(one), Some(other)] = seats
                    && one != other
                {
                    let is_both = fault == GroupFault::CutPair;
                    self.cut_seats(one, other, is_both, length);
                }
            }
            GroupFault::CutWorker => {
                let hosts: Vec<u32> = self.workers.keys().copied().collect();
                let host = self.control.chance.pick(&hosts);
                let seat = self.control.seat_of(leader);
                if let Some((host, seat)) = host.zip(seat) {
                    self.env.net.cut_link([host, seat_place(seat)], length);
                }
            }
            GroupFault::CutClients => {
                if let Some(seat) = self.control.seat_of(leader) {
                    self.env.net.cut_link([CLIENTS, seat_place(seat)], length);
                }
            }
            GroupFault::SlowDisk => {
                let until = self.env.net.now + length;
                if let Some(host) = self.control.host_mut(any) {
                    host.slow_until = until;
                }
            }
            GroupFault::LoseDisk => {
                // Of a majority that is there, one may go for ever.
                if self.is_whole() && self.control.size > 1 {
                    self.lose_disk(any, down);
                }
            }
            GroupFault::Replace => {
                let seat = self.free_seat();
                if let Some(seat) = seat.filter(|_| self.is_whole()) {
                    self.env.log(format_args!("-- {any} is to be replaced"));
                    self.replace(any, seat, MS);
                }
            }
            GroupFault::Move => {
                if let Some(seat) = self.free_seat()
                    && self.is_whole()
                {
                    self.kill_coordinator(any, down);
                    self.move_coordinator(any, seat);
                }
            }
            GroupFault::Transfer => self.transfer(),
            GroupFault::Disconnect => {
                if let Some(host) = self.control.host_mut(any) {
                    host.disconnect();
                }
            }
        }
    }

    /// Whether all members are there, know of the same group and where each of it is, and none is being
    /// replaced: an operator changes no other group.
    fn is_whole(&self) -> bool {
        let mut ids = self.control.members.keys();
        let are_up = ids.all(|id| self.control.is_up(*id));
        let mut groups = self
            .control
            .hosts()
            .map(|host| host.machine.status().membership);
        let first = groups.next();
        let are_at_one = groups.all(|group| Some(group) == first);
        self.control.replacement.is_none() && are_up && are_at_one && self.are_found()
    }

    /// Whether all members know where each of them is.
    fn are_found(&self) -> bool {
        self.control.hosts().all(|host| {
            let mut members = host.machine.members().iter();
            members.all(|(id, member)| {
                seat_of(&member.address)
                    .is_some_and(|seat| self.control.seat_of(id.0) == Some(seat))
            })
        })
    }

    fn cut_seats(&mut self, one: u32, other: u32, is_both: bool, length: Time) {
        self.env.oracle.counts.partitions += 1;
        self.env.log(format_args!(
            "-- cut seat {one} from {other} for {} ms{}",
            length / MS,
            if is_both { "" } else { ", one way" }
        ));
        let way = [one, other].map(seat_place);
        if is_both {
            self.env.net.cut_link(way, length);
        } else {
            self.env.net.cut_way(way, length);
        }
    }

    /// A member hears nobody, or nobody hears it; with it go the workers now and then.
    fn isolate(&mut self, id: u64, length: Time) {
        let Some(seat) = self.control.seat_of(id) else {
            return;
        };
        let way = self.control.chance.below(4);
        for other in self
            .control
            .seats()
            .into_iter()
            .filter(|other| *other != seat)
        {
            match way {
                0 => self.cut_seats(other, seat, false, length),
                1 => self.cut_seats(seat, other, false, length),
                _ => self.cut_seats(seat, other, true, length),
            }
        }
        for host in self.workers.keys().copied().collect::<Vec<_>>() {
            if self.control.chance.chance(30) {
                self.env.net.cut_link([host, seat_place(seat)], length);
            }
        }
    }

    /// Two sides that do not hear each other.
    fn split(&mut self, length: Time) {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for seat in self.control.seats() {
            if self.control.chance.chance(50) {
                here.push(seat);
            } else {
                there.push(seat);
            }
        }
        for one in &here {
            for other in &there {
                self.cut_seats(*one, *other, true, length);
            }
        }
        for host in self.workers.keys().copied().collect::<Vec<_>>() {
            let side = if self.control.chance.chance(50) {
                &here
            } else {
                &there
            };
            for seat in side.clone() {
                self.env.net.cut_link([host, seat_place(seat)], length);
            }
        }
    }
}
