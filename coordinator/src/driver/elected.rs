//! The last change of the leader, for people.

use muster_coordinator_core::consensus::ReplicaId;

/// When another one began to lead, as this member saw it, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Elected {
    pub(crate) at_ms: u64,
    pub(crate) why: String,
    leader: Option<ReplicaId>,
    term: u64,
}

impl Elected {
    /// This one leads now; whether that is another one.
    pub(super) fn note(&mut self, leader: Option<ReplicaId>, term: u64, at_ms: u64) -> bool {
        let Some(now) = leader else { return false };
        if leader == self.leader {
            return false;
        }
        let (id, last_term) = (now.0, self.term);
        let why = match self.leader {
            None => format!("member {id} is the first that this member hears of, in term {term}"),
            Some(last) => format!(
                "member {id} won term {term}: {last}, which had led term {last_term}, was not heard of, or had handed over",
                last = last.0
            ),
        };
        *self = Self {
            at_ms,
            why,
            leader,
            term,
        };
        true
    }
}
