//! A worker finds the coordinator that leads, from whatever coordinators it was told of, and goes
//! where the leader goes.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use muster_proto::v1::workers_server::{Workers, WorkersServer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::transport::Server;

use super::*;

/// For what happens soon, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a coordinator says on the control stream of a worker.
type Orders = mpsc::UnboundedSender<Result<v1::ToWorker, Status>>;

/// A coordinator that leads where `leader` is its own address, and names it else.
struct Fake {
    address: String,
    leader: watch::Receiver<String>,
    /// The control streams that it has agreed to.
    opened: mpsc::UnboundedSender<(String, Orders)>,
    num_refused: Arc<AtomicUsize>,
}

impl Fake {
    fn must_lead(&self) -> Result<(), Status> {
        let leader = self.leader.borrow();
        if *leader == self.address {
            return Ok(());
        }
        self.num_refused.fetch_add(1, Ordering::Relaxed);
        Err(leader::not_leading(
            (!leader.is_empty()).then_some(leader.as_str()),
        ))
    }
}

#[tonic::async_trait]
impl Workers for Fake {
    type ControlStream = Replies<v1::ToWorker>;
    type BulkStream = Replies<v1::RecordAck>;

    async fn control(
        &self,
        _: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        self.must_lead()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        // The test may have seen enough.
        let _ = self.opened.send((self.address.clone(), sender));
        let orders = UnboundedReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(orders)))
    }

    async fn bulk(
        &self,
        _: Request<Streaming<v1::BulkItem>>,
    ) -> Result<Response<Self::BulkStream>, Status> {
        self.must_lead()?;
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

/// Several coordinators, and a worker that looks for the one that leads.
struct Group {
    opened: mpsc::UnboundedReceiver<(String, Orders)>,
    sender: mpsc::UnboundedSender<(String, Orders)>,
    ended: CancellationToken,
    /// What the worker notes, which nobody reads.
    notes: Option<mpsc::UnboundedReceiver<Note>>,
}

impl Group {
    fn new() -> Self {
        let (sender, opened) = mpsc::unbounded_channel();
        Self {
            opened,
            sender,
            ended: CancellationToken::new(),
            notes: None,
        }
    }

    /// Starts a coordinator that takes this for the leader; returns its address, and how often it
    /// has refused.
    async fn start(&self, leader: &watch::Sender<String>) -> (String, Arc<AtomicUsize>) {
        let (listener, address) = listen().await;
        let num_refused = Arc::new(AtomicUsize::new(0));
        let fake = Fake {
            address: address.clone(),
            leader: leader.subscribe(),
            opened: self.sender.clone(),
            num_refused: num_refused.clone(),
        };
        let server = Server::builder().add_service(WorkersServer::new(fake));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (address, num_refused)
    }

    fn join(&mut self, given: &[&str]) {
        let given = given.iter().map(ToString::to_string).collect();
        let (notes, receiver) = mpsc::unbounded_channel();
        self.notes = Some(receiver);
        let route = Route::new(given).unwrap();
        tokio::spawn(keep(route, notes, self.ended.clone()));
    }

    /// Where the worker is taken next.
    async fn taken(&mut self) -> (String, Orders) {
        let taken = tokio::time::timeout(DEADLINE, self.opened.recv()).await;
        taken.expect("it is taken").expect("somebody can take it")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A port that was free a moment ago: nobody listens there.
async fn nowhere() -> String {
    listen().await.1
}

#[tokio::test]
async fn a_worker_goes_where_the_leader_is_and_follows_it() {
    let mut group = Group::new();
    let leader = watch::Sender::new(String::new());
    let (a, num_refused) = group.start(&leader).await;
    let (b, _) = group.start(&leader).await;
    let (c, _) = group.start(&leader).await;
    leader.send_replace(b.clone());
    group.join(&[&a, &nowhere().await]);
    let (taken_by, orders) = group.taken().await;
    assert_eq!(taken_by, b);
    let refused_before = num_refused.load(Ordering::Relaxed);

    leader.send_replace(c.clone());
    orders.send(Err(leader::not_leading(Some(&c)))).unwrap();
    let (taken_by, orders) = group.taken().await;
    assert_eq!(taken_by, c);
    assert_eq!(num_refused.load(Ordering::Relaxed), refused_before);

    // The leader goes without a word: those that were given know the next one.
    leader.send_replace(b.clone());
    drop(orders);
    assert_eq!(group.taken().await.0, b);
}

#[tokio::test]
async fn coordinators_that_are_dead_or_silent_hold_no_worker() {
    let mut group = Group::new();
    let leader = watch::Sender::new(String::new());
    let (b, _) = group.start(&leader).await;
    leader.send_replace(b.clone());
    // It takes connections, as far as the system does that for it, and says nothing.
    let (_silent, silent) = listen().await;
    group.join(&[&nowhere().await, &silent, &b]);
    assert_eq!(group.taken().await.0, b);
}

#[tokio::test]
async fn a_leader_that_is_not_there_displaces_no_coordinator() {
    let mut group = Group::new();
    let wrong = watch::Sender::new(nowhere().await);
    let right = watch::Sender::new(String::new());
    let (a, _) = group.start(&wrong).await;
    let (b, _) = group.start(&right).await;
    right.send_replace(b.clone());
    group.join(&[&a, &b]);
    assert_eq!(group.taken().await.0, b);
}

/// A coordinator that answers in less is not left for another one.
const LONG: Duration = Duration::from_secs(1);

/// What the worker notes while the first coordinator refuses it and the second one takes it, twice.
async fn noted() -> Vec<&'static str> {
    let mut group = Group::new();
    let leader = watch::Sender::new(String::new());
    let (a, _) = group.start(&leader).await;
    let (b, _) = group.start(&leader).await;
    leader.send_replace(b.clone());
    group.join(&[&a]);
    let (_, orders) = group.taken().await;
    // Where that took long, the worker may be gone, and come again.
    let _ = orders.send(Err(Status::unavailable("it ends")));
    drop(orders);
    group.taken().await;
    let notes = group.notes.as_mut().unwrap();
    let mut noted = Vec::new();
    while let Ok(note) = notes.try_recv() {
        noted.push(match note {
            Note::Connected { .. } => "connected",
            Note::Listens(_) => "listens",
            Note::Disconnected => "disconnected",
            _ => "other",
        });
    }
    noted
}

#[tokio::test]
async fn lines_wait_until_a_coordinator_takes_them() {
    // Refused by the first, taken by the second, and then both again.
    let expected = [
        "connected",
        "disconnected",
        "connected",
        "listens",
        "disconnected",
        "connected",
        "disconnected",
        "connected",
    ];
    loop {
        let began = Instant::now();
        let noted = noted().await;
        if noted.get(..expected.len()) == Some(&expected[..]) {
            return;
        }
        // A coordinator that needs long is left, and that is noted, too.
        assert!(began.elapsed() >= LONG, "{noted:?}");
    }
}
