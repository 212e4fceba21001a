//! Coordinators as tasks of a test, each with a folder and an address of its own. No test is here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use muster_coordinator::{Error, Group, Options, serve};
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::v1::operators_client::OperatorsClient;
use muster_proto::{leader, v1};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Nothing of this takes so long, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    /// A runtime of its own, so that a kill ends all of its tasks at once.
    task: JoinHandle<Result<(), Error>>,
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: CancellationToken,
}

/// A group.
pub(crate) struct Cluster {
    folder: TempDir,
    addresses: BTreeMap<u64, String>,
    peers: BTreeMap<u64, BTreeMap<u64, String>>,
    joins: BTreeMap<u64, Vec<String>>,
    running: BTreeMap<u64, Running>,
}

/// An address that nobody listens on.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

impl Cluster {
    /// Addresses for a group; nobody runs.
    pub(crate) fn addressed(number: u64) -> Self {
        // What the members say is shown where the test fails.
        let shown = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("muster_coordinator=debug");
        let _ = shown.try_init();
        let addresses: BTreeMap<u64, String> =
            (1..=number).map(|id| (id, free_address())).collect();
        let peers = addresses
            .keys()
            .map(|id| (*id, addresses.clone()))
            .collect();
        Self {
            folder: tempfile::tempdir().unwrap(),
            addresses,
            peers,
            joins: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// A group that runs.
    pub(crate) fn new(number: u64) -> Self {
        let mut cluster = Self::addressed(number);
        for id in 1..=number {
            cluster.start(id);
        }
        cluster
    }

    pub(crate) fn address(&self, id: u64) -> &str {
        &self.addresses[&id]
    }

    fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(id.to_string())
    }

    pub(crate) fn start(&mut self, id: u64) {
        let listen: SocketAddr = self.addresses[&id].parse().unwrap();
        let options = Options {
            data: self.data(id),
            listen,
            group: Group {
                id: Some(id),
                peers: self.peers.get(&id).cloned().unwrap_or_default(),
                join: self.joins.get(&id).cloned().unwrap_or_default(),
                have_moved: false,
            },
            checkpoints: None,
            patience: muster_cluster::plan::Patience::default(),
        };
        let shutdown = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let served = serve(options, shutdown.clone(), |_| ());
        let running = Running {
            task: runtime.spawn(served),
            runtime: Some(runtime),
            shutdown,
        };
        self.running.insert(id, running);
    }

    /// Ends all of its tasks where they are.
    pub(crate) async fn kill(&mut self, id: u64) {
        let mut running = self.running.remove(&id).unwrap();
        running.task.abort();
        let _ = (&mut running.task).await;
        running.runtime.take().unwrap().shutdown_background();
    }

    /// Tells it to end, and waits until it has.
    pub(crate) async fn stop(&mut self, id: u64) {
        let mut running = self.running.remove(&id).unwrap();
        running.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, &mut running.task).await;
        ended.unwrap().unwrap().unwrap();
        running.runtime.take().unwrap().shutdown_background();
    }

    /// Why it ended by itself.
    pub(crate) async fn end_of(&mut self, id: u64) -> String {
        let mut running = self.running.remove(&id).unwrap();
        let ended = tokio::time::timeout(PATIENCE, &mut running.task).await;
        let reason = ended.unwrap().unwrap().unwrap_err().to_string();
        running.runtime.take().unwrap().shutdown_background();
        reason
    }

    pub(crate) fn lose_disk(&self, id: u64) {
        std::fs::remove_dir_all(self.data(id)).unwrap();
    }

    pub(crate) fn give_other_peers(&mut self, id: u64) {
        let peers = self.peers.get_mut(&id).unwrap();
        peers.insert(2, peers[&1].replace("127.0.0.1", "localhost"));
    }

    /// Has a new member taken in, and starts it; its number.
    pub(crate) async fn join(&mut self, leader: u64) -> u64 {
        let address = free_address();
        let add = v1::AddMember {
            id: 0,
            address: address.clone(),
        };
        let change = v1::ChangeGroupRequest {
            change: Some(v1::change_group_request::Change::Add(add)),
        };
        self.operator(leader).change_group(change).await.unwrap();
        let group = self.group(leader).await.unwrap();
        let mut members = group.members.iter();
        let id = members.find(|member| member.address == address).unwrap().id;
        self.addresses.insert(id, address);
        self.joins.insert(id, vec![self.addresses[&leader].clone()]);
        self.start(id);
        id
    }

    pub(crate) fn client(&self, id: u64) -> ClientsClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses[&id])).unwrap();
        ClientsClient::new(endpoint.connect_lazy())
    }

    pub(crate) fn operator(&self, id: u64) -> OperatorsClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses[&id])).unwrap();
        OperatorsClient::new(endpoint.connect_lazy())
    }

    /// What a member says of the group, if it answers.
    pub(crate) async fn group(&self, id: u64) -> Option<v1::GroupReply> {
        let reply = self.operator(id).group(v1::GroupRequest {}).await;
        reply.ok().map(tonic::Response::into_inner)
    }

    /// Waits for a state.
    pub(crate) async fn until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self).await {
            assert!(start.elapsed() < PATIENCE, "it never came: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Who leads: one that is able to answer a read.
    pub(crate) async fn leader(&self) -> u64 {
        let start = Instant::now();
        loop {
            for id in self.running.keys() {
                let read = self.client(*id).list_jobs(v1::ListJobsRequest {}).await;
                if read.is_ok() {
                    return *id;
                }
            }
            assert!(start.elapsed() < PATIENCE, "nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn submit(&self, name: &str) {
        let leader = self.leader().await;
        let request = v1::SubmitRequest {
            request_id: Vec::new(),
            submit: Some(submit(name)),
        };
        self.client(leader).submit_job(request).await.unwrap();
    }

    pub(crate) async fn jobs(&self, id: u64) -> Vec<v1::JobView> {
        let jobs = self.client(id).list_jobs(v1::ListJobsRequest {}).await;
        jobs.unwrap().into_inner().jobs
    }

    pub(crate) async fn stale_jobs(&self, id: u64) -> Vec<v1::JobView> {
        let mut request = tonic::Request::new(v1::ListJobsRequest {});
        request
            .metadata_mut()
            .insert(leader::STALE, "1".parse().unwrap());
        let jobs = self.client(id).list_jobs(request).await;
        jobs.unwrap().into_inner().jobs
    }

    /// Waits until these have applied the same entries, and all of them.
    pub(crate) async fn agree(&self, ids: &[u64]) {
        self.until("all agree", async |cluster| {
            let mut applied = Vec::new();
            for id in ids {
                let group = cluster.group(*id).await;
                applied.push(group.map(|group| (group.applied, group.last_index)));
            }
            let first = applied[0];
            first.is_some_and(|(applied, last)| applied == last)
                && applied.iter().all(|one| *one == first)
        })
        .await;
    }

    /// Waits until every member's disk is known to all.
    pub(crate) async fn known_disks(&self) {
        self.until("all disks are known", async |cluster| {
            let leader = cluster.leader().await;
            let group = cluster.group(leader).await;
            group.is_some_and(|group| group.members.iter().all(|member| member.is_known))
        })
        .await;
        let all: Vec<u64> = self.running.keys().copied().collect();
        self.agree(&all).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.running.values_mut() {
            if let Some(runtime) = running.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

/// The smallest job.
pub(crate) fn submit(name: &str) -> v1::Submit {
    let draft = format!(
        r#"
        name = "{name}"
        [model]
        family = "mlp"
        hidden = [8]
        [data]
        source = "digits.csv.gz"
        shape = [64]
        num_classes = 10
        [train]
        global_batch_size = 64
        logical_shards = 8
        steps = 10
        [optimizer]
        kind = "sgd"
        learning_rate = 0.1
        "#
    );
    v1::Submit {
        draft,
        base_dir: "/jobs".to_owned(),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    }
}
