//! What the services ask of the driver, and what they see of who leads.

use muster_cluster::command::{Command, RequestId};
use muster_coordinator_core::consensus::{Change, ReplicaId};
use muster_coordinator_core::coordinator::Stranger;
use muster_coordinator_core::{Coordinator, Input, Now, Reply, Session, Snapshot};
use muster_proto::{leader, v1};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tonic::Status;

use crate::driver::Elected;

/// Calls that may wait for the driver.
const MAX_WAITING_CALLS: usize = 1024;

/// Frames of other members that may wait for the driver; they come before the calls.
const MAX_WAITING_FRAMES: usize = 256;

/// Orders that may wait for a slow worker. A stream that is further behind is ended.
const MAX_WAITING_ORDERS: usize = 1024;

/// Where a worker's orders go.
pub(crate) type Orders = mpsc::Sender<v1::to_worker::Message>;

/// What a client is answered.
pub(crate) type Answer = Result<Reply, Status>;

/// Reads what it wants of the machine, and sends it where it wants; or is told why it cannot.
pub(crate) type Look = Box<dyn FnOnce(Result<(&Coordinator, Now), Status>) + Send>;

/// What the services ask of the driver.
pub(crate) enum Call {
    /// For the machine.
    Input(Input),
    /// A worker's stream began with this.
    Hello {
        session: Session,
        hello: v1::WorkerHello,
        orders: Orders,
        answer: oneshot::Sender<Result<(), Status>>,
    },
    /// What a worker's rank recorded, over a stream that was let in in this epoch.
    Record { epoch: u64, record: v1::StepRecord },
    /// A client's command.
    Request {
        request: Option<RequestId>,
        command: Command,
        answer: oneshot::Sender<Answer>,
    },
    /// An operator wants another group.
    Change {
        change: Change,
        address: String,
        answer: oneshot::Sender<Answer>,
    },
    /// An operator wants another leader.
    Transfer(Option<ReplicaId>),
    /// A look at what is; a stale one at what is known here.
    Look { look: Look, is_stale: bool },
    /// How the leader was elected.
    Elected(oneshot::Sender<Elected>),
}

/// What other members say.
pub(crate) enum PeerCall {
    /// Whether it may speak.
    Hello {
        hello: v1::PeerHello,
        answer: oneshot::Sender<Result<v1::Member, Stranger>>,
    },
    /// Consensus's own.
    Messages {
        from: ReplicaId,
        messages: Vec<Vec<u8>>,
    },
    /// A snapshot that is durable here, and the message that came with it.
    Snapshot {
        from: ReplicaId,
        bytes: Vec<u8>,
        snapshot: Box<Snapshot>,
    },
}

/// Who leads, for those whose streams end with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) is_me: bool,
    /// How often that has changed: what was let in before does not count any more.
    pub(crate) epoch: u64,
    /// Where another one leads, if that is known.
    pub(crate) address: Option<String>,
}

impl Lead {
    /// The refusal of one that does not lead.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.is_me {
            return Ok(());
        }
        Err(leader::not_leading(self.address.as_deref()))
    }
}

/// The services' end.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    calls: mpsc::Sender<Call>,
    peers: mpsc::Sender<PeerCall>,
    lead: watch::Receiver<Lead>,
    pub(crate) acks: broadcast::Sender<v1::RecordAck>,
}

/// The driver has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended;

impl From<Ended> for Status {
    fn from(_: Ended) -> Self {
        Status::unavailable("the coordinator is shutting down; try again")
    }
}

type Ends = (
    Handle,
    mpsc::Receiver<Call>,
    mpsc::Receiver<PeerCall>,
    watch::Sender<Lead>,
);

impl Handle {
    /// Both ends.
    pub(crate) fn new(max_acks_behind: usize) -> Ends {
        let (calls, call_receiver) = mpsc::channel(MAX_WAITING_CALLS);
        let (peers, peer_receiver) = mpsc::channel(MAX_WAITING_FRAMES);
        let (lead_sender, lead) = watch::channel(Lead::default());
        let acks = broadcast::Sender::new(max_acks_behind);
        let handle = Self {
            calls,
            peers,
            lead,
            acks,
        };
        (handle, call_receiver, peer_receiver, lead_sender)
    }

    pub(crate) async fn call(&self, call: Call) -> Result<(), Ended> {
        self.calls.send(call).await.map_err(|_| Ended)
    }

    pub(crate) async fn peer_call(&self, call: PeerCall) -> Result<(), Ended> {
        self.peers.send(call).await.map_err(|_| Ended)
    }

    /// What a call is answered.
    pub(crate) async fn ask<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T, Ended> {
        let (sender, receiver) = oneshot::channel();
        self.call(call(sender)).await?;
        receiver.await.map_err(|_| Ended)
    }

    /// What a look at the machine gives: at what is true now, or, where that is good enough, at what
    /// is known here.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        is_stale: bool,
        look: impl FnOnce(&Coordinator, Now) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (sender, receiver) = oneshot::channel();
        let look = Box::new(move |seen: Result<(&Coordinator, Now), Status>| {
            // The caller may have gone meanwhile.
            let _ = sender.send(seen.map(|(coordinator, now)| look(coordinator, now)));
        });
        self.call(Call::Look { look, is_stale }).await?;
        receiver.await.map_err(|_| Ended)?
    }

    /// Who leads.
    pub(crate) fn lead(&self) -> watch::Receiver<Lead> {
        self.lead.clone()
    }

    /// Waits until this coordinator does not lead as it did in this epoch; says who does, as the last
    /// word of a stream.
    pub(crate) async fn deposed(&self, epoch: u64) -> Status {
        let mut lead = self.lead.clone();
        let deposed = lead
            .wait_for(|lead| !lead.is_me || lead.epoch != epoch)
            .await;
        match deposed {
            Ok(lead) => leader::not_leading(lead.address.as_deref()),
            Err(_) => Ended.into(),
        }
    }
}

/// A queue of orders for one stream.
pub(crate) fn orders() -> (Orders, mpsc::Receiver<v1::to_worker::Message>) {
    mpsc::channel(MAX_WAITING_ORDERS)
}
