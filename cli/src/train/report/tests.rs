//! What a run says of its events, and at its end.

use super::*;

#[test]
fn the_summary_says_how_it_ended_and_what_came_out() {
    let json = r#"{"time":1.0,"job":"digits","history":1,"event":"finished","state":"interrupted","step":100,
        "steps_run":110,"arena_hash":"0123456789abcdef","optimizer_hash":"","trace":"fedcba9876543210",
        "metrics":{"accuracy":0.975,"loss":0.1},"goodput":0.9,
        "rank_time":{"useful_s":3.6,"healing_s":0.3,"waiting_for_world_s":0.1,"waiting_for_checkpoint_s":0.0,
        "data_s":0.0,"queued_s":0.0},"wall_s":2.0,"reason":"","path":"/c"}"#;
    let event: Event = serde_json::from_str(json).unwrap();
    let text = summary(&event, 1).join("\n");
    assert_eq!(
        text,
        "digits interrupted at step 100\n\
         held-out    accuracy 97.50 %, loss 0.1000\n\
         time        2.0 s, 110 steps run, 55 steps/s, goodput 0.90, 1 rank was lost\n\
         rank time   4.0 s: useful 90.0 % (3.6 s), healing 7.5 % (0.3 s), \
         waiting for a world 2.5 % (0.1 s), waiting for a checkpoint 0.0 % (0.0 s), \
         data 0.0 % (0.0 s), queued 0.0 % (0.0 s)\n\
         bits        parameters 0123456789ab, samples fedcba987654\n\
         checkpoint  /c\n\
         the same command goes on from here"
    );
}

#[test]
fn the_most_memory_of_each_rank_is_told_and_of_many_the_range() {
    let mib = |sizes: &[u64]| peaks(&sizes.iter().map(|size| size << 20).collect::<Vec<_>>());
    assert_eq!(mib(&[101, 99]), "at most 101, 99 MiB, by rank");
    let many = [7, 5, 9, 6, 6, 6, 6, 6, 6];
    assert_eq!(mib(&many), "at most 5 to 9 MiB on each of 9 ranks");
}

/// What a person is told of the event with these fields.
fn told(fields: &str) -> Option<String> {
    let json = format!(r#"{{"time":1.0,"job":"digits","history":1,{fields}}}"#);
    let event: Event = serde_json::from_str(&json).unwrap();
    remark(&event.what)
}

#[test]
fn what_changes_the_run_is_told_in_a_line() {
    for (fields, text) in [
        (
            r#""event":"submitted","from_step":75,"workers":2"#,
            "goes on from step 75",
        ),
        (
            r#""event":"generation","generation":1,"world_size":1,"from_step":0,"reason":"first world""#,
            "world 1: 1 rank from step 0 (first world)",
        ),
        (
            r#""event":"generation","generation":2,"world_size":3,"from_step":50,"reason":"rank 1 is gone""#,
            "world 2: 3 ranks from step 50 (rank 1 is gone)",
        ),
        (
            r#""event":"evaluated","step":50,"metrics":{"loss":0.25,"accuracy":0.5}"#,
            "step 50: held-out accuracy 50.00 %, loss 0.2500",
        ),
        (
            r#""event":"lost","rank":1,"worker":"worker-1","reason":"signal 9""#,
            "rank 1 on worker-1 is lost: signal 9",
        ),
        (
            r#""event":"distrusted","worker":"worker-1","reason":"it computed wrongly""#,
            "worker worker-1 is used no more: it computed wrongly",
        ),
        (
            r#""event":"damaged","step":25,"reason":"params is cut short""#,
            "the checkpoint of step 25 is damaged: params is cut short",
        ),
        (
            r#""event":"unwritten","step":25,"rank":1,"worker":"worker-2","reason":"no room""#,
            "step 25: no checkpoint, since rank 1 on worker-2 cannot write its files: no room",
        ),
    ] {
        assert_eq!(told(fields).as_deref(), Some(text));
    }
}

#[test]
fn a_job_that_starts_from_nothing_needs_no_remark() {
    assert_eq!(
        told(r#""event":"submitted","from_step":0,"workers":2"#),
        None
    );
}

#[test]
fn steps_that_made_no_update_are_counted() {
    let lines = |skipped: u64| {
        let json = format!(
            r#"{{"time":1.0,"job":"digits","history":1,"event":"finished","state":"completed","step":9,
            "steps_run":9,"steps_skipped":{skipped},"arena_hash":"","optimizer_hash":"","trace":"",
            "metrics":{{}},"goodput":1.0,"wall_s":1.0,"reason":"","path":""}}"#
        );
        summary(&serde_json::from_str(&json).unwrap(), 0)
    };
    assert_eq!(lines(0).len(), 2);
    assert_eq!(
        lines(1)[2],
        "skipped     1 step, whose gradient was not finite"
    );
    assert_eq!(
        lines(2)[2],
        "skipped     2 steps, whose gradients were not finite"
    );
}

#[test]
fn a_failed_run_says_why_and_promises_nothing() {
    let json = r#"{"time":1.0,"job":"digits","history":1,"event":"finished","state":"failed","step":3,
        "steps_run":3,"arena_hash":"","optimizer_hash":"","trace":"","metrics":{},"goodput":1.0,
        "wall_s":0.0,"reason":"the loss is not finite","path":""}"#;
    let lines = summary(&serde_json::from_str(json).unwrap(), 0);
    assert_eq!(lines[0], "digits failed at step 3: the loss is not finite");
    assert_eq!(
        lines.len(),
        2,
        "no bits, no checkpoint, no advice: {lines:#?}"
    );
}
