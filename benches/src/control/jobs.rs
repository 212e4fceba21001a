//! What a coordinator needs for jobs that ended long ago: memory, and time to start.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::group::Group;
use super::load;
use super::system::{System, random_id, submission};

/// Jobs that are submitted and cancelled at once.
const IN_FLIGHT: usize = 256;

/// Starts that are measured.
const NUM_STARTS: usize = 3;

/// A coordinator takes a snapshot when so many entries came after the last one.
const MAX_ENTRIES_BEHIND: u64 = 20_000;

const LOOK_WAIT: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(120);

/// Prints the table, for so many jobs.
pub(crate) async fn run(muster: &Path, num_jobs: usize) -> Result<String, String> {
    let mut group = Group::start(System::Muster, muster, 1).await?;
    let began = Instant::now();
    end_jobs(&group, num_jobs).await?;
    let made_s = began.elapsed().as_secs_f64();
    let before_mb = load::resident_mb(group.pid(0).ok_or("there is no coordinator")?)?;
    let mut lines = vec![
        "| start | snapshot | entries behind it | serves after | memory |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for number in 1..=NUM_STARTS {
        until_compacted(&group).await?;
        group.kill(0);
        let start = Instant::now();
        group.revive(0)?;
        let seconds = until_it_leads(&group, start).await?;
        let said = group.client(0)?.group().await;
        let said = said.map_err(|status| status.to_string())?;
        let megabytes = load::resident_mb(group.pid(0).ok_or("there is no coordinator")?)?;
        lines.push(format!(
            "| {number} | {:.1} MB | {} | **{seconds:.2} s** | **{megabytes:.0} MB** |",
            said.snapshot_bytes as f64 / 1e6,
            said.last_index.saturating_sub(said.snapshot_index),
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "A group of one with {num_jobs} cancelled jobs, killed and started again {NUM_STARTS} times, each \
         time when at most {MAX_ENTRIES_BEHIND} entries are behind its newest snapshot. Making them took {made_s:.0} s \
         ({:.0} commands/s), and the process had {before_mb:.0} MB then. Serves: from the start of the process until it leads and answers. {}.",
        2.0 * num_jobs as f64 / made_s,
        load::machine()
    ));
    Ok(lines.join("\n"))
}

/// Submits and cancels so many jobs.
async fn end_jobs(group: &Group, num_jobs: usize) -> Result<(), String> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    let clients = load::connect(group.system, group.address(0), IN_FLIGHT).await?;
    for client in clients.iter().cycle().take(IN_FLIGHT) {
        let (mut client, next) = (client.clone(), Arc::clone(&next));
        callers.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= num_jobs {
                    return Ok::<_, tonic::Status>(());
                }
                if number % 10_000 == 0 {
                    eprintln!("{number} of {num_jobs} jobs");
                }
                let name = format!("job-{number}");
                client.submit(random_id(), submission(&name)).await?;
                client.cancel(random_id(), name).await?;
            }
        }));
    }
    for caller in callers {
        let ended = caller.await.map_err(|error| error.to_string())?;
        ended.map_err(|status| format!("a job was not ended: {status}"))?;
    }
    Ok(())
}

/// Waits until the newest snapshot is not far behind, as it is where jobs end no faster than files of
/// their events are made durable.
async fn until_compacted(group: &Group) -> Result<(), String> {
    let is_compacted = async || {
        let said = group.client(0)?.group().await;
        let said = said.map_err(|status| status.to_string())?;
        let behind = said.last_index.saturating_sub(said.snapshot_index);
        Ok(behind <= MAX_ENTRIES_BEHIND)
    };
    until("the coordinator took no snapshot", is_compacted).await
}

/// Waits until a group of one has a leader again; how long that took since `start`.
async fn until_it_leads(group: &Group, start: Instant) -> Result<f64, String> {
    let leads = async || {
        let said = group.standing(0).await;
        Ok(said.is_some_and(|said| said.leader == said.id))
    };
    until("the coordinator did not lead again", leads).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Waits until something is so; `failure` says that it is not.
async fn until(failure: &str, is_so: impl AsyncFn() -> Result<bool, String>) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        if is_so().await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_WAIT).await;
    }
    Err(format!("{failure} within {} s", TIMEOUT.as_secs()))
}
