//! What submissions, cancellations, new numbers of workers and looks come to, one behind the other, at one
//! coordinator that never fails: a model of a job of a cluster without workers.

use muster_tests::{Model, Operation, linearizable};

/// A job of a cluster without workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) history: u64,
    pub(crate) is_queued: bool,
    pub(crate) max: u32,
}

/// What clients ask of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Submit { max: u32 },
    Cancel,
    Scale { max: u32 },
    Show,
}

/// What they are answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    Queued,
    AlreadyRunning,
    Rests,
    HasEnded,
    Scaled,
    Unknown,
    Is(Job),
}

/// What one coordinator does that never fails.
pub(crate) struct OneJob;

impl Model for OneJob {
    type State = Option<Job>;
    type Ask = Ask;
    type Answer = Answer;

    fn first() -> Option<Job> {
        None
    }

    fn apply(state: &Option<Job>, ask: &Ask) -> (Option<Job>, Answer) {
        match (*state, *ask) {
            (None, Ask::Submit { max }) => {
                let job = Job {
                    history: 1,
                    is_queued: true,
                    max,
                };
                (Some(job), Answer::Queued)
            }
            (None, _) => (None, Answer::Unknown),
            (Some(job), Ask::Submit { max }) if job.is_queued => {
                (Some(Job { max, ..job }), Answer::AlreadyRunning)
            }
            (Some(job), Ask::Submit { max }) => {
                let job = Job {
                    history: job.history + 1,
                    is_queued: true,
                    max,
                };
                (Some(job), Answer::Queued)
            }
            (Some(job), Ask::Cancel) if job.is_queued => {
                let rests = Job {
                    is_queued: false,
                    ..job
                };
                (Some(rests), Answer::Rests)
            }
            (Some(job), Ask::Cancel) => (Some(job), Answer::HasEnded),
            (Some(job), Ask::Scale { max }) => (Some(Job { max, ..job }), Answer::Scaled),
            (Some(job), Ask::Show) => (Some(job), Answer::Is(job)),
        }
    }

    fn only_looks(ask: &Ask) -> bool {
        matches!(ask, Ask::Show)
    }
}

#[test]
fn the_model_tells_a_job_that_was_submitted_twice_from_one_that_was_asked_for_again() {
    let answered = |ask, called, answer| Operation {
        ask,
        called,
        answer: Some((called + 1, answer)),
    };
    let is = |history, is_queued, max| {
        Answer::Is(Job {
            history,
            is_queued,
            max,
        })
    };
    let before = [
        answered(Ask::Submit { max: 2 }, 0, Answer::Queued),
        answered(Ask::Cancel, 2, Answer::Rests),
    ];
    let judge = |read: Answer| {
        let read = answered(Ask::Show, 4, read);
        linearizable::<OneJob>(&[&before[..], &[read]].concat()).is_ok()
    };
    assert!(judge(is(1, false, 2)));
    assert!(!judge(is(1, true, 2)), "a cancellation that was lost");
    assert!(!judge(is(2, true, 2)), "a submission that was done twice");
    assert!(!judge(Answer::Unknown), "a job that was lost");
}
