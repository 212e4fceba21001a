//! The two systems that are measured, as their clients see them: one durable command of at least
//! 256 bytes, and what a member says of itself. The connections and codecs are the same for both.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::PathBuf;
use std::sync::LazyLock;

use muster_proto::v1;
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::v1::operators_client::OperatorsClient;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Muster,
    Etcd,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            System::Muster => "Muster",
            System::Etcd => "etcd",
        }
    }
}

/// Where etcd is, if it is installed.
pub(crate) fn etcd() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let candidates = std::env::split_paths(&folders).map(|folder| folder.join("etcd"));
    let found = candidates.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("etcd is not installed: Muster is measured alone (apt-get install etcd-server)");
    }
    found
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) id: u64,
    /// 0 where it knows none.
    pub(crate) leader: u64,
    pub(crate) applied: u64,
}

/// A connection to one member.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Muster(ClientsClient<Channel>, OperatorsClient<Channel>),
    Etcd(tonic::client::Grpc<Channel>),
}

impl Client {
    pub(crate) fn new(system: System, channel: Channel) -> Self {
        match system {
            System::Muster => Self::Muster(
                ClientsClient::new(channel.clone()),
                OperatorsClient::new(channel),
            ),
            System::Etcd => Self::Etcd(tonic::client::Grpc::new(channel)),
        }
    }

    /// Has one command made durable. The same `id` names the same command.
    pub(crate) async fn command(&mut self, id: [u8; 16]) -> Result<(), Status> {
        match self {
            Self::Muster(..) => self.submit(id, QUEUED_JOB.clone()).await?,
            Self::Etcd(client) => {
                let request = PutRequest {
                    key: b"muster-bench".to_vec(),
                    value: vec![7; COMMAND_BYTES],
                };
                let _: PutReply = etcd_call(client, "/etcdserverpb.KV/Put", request).await?;
            }
        }
        Ok(())
    }

    fn muster(&mut self) -> Result<&mut ClientsClient<Channel>, Status> {
        match self {
            Self::Muster(client, _) => Ok(client),
            Self::Etcd(_) => Err(Status::unimplemented("etcd has no jobs")),
        }
    }

    pub(crate) async fn submit(
        &mut self,
        id: [u8; 16],
        submission: v1::Submit,
    ) -> Result<(), Status> {
        let request = v1::SubmitRequest {
            request_id: id.to_vec(),
            submit: Some(submission),
        };
        self.muster()?.submit_job(request).await?;
        Ok(())
    }

    pub(crate) async fn cancel(&mut self, id: [u8; 16], job: String) -> Result<(), Status> {
        let stop = v1::Stop {
            job,
            why: v1::StopWhy::Cancelled.into(),
        };
        let request = v1::StopRequest {
            request_id: id.to_vec(),
            stop: Some(stop),
        };
        self.muster()?.stop_job(request).await?;
        Ok(())
    }

    /// What the member at the other end knows of its group.
    pub(crate) async fn group(&mut self) -> Result<v1::GroupReply, Status> {
        let Self::Muster(_, operators) = self else {
            return Err(Status::unimplemented("etcd says less"));
        };
        Ok(operators.group(v1::GroupRequest {}).await?.into_inner())
    }

    /// The workers that are known.
    pub(crate) async fn nodes(&mut self) -> Result<Vec<v1::NodeView>, Status> {
        let client = self
            .muster()?
            .clone()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let reply = { client }.list_nodes(v1::ListNodesRequest {}).await?;
        Ok(reply.into_inner().nodes)
    }

    /// What the member at the other end says of itself.
    pub(crate) async fn standing(&mut self) -> Result<Standing, Status> {
        match self {
            Self::Muster(..) => {
                let said = self.group().await?;
                Ok(Standing {
                    id: said.id,
                    leader: said.leader,
                    applied: said.applied,
                })
            }
            Self::Etcd(client) => {
                let path = "/etcdserverpb.Maintenance/Status";
                let said: StatusReply = etcd_call(client, path, StatusRequest {}).await?;
                Ok(Standing {
                    id: said.header.unwrap_or_default().member_id,
                    leader: said.leader,
                    applied: said.raft_applied_index,
                })
            }
        }
    }
}

const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How many bytes a command has at least.
pub(crate) const COMMAND_BYTES: usize = 256;

/// A job that stays queued, since there is no worker: submitting it again is a command that is
/// logged, made durable on a majority, applied and answered, and leaves no event.
static QUEUED_JOB: LazyLock<v1::Submit> = LazyLock::new(|| submission("queued"));

/// A job with this name that asks for one worker.
pub(crate) fn submission(name: &str) -> v1::Submit {
    submission_with(name, "global_batch_size = 64\nlogical_shards = 8", "")
}

/// A job that asks for just so many workers.
pub(crate) fn submission_of_ranks(name: &str, ranks: usize) -> v1::Submit {
    let shards = format!("global_batch_size = {ranks}\nlogical_shards = {ranks}");
    let workers = format!("\n[workers]\nmin = {ranks}\nmax = {ranks}\n");
    submission_with(name, &shards, &workers)
}

fn submission_with(name: &str, shards: &str, workers: &str) -> v1::Submit {
    let draft = format!(
        "name = \"{name}\"\n\n[model]\nfamily = \"mlp\"\nhidden = [256, 128]\n\n\
         [data]\nsource = \"digits.csv.gz\"\nshape = [1, 8, 8]\nnum_classes = 10\n\n\
         [train]\nseed = 0\n{shards}\nsteps = 1000\n\n\
         [optimizer]\nkind = \"adamw\"\nlearning_rate = 0.006\n{workers}"
    );
    v1::Submit {
        draft,
        base_dir: "/data".to_owned(),
        data_digest: "0123456789abcdef".repeat(4),
        fresh: false,
    }
}

/// How long the submission of a command is.
pub(crate) fn submission_bytes() -> usize {
    QUEUED_JOB.encoded_len()
}

/// 16 bytes that nobody drew before.
pub(crate) fn random_id() -> [u8; 16] {
    let draw = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&draw());
    id[8..].copy_from_slice(&draw());
    id
}

async fn etcd_call<Asked: Message + 'static, Said: Message + Default + 'static>(
    client: &mut tonic::client::Grpc<Channel>,
    path: &'static str,
    request: Asked,
) -> Result<Said, Status> {
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::<Asked, Said>::default();
    let said = client.unary(Request::new(request), path, codec).await?;
    Ok(said.into_inner())
}

// Of etcd's messages, the fields that are used here.

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutReply {}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusReply {
    #[prost(message, optional, tag = "1")]
    header: Option<ReplyHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "7")]
    raft_applied_index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ReplyHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}
