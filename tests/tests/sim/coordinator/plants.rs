//! The bugs of the model's that lie between a worker and the machine.

use muster_proto::v1;
use v1::from_worker::Message as From;
use v1::rank_report::Report;

use crate::env::{Env, Held, Plant};
use crate::net::{SECOND, StreamId, Time};

/// How long a report is late that comes before its history is given up.
const LATE: Time = SECOND;

/// What comes of a message. With [`Plant::AnyHistory`] every other checkpoint's files are late, and
/// where their history is given up meanwhile, they come under the names of the present one.
pub(super) fn delay(message: From, stream: StreamId, env: &mut Env) -> Vec<From> {
    if env.plant != Plant::AnyHistory {
        return vec![message];
    }
    let mut messages = Vec::new();
    let present = match &message {
        From::Report(report) => report.key.clone(),
        _ => None,
    };
    let now = env.net.now;
    env.held.retain_mut(|held| {
        let history = |key: &v1::RankKey| key.history;
        let is_old = held.report.key.as_ref().map(history) < present.as_ref().map(history);
        if is_old {
            held.report.key.clone_from(&present);
        }
        let is_due = is_old || held.stream == stream && now > held.since + LATE;
        if is_due {
            messages.push(From::Report(held.report.clone()));
        }
        !is_due
    });
    match message {
        From::Report(report) if is_late(&report) => {
            let since = env.net.now;
            env.held.push(Held {
                report,
                stream,
                since,
            });
        }
        message => messages.push(message),
    }
    messages
}

fn is_late(report: &v1::RankReport) -> bool {
    matches!(&report.report, Some(Report::CheckpointPart(part)) if part.step.is_multiple_of(12))
}
