//! What the leader decides: scenarios in `testdata/plan`, and what holds for any sequence of
//! events in [`properties`]. `UPDATE_EXPECT=1 cargo test -p muster-cluster` writes the scenarios'
//! outcomes anew.

mod properties;
mod ranks;
mod scenario;

use expect_test::expect_file;

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let text = include_str!(concat!("../../testdata/plan/", stringify!($name), ".txt"));
            expect_file![concat!("../../testdata/plan/", stringify!($name), ".txt")]
                .assert_eq(&scenario::play(text));
        }
    )*};
}

scenarios! {
    gang_placement
    gpus
    gpus_wait
    gpus_auto
    gpus_by_index
    gpu_worker_dies
    gpus_shared_by_jobs
    waiting_reasons
    numerics_class
    devices_are_not_made_up
    worker_leaves
    killed_while_computing
    killed_while_reducing
    killed_while_updating
    killed_while_writing
    killed_behind_its_last_frame
    reduced_vector_is_gone
    two_killed_at_once
    second_death_while_healing
    death_beside_a_joiner
    wrong_results
    silence
    silent_machine
    cut_off_from_the_leader
    daemon_restarts
    late_leader
    new_leader
    leader_dies_between_revoke_and_world
    leader_dies_in_a_heal
    hanging_rank
    slow_update
    frozen_rank
    bad_worker
    daemon_restarts_beside_a_death
    bad_link
    fruitless_heals
    all_ranks_gone
    abandoned_state
    restart_from_checkpoint
    damaged_checkpoint
    fruitless_worlds
    below_min
    joining
    spares
    following
    following_below_min
    deaths_faster_than_following
    failing_start
    drain
    drain_of_the_only_rank
    shares
    shares_while_gathering
    shares_are_lost
    second_death_while_shares_move
    drain_of_shares
    scaling
    balance
    balance_rests
    evaluated
    odd_reports
    not_finite
    poison
    poison_alone
    random_deaths_at_one_step
    stop
    stop_while_healing
    submit_again
}
