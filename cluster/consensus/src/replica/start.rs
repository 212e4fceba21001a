//! What options and a recovered log must be before a replica starts with them.

use super::Options;
use crate::check;
use crate::error::Error;
use crate::types::{Entry, EntryKind, HardState, Recovered, ReplicaId};

pub(super) fn check_options(options: &Options) -> Result<(), Error> {
    let mut voters = options.voters.clone();
    voters.sort_unstable();
    if let Some(twice) = voters.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::TwiceAVoter(twice[0]));
    }
    if options.id.0 == 0 || voters.first() == Some(&ReplicaId(0)) {
        return Err(Error::ZeroId);
    }
    if !voters.contains(&options.id) {
        return Err(Error::NotAVoter(options.id));
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
    let mut before = 1;
    for (expected, entry) in (1..).zip(&recovered.entries) {
        let Entry {
            index, term, kind, ..
        } = *entry;
        if index != expected {
            return Err(Error::Gap {
                expected,
                found: index,
            });
        }
        if term < before {
            return Err(Error::TermGoesBack {
                index,
                term,
                before,
            });
        }
        if kind != EntryKind::Normal {
            return Err(Error::Membership { index });
        }
        before = term;
    }
    let last = recovered.entries.len() as u64;
    match recovered.entries.last() {
        Some(entry) if entry.term > seen => Err(Error::TermUnseen {
            last: entry.term,
            seen,
        }),
        _ if commit > last => Err(Error::LostTail { commit, last }),
        _ => Ok(()),
    }
}
