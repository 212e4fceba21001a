//! Ranks that die at the same step again and again: the job stops, and says at which step and shards,
//! which samples those have, and what the last rank printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Sandbox, Signal};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_job_whose_ranks_die_at_one_step_stops_and_names_its_samples() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    // One rank, whose steps take long enough to be struck in the second one each time.
    let train = sandbox
        .train("job.toml")
        .workers(1)
        .set("train.global_batch_size=1024")
        .set("model.channels=[64, 128]")
        .set("train.steps=100")
        .start();
    for generation in 1..=5 {
        let is_first = |event: &serde_json::Value| {
            event["event"] == "step" && event["generation"] == generation
        };
        assert_eq!(train.wait_for(is_first, DEADLINE)["step"], 1);
        let rank = train.wait_for(
            |event| event["event"] == "rank" && event["generation"] == generation,
            DEADLINE,
        );
        let pid = u32::try_from(rank["pid"].as_u64().unwrap()).unwrap();
        train.kill(pid, Signal::KILL);
    }
    let finished = train.finish();
    assert_eq!(finished.state(), "failed");
    let reason = finished.end()["reason"].as_str().unwrap();
    for part in [
        "5 worlds in a row lost a rank that had shard 0..8 of step 1 to compute",
        "(shard 0 begins with rows ",
        "shard 3 begins with rows ",
        "rank 0 is gone: signal 9",
        "the last lines of its log: ",
        "ranks died that had this shard to compute",
    ] {
        assert!(reason.contains(part), "{part:?} is not in {reason:?}");
    }
}
