//! What operators, clients and machines do in a simulated group beside proposing.

use super::{NUM_REPLICAS, Simulation, data_of};
use crate::{Change, Input, Membership, ReplicaId};

impl Simulation {
    /// A machine snapshots what it has applied.
    pub(super) fn snapshot(&mut self, id: ReplicaId) {
        let num_kept = self.draw(8);
        let machine = self.machines.get_mut(&id).unwrap();
        let mark = machine.replica.as_ref().unwrap().mark().clone();
        // One that was received comes first.
        let is_restoring = machine.unsynced.iter().any(|batch| batch.3.is_some());
        if mark.index > machine.disk.start.index && !is_restoring {
            machine
                .snapshots
                .insert(mark.index, machine.applied.clone());
            machine.disk.start = mark.clone();
            self.handle(id, Input::Snapshotted { mark, num_kept });
        }
    }

    /// An operator changes the group at whoever leads.
    pub(super) fn change(&mut self) {
        let Some(leader) = self.leader() else { return };
        let membership = self.membership_at(leader);
        let learner = membership.learners.first().copied();
        let change = match (self.draw(4), learner) {
            (0, None) if self.joined < NUM_REPLICAS => {
                self.joined += 1;
                Change::AddLearner(ReplicaId(self.joined))
            }
            (1 | 2, Some(learner)) => Change::Promote(learner),
            (3, _) if membership.voters.len() > 3 => {
                let at = self.draw(membership.voters.len() as u64) as usize;
                Change::Remove(*membership.voters.iter().nth(at).unwrap())
            }
            _ => return,
        };
        self.counts.changes += 1;
        self.num_proposed += 1;
        let request = self.num_proposed;
        let data = b"data".to_vec();
        self.handle(
            leader,
            Input::Change {
                request,
                change,
                data,
            },
        );
        if let Change::AddLearner(_) = change
            && self.dropped.contains(&data_of(request))
        {
            self.joined -= 1;
        }
    }

    pub(super) fn membership_at(&self, id: ReplicaId) -> Membership {
        let replica = self.machines[&id].replica.as_ref().unwrap();
        replica.mark().membership.clone()
    }

    pub(super) fn read(&mut self, id: ReplicaId) {
        self.num_proposed += 1;
        let request = self.num_proposed;
        self.reads.insert(request, self.acknowledged_index);
        self.handle(id, Input::Read { request });
    }
}
