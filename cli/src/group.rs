//! `muster coordinator status`, `add`, `remove`, `transfer`, `backup` and `restore`: looking after a
//! group.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use muster_cluster::error_chain;
use muster_proto::v1;
use v1::change_group_request::Change;

use crate::client::{Client, To};
use crate::daemons::{DEFAULT_PORT, member, peers};
use crate::failure::{Failure, Outcome};
use crate::output::print_lines;

/// How long one member may take to say how it is.
const ONE_TIMEOUT: Duration = Duration::from_secs(1);

/// What can be done to a group of coordinators.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    Status(Status),
    Add(Add),
    Remove(Remove),
    Transfer(Transfer),
    Backup(Backup),
    Restore(Restore),
}

impl GroupCommand {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            GroupCommand::Status(status) => status.run().await,
            GroupCommand::Add(add) => add.run().await,
            GroupCommand::Remove(remove) => remove.run().await,
            GroupCommand::Transfer(transfer) => transfer.run().await,
            GroupCommand::Backup(backup) => backup.run().await,
            GroupCommand::Restore(restore) => restore.run(),
        }
    }
}

/// Show the members of a group: who leads, how far each is, and how its disk does
#[derive(Debug, Args)]
#[command(after_help = "Example: muster coordinator status --coordinator 10.0.0.1:4600")]
pub(crate) struct Status {
    #[command(flatten)]
    to: To,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Take a member into the group; it votes once it has caught up
#[derive(Debug, Args)]
#[command(after_help = "Example: muster coordinator add 10.0.0.4:4600
then, on that machine: muster coordinator --id 4 --listen 10.0.0.4:4600 --data FOLDER --join 10.0.0.1:4600")]
pub(crate) struct Add {
    /// Where the new member will be reached
    #[arg(value_name = "HOST:PORT")]
    address: String,
    /// Its number, which no member had before [default: the next one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
    #[command(flatten)]
    to: To,
}

/// Take a member out of the group, such as one whose disk is lost
#[derive(Debug, Args)]
#[command(after_help = "Example: muster coordinator remove 3")]
pub(crate) struct Remove {
    /// Its number
    #[arg(value_name = "N")]
    id: u64,
    #[command(flatten)]
    to: To,
}

/// Have another member lead
#[derive(Debug, Args)]
#[command(after_help = "Example: muster coordinator transfer 2")]
pub(crate) struct Transfer {
    /// Its number [default: the member that is furthest]
    #[arg(value_name = "N")]
    id: Option<u64>,
    #[command(flatten)]
    to: To,
}

/// Write all that a group knows into a folder: jobs, worlds, checkpoints' manifests, events
#[derive(Debug, Args)]
#[command(after_help = "Example: muster coordinator backup /backup/2026-11-25

The files of checkpoints are not in it: they are where jobs keep them.")]
pub(crate) struct Backup {
    /// An empty folder, or one that is made
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    to: To,
}

/// Make the data folder of a coordinator whose group begins with a backup
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster coordinator restore /backup/2026-11-25 --data /var/lib/muster
          muster coordinator restore /backup/2026-11-25 --data /var/lib/muster --id 1 \\
              --peers 1=10.0.0.1:4600,2=10.0.0.2:4600,3=10.0.0.3:4600

Every member of a group is made from the same backup, and is then started as usual. The old group must not \
run any more: both would lead the same workers.")]
pub(crate) struct Restore {
    /// What `muster coordinator backup` wrote
    #[arg(value_name = "DIR")]
    backup: PathBuf,
    /// The data folder to make; empty, or not there
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Its number in the group [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
    /// All members of the group, this one included
    #[arg(long, value_name = "N=HOST:PORT", value_delimiter = ',', value_parser = member)]
    peers: Vec<(u64, String)>,
}

impl Backup {
    async fn run(self) -> Outcome {
        let pieces = Client::new(&self.to)?.backup().await?;
        let written = muster_coordinator::receive_backup(pieces, &self.folder).await;
        let index = written.map_err(|error| failure(&error))?;
        let folder = self.folder.display();
        say(format!("{folder} holds all through entry {index}"))
    }
}

impl Restore {
    fn run(self) -> Outcome {
        let group = muster_coordinator::Group {
            id: self.id,
            peers: peers(self.peers)?,
            join: Vec::new(),
            have_moved: false,
        };
        let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT));
        let restored = muster_coordinator::restore(&self.backup, &self.data, &group, listens);
        let num_jobs = restored.map_err(|error| failure(&error))?;
        let data = self.data.display();
        say(format!(
            "{data} begins with {num_jobs} jobs; start it: muster coordinator --data {data}"
        ))
    }
}

fn failure(error: &muster_coordinator::BackupError) -> Failure {
    let text = error_chain(error);
    match error.is_bad_input() {
        true => Failure::bad_input(text),
        false => Failure::failed(text),
    }
}

impl Status {
    async fn run(self) -> Outcome {
        let client = Client::new(&self.to)?;
        let group = client.group().await?;
        // All at once: those that are dead do not keep each other waiting.
        let asked = group.members.iter().map(|member| {
            let address = member.address.clone();
            (member, tokio::spawn(said_by(address)))
        });
        let asked: Vec<_> = asked.collect();
        let mut all = Vec::new();
        for (member, said) in asked {
            all.push((member, said.await.unwrap_or_default()));
        }
        // The leader knows of the others what they cannot say themselves.
        // One that was cut off may still take itself for it.
        let said = all.iter().filter_map(|(_, said)| said.as_ref());
        let leads = said.filter(|said| said.role == "leader");
        let leader = leads.max_by_key(|said| said.term).cloned();
        let view = View {
            leader: leader.as_ref(),
            asked: &group,
        };
        if self.json {
            let members: Vec<serde_json::Value> = all
                .iter()
                .map(|(member, said)| view.member_json(member, said.as_ref()))
                .collect();
            let line = serde_json::json!({
                "cluster": hex(&group.cluster_id),
                "leader": view.leader_id(),
                "term": view.best().term,
                "committed": view.best().committed,
                "members": members,
            });
            print_lines([line.to_string()]);
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = vec![view.headline()];
        for (member, said) in &all {
            lines.extend(view.member_lines(member, said.as_ref()));
        }
        print_lines(lines);
        Ok(ExitCode::SUCCESS)
    }
}

/// What one member says, if it answers soon.
async fn said_by(address: String) -> Option<v1::GroupReply> {
    let what_to_do = "it is shown as one that does not answer";
    let client = Client::of(vec![address], ONE_TIMEOUT, what_to_do).ok()?;
    client.group().await.ok()
}

/// What is known of a group.
struct View<'a> {
    /// What the leader says, if it answers.
    leader: Option<&'a v1::GroupReply>,
    /// What the one says that was asked first.
    asked: &'a v1::GroupReply,
}

impl View<'_> {
    fn best(&self) -> &v1::GroupReply {
        self.leader.unwrap_or(self.asked)
    }

    fn leader_id(&self) -> Option<u64> {
        Some(self.best().leader).filter(|leader| *leader != 0)
    }

    fn headline(&self) -> String {
        let best = self.best();
        let cluster = hex(&best.cluster_id);
        let leader = match self.leader_id() {
            Some(leader) if self.leader.is_some() => format!("member {leader} leads"),
            Some(leader) => format!("member {leader} is said to lead, and does not answer"),
            None => "nobody leads".to_owned(),
        };
        format!(
            "cluster {}: {leader}, term {}, {} entries committed",
            &cluster[..8.min(cluster.len())],
            best.term,
            best.committed
        )
    }

    /// What the leader knows of a member.
    fn seen(&self, id: u64) -> Option<&v1::MemberView> {
        self.leader?.members.iter().find(|member| member.id == id)
    }

    /// How many entries a member is behind the leader's commit.
    fn lag(&self, id: u64, said: Option<&v1::GroupReply>) -> Option<u64> {
        let matched = self.seen(id).and_then(|seen| seen.matched);
        let has = matched.or_else(|| said.map(|said| said.committed))?;
        Some(self.best().committed.saturating_sub(has))
    }

    fn member_lines(&self, member: &v1::MemberView, said: Option<&v1::GroupReply>) -> Vec<String> {
        let v1::MemberView {
            id, address, kind, ..
        } = member;
        let lag = self
            .lag(*id, said)
            .map_or_else(|| "lag unknown".to_owned(), |lag| format!("{lag} behind"));
        let Some(said) = said else {
            return vec![format!(
                "member {id}  {address}  {kind}  does not answer  {lag}"
            )];
        };
        let state = if self.seen(*id).and_then(|seen| seen.needs_snapshot) == Some(true) {
            "  is sent a snapshot"
        } else {
            ""
        };
        let snapshot = match said.snapshot_bytes {
            0 => "no snapshot yet".to_owned(),
            bytes => format!(
                "snapshot of entry {}, {} s old, {}",
                said.snapshot_index,
                said.snapshot_age_ms / 1000,
                size(bytes)
            ),
        };
        let mut lines = vec![
            format!(
                "member {id}  {address}  {}  term {}  {lag}{state}",
                said.role, said.term
            ),
            format!(
                "    log {}..{}, committed {}, applied {}; {snapshot}",
                said.first_index, said.last_index, said.committed, said.applied
            ),
            format!(
                "    disk {} used, {} free; {} syncs of {} us; pid {}, version {}",
                size(said.disk_used_bytes),
                size(said.disk_free_bytes),
                said.num_syncs,
                said.sync_us,
                said.pid,
                said.version
            ),
        ];
        if !said.elected_why.is_empty() {
            let since = Duration::from_millis(said.elected_ms);
            let at = SystemTime::UNIX_EPOCH + since;
            let ago = at.elapsed().unwrap_or_default().as_secs();
            lines.push(format!(
                "    last election {ago} s ago: {}",
                said.elected_why
            ));
        }
        lines
    }

    fn member_json(
        &self,
        member: &v1::MemberView,
        said: Option<&v1::GroupReply>,
    ) -> serde_json::Value {
        let mut json = serde_json::json!({
            "id": member.id,
            "address": member.address,
            "kind": member.kind,
            "answers": said.is_some(),
            "lag": self.lag(member.id, said),
        });
        if let Some(said) = said {
            json["role"] = said.role.clone().into();
            json["term"] = said.term.into();
            json["committed"] = said.committed.into();
            json["applied"] = said.applied.into();
            json["first_index"] = said.first_index.into();
            json["last_index"] = said.last_index.into();
            json["snapshot_index"] = said.snapshot_index.into();
            json["snapshot_age_ms"] = said.snapshot_age_ms.into();
            json["snapshot_bytes"] = said.snapshot_bytes.into();
            json["disk_used_bytes"] = said.disk_used_bytes.into();
            json["disk_free_bytes"] = said.disk_free_bytes.into();
            json["num_syncs"] = said.num_syncs.into();
            json["sync_us"] = said.sync_us.into();
            json["elected_ms"] = said.elected_ms.into();
            json["elected_why"] = said.elected_why.clone().into();
            json["pid"] = said.pid.into();
            json["version"] = said.version.clone().into();
        }
        json
    }
}

impl Add {
    async fn run(self) -> Outcome {
        let client = Client::new(&self.to)?;
        // Said here, so that asking again is not asking for another one.
        let id = match self.id {
            Some(id) => id,
            None => client.group().await?.newest_member + 1,
        };
        let address = self.address;
        let add = Change::Add(v1::AddMember { id, address });
        say(client.change_group(add).await?)
    }
}

impl Remove {
    async fn run(self) -> Outcome {
        let change = Change::Remove(self.id);
        say(Client::new(&self.to)?.change_group(change).await?)
    }
}

impl Transfer {
    async fn run(self) -> Outcome {
        let to = self.id.unwrap_or_default();
        say(Client::new(&self.to)?.transfer(to).await?)
    }
}

fn say(message: String) -> Outcome {
    print_lines([message]);
    Ok(ExitCode::SUCCESS)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
