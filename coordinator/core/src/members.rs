//! Who the members of the group are: where each is reached, and which disk it has. It follows from
//! the log. A replica's number is its vote, and the vote is a promise that its disk keeps: under a
//! number that was used before, or with another disk, nobody comes back.

use std::collections::BTreeMap;

use muster_consensus::{Membership, ReplicaId};
use muster_proto::v1;

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// `host:port`, for everybody.
    pub address: String,
    /// The disk that the leader saw it with; `None` while it has not shown itself.
    pub store_id: Option<[u8; 16]>,
}

/// The members, and the newest number that was ever given to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    all: BTreeMap<ReplicaId, Member>,
    newest: u64,
}

impl Members {
    /// The members that found a group.
    #[must_use]
    pub fn founders(addresses: &BTreeMap<ReplicaId, String>) -> Self {
        let mut members = Self::default();
        for (id, address) in addresses {
            members.add(*id, address.clone());
        }
        members
    }

    /// Every member, by number.
    pub fn iter(&self) -> impl Iterator<Item = (ReplicaId, &Member)> {
        self.all.iter().map(|(id, member)| (*id, member))
    }

    /// A member.
    #[must_use]
    pub fn get(&self, id: ReplicaId) -> Option<&Member> {
        self.all.get(&id)
    }

    /// The newest number that a member ever had.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    pub(crate) fn add(&mut self, id: ReplicaId, address: String) {
        self.newest = self.newest.max(id.0);
        let store_id = None;
        self.all.insert(id, Member { address, store_id });
    }

    /// Where a replica is, whether or not it is known as a member.
    pub(crate) fn is_at(&mut self, id: ReplicaId, address: String) {
        self.all.entry(id).or_default().address = address;
    }

    /// Forgets those that do not belong to the group.
    pub(crate) fn keep(&mut self, membership: &Membership) {
        self.all.retain(|id, _| membership.has(*id));
    }

    /// A member showed itself. The disk that it was seen with first stays its disk.
    pub(crate) fn seen(&mut self, seen: v1::Member) {
        let store_id = seen.store_id.try_into().ok();
        if let Some(member) = self.all.get_mut(&ReplicaId(seen.id)) {
            member.address = seen.address;
            member.store_id = member.store_id.or(store_id);
        }
    }

    pub(crate) fn to_wire(&self) -> Vec<v1::Member> {
        self.iter().map(|(id, member)| wire(id, member)).collect()
    }

    pub(crate) fn of_wire(members: Vec<v1::Member>, newest: u64) -> Self {
        let member = |member: v1::Member| {
            let store_id = member.store_id.try_into().ok();
            let address = member.address;
            (ReplicaId(member.id), Member { address, store_id })
        };
        Self {
            all: members.into_iter().map(member).collect(),
            newest,
        }
    }
}

/// Whether an address is where one listens on all its interfaces, such as `0.0.0.0:4600`: others that
/// are told it reach themselves.
#[must_use]
pub fn is_everywhere(address: &str) -> bool {
    let address = address.parse::<std::net::SocketAddr>();
    address.is_ok_and(|address| address.ip().is_unspecified())
}

/// A member for the wire.
#[must_use]
pub fn wire(id: ReplicaId, member: &Member) -> v1::Member {
    v1::Member {
        id: id.0,
        address: member.address.clone(),
        store_id: member.store_id.map(Vec::from).unwrap_or_default(),
    }
}
