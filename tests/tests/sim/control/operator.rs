//! The operator of the control plane: replaces a member by another one, step by step, as he would with
//! the commands that change a group. He asks the leader, and looks again after a while.

use std::collections::{BTreeMap, BTreeSet};

use muster_coordinator_core::consensus::{Change, ReplicaId};

use super::super::cluster::Sim;
use super::super::coordinator::seat_of;
use super::super::env::Point;
use super::super::net::{MS, Node, SECOND, Time, Timer};
use super::{Control, Member};

const OPERATE: (Time, Time) = (50 * MS, 300 * MS);

/// A member that another one is to replace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replacement {
    pub(super) old: u64,
    seat: u32,
    /// The newest number when it began.
    newest: u64,
    /// Since when the old one belongs to the group no more.
    done_at: Option<Time>,
}

/// How long an operator leaves a removed member as it is: what made it one may have to be durable yet.
const GRACE: Time = SECOND;

/// A step on the way to it.
enum Next {
    Wait,
    Start(u64),
    Transfer,
    Change(Change),
    Done,
}

impl Control {
    /// What the operator does next, by what the leader knows.
    fn next(&self, replacement: Replacement) -> Next {
        let Replacement {
            old, seat, newest, ..
        } = replacement;
        let Some(leader) = self.leader() else {
            return Next::Wait;
        };
        let voters = leader.machine.status().membership.voters;
        let mut members = leader.machine.members().iter();
        let new = members
            .find(|(id, member)| id.0 > newest && seat_of(&member.address) == Some(seat))
            .map(|(id, _)| id);
        match new {
            None => Next::Change(Change::AddLearner(ReplicaId(
                leader.machine.members().newest() + 1,
            ))),
            Some(new) if !self.members.contains_key(&new.0) => Next::Start(new.0),
            Some(new) if !voters.contains(&new) => Next::Wait,
            Some(_) if !voters.contains(&ReplicaId(old)) => Next::Done,
            Some(_) if leader.id == old => Next::Transfer,
            Some(_) => Next::Change(Change::Remove(ReplicaId(old))),
        }
    }
}

impl Sim {
    /// A seat where nobody is.
    pub(super) fn free_seat(&self) -> Option<u32> {
        let members = self.control.members.values();
        let taken: BTreeSet<u32> = members.map(|member| member.seat).collect();
        let mut seats = self.control.seats.iter();
        seats.find(|seat| !taken.contains(seat)).copied()
    }

    /// Another member is to take the place of one, at this seat.
    pub(super) fn replace(&mut self, old: u64, seat: u32, after: Time) {
        let newest = self.control.members.keys().max().copied();
        self.control.replacement = Some(Replacement {
            old,
            seat,
            newest: newest.unwrap_or_default(),
            done_at: None,
        });
        self.env.net.timer(Node::Outside, after, Timer::Operate);
    }

    /// The operator does what is to be done next for a replacement.
    pub(in super::super) fn operate(&mut self) {
        let Some(replacement) = self.control.replacement else {
            return;
        };
        self.env
            .net
            .timer_between(Node::Outside, OPERATE, Timer::Operate);
        let Replacement { old, seat, .. } = replacement;
        let next = self.control.next(replacement);
        let now = self.env.net.now;
        if let Some(replacement) = &mut self.control.replacement {
            let done_at = replacement.done_at.unwrap_or(now);
            replacement.done_at = matches!(next, Next::Done).then_some(done_at);
            if matches!(next, Next::Done) && now < done_at + GRACE {
                return;
            }
        }
        match next {
            Next::Wait => {}
            Next::Start(new) => {
                let disk = self.control.new_disk(Vec::new());
                let member = Member {
                    seat,
                    host: None,
                    disk: Some(disk),
                    moved: BTreeMap::new(),
                };
                self.control.members.insert(new, member);
                self.start_coordinator(new);
            }
            Next::Transfer => self.transfer(),
            Next::Change(change) => self.change(change, seat),
            Next::Done => {
                self.env
                    .log(format_args!("-- another has taken the place of {old}"));
                self.env.oracle.counts.members += 1;
                self.control.replacement = None;
                if let Some((node, _)) = self.stop_coordinator(old) {
                    self.env.net.die(node);
                }
                self.control.members.remove(&old);
            }
        }
    }

    /// Asks the leader for another group.
    fn change(&mut self, change: Change, seat: u32) {
        self.env.log(format_args!("-- operator: {change:?}"));
        let address = matches!(change, Change::AddLearner(_)).then_some(seat);
        let leader = self.control.leader().map(|host| host.id);
        let member = leader.and_then(|id| self.control.members.get_mut(&id));
        if let Some(host) = member.and_then(|member| member.host.as_mut())
            && !self.env.net.is_paused(host.node())
        {
            self.env.point(Point::Changing, host.node());
            host.change(change, address, &mut self.env);
        }
    }

    /// Another member is to lead.
    pub(super) fn transfer(&mut self) {
        let leader = self.control.leader().map(|host| host.id);
        let member = leader.and_then(|id| self.control.members.get_mut(&id));
        if let Some(host) = member.and_then(|member| member.host.as_mut()) {
            self.env.log(format_args!("-- {} is to hand over", host.id));
            self.env.oracle.counts.transfers += 1;
            host.transfer(&mut self.env);
        }
    }
}
