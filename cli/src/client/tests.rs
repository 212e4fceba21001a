//! A client finds the coordinator that leads, from whatever coordinators it was told of, and follows
//! it from call to call and from record to record.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use muster_proto::v1::clients_server::{Clients, ClientsServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Response, Status};

use super::*;

/// For what happens soon, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A coordinator that leads where `leader` is its own address, and names it else. It answers with
/// its address.
struct Fake {
    address: String,
    leader: watch::Receiver<String>,
    num_refused: watch::Sender<usize>,
    /// Where it has refused this many, it is silent to who asks for the jobs.
    falls_silent_at: Option<usize>,
    /// The ids of the requests that it was asked for.
    ids: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// How a coordinator that does not lead refuses.
fn refusal(leader: &str) -> Status {
    leader::not_leading((!leader.is_empty()).then_some(leader))
}

impl Fake {
    fn must_lead(&self, asked: &MetadataMap) -> Result<(), Status> {
        let leader = self.leader.borrow();
        if *leader == self.address || asked.get(leader::STALE).is_some_and(|stale| stale == "1") {
            return Ok(());
        }
        self.num_refused.send_modify(|num| *num += 1);
        Err(refusal(&leader))
    }

    /// Two records, and the end when another one leads.
    fn two<T: Send + 'static>(&self, from: u64, record: impl Fn(u64, String) -> T) -> Replies<T> {
        let (sender, receiver) = mpsc::channel(3);
        for seq in from..from + 2 {
            let record = record(seq, self.address.clone());
            assert!(sender.try_send(Ok(record)).is_ok(), "there is room");
        }
        let (mut leader, address) = (self.leader.clone(), self.address.clone());
        tokio::spawn(async move {
            if let Ok(other) = leader.wait_for(|leader| *leader != address).await {
                // The client may have gone.
                let _ = sender.try_send(Err(refusal(&other)));
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}

fn unasked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no test asks this"))
}

#[tonic::async_trait]
impl Clients for Fake {
    type EventsStream = Replies<v1::EventRecord>;
    type LogsStream = Replies<v1::LogRecord>;

    async fn submit_job(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let id = request.get_ref().request_id.clone();
        self.ids.lock().unwrap().push(id);
        self.must_lead(request.metadata())?;
        Ok(Response::new(v1::SubmitReply::default()))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        if self.falls_silent_at == Some(*self.num_refused.borrow()) {
            std::future::pending::<()>().await;
        }
        self.must_lead(request.metadata())?;
        let job = v1::JobView {
            job: self.address.clone(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListJobsReply { jobs: vec![job] }))
    }

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        self.must_lead(request.metadata())?;
        let from = request.get_ref().from;
        let record = |seq, json| v1::EventRecord { seq, json };
        Ok(Response::new(self.two(from, record)))
    }

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        self.must_lead(request.metadata())?;
        let from = request.get_ref().from;
        let record = |seq, text| v1::LogRecord {
            seq,
            text,
            ..Default::default()
        };
        Ok(Response::new(self.two(from, record)))
    }

    async fn stop_job(
        &self,
        _: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopReply>, Status> {
        unasked()
    }

    async fn scale_job(
        &self,
        _: Request<v1::ScaleRequest>,
    ) -> Result<Response<v1::ScaleReply>, Status> {
        unasked()
    }

    async fn drain_node(
        &self,
        _: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainReply>, Status> {
        unasked()
    }

    async fn abandon_state(
        &self,
        _: Request<v1::AbandonStateRequest>,
    ) -> Result<Response<v1::AbandonStateReply>, Status> {
        unasked()
    }

    async fn show_job(
        &self,
        _: Request<v1::ShowJobRequest>,
    ) -> Result<Response<v1::JobView>, Status> {
        unasked()
    }

    async fn show_ledger(
        &self,
        _: Request<v1::ShowLedgerRequest>,
    ) -> Result<Response<v1::LedgerReply>, Status> {
        unasked()
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        unasked()
    }
}

/// What a test knows of a coordinator that it has started.
struct Started {
    address: String,
    num_refused: watch::Receiver<usize>,
    ids: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Starts a coordinator that takes this for the leader.
async fn start(leader: &watch::Sender<String>) -> Started {
    start_one(leader, None).await
}

/// The same, and has it fall silent once it has refused so many.
async fn start_one(leader: &watch::Sender<String>, falls_silent_at: Option<usize>) -> Started {
    let (listener, address) = listen().await;
    let fake = Fake {
        address: address.clone(),
        leader: leader.subscribe(),
        num_refused: watch::Sender::new(0),
        falls_silent_at,
        ids: Arc::default(),
    };
    let started = Started {
        address,
        num_refused: fake.num_refused.subscribe(),
        ids: fake.ids.clone(),
    };
    let server = Server::builder().add_service(ClientsServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    started
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

fn client(given: &[&str], timeout: Duration) -> Client {
    let given = given.iter().map(ToString::to_string).collect();
    Client::of(given, timeout, "what to do").unwrap()
}

/// Who answers.
async fn answers(client: &Client) -> String {
    let jobs = client.jobs().await.map_err(|failure| failure.text);
    jobs.unwrap().remove(0).job
}

/// Shows what holds where no coordinator stands still: one that needs a second and more may be left
/// for another one.
async fn where_all_keep_up(holds: impl AsyncFn() -> Result<(), String>) {
    loop {
        let began = Instant::now();
        let Err(failure) = holds().await else { return };
        assert!(began.elapsed() >= Duration::from_secs(1), "{failure}");
    }
}

/// Shows what holds where a client has time for several attempts: it is given ever more.
async fn in_some_time(shortest: Duration, holds: impl AsyncFn(Duration) -> Result<(), String>) {
    let mut failures = Vec::new();
    for factor in [1, 4, 16] {
        match holds(shortest * factor).await {
            Ok(()) => return,
            Err(failure) => failures.push(failure),
        }
    }
    panic!("{}", failures.join("\n"));
}

/// Why a client's question for the jobs was in vain.
async fn complaint(client: &Client) -> String {
    client.jobs().await.unwrap_err().text
}

fn expect(text: &str, words: &[&str]) -> Result<(), String> {
    let missing = words.iter().find(|words| !text.contains(**words));
    missing.map_or(Ok(()), |words| Err(format!("no {words:?} in {text:?}")))
}

fn same<T: PartialEq + std::fmt::Debug>(one: &T, other: &T) -> Result<(), String> {
    let is_so = one == other;
    is_so
        .then_some(())
        .ok_or_else(|| format!("{one:?}, not {other:?}"))
}

#[tokio::test]
async fn a_client_goes_to_the_leader_that_is_named_and_stays_there() {
    where_all_keep_up(follows_the_leader).await;
}

async fn follows_the_leader() -> Result<(), String> {
    let leader = watch::Sender::new(String::new());
    let (a, b) = (start(&leader).await, start(&leader).await);
    leader.send_replace(b.address.clone());
    let client = client(&[&a.address], DEADLINE);
    for _ in 0..3 {
        assert_eq!(answers(&client.clone()).await, b.address);
    }
    same(&*a.num_refused.borrow(), &1)?;
    leader.send_replace(a.address.clone());
    assert_eq!(answers(&client).await, a.address);
    same(&*b.num_refused.borrow(), &1)
}

#[tokio::test]
async fn coordinators_that_are_dead_or_silent_hold_no_client() {
    let leader = watch::Sender::new(String::new());
    let b = start(&leader).await;
    leader.send_replace(b.address.clone());
    // It takes connections, as far as the system does that for it, and says nothing.
    let (_silent, silent) = listen().await;
    let client = client(&[&nowhere().await, &silent, &b.address], DEADLINE);
    let began = Instant::now();
    assert_eq!(answers(&client).await, b.address);
    assert!(began.elapsed() >= leader::PATIENCE);
    assert_eq!(answers(&client).await, b.address);
}

#[tokio::test]
async fn a_leader_that_is_not_there_displaces_no_coordinator() {
    let wrong = watch::Sender::new(nowhere().await);
    let right = watch::Sender::new(String::new());
    let (a, b) = (start(&wrong).await, start(&right).await);
    right.send_replace(b.address.clone());
    let several = client(&[&a.address, &b.address], DEADLINE);
    assert_eq!(answers(&several).await, b.address);

    // The only one that was given is asked again until it leads.
    let mut again = a.num_refused.clone();
    let address = a.address.clone();
    tokio::spawn(async move {
        again.wait_for(|num| *num > 3).await.unwrap();
        wrong.send_replace(address);
    });
    let only = client(&[&a.address], DEADLINE);
    assert_eq!(answers(&only).await, a.address);
}

#[tokio::test]
async fn what_is_asked_again_keeps_its_request_id() {
    where_all_keep_up(submits_twice).await;
}

async fn submits_twice() -> Result<(), String> {
    let (nobody, right) = (watch::Sender::default(), watch::Sender::default());
    let (a, b) = (start(&nobody).await, start(&right).await);
    right.send_replace(b.address.clone());
    let client = client(&[&a.address, &b.address], DEADLINE);
    assert!(client.submit(v1::Submit::default()).await.is_ok());
    let (first, second) = (a.ids.lock().unwrap(), b.ids.lock().unwrap());
    same(&(first.len(), first[0].len()), &(1, 16))?;
    same(&*first, &*second)
}

#[tokio::test]
async fn streams_go_on_at_the_next_leader_behind_what_was_told() {
    let leader = watch::Sender::new(String::new());
    let (a, b) = (start(&leader).await, start(&leader).await);
    leader.send_replace(a.address.clone());
    let client = client(&[&a.address], DEADLINE);
    let mut events = client.events("digits", 5, true);
    let mut logs = client.logs(v1::LogsRequest {
        from: 7,
        follow: true,
        ..Default::default()
    });
    for (told, teller) in [(0, &a), (1, &a), (2, &b), (3, &b)] {
        if told == 2 {
            leader.send_replace(b.address.clone());
        }
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((event.seq, &event.json), (5 + told, &teller.address));
        let line = logs.next().await.unwrap().unwrap();
        assert_eq!((line.seq, &line.text), (7 + told, &teller.address));
    }
}

#[tokio::test]
async fn one_that_does_not_lead_answers_who_wants_no_more_than_an_older_state() {
    let leader = watch::Sender::new(nowhere().await);
    let a = start(&leader).await;
    let stale = Client {
        stale: true,
        ..client(&[&nowhere().await, &a.address], DEADLINE)
    };
    assert_eq!(answers(&stale).await, a.address);
    assert_eq!(*a.num_refused.borrow(), 0);
}

#[tokio::test]
async fn who_was_asked_is_listed_with_what_each_said_last() {
    in_some_time(Duration::from_secs(1), async |time| {
        let a = start(&watch::Sender::new(String::new())).await;
        let nowhere = nowhere().await;
        let text = complaint(&client(&[&nowhere, &a.address], time)).await;
        let for_long = format!("for {} s", time.as_secs());
        let refused = format!("{}: no coordinator leads", a.address);
        let dead = format!("{nowhere}: ");
        expect(&text, &[&dead, &refused, &for_long, "; what to do"])?;
        assert_eq!(text.matches(&nowhere).count(), 1, "{text}");
        Ok(())
    })
    .await;

    let (_silent, silent) = listen().await;
    let text = complaint(&client(&[&silent], Duration::from_secs(1))).await;
    let silence = format!("the coordinator at {silent} did not answer for 1 s (it is silent)");
    assert!(text.starts_with(&silence), "{text}");
}

#[tokio::test]
async fn what_was_said_outlasts_an_attempt_that_the_end_of_the_time_cuts_short() {
    let nobody = watch::Sender::new(String::new());
    let falls_silent = async |time| {
        let a = start_one(&nobody, Some(2)).await;
        complaint(&client(&[&a.address], time)).await
    };
    // One that has all the time that others have is silent, whatever it has said.
    in_some_time(leader::PATIENCE + Duration::from_secs(2), async |time| {
        expect(&falls_silent(time).await, &["it is silent"])
    })
    .await;
    // With less than that, it has only been cut short.
    let mut texts = Vec::new();
    for time in [1_000, 1_500, 1_900].map(Duration::from_millis) {
        assert!(time < leader::PATIENCE);
        let text = falls_silent(time).await;
        if text.contains("no coordinator leads") {
            return;
        }
        texts.push(text);
    }
    panic!("{}", texts.join("\n"));
}
