//! Coordinators as tasks of a test, each with a folder and an address of its own. No test is here.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
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
use tonic::{Code, Response, Status};

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

/// An address of the loopback that this process has for itself: a port that is free there is given to
/// nobody else until a member listens.
fn own_ip() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, middle, low)
}

/// An address that nobody listens on.
fn free_address(ip: Ipv4Addr) -> String {
    let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

impl Cluster {
    /// Addresses for a group on `localhost`; nobody runs.
    pub(crate) fn addressed(number: u64) -> Self {
        Self::addressed_at(number, Ipv4Addr::LOCALHOST)
    }

    fn addressed_at(number: u64, ip: Ipv4Addr) -> Self {
        // What the members say is shown where the test fails.
        let shown = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("muster_coordinator=debug");
        let _ = shown.try_init();
        let mut addresses = BTreeMap::new();
        while addresses.len() < usize::try_from(number).unwrap() {
            let address = free_address(ip);
            // A port that was given up may come again.
            if addresses.values().all(|other| *other != address) {
                addresses.insert(addresses.len() as u64 + 1, address);
            }
        }
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
        let mut cluster = Self::addressed_at(number, own_ip());
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
        end(running.runtime.take().unwrap()).await;
        self.until("its store is closed", async |cluster| {
            let lock = std::fs::File::open(cluster.data(id).join("log/lock"));
            lock.is_ok_and(|lock| lock.try_lock().is_ok())
        })
        .await;
    }

    /// Tells it to end, and waits until it has.
    pub(crate) async fn stop(&mut self, id: u64) {
        let mut running = self.running.remove(&id).unwrap();
        running.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, &mut running.task).await;
        ended.unwrap().unwrap().unwrap();
        end(running.runtime.take().unwrap()).await;
    }

    /// Why it ended by itself.
    pub(crate) async fn end_of(&mut self, id: u64) -> String {
        let mut running = self.running.remove(&id).unwrap();
        let ended = tokio::time::timeout(PATIENCE, &mut running.task).await;
        let reason = ended.unwrap().unwrap().unwrap_err().to_string();
        end(running.runtime.take().unwrap()).await;
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
    pub(crate) async fn join(&mut self) -> u64 {
        let address = free_address(own_ip());
        let add = v1::AddMember {
            id: 0,
            address: address.clone(),
        };
        let change = v1::ChangeGroupRequest {
            change: Some(v1::change_group_request::Change::Add(add)),
        };
        let (leader, _) = self.change(change).await.unwrap();
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

    /// Asks whoever leads until one has answered that still does; who, and the answer.
    async fn ask<T>(
        &self,
        ask: impl AsyncFn(&Self, u64) -> Result<Response<T>, Status>,
    ) -> Result<(u64, T), Status> {
        let start = Instant::now();
        loop {
            let leader = self.leader().await;
            match ask(self, leader).await {
                // It may have lost the lead since.
                Err(status) if status.code() == Code::Unavailable => (),
                answer => return answer.map(|answer| (leader, answer.into_inner())),
            }
            assert!(start.elapsed() < PATIENCE, "no leader answers");
        }
    }

    /// Changes the group; who led.
    pub(crate) async fn change(
        &self,
        change: v1::ChangeGroupRequest,
    ) -> Result<(u64, v1::ChangeGroupReply), Status> {
        self.ask(async |cluster, leader| {
            cluster.operator(leader).change_group(change.clone()).await
        })
        .await
    }

    /// Submits what may be submitted again; who led, and its answer.
    pub(crate) async fn submit(&self, name: &str) -> (u64, v1::SubmitReply) {
        let mut request_id = name.as_bytes().to_vec();
        request_id.resize(16, 0);
        let request = v1::SubmitRequest {
            request_id,
            submit: Some(submit(name)),
        };
        self.ask(async |cluster, leader| cluster.client(leader).submit_job(request.clone()).await)
            .await
            .unwrap()
    }

    /// The jobs, as whoever leads knows them.
    pub(crate) async fn jobs(&self) -> Vec<v1::JobView> {
        let jobs = self.ask(async |cluster, leader| {
            let all = v1::ListJobsRequest {};
            cluster.client(leader).list_jobs(all).await
        });
        jobs.await.unwrap().1.jobs
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

/// Waits until all that a member did has ended, so that another one can be started in its place.
async fn end(runtime: tokio::runtime::Runtime) {
    let ended = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE));
    ended.await.unwrap();
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
