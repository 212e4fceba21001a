//! What options and a recovered log must be before a replica starts with them.

use super::Options;
use crate::error::Error;
use crate::types::{Entry, EntryKind, HardState, Mark, Recovered, ReplicaId};
use crate::{change, check};

pub(super) fn check_options(options: &Options) -> Result<(), Error> {
    if options.id.0 == 0 {
        return Err(Error::ZeroId);
    }
    let Options {
        election_ticks,
        heartbeat_ticks,
        ..
    } = *options;
    if heartbeat_ticks == 0 || election_ticks <= heartbeat_ticks || election_ticks > u32::MAX / 2 {
        return Err(Error::Ticks {
            election_ticks,
            heartbeat_ticks,
        });
    }
    Ok(())
}

pub(super) fn check_recovered(recovered: &Recovered) -> Result<(), Error> {
    let HardState {
        term: seen, commit, ..
    } = recovered.hard_state;
    if seen > check::MAX_NUMBER {
        return Err(Error::TooLarge {
            what: "term",
            value: seen,
        });
    }
    let start = &recovered.start;
    check_start(start, recovered)?;
    let first = recovered.entries.first().map(|entry| entry.index);
    let first = first.map_or(start.index + 1, |first| first.clamp(1, start.index + 1));
    let mut before = 1;
    for (expected, entry) in (first..).zip(&recovered.entries) {
        let Entry {
            index, term, kind, ..
        } = *entry;
        if index != expected {
            return Err(Error::Gap {
                expected,
                found: index,
            });
        }
        // The snapshot says which term stands where it ends.
        let least = if index <= start.index { 1 } else { start.term };
        let is_other = index == start.index && term != start.term;
        if term < before.max(least) || is_other {
            return Err(Error::TermGoesBack {
                index,
                term,
                before: before.max(start.term),
            });
        }
        if kind == EntryKind::Config && change::decode(&entry.data).is_none() {
            return Err(Error::Membership { index });
        }
        before = term;
    }
    let last = recovered.entries.last();
    let (last_index, last_term) =
        last.map_or((start.index, start.term), |last| (last.index, last.term));
    let last = last_index.max(start.index);
    if last_term.max(start.term) > seen {
        return Err(Error::TermUnseen {
            last: last_term.max(start.term),
            seen,
        });
    }
    if commit > last {
        return Err(Error::LostTail { commit, last });
    }
    Ok(())
}

fn check_start(start: &Mark, recovered: &Recovered) -> Result<(), Error> {
    let Mark {
        index,
        term,
        membership,
    } = start;
    let mut both = membership.voters.intersection(&membership.learners);
    if let Some(id) = both.next() {
        return Err(Error::TwiceAMember(*id));
    }
    if membership.has(ReplicaId(0)) {
        return Err(Error::ZeroId);
    }
    for (what, value) in [("snapshot index", *index), ("snapshot term", *term)] {
        if value > check::MAX_NUMBER {
            return Err(Error::TooLarge { what, value });
        }
    }
    let has_log = *index > 0 || !recovered.entries.is_empty();
    if has_log && membership.voters.is_empty() {
        return Err(Error::NoGenesis);
    }
    Ok(())
}
