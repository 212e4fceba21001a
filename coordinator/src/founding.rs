//! Which member of which group a coordinator is: as it was told when it was first started, and as its
//! data folder says from then on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use muster_coordinator_core::consensus::{Recovered, ReplicaId};
use muster_coordinator_core::coordinator::Options as Core;
use muster_coordinator_core::members::is_everywhere;
use muster_proto::v1::operators_client::OperatorsClient;
use muster_proto::{address, v1};

use crate::identity::Identity;
use crate::serve::{Group, Options};
use crate::store::WAY_OUT;

/// How long a member that is to join tries to reach one that belongs to the group.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const JOIN_RETRY: Duration = Duration::from_millis(200);

/// Why a coordinator cannot be a member as it is told.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// Another number than it has.
    #[error(
        "--id {told}: the data folder is that of member {is}; leave --id out, or give the folder that belongs to {told}"
    )]
    OtherId {
        /// As told.
        told: u64,
        /// As its folder says.
        is: u64,
    },
    /// Other members than those that founded the group.
    #[error(
        "--peers {told} disagrees with the group that this data folder was founded with, {is}: leave --peers out (`muster \
         coordinator add` and `remove` change a group), or say --moved where the same members have new addresses"
    )]
    OtherPeers {
        /// As told.
        told: String,
        /// As its folder says.
        is: String,
    },
    /// Its own number is not among them.
    #[error(
        "--peers {peers} does not have member {id}: expected every member, this one included, such as --peers 1=10.0.0.1:4600,2=10.0.0.2:4600,3=10.0.0.3:4600"
    )]
    NotAmong {
        /// Its number.
        id: u64,
        /// All members.
        peers: String,
    },
    /// An address that leads whoever is told it to itself.
    #[error(
        "{address} is where member {id} listens, not where others reach it: give its host's address in --peers, and listen with --listen {address}"
    )]
    Everywhere {
        /// Whose.
        id: u64,
        /// As told.
        address: String,
    },
    /// A group of an even number, or of too many.
    #[error(
        "--peers has {0} members: a group is founded by 1, 3 or 5, of which a majority must be alive"
    )]
    Number(usize),
    /// It does not say which one it is.
    #[error("--peers needs --id: which of them is this one?")]
    NoId,
    /// Nobody let it in.
    #[error("--join {join}: {reason}")]
    Join {
        /// As told.
        join: String,
        /// What happened.
        reason: String,
    },
    /// The log is there, and nothing says whose it is.
    #[error("{folder}: there is a log, and identity.json is missing; {}", WAY_OUT)]
    NoIdentity {
        /// The data folder.
        folder: String,
    },
    /// The log is another one than the member had.
    #[error(
        "{folder}: identity.json belongs to another log: the folder was mixed up, or its log was lost. A member without its log comes back under a new number: `muster coordinator remove {id}`, then `muster coordinator add`, with an empty folder"
    )]
    OtherLog {
        /// The data folder.
        folder: String,
        /// Its number.
        id: u64,
    },
}

/// Where the member of a group listens whose folder this is, unless it is told: where it was reached
/// when the group was founded. `None` where the folder says nothing of it.
#[must_use]
pub fn listens_at(data: &Path) -> Option<SocketAddr> {
    // What is wrong with it is said when it is started.
    let identity = Identity::read(data).ok()??;
    let is_group = identity.founders.len() > 1;
    let own = identity.founders.get(&identity.id).filter(|_| is_group);
    own.or(identity.address.as_ref())?.parse().ok()
}

/// Refuses what makes no sense for a coordinator that is started for the first time, before it writes
/// anything.
pub(crate) async fn check_first(
    options: &Options,
    listens: SocketAddr,
    data: &Path,
) -> Result<(), FoundingError> {
    if !data.join("log").exists() {
        // The log, whose id belongs there, is made only then.
        first(options, listens, [0; 16]).await?;
    }
    Ok(())
}

/// Which member a coordinator is. On a first start that is made durable.
pub(crate) async fn member(
    options: &Options,
    listens: SocketAddr,
    data: &Path,
    store_id: [u8; 16],
    recovered: &Recovered,
) -> Result<Core, crate::serve::Error> {
    let group = &options.group;
    let found = Identity::read(data)?;
    let identity = match found {
        Some(identity) => {
            check(&identity, options, data, store_id)?;
            identity
        }
        None if *recovered != Recovered::default() => {
            let folder = data.display().to_string();
            return Err(FoundingError::NoIdentity { folder }.into());
        }
        None => {
            let identity = first(options, listens, store_id).await?;
            identity.write(data)?;
            identity
        }
    };
    let peers = peers_of(&group.peers);
    let moved = if group.have_moved {
        peers
    } else {
        BTreeMap::new()
    };
    let own = moved
        .get(&identity.id)
        .or_else(|| identity.founders.get(&identity.id));
    // The only member of a group is where it listens.
    let is_alone = identity.founders.len() == 1 && group.peers.is_empty();
    let own = own.filter(|_| !is_alone).cloned();
    // One that listens everywhere is where the group was told that it would be.
    let joined = identity.address.filter(|_| listens.ip().is_unspecified());
    let own = own.or(joined);
    Ok(Core {
        id: identity.id,
        address: own.unwrap_or_else(|| listens.to_string()),
        store_id,
        cluster_id: identity.cluster_id,
        founders: identity.founders,
        moved,
        checkpoints: String::new(),
    })
}

/// Whether what it is told fits what its folder says.
fn check(
    identity: &Identity,
    options: &Options,
    data: &Path,
    store_id: [u8; 16],
) -> Result<(), FoundingError> {
    let group = &options.group;
    let is = identity.id.0;
    if let Some(told) = group.id.filter(|told| *told != is) {
        return Err(FoundingError::OtherId { told, is });
    }
    if identity.store_id != store_id {
        let folder = data.display().to_string();
        return Err(FoundingError::OtherLog { folder, id: is });
    }
    let peers = peers_of(&group.peers);
    let fits = if group.have_moved {
        peers.keys().eq(identity.founders.keys())
    } else {
        peers == identity.founders
    };
    if !peers.is_empty() && !fits {
        let told = list(&peers);
        let is = match identity.founders.is_empty() {
            true => "none (it joined later)".to_owned(),
            false => list(&identity.founders),
        };
        return Err(FoundingError::OtherPeers { told, is });
    }
    Ok(())
}

/// Who a coordinator is that is started for the first time.
async fn first(
    options: &Options,
    listens: SocketAddr,
    store_id: [u8; 16],
) -> Result<Identity, FoundingError> {
    if !options.group.join.is_empty() {
        return join(options, store_id).await;
    }
    founded(&options.group, listens, store_id)
}

/// A member of a new group.
pub(crate) fn founded(
    group: &Group,
    listens: SocketAddr,
    store_id: [u8; 16],
) -> Result<Identity, FoundingError> {
    if group.peers.is_empty() {
        let id = ReplicaId(group.id.unwrap_or(1));
        return Ok(Identity {
            cluster_id: store_id,
            id,
            store_id,
            founders: BTreeMap::from([(id, listens.to_string())]),
            address: None,
        });
    }
    let id = ReplicaId(group.id.ok_or(FoundingError::NoId)?);
    let founders = peers_of(&group.peers);
    if !founders.contains_key(&id) {
        let peers = list(&founders);
        return Err(FoundingError::NotAmong { id: id.0, peers });
    }
    if let Some((id, address)) = founders.iter().find(|(_, one)| is_everywhere(one)) {
        let (id, address) = (id.0, address.clone());
        return Err(FoundingError::Everywhere { id, address });
    }
    if !matches!(founders.len(), 1 | 3 | 5) {
        return Err(FoundingError::Number(founders.len()));
    }
    Ok(Identity {
        cluster_id: cluster_of(&founders),
        id,
        store_id,
        founders,
        address: None,
    })
}

/// The cluster that these members found: those that are given another list are of another one.
fn cluster_of(founders: &BTreeMap<ReplicaId, String>) -> [u8; 16] {
    let hash = blake3::hash(format!("muster cluster {}", list(founders)).as_bytes());
    let (first, _) = hash.as_bytes().split_at(16);
    first.try_into().expect("half of 32 bytes")
}

/// Asks the group that has taken this one in who it is.
async fn join(options: &Options, store_id: [u8; 16]) -> Result<Identity, FoundingError> {
    let group = &options.group;
    let failed = |reason: String| FoundingError::Join {
        join: group.join.join(","),
        reason,
    };
    let Some(id) = group.id else {
        return Err(failed(
            "--id is missing: the number that `muster coordinator add` gave this member".to_owned(),
        ));
    };
    let deadline = tokio::time::Instant::now() + JOIN_TIMEOUT;
    let mut reason = String::new();
    for address in group.join.iter().cycle() {
        match ask(address).await {
            Ok(reply) => {
                let cluster_id = reply.cluster_id.clone().try_into();
                let member = reply.members.iter().find(|member| member.id == id);
                if let (Some(member), Ok(cluster_id)) = (member, cluster_id) {
                    return Ok(Identity {
                        cluster_id,
                        id: ReplicaId(id),
                        store_id,
                        founders: BTreeMap::new(),
                        address: Some(member.address.clone()),
                    });
                }
                reason = format!(
                    "member {id} does not belong to the group of {address}; take it in first: muster coordinator add {own} --id {id}",
                    own = match options.listen {
                        listen if listen.ip().is_unspecified() => format!("HOST:{}", listen.port()),
                        listen => listen.to_string(),
                    }
                );
            }
            Err(error) => reason = format!("{address}: {error}"),
        }
        if tokio::time::Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(JOIN_RETRY).await;
    }
    Err(failed(reason))
}

async fn ask(address: &str) -> Result<v1::GroupReply, String> {
    let endpoint = address::endpoint(address)?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| muster_cluster::error_chain(&error))?;
    let reply = OperatorsClient::new(channel)
        .group(v1::GroupRequest {})
        .await;
    reply
        .map(tonic::Response::into_inner)
        .map_err(|status| status.message().to_owned())
}

fn peers_of(peers: &BTreeMap<u64, String>) -> BTreeMap<ReplicaId, String> {
    let peers = peers.iter();
    peers
        .map(|(id, address)| (ReplicaId(*id), address.clone()))
        .collect()
}

fn list(peers: &BTreeMap<ReplicaId, String>) -> String {
    let peers = peers
        .iter()
        .map(|(id, address)| format!("{}={address}", id.0));
    peers.collect::<Vec<_>>().join(",")
}
