//! Ranks on GPUs: what a rank is told of its device, and what people see of it.

use super::*;

/// A worker with two GPUs of one model.
fn gpus() -> Vec<v1::Gpu> {
    let gpu = |index: u32| v1::Gpu {
        index,
        name: "NVIDIA H200".to_owned(),
        memory_bytes: 141 << 30,
        uuid: format!("GPU-{index}"),
        class: Some(v1::NumericsClass {
            gpu: "NVIDIA H200, driver 580".to_owned(),
            ..v1::NumericsClass::default()
        }),
    };
    (0..2).map(gpu).collect()
}

fn on_gpus() -> Command {
    let Command::Submit { mut submission, .. } = submit() else {
        unreachable!("it is a submission");
    };
    submission.draft = submission
        .draft
        .replace("device = \"cpu\"", "device = \"cuda\"");
    Command::submit(submission)
}

#[test]
fn a_rank_is_told_its_gpu_and_the_class_of_that() {
    let mut bench = Bench::new();
    let plain = bench.hello("a", 1, Vec::new());
    let session = bench.hello_with("b", 1, gpus());
    bench.request(1, on_gpus());
    bench.pass(3_000, &[plain, session]);
    let told = bench.sent_to(session);
    let assignments = told.iter().filter_map(|message| match message {
        To::Assignment(assignment) => Some(assignment),
        _ => None,
    });
    let told: Vec<_> = assignments
        .map(|assignment| {
            let class = assignment.class.clone().unwrap();
            (assignment.rank, assignment.cuda, class.gpu)
        })
        .collect();
    let class = "NVIDIA H200, driver 580".to_owned();
    assert_eq!(
        told,
        [(0, Some(0), class.clone()), (1, Some(1), class)],
        "both ranks are on b, whose GPUs they are told"
    );
    assert_eq!(bench.assigned(plain), None);

    let nodes = bench.coordinator.node_views(bench.now);
    assert_eq!(
        (nodes[1].num_busy, nodes[1].num_devices),
        (0, 1),
        "slots are free"
    );
    let jobs: Vec<&str> = nodes[1].gpus.iter().map(|gpu| gpu.job.as_str()).collect();
    assert_eq!(jobs, [JOB, JOB]);
    assert_eq!(nodes[1].jobs, [JOB]);
    let job = bench.coordinator.job_view(JOB).unwrap();
    let devices: Vec<&str> = job.ranks.iter().map(|rank| rank.device.as_str()).collect();
    assert_eq!(devices, ["cuda:0", "cuda:1"]);
}

#[test]
fn a_job_for_gpus_waits_with_a_reason_until_a_worker_lends_some() {
    let mut bench = Bench::new();
    let plain = bench.hello("a", 1, Vec::new());
    bench.request(1, on_gpus());
    bench.pass(3_000, &[plain]);
    let job = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!(
        (job.state.as_str(), job.reason.as_str()),
        (
            "queued",
            "waits for GPUs: 0 free, 2 needed; no worker lends one"
        )
    );
    let session = bench.hello_with("b", 1, gpus());
    bench.pass(3_000, &[plain, session]);
    assert!(bench.assigned(session).is_some());
}

#[test]
fn a_snapshot_keeps_what_a_worker_lends_and_who_has_it() {
    let mut bench = Bench::new();
    let session = bench.hello_with("b", 1, gpus());
    bench.request(1, on_gpus());
    bench.pass(3_000, &[session]);
    let bytes = bench.coordinator.snapshot().encode();
    let back = crate::Snapshot::decode(&bytes).unwrap();
    let state = bench.coordinator.state();
    assert_eq!(
        format!("{:?}", back.state.nodes),
        format!("{:?}", state.nodes)
    );
    assert_eq!(back.state.busy_gpus(), state.busy_gpus());
    assert_eq!(state.busy_gpus().len(), 2);
}
