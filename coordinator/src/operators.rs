//! The service for operators: how the group does, changes of it, and backups.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use muster_coordinator_core::consensus::{Change, ReplicaId, Status as Replica};
use muster_coordinator_core::{Member, Reply};
use muster_proto::v1;
use muster_proto::v1::operators_server::Operators;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::backup;
use crate::calls::{Call, Handle};
use crate::records::Records;
use crate::snapshots;
use crate::store::thread::Syncs;

/// How long an operator waits for another leader: less than a client that knows several coordinators
/// is patient with one, so that it hears what became of it.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1500);

/// What is known of the disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) data: PathBuf,
    pub(crate) snapshots: PathBuf,
    pub(crate) syncs: Arc<Syncs>,
}

/// Pieces of a backup that may wait for the one who takes it.
const MAX_WAITING_PIECES: usize = 4;

/// The service.
#[derive(Debug)]
pub(crate) struct OperatorsService {
    driver: Handle,
    records: Records,
    disk: Disk,
}

impl OperatorsService {
    pub(crate) fn new(driver: Handle, records: Records, disk: Disk) -> Self {
        Self {
            driver,
            records,
            disk,
        }
    }
}

#[tonic::async_trait]
impl Operators for OperatorsService {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::SnapshotPiece, Status>> + Send>>;

    async fn group(
        &self,
        _: Request<v1::GroupRequest>,
    ) -> Result<Response<v1::GroupReply>, Status> {
        Ok(Response::new(show(&self.driver, &self.disk).await?))
    }

    async fn change_group(
        &self,
        request: Request<v1::ChangeGroupRequest>,
    ) -> Result<Response<v1::ChangeGroupReply>, Status> {
        let reply = change(&self.driver, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferReply>, Status> {
        let reply = transfer(&self.driver, request.into_inner().to).await?;
        Ok(Response::new(reply))
    }

    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let look = self
            .driver
            .look(false, |coordinator, _| coordinator.taken());
        let taken = look.await?;
        self.records.written().await;
        let (sender, receiver) = mpsc::channel(MAX_WAITING_PIECES);
        let records = self.records.clone();
        tokio::spawn(async move {
            if let Err(status) = backup::send(taken, &records, &sender).await {
                // Whoever asked may have gone.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// What this coordinator knows of its group.
async fn show(driver: &Handle, disk: &Disk) -> Result<v1::GroupReply, Status> {
    let look = driver.look(true, |coordinator, _| {
        let options = coordinator.options();
        let (status, members) = (coordinator.status(), coordinator.members().clone());
        (options.cluster_id, options.id, status, members)
    });
    let (cluster_id, id, status, members) = look.await?;
    let elected = driver.ask(Call::Elected).await?;
    let measured = disk.clone();
    let index = status.snapshot;
    let measured = tokio::task::spawn_blocking(move || Measured::of(&measured, index)).await;
    let measured = measured.map_err(|error| Status::internal(error.to_string()))?;
    let views = members
        .iter()
        .map(|(id, member)| member_view(id, member, &status));
    Ok(v1::GroupReply {
        cluster_id: cluster_id.to_vec(),
        id: id.0,
        role: status.role.as_str().to_owned(),
        term: status.term,
        leader: status.leader.map_or(0, |leader| leader.0),
        members: views.collect(),
        committed: status.committed,
        applied: status.applied,
        first_index: status.log.0,
        last_index: status.log.1,
        snapshot_index: status.snapshot,
        snapshot_age_ms: measured.snapshot_age_ms,
        snapshot_bytes: measured.snapshot_bytes,
        disk_used_bytes: measured.used_bytes,
        disk_free_bytes: measured.free_bytes,
        num_syncs: disk.syncs.num(),
        sync_us: disk.syncs.mean_us(),
        elected_ms: elected.at_ms,
        elected_why: elected.why,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        newest_member: members.newest(),
    })
}

fn member_view(id: ReplicaId, member: &Member, status: &Replica) -> v1::MemberView {
    let kind = if status.membership.learners.contains(&id) {
        "learner"
    } else {
        "voter"
    };
    let peer = status.peers.iter().find(|peer| peer.id == id);
    v1::MemberView {
        id: id.0,
        address: member.address.clone(),
        kind: kind.to_owned(),
        matched: peer.map(|peer| peer.matched),
        is_active: peer.map(|peer| peer.is_active),
        needs_snapshot: peer.map(|peer| peer.needs_snapshot),
        is_known: member.store_id.is_some(),
    }
}

/// What the disk says.
#[derive(Debug, Default)]
struct Measured {
    snapshot_age_ms: u64,
    snapshot_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
}

impl Measured {
    fn of(disk: &Disk, index: u64) -> Self {
        let snapshot = fs::metadata(snapshots::path_of(&disk.snapshots, index)).ok();
        let written = snapshot.as_ref().and_then(|file| file.modified().ok());
        let age = written.and_then(|written| written.elapsed().ok());
        let free = rustix::fs::statvfs(&disk.data).ok();
        Self {
            snapshot_age_ms: age
                .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            snapshot_bytes: snapshot.map_or(0, |file| file.len()),
            // Not checkpoints, which may be many and far away, nor what ranks print.
            used_bytes: ["log", "snapshots", "events"]
                .map(|part| size_of(&disk.data.join(part)))
                .iter()
                .sum(),
            free_bytes: free.map_or(0, |free| free.f_bavail.saturating_mul(free.f_frsize)),
        }
    }
}

/// The sizes of the files of a folder together. What cannot be read is left out.
fn size_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = files.map(|file| match file.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&file.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Changes the group.
async fn change(
    driver: &Handle,
    request: v1::ChangeGroupRequest,
) -> Result<v1::ChangeGroupReply, Status> {
    use v1::change_group_request::Change as Wanted;
    let (change, address) = match request.change {
        Some(Wanted::Add(add)) => {
            muster_proto::address::endpoint(&add.address).map_err(Status::invalid_argument)?;
            (Change::AddLearner(ReplicaId(add.id)), add.address)
        }
        Some(Wanted::Remove(id)) => (Change::Remove(ReplicaId(id)), String::new()),
        None => return Err(Status::invalid_argument("no change is asked for")),
    };
    let told = address.clone();
    let call = |answer| Call::Change {
        change,
        address,
        answer,
    };
    // A group without a majority changes nothing, and says so, rather than to be silent.
    let reply = driver.ask(call).await?;
    let Reply::Changed(membership) = reply? else {
        return Err(Status::internal(
            "a change of the group led to something else",
        ));
    };
    let (voters, learners) = (membership.voters.len(), membership.learners.len());
    let newest = membership.learners.iter().max().map_or(0, |id| id.0);
    let message = match change {
        Change::Remove(id) => format!(
            "member {} does not belong to the group any more; it has {voters} voters",
            id.0
        ),
        _ => format!(
            "member {newest} belongs to the group, and votes once it has caught up ({voters} voters, {learners} learners); \
             start it: muster coordinator --id {newest} --listen {told} --data FOLDER --join ADDRESS-OF-A-MEMBER"
        ),
    };
    Ok(v1::ChangeGroupReply { message })
}

/// Has another member lead, and waits until it does.
async fn transfer(driver: &Handle, to: u64) -> Result<v1::TransferReply, Status> {
    let lead = driver.lead().borrow().clone();
    lead.check()?;
    let to = (to != 0).then_some(ReplicaId(to));
    if let Some(to) = to {
        let look = driver.look(true, |coordinator, _| coordinator.status());
        can_lead(to, &look.await?).map_err(Status::failed_precondition)?;
    }
    driver.call(Call::Transfer(to)).await?;
    let deposed = tokio::time::timeout(TRANSFER_TIMEOUT, driver.deposed(lead.epoch)).await;
    if deposed.is_err() {
        let who = to.map_or_else(
            || "no other member has".to_owned(),
            |id| format!("member {} has not", id.0),
        );
        return Err(Status::failed_precondition(format!(
            "{who} taken the lead within {} ms: does it run, and has it caught up? `muster coordinator status` shows \
             how each member does",
            TRANSFER_TIMEOUT.as_millis()
        )));
    }
    let look = driver.look(true, |coordinator, _| coordinator.leader());
    let leader = look.await?.map_or_else(
        || "another member".to_owned(),
        |id| format!("member {}", id.0),
    );
    Ok(v1::TransferReply {
        message: format!("{leader} leads"),
    })
}

/// Whether a member may lead in this leader's place; else why not.
fn can_lead(to: ReplicaId, leader: &Replica) -> Result<(), String> {
    let id = to.0;
    if leader.leader == Some(to) {
        return Err(format!("member {id} leads already"));
    }
    if leader.membership.learners.contains(&to) {
        return Err(format!(
            "member {id} does not vote yet, and cannot lead; it does once it has caught up"
        ));
    }
    if !leader.membership.voters.contains(&to) {
        let voters = leader.membership.voters.iter();
        let voters: Vec<String> = voters.map(|voter| voter.0.to_string()).collect();
        return Err(format!(
            "member {id} does not belong to the group; its voters are {}",
            voters.join(", ")
        ));
    }
    Ok(())
}
