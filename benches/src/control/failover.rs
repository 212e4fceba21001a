//! How long a group acknowledges nothing when its leader is killed under a steady stream of requests.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_proto::leader::{self, Next, Route};
use tonic::Status;

use super::group::Group;
use super::load;
use super::system::{Client, System, etcd, random_id};
use crate::run::{Dice, median};

/// A new request comes so often, whatever became of those before.
const REQUEST_EVERY: Duration = Duration::from_millis(20);

/// As in the command line's client.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// How long a request is asked again.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Between a group that is whole and the next kill: so long, and up to a second more by chance.
const CALM: Duration = Duration::from_secs(1);

/// Prints the table, from so many kills of each system's leader.
pub(crate) async fn run(muster: &Path, num_kills: usize) -> Result<String, String> {
    let mut groups = vec![Group::start(System::Muster, muster, 3).await?];
    if let Some(etcd) = etcd() {
        groups.push(Group::start(System::Etcd, &etcd, 3).await?);
    }
    let mut gaps: Vec<Vec<f64>> = groups.iter().map(|_| Vec::new()).collect();
    let mut dice = Dice(1);
    for number in 0..num_kills {
        for (group, gaps) in groups.iter_mut().zip(&mut gaps) {
            let calm = CALM + Duration::from_secs_f64(dice.even());
            let gap = kill(group, calm).await?;
            eprintln!(
                "kill {} of {num_kills}: {} {:.0} ms",
                number + 1,
                group.system.name(),
                gap
            );
            gaps.push(gap);
        }
    }
    let mut lines = vec![
        "| leader killed | median | worst | median / etcd's |".to_owned(),
        "|---|---|---|---|".to_owned(),
    ];
    let median_of = |gaps: &Vec<f64>| median(gaps.iter().copied());
    for (group, own) in groups.iter().zip(&gaps) {
        let worst = own.iter().copied().fold(0.0, f64::max);
        let ratio = match &gaps[..] {
            [_, etcd] => format!("**{:.2}**", median_of(own) / median_of(etcd)),
            _ => String::new(),
        };
        let (name, median) = (group.system.name(), median_of(own));
        lines.push(format!(
            "| {name} | {median:.0} ms | {worst:.0} ms | {ratio} |"
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "{num_kills} kills each, in turns: from SIGKILL to the first acknowledgement of a request that \
         came later. A request comes every {} ms, and is asked again as the command line does: where \
         a refusal leads at once, else at the next member {} ms later. Both with their own defaults. {}.",
        REQUEST_EVERY.as_millis(),
        RETRY_WAIT.as_millis(),
        load::machine()
    ));
    Ok(lines.join("\n"))
}

/// Kills the leader of a whole group, and starts it again; the milliseconds without an answer.
async fn kill(group: &mut Group, calm: Duration) -> Result<f64, String> {
    let leader = group.until_whole().await?;
    let caller = Caller::new(group)?;
    let (acknowledged, mut acknowledgements) = tokio::sync::mpsc::unbounded_channel();
    let stream = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(REQUEST_EVERY);
        loop {
            ticks.tick().await;
            let (caller, acknowledged) = (caller.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let began = Instant::now();
                if caller.ask().await {
                    // Nobody listens when the measurement is over.
                    let _ = acknowledged.send((began, Instant::now()));
                }
            });
        }
    });
    tokio::time::sleep(calm).await;
    group.kill(leader);
    let killed = Instant::now();
    let gap = loop {
        let next = tokio::time::timeout(TIMEOUT, acknowledgements.recv()).await;
        let Ok(Some((began, at))) = next else {
            break Err(format!(
                "nothing was acknowledged for {} s",
                TIMEOUT.as_secs()
            ));
        };
        if began > killed {
            break Ok(1000.0 * at.duration_since(killed).as_secs_f64());
        }
    };
    stream.abort();
    group.revive(leader)?;
    gap
}

/// A client of several members, as the command line has one.
#[derive(Clone)]
struct Caller {
    system: System,
    /// As it was when one answered last.
    line: Arc<Mutex<Line>>,
}

#[derive(Clone)]
struct Line {
    route: Route,
    /// The last connection, and where it leads.
    open: Option<(String, Client)>,
}

impl Line {
    fn client(&mut self, system: System) -> Result<Client, Status> {
        let address = self.route.current();
        if let Some((_, client)) = self.open.as_ref().filter(|(to, _)| to == address) {
            return Ok(client.clone());
        }
        let endpoint = self.route.endpoint().map_err(Status::unavailable)?;
        let client = Client::new(system, endpoint.connect_lazy());
        self.open = Some((address.to_owned(), client.clone()));
        Ok(client)
    }
}

impl Caller {
    fn new(group: &Group) -> Result<Self, String> {
        let route = Route::new(group.addresses())?;
        Ok(Self {
            system: group.system,
            line: Arc::new(Mutex::new(Line { route, open: None })),
        })
    }

    /// Has one command acknowledged; false where that took too long.
    async fn ask(&self) -> bool {
        let id = random_id();
        let start = Instant::now();
        let lock = || self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = lock().clone();
        let mut patience = leader::PATIENCE;
        while start.elapsed() < TIMEOUT {
            let answer = async { line.client(self.system)?.command(id).await };
            let status = match tokio::time::timeout(patience, answer).await {
                Ok(Ok(())) => {
                    line.route.answered();
                    *lock() = line;
                    return true;
                }
                Ok(Err(status)) => status,
                Err(_) => {
                    patience *= 2;
                    Status::unavailable("it is silent")
                }
            };
            if line.route.heard(&status) == Next::AfterAWait {
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
        false
    }
}
