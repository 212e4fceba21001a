//! What a worker makes of the end of a stream.

use super::*;

#[test]
fn a_stream_that_another_one_replaced_ends_without_the_worker() {
    let mut agent = running(key(1, 0));
    let refused = |superseded| {
        let reason = "why".to_owned();
        Input::FromCoordinator(FromCoordinator::Refused(v1::Refused { reason, superseded }))
    };
    assert_eq!(last(&mut agent, [refused(true)]), []);
    assert_eq!(
        last(&mut agent, [refused(false)]),
        [Output::Refused("why".to_owned())]
    );
}
