//! Who may speak to a coordinator as a member of its group; see ADR 8.

use muster_consensus::ReplicaId;
use muster_proto::v1;

use super::{Coordinator, Options};

/// Why a member is not listened to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// It is of another cluster, or was founded with other members.
    #[error(
        "member {from} is of cluster {theirs} and this is one of cluster {ours}: their --peers \
         differ, or an address leads to another cluster"
    )]
    OtherCluster {
        /// Who speaks.
        from: u64,
        /// Its cluster.
        theirs: String,
        /// This one.
        ours: String,
    },
    /// It means somebody else.
    #[error(
        "member {from} wants to speak to member {to}, and this is member {id}: two members have one \
         number, or an address is not that of the member it is given for"
    )]
    NotMe {
        /// Who speaks.
        from: u64,
        /// Whom it means.
        to: u64,
        /// This one.
        id: u64,
    },
    /// This disk is not the one that keeps this member's promises.
    #[error(
        "member {id} is known with another disk, whose promises this one does not keep: have it \
         removed (`muster coordinator remove {id}`), and come back under a new number (`muster \
         coordinator add`)"
    )]
    OtherDisk {
        /// Whose disk is another one.
        id: u64,
    },
    /// It does not belong to the group.
    #[error(
        "member {0} does not belong to the group, or not any more: `muster coordinator add` takes it in under a new number"
    )]
    NoMember(u64),
}

impl Coordinator {
    /// How a connection to another member begins.
    #[must_use]
    pub fn hello_to(&self, to: ReplicaId) -> v1::PeerHello {
        let store_id = self.members.get(to).and_then(|member| member.store_id);
        v1::PeerHello {
            cluster_id: self.options.cluster_id.to_vec(),
            from: Some(self.options.member()),
            to: to.0,
            to_store_id: store_id.map(Vec::from).unwrap_or_default(),
        }
    }

    /// Whether another member may speak here; gives what it says of itself, for
    /// [`Input::PeerHello`](super::Input::PeerHello).
    ///
    /// # Errors
    /// Why it is not listened to.
    pub fn admit(&self, hello: v1::PeerHello) -> Result<v1::Member, Stranger> {
        let from = hello.from.unwrap_or_default();
        let Options {
            id,
            store_id,
            cluster_id,
            ..
        } = &self.options;
        if hello.cluster_id != cluster_id {
            return Err(Stranger::OtherCluster {
                from: from.id,
                theirs: short(&hello.cluster_id),
                ours: short(cluster_id),
            });
        }
        if hello.to != id.0 || from.id == id.0 {
            let (to, id) = (hello.to, id.0);
            return Err(Stranger::NotMe {
                from: from.id,
                to,
                id,
            });
        }
        if !hello.to_store_id.is_empty() && hello.to_store_id != store_id {
            return Err(Stranger::OtherDisk { id: id.0 });
        }
        let member = self.members.get(ReplicaId(from.id));
        // One that is to join knows of nobody yet.
        let knows_nobody = self.members.iter().next().is_none();
        match member {
            Some(member) => match member.store_id {
                Some(known) if from.store_id != known => Err(Stranger::OtherDisk { id: from.id }),
                _ => Ok(from),
            },
            None if knows_nobody => Ok(from),
            // It may have been taken in by an entry that has not come here yet.
            None if from.id > self.members.newest() => Ok(from),
            None => Err(Stranger::NoMember(from.id)),
        }
    }
}

/// The first bytes of an id, in hex.
fn short(id: &[u8]) -> String {
    let bytes = id.iter().take(4);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}
