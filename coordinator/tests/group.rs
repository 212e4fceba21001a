//! Groups of coordinators over real sockets and disks, in one process: what is acknowledged stays,
//! whoever leads; members come, go and are replaced; and what is not of the group is refused.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

mod common;

use common::Cluster;
use muster_proto::leader::named_by;
use muster_proto::v1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_its_leader() {
    let mut cluster = Cluster::new(3);
    let first = cluster.leader().await;
    for number in 0..20 {
        cluster.submit(&format!("before-{number}")).await;
    }
    cluster.kill(first).await;
    cluster.submit("after").await;
    assert_eq!(cluster.jobs().await.len(), 21);
    cluster.start(first);
    cluster.agree(&[1, 2, 3]).await;
    let stale = cluster.stale_jobs(first).await;
    assert_eq!(stale.len(), 21, "the one that was dead has caught up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_lead_refuses_and_names_the_leader() {
    let cluster = Cluster::new(3);
    // One that has started just now may not have heard of the leader, and the leader may change.
    let named = async |cluster: &Cluster, other: u64| {
        let mut client = cluster.client(other);
        let read = client.list_jobs(v1::ListJobsRequest {}).await;
        read.err().and_then(|status| named_by(&status))
    };
    cluster
        .until("the others name the leader", async |cluster| {
            let leader = cluster.leader().await;
            for other in [1, 2, 3].into_iter().filter(|id| *id != leader) {
                if named(cluster, other).await.as_deref() != Some(cluster.address(leader)) {
                    return false;
                }
            }
            true
        })
        .await;
    for id in [1, 2, 3] {
        let stale = cluster.stale_jobs(id).await;
        assert!(stale.is_empty(), "a stale look is answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_made_again_at_the_next_leader_is_done_once() {
    let mut cluster = Cluster::new(3);
    let (first, reply) = cluster.submit("once").await;
    assert_eq!(reply.status(), v1::SubmitStatus::Queued);
    cluster.kill(first).await;
    let (_, again) = cluster.submit("once").await;
    assert_eq!(
        again.status(),
        v1::SubmitStatus::Queued,
        "the first answer, not `already running`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_end_hands_over() {
    // On a machine that is busy, the next one may be elected at its second attempt.
    const ATTEMPTS: usize = 5;
    let mut cluster = Cluster::new(3);
    let mut terms = Vec::new();
    while terms.len() < ATTEMPTS {
        cluster.agree(&[1, 2, 3]).await;
        let first = cluster.leader().await;
        let before = cluster.group(first).await.unwrap().term;
        cluster.stop(first).await;
        let second = cluster.leader().await;
        let after = cluster.group(second).await.unwrap().term;
        if after == before + 1 {
            return;
        }
        terms.push((before, after));
        cluster.start(first);
    }
    panic!("an election of its own followed each time: {terms:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_is_lost_comes_back_as_a_new_one() {
    let mut cluster = Cluster::new(3);
    cluster.submit("a").await;
    cluster.agree(&[1, 2, 3]).await;
    cluster.known_disks().await;
    let leader = cluster.leader().await;
    let lost = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(lost).await;
    cluster.lose_disk(lost);
    cluster.start(lost);
    let reason = cluster.end_of(lost).await;
    assert!(reason.contains("known with another disk"), "{reason}");

    let remove = v1::ChangeGroupRequest {
        change: Some(v1::change_group_request::Change::Remove(lost)),
    };
    cluster.change(remove).await.unwrap();
    let old_number = v1::AddMember {
        id: lost,
        address: "127.0.0.1:1".to_owned(),
    };
    let refused = cluster
        .change(v1::ChangeGroupRequest {
            change: Some(v1::change_group_request::Change::Add(old_number)),
        })
        .await
        .unwrap_err();
    assert!(refused.message().contains("not used twice"), "{refused:?}");

    let new = cluster.join().await;
    assert_eq!(new, 4);
    let alive: Vec<u64> = [1, 2, 3, 4].into_iter().filter(|id| *id != lost).collect();
    cluster
        .until("member 4 votes", async |cluster| {
            let leader = cluster.leader().await;
            let group = cluster.group(leader).await;
            group.is_some_and(|group| {
                let mut members = group.members.iter();
                members.any(|member| member.id == 4 && member.kind == "voter")
            })
        })
        .await;
    cluster.agree(&alive).await;
    assert_eq!(cluster.stale_jobs(4).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_answers_nothing_that_must_be_true_and_changes_nothing() {
    let mut cluster = Cluster::new(3);
    let (leader, _) = cluster.submit("a").await;
    cluster.agree(&[1, 2, 3]).await;
    for id in [1, 2, 3] {
        if id != leader {
            cluster.kill(id).await;
        }
    }
    cluster
        .until("it knows of no leader", async |cluster| {
            let group = cluster.group(leader).await;
            group.is_some_and(|group| group.role != "leader" && group.leader == 0)
        })
        .await;
    let mut client = cluster.client(leader);
    let read = client.list_jobs(v1::ListJobsRequest {}).await.unwrap_err();
    assert!(muster_proto::leader::is_not_leading(&read), "{read:?}");
    assert!(read.message().contains("majority"), "{read:?}");
    let change = v1::ChangeGroupRequest {
        change: Some(v1::change_group_request::Change::Remove(1)),
    };
    let change = cluster.operator(leader).change_group(change).await;
    let change = change.unwrap_err();
    assert!(change.message().contains("majority"), "{change:?}");
    assert_eq!(
        cluster.stale_jobs(leader).await.len(),
        1,
        "a stale look is answered"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_were_given_other_peers_refuse_each_other() {
    let mut cluster = Cluster::addressed(3);
    cluster.start(1);
    cluster.start(2);
    cluster.give_other_peers(3);
    cluster.start(3);
    let reason = cluster.end_of(3).await;
    assert!(reason.contains("--peers differ"), "{reason}");
    cluster.leader().await;
}
