//! A job that runs while the leader of its coordinators is killed again and again: each of its steps is
//! in the event stream once, and how long the longest pause between two steps is.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster_proto::leader::{Next, Route};
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::{address, v1};
use serde_json::Value;
use tonic::Status;

use super::load;
use super::system::{Client, System};
use crate::faults::kill;
use crate::run::{median, number};

/// Between two kills, so that the killed one is back and a member again.
const CALM: Duration = Duration::from_secs(3);

/// As in the command line's client.
const RETRY_WAIT: Duration = Duration::from_millis(100);

const NUM_WORKERS: usize = 2;

/// Steps of a few milliseconds, so that there is time for a kill, what follows, and [`CALM`].
const STEPS_A_KILL: usize = 1500;

/// A cluster of one `muster up`, whose processes end with it.
struct Up {
    child: Child,
    state: PathBuf,
    addresses: Vec<String>,
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended by itself; its children end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// What one run came to.
struct Outcome {
    num_steps: usize,
    num_lost: u64,
    num_doubled: u64,
    num_worlds: usize,
    step_ms: f64,
    longest_ms: f64,
    num_kills: usize,
}

/// Prints the table: an undisturbed run, and one with so many kills.
pub(crate) async fn run(muster: &Path, num_kills: usize) -> Result<String, String> {
    let mut lines = vec![
        "| digits | steps | lost | doubled | worlds | a step | longest pause |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    let steps = STEPS_A_KILL * (num_kills + 1);
    let calm = train(muster, steps, 0).await?;
    let wild = train(muster, steps, num_kills).await?;
    let name = format!("leader killed {} times", wild.num_kills);
    for (name, run) in [("undisturbed", &calm), (&*name, &wild)] {
        lines.push(format!(
            "| {name} | {} | **{}** | {} | {} | {:.1} ms | {:.0} ms |",
            run.num_steps,
            run.num_lost,
            run.num_doubled,
            run.num_worlds,
            run.step_ms,
            run.longest_ms
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "`muster up` with {NUM_WORKERS} workers and three coordinators; a leader is killed with SIGKILL, \
         started again by its command, and the next one is killed {} s after a step that came later. \
         Times are those at which ranks applied the steps. {}.",
        CALM.as_secs(),
        load::machine()
    ));
    Ok(lines.join("\n"))
}

async fn train(muster: &Path, steps: usize, num_kills: usize) -> Result<Outcome, String> {
    let up = Up::start(muster)?;
    let job = format!("{}/../examples/digits/job.toml", env!("CARGO_MANIFEST_DIR"));
    let submitted = Command::new(muster)
        .args(["submit", &job, "--coordinator", &up.addresses.join(",")])
        .args(["--set", &format!("train.steps={steps}")])
        .args(["--set", &format!("workers.min={NUM_WORKERS}")])
        .stdout(Stdio::null())
        .status();
    let submitted = submitted.map_err(|error| error.to_string())?;
    if !submitted.success() {
        return Err(format!("`muster submit` ended with {submitted}"));
    }
    let mut route = Route::new(up.addresses.clone())?;
    let mut told = Told::new(num_kills);
    while !told.is_over {
        let Err(status) = told.follow(&route, &up).await else {
            continue;
        };
        if route.heard(&status) == Next::AfterAWait {
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
    match told.kills_left {
        0 => outcome(&told.events, steps as u64, num_kills),
        left => Err(format!(
            "the job was over when {left} of {num_kills} kills were still to come"
        )),
    }
}

/// The events of the job so far.
struct Told {
    events: Vec<Value>,
    is_over: bool,
    kills_left: usize,
    next_kill: Option<Instant>,
}

impl Told {
    fn new(num_kills: usize) -> Self {
        Self {
            events: Vec::new(),
            is_over: false,
            kills_left: num_kills,
            next_kill: None,
        }
    }

    /// Takes what one member tells, and kills the leader now and then.
    async fn follow(&mut self, route: &Route, up: &Up) -> Result<(), Status> {
        let channel = route
            .endpoint()
            .map_err(Status::unavailable)?
            .connect_lazy();
        let request = v1::EventsRequest {
            job: "digits".to_owned(),
            from: self.events.len() as u64,
            follow: true,
        };
        let mut records = ClientsClient::new(channel)
            .events(request)
            .await?
            .into_inner();
        while let Some(record) = records.message().await? {
            let event: Value = serde_json::from_str(&record.json)
                .map_err(|error| Status::data_loss(error.to_string()))?;
            self.is_over = event["event"] == "finished";
            if event["event"] == "step" && self.kills_left > 0 {
                let at = *self.next_kill.get_or_insert_with(|| Instant::now() + CALM);
                if Instant::now() >= at && up.kill_the_leader().await {
                    self.kills_left -= 1;
                    self.next_kill = None;
                }
            }
            self.events.push(event);
            // The stream goes on: the job may be submitted again.
            if self.is_over {
                break;
            }
        }
        Ok(())
    }
}

fn outcome(events: &[Value], steps: u64, num_kills: usize) -> Result<Outcome, String> {
    let mut times = Vec::new();
    let mut seen = vec![0u64; usize::try_from(steps).unwrap_or_default() + 1];
    for event in events.iter().filter(|event| event["event"] == "step") {
        times.push(1000.0 * number(event, "time")?);
        let step = event["step"].as_u64().unwrap_or_default();
        let step = usize::try_from(step).unwrap_or_default();
        *seen.get_mut(step).ok_or("a step beyond the last one")? += 1;
    }
    let gaps = || times.windows(2).map(|pair| pair[1] - pair[0]);
    let worlds = events.iter().filter(|event| event["event"] == "generation");
    Ok(Outcome {
        num_steps: times.len(),
        num_lost: seen.iter().skip(1).filter(|times| **times == 0).count() as u64,
        num_doubled: seen.iter().filter(|times| **times > 1).count() as u64,
        num_worlds: worlds.count(),
        step_ms: median(gaps()),
        longest_ms: gaps().fold(0.0, f64::max),
        num_kills,
    })
}

impl Up {
    fn start(muster: &Path) -> Result<Self, String> {
        let name = format!("muster-bench-{}-up", std::process::id());
        let state = std::env::temp_dir().join(name);
        let workers = NUM_WORKERS.to_string();
        let mut child = Command::new(muster)
            .args([
                "up",
                "--workers",
                &workers,
                "--coordinators",
                "3",
                "--port",
                "0",
                "--json",
            ])
            .args(["--threads", "1", "--state"])
            .arg(&state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", muster.display()))?;
        let stdout = child.stdout.take();
        let mut up = Self {
            child,
            state,
            addresses: Vec::new(),
        };
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout.ok_or("the cluster has no output")?);
        stdout
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        let ready: Value =
            serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        let members = ready["coordinators"].as_array();
        let addresses = members.ok_or("there are no coordinators")?.iter();
        let addresses = addresses.filter_map(|one| one["addr"].as_str());
        up.addresses = addresses.map(str::to_owned).collect();
        // Nothing more is said; a full pipe would stop it.
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        Ok(up)
    }

    /// Kills the member that leads now; whether it was there.
    async fn kill_the_leader(&self) -> bool {
        for address in &self.addresses {
            let Ok(endpoint) = address::endpoint_of_several(address) else {
                continue;
            };
            let mut client = Client::new(System::Muster, endpoint.connect_lazy());
            if let Ok(said) = client.group().await
                && said.role == "leader"
            {
                return kill(said.pid);
            }
        }
        false
    }
}
