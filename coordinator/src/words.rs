//! What comes of a client's command, in a sentence for a person. Decides nothing: what is said here
//! is what the planner does with the state as it is now.

use muster_proto::v1;

/// What comes of a new number of workers.
pub(crate) fn scaled(job: &v1::JobView, max: u32) -> String {
    let (name, now) = (&job.job, ranks(job.world_size));
    match job.state.as_str() {
        "queued" => format!("job {name} starts with at most {}", ranks(max)),
        "running" if job.world_size > max => {
            format!("job {name} has {now}, and goes on with {max} from the next step boundary on")
        }
        "running" if job.world_size < max => {
            let more = max - job.world_size;
            format!("job {name} has {now}, and takes in {more} more where workers are free")
        }
        "running" => format!("job {name} has {now}, and keeps to that"),
        "stopping" => format!("job {name} ends at the next step boundary; nothing changes"),
        state => format!(
            "job {name} has ended ({state}); a new submission says anew how many workers it may have"
        ),
    }
}

/// What comes of a wish to have a node free, or of giving it back. `jobs` are those that have a
/// process there.
pub(crate) fn drained(worker: &str, drains: bool, jobs: &[v1::JobView]) -> String {
    if !drains {
        return format!("worker {worker} is given back; jobs may use it again");
    }
    if jobs.is_empty() {
        return format!("worker {worker} is free, and gets no ranks");
    }
    let parts: Vec<String> = jobs.iter().map(|job| leaves(worker, job)).collect();
    format!("worker {worker} gets no more ranks; {}", parts.join("; "))
}

/// What comes of giving up what the missed ranks of a job hold. `job` is as it was before.
pub(crate) fn abandoned(job: &v1::JobView, committed_step: u64) -> String {
    format!(
        "job {} waits no longer for the ranks that are missed; where nobody else has its state, it \
         falls back to its checkpoint of step {committed_step} (it was at step {})",
        job.job, job.step
    )
}

/// How one job leaves a worker.
fn leaves(worker: &str, job: &v1::JobView) -> String {
    let name = &job.job;
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        job.ranks.iter().partition(|rank| rank.worker == worker);
    let here = u32::try_from(here.len()).unwrap_or(u32::MAX);
    let elsewhere = u32::try_from(elsewhere.len()).unwrap_or(u32::MAX);
    if here == 0 {
        format!("job {name} ends a process there that has not entered its world")
    } else if job.state == "stopping" {
        format!("job {name} ends at the next step boundary")
    } else if elsewhere >= job.workers_min {
        format!(
            "job {name} goes on without its {} there from the next step boundary on",
            ranks(here)
        )
    } else {
        format!(
            "job {name} needs at least {} and has {elsewhere} elsewhere, and keeps its {} there \
             until other workers have room",
            ranks(job.workers_min),
            ranks(here)
        )
    }
}

fn ranks(count: u32) -> String {
    format!("{count} {}", if count == 1 { "rank" } else { "ranks" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: &str, workers: &[&str], min: u32) -> v1::JobView {
        let rank = |worker: &&str| v1::RankView {
            worker: (*worker).to_owned(),
            ..Default::default()
        };
        v1::JobView {
            job: "digits".to_owned(),
            state: state.to_owned(),
            world_size: u32::try_from(workers.len()).unwrap(),
            workers_min: min,
            ranks: workers.iter().map(rank).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_scaled_job_says_what_it_does_next() {
        let running = job("running", &["a", "b"], 1);
        assert_eq!(
            scaled(&running, 1),
            "job digits has 2 ranks, and goes on with 1 from the next step boundary on"
        );
        assert_eq!(
            scaled(&running, 4),
            "job digits has 2 ranks, and takes in 2 more where workers are free"
        );
        assert!(scaled(&running, 2).ends_with("keeps to that"));
        assert!(scaled(&job("queued", &[], 1), 3).ends_with("starts with at most 3 ranks"));
        assert!(scaled(&job("completed", &[], 1), 3).contains("has ended (completed)"));
    }

    #[test]
    fn a_drained_node_says_when_it_will_be_free() {
        assert_eq!(
            drained("a", true, &[]),
            "worker a is free, and gets no ranks"
        );
        assert!(drained("a", false, &[]).contains("given back"));
        assert_eq!(
            drained("a", true, &[job("running", &["a", "b"], 1)]),
            "worker a gets no more ranks; \
             job digits goes on without its 1 rank there from the next step boundary on"
        );
        let stuck = drained("a", true, &[job("running", &["a", "a"], 1)]);
        assert!(
            stuck.ends_with(
                "job digits needs at least 1 rank and has 0 elsewhere, and keeps its 2 ranks there \
                 until other workers have room"
            ),
            "{stuck}"
        );
        let waits = drained("c", true, &[job("running", &["a", "b"], 1)]);
        assert!(waits.contains("has not entered its world"), "{waits}");
    }
}
