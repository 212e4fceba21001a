//! The coordinators that a client knows of: each call goes to the one that is taken for the leader,
//! and is asked again elsewhere while none answers, for a stated time. Where, [`Route`] says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_proto::leader::{self, Next, Route};
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::v1::operators_client::OperatorsClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::chaos::is_local;
use crate::failure::Failure;

/// Between two attempts.
pub(super) const RETRY_WAIT: Duration = Duration::from_millis(100);

const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Connections that are opened when they are needed; clones share what they know.
#[derive(Clone, Debug)]
pub(super) struct Coordinators {
    /// As it was when one answered last.
    line: Arc<Mutex<Line>>,
    timeout: Duration,
    /// What the user can do when none answers.
    what_to_do: String,
}

/// The way to one coordinator.
#[derive(Clone, Debug)]
struct Line {
    route: Route,
    /// The last connection, and where it leads.
    open: Option<(String, Channel)>,
}

impl Line {
    /// A connection to the coordinator that the route names now.
    fn channel(&mut self) -> Result<Channel, Status> {
        let address = self.route.current();
        if let Some((_, channel)) = self.open.as_ref().filter(|(to, _)| to == address) {
            return Ok(channel.clone());
        }
        let endpoint = self.route.endpoint().map_err(Status::unavailable)?;
        let channel = endpoint.connect_lazy();
        self.open = Some((address.to_owned(), channel.clone()));
        Ok(channel)
    }
}

/// A client of the service for people and scripts.
fn clients(channel: Channel) -> ClientsClient<Channel> {
    ClientsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Coordinators {
    pub(super) fn new(
        given: Vec<String>,
        timeout: Duration,
        what_to_do: String,
    ) -> Result<Self, Failure> {
        let route = Route::new(given).map_err(Failure::bad_input)?;
        Ok(Self {
            line: Arc::new(Mutex::new(Line { route, open: None })),
            timeout,
            what_to_do,
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the coordinator that answered last is on this machine.
    pub(super) async fn is_on_this_machine(&self) -> bool {
        let address = self.line().route.current().to_owned();
        let found = tokio::net::lookup_host(address).await;
        found.is_ok_and(|mut found| found.all(|address| is_local(address.ip())))
    }

    /// Asks until there is an answer, or the time is over.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        ask: impl Fn(ClientsClient<Channel>) -> F,
    ) -> Result<T, Failure> {
        self.ask_over(|channel| ask(clients(channel))).await
    }

    /// The same, of the service for operators.
    pub(super) async fn ask_operators<T, F: Future<Output = Result<T, Status>>>(
        &self,
        ask: impl Fn(OperatorsClient<Channel>) -> F,
    ) -> Result<T, Failure> {
        self.ask_over(|channel| ask(OperatorsClient::new(channel)))
            .await
    }

    async fn ask_over<T, F: Future<Output = Result<T, Status>>>(
        &self,
        ask: impl Fn(Channel) -> F,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let mut line = self.line().clone();
        let mut patience = leader::PATIENCE;
        let mut said = Vec::new();
        loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            let lasts = if line.route.has_others() {
                left.min(patience)
            } else {
                left
            };
            let address = line.route.current().to_owned();
            let answer = async { ask(line.channel()?).await };
            let mut was_cut_short = false;
            let status = match tokio::time::timeout(lasts, answer).await {
                Ok(Ok(answer)) => {
                    line.route.answered();
                    *self.line() = line;
                    return Ok(answer);
                }
                Ok(Err(status)) => status,
                Err(_) => {
                    // Perhaps it only needs longer than others do.
                    patience *= 2;
                    was_cut_short = lasts < leader::PATIENCE;
                    Status::unavailable("it is silent")
                }
            };
            if !is_worth_asking_again(&status) {
                return Err(Failure::bad_input(status.message()));
            }
            // What it has said tells more than that the end of the time came before it said it again.
            let has_said = said.iter().any(|(other, _)| *other == address);
            if !(was_cut_short && has_said) {
                said.retain(|(other, _)| *other != address);
                said.push((address, reason_of(&status)));
            }
            let wait = match line.route.heard(&status) {
                Next::AtOnce => Duration::ZERO,
                Next::AfterAWait => RETRY_WAIT,
            };
            if start.elapsed() + wait >= self.timeout {
                return Err(self.complaint(&said));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// A stream of the coordinator that answered last broke with this status: the next call goes
    /// where that leads.
    pub(super) fn broke(&self, status: &Status) {
        // The caller waits, so that it does not matter when the next call is due.
        let _ = self.line().route.heard(status);
    }

    /// Nobody answered: who was asked, and what each said last.
    fn complaint(&self, said: &[(String, String)]) -> Failure {
        let (seconds, what_to_do) = (self.timeout.as_secs(), &self.what_to_do);
        Failure::bad_input(match said {
            [(address, reason)] => format!(
                "the coordinator at {address} did not answer for {seconds} s ({reason}); \
                 {what_to_do}"
            ),
            said => {
                let each = said
                    .iter()
                    .map(|(address, reason)| format!("{address}: {reason}"));
                let each: Vec<String> = each.collect();
                format!(
                    "no coordinator answered for {seconds} s ({}); {what_to_do}",
                    each.join("; ")
                )
            }
        })
    }
}

/// Whether a later attempt may succeed. A connection that breaks shows as `Unknown` or `Cancelled`.
pub(super) fn is_worth_asking_again(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

/// A status in words. A connection that failed says so only in the cause that lies deepest.
fn reason_of(status: &Status) -> String {
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    causes
        .last()
        .map_or_else(|| status.message().to_owned(), ToString::to_string)
}
