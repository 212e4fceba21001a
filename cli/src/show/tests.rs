//! What people and scripts see of jobs and workers.

use super::*;

#[test]
fn columns_are_as_wide_as_their_widest_cell() {
    let rows = [
        vec!["a".to_owned(), "long cell".to_owned()],
        vec!["longer".to_owned(), "b".to_owned()],
    ];
    assert_eq!(
        table(&["X", "Y"], &rows),
        "X       Y\na       long cell\nlonger  b"
    );
}

#[test]
fn a_job_is_shown_with_its_ranks_checkpoints_and_worlds() {
    let file = |bytes| v1::FileRef {
        bytes,
        ..Default::default()
    };
    let view = v1::JobView {
        job: "digits".to_owned(),
        state: "running".to_owned(),
        step: 50,
        total_steps: 200,
        history: 1,
        generation: 2,
        world_size: 1,
        workers_min: 1,
        workers_max: 1,
        identity: "abc".to_owned(),
        rank_time: Some(v1::RankTime {
            useful_s: 7.5,
            queued_s: 2.5,
            ..Default::default()
        }),
        ranks: vec![v1::RankView {
            worker: "a".to_owned(),
            pid: 77,
            state: "running".to_owned(),
            shards_end: 8,
            slow_in: "computing".to_owned(),
            slow_percent: 230,
            shard_us: 1_500,
            ..Default::default()
        }],
        distrusted: vec![v1::DistrustedView {
            worker: "b".to_owned(),
            reason: "rank 1 computes wrongly".to_owned(),
        }],
        manifests: vec![v1::Manifest {
            step: 25,
            files: vec![file(100), file(23)],
            arena_hash: "0123456789abcdef".to_owned(),
            folder: "/c".to_owned(),
            ..Default::default()
        }],
        ledger: vec![v1::LedgerView {
            generation: 2,
            history: 1,
            first_step: 25,
            world_size: 1,
            reason: "rank 1 is gone".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(
        job(&view),
        "job digits: running\n\
         step 50/200, history 1, generation 2, workers 1 of 1\n\
         identity abc\n\
         rank time 10.0 s: useful 75.0 % (7.5 s), healing 0.0 % (0.0 s), \
         waiting for a world 0.0 % (0.0 s), waiting for a checkpoint 0.0 % (0.0 s), \
         data 0.0 % (0.0 s), queued 25.0 % (2.5 s)\n\
         worker b is used no more: rank 1 computes wrongly\n\
         \n\
         RANK  WORKER  PID  STATE    SHARDS\n\
         0     a       77   running  0..8\n\
         rank 0 on a is slow: computing takes it 2.3 times as long as the others\n\
         \n\
         CHECKPOINT  BYTES  ARENA         FOLDER\n\
         25          123    0123456789ab  /c\n\
         \n\
         GENERATION  HISTORY  FROM STEP  RANKS  WHY\n\
         2           1        25         1      rank 1 is gone"
    );
    let script = json::job(&view);
    assert_eq!(
        script["checkpoints"][0]["arena_hash"], "0123456789abcdef",
        "whole"
    );
    assert_eq!(script["ranks"][0]["shards"], serde_json::json!([0, 8]));
    assert_eq!(script["goodput"], 0.75);
    let slow = serde_json::json!({ "in": "computing", "percent": 230 });
    assert_eq!(script["ranks"][0]["slow"], slow);
    assert_eq!(script["ranks"][0]["shard_us"], 1_500);
    assert_eq!(script["distrusted"][0]["worker"], "b");
}

#[test]
fn a_silent_worker_says_for_how_long() {
    let node = v1::NodeView {
        worker: "a".to_owned(),
        num_devices: 2,
        num_busy: 1,
        host: "10.0.0.2".to_owned(),
        last_seen_ms_ago: 2_340,
        ..Default::default()
    };
    assert_eq!(
        nodes(&[node]),
        "WORKER  STATE             BUSY  HOST      CANARY\n\
         a       silent for 2.3 s  1/2   10.0.0.2"
    );
}

#[test]
fn a_worker_s_gpus_are_shown_with_the_jobs_that_have_them() {
    let view = |index, job: &str| v1::GpuView {
        gpu: Some(v1::Gpu {
            index,
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 150_754_820_096,
            uuid: format!("GPU-{index}"),
            class: Some(v1::NumericsClass {
                gpu: "NVIDIA H200, driver 580".to_owned(),
                ..Default::default()
            }),
        }),
        job: job.to_owned(),
    };
    let node = v1::NodeView {
        worker: "a".to_owned(),
        connected: true,
        num_devices: 1,
        host: "10.0.0.2".to_owned(),
        gpus: vec![view(0, "digits"), view(2, "")],
        ..Default::default()
    };
    assert_eq!(
        nodes(std::slice::from_ref(&node)),
        "WORKER  STATE      BUSY  HOST      CANARY\n\
         a       connected  0/1   10.0.0.2\n\
         \n\
         WORKER  DEVICE  NAME         MEMORY    JOB\n\
         a       cuda:0  NVIDIA H200  150.8 GB  digits\n\
         a       cuda:2  NVIDIA H200  150.8 GB  free"
    );
    let script = json::node(&node);
    assert_eq!(script["gpus"][0]["job"], "digits");
    assert_eq!(script["gpus"][1]["job"], serde_json::Value::Null);
    assert_eq!(script["gpus"][1]["index"], 2);
    assert_eq!(script["gpus"][0]["class"], "NVIDIA H200, driver 580");
}

#[test]
fn a_drained_worker_says_whether_it_is_free_yet() {
    let mut node = v1::NodeView {
        worker: "a".to_owned(),
        connected: true,
        draining: true,
        jobs: vec!["digits".to_owned()],
        ..Default::default()
    };
    let text = nodes(std::slice::from_ref(&node));
    assert!(text.contains("connected, draining"), "{text}");
    assert_eq!(json::node(&node)["jobs"], serde_json::json!(["digits"]));
    node.jobs.clear();
    let text = nodes(&[node]);
    assert!(text.contains("connected, drained"), "{text}");
}

#[test]
fn an_empty_list_says_how_to_fill_it() {
    assert!(jobs(&[]).contains("muster submit"));
    assert!(nodes(&[]).contains("muster worker --join"));
}

#[test]
fn a_waiting_job_says_why() {
    let view = v1::JobView {
        job: "digits".to_owned(),
        state: "queued".to_owned(),
        reason: "waits for workers: 0 free, 2 needed".to_owned(),
        workers_min: 2,
        workers_max: 4,
        ..Default::default()
    };
    let text = jobs(&[view]);
    assert!(
        text.contains("0 of 2-4") && text.ends_with("waits for workers: 0 free, 2 needed"),
        "{text}"
    );
}
