//! What the leader decides: scenarios in `testdata/plan`, and what holds for any sequence of
//! events in [`properties`]. `UPDATE_EXPECT=1 cargo test -p muster-cluster` writes the scenarios'
//! outcomes anew.

mod properties;
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
    waiting_reasons
    worker_leaves
    silence
    late_leader
    restart_from_checkpoint
    damaged_checkpoint
    numerics_class
    stop
    fruitless_worlds
    submit_again
    devices_are_not_made_up
}
