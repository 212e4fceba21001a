//! What a message must be before raft-rs may see it.
//!
//! raft-rs trusts its peers: it panics on well-formed messages that no correct replica sends, such
//! as a commit index beyond the log. Every condition that it takes for granted is looked at here.
//! Nothing is changed here; what a message does is raft-rs's.

use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{Raft, StateRole};

use crate::log::Log;
use crate::types::ReplicaId;

/// The largest message that is decoded, in bytes. A message has at most one proposal beyond
/// [`MAX_APPEND_BYTES`], and a proposal is at most [`MAX_PROPOSAL_BYTES`].
pub(crate) const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// The largest proposal, in bytes.
pub(crate) const MAX_PROPOSAL_BYTES: usize = 4 << 20;
/// Entries are gathered into one message up to this many bytes.
pub(crate) const MAX_APPEND_BYTES: u64 = 1 << 20;
/// Terms and indexes beyond this are taken for damage, so that counting on never overflows.
pub(crate) const MAX_NUMBER: u64 = u64::MAX / 4;

/// Why a message does not reach raft-rs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No replica of ours sends this: it is ignored.
    Garbage(&'static str),
    /// The sender's log and ours contradict each other: promises were lost somewhere.
    Impossible(String),
}

use Refusal::Garbage;

/// Decodes a message and looks at everything that raft-rs takes for granted.
pub(crate) fn check(raft: &Raft<Log>, from: ReplicaId, bytes: &[u8]) -> Result<Message, Refusal> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Garbage("longer than any message of ours"));
    }
    let mut message = Message::default();
    message
        .merge_from_bytes(bytes)
        .map_err(|_| Garbage("not a message"))?;
    if message.from != from.0 || message.to != raft.id || from.0 == raft.id {
        return Err(Garbage("from or to somebody else"));
    }
    if raft.prs().get(from.0).is_none() {
        return Err(Garbage("not from a voter"));
    }
    // A term of 0 would mark a local message, which skips every check of raft-rs's. Priorities are
    // never given; a context would force a vote or acknowledge a read, and neither is used.
    if message.term == 0
        || message.priority != 0
        || message.deprecated_priority != 0
        || !message.context.is_empty()
    {
        return Err(Garbage("uses what no replica uses"));
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    if numbers.iter().any(|number| *number > MAX_NUMBER) {
        return Err(Garbage("a number beyond any log"));
    }
    match message.msg_type {
        MessageType::MsgAppend => check_append(raft, &message)?,
        MessageType::MsgHeartbeat => check_heartbeat(raft, &message)?,
        MessageType::MsgAppendResponse => check_append_response(raft, &message)?,
        MessageType::MsgHeartbeatResponse => check_commit_of_follower(raft, &message)?,
        MessageType::MsgRequestVoteResponse => {
            // Votes are asked for once the whole log is durable; raft-rs asserts it on winning.
            if raft.state == StateRole::Candidate
                && raft.raft_log.persisted != raft.raft_log.last_index()
            {
                return Err(Garbage("a vote that nobody asked for"));
            }
        }
        MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        _ => return Err(Garbage("of a kind that no replica sends")),
    }
    Ok(message)
}

/// Whether raft-rs will act on a message of a leader's; it answers older ones by their term alone.
fn from_leader(raft: &Raft<Log>, message: &Message) -> Result<bool, Refusal> {
    if message.term == raft.term {
        if raft.state == StateRole::Leader {
            return Err(Garbage("from a second leader of our own term"));
        }
        if raft.leader_id != raft::INVALID_ID && raft.leader_id != message.from {
            return Err(Garbage("from a second leader of the term"));
        }
    }
    Ok(message.term >= raft.term)
}

fn check_append(raft: &Raft<Log>, message: &Message) -> Result<(), Refusal> {
    // raft-rs reads the term of an index beyond the log as 0, so that a term of 0 would match there.
    if (message.log_term == 0) != (message.index == 0) {
        return Err(Garbage("entries after an entry of no term"));
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        index += 1;
        if entry.index != index || entry.term < term.max(1) || entry.term > message.term {
            return Err(Garbage("entries out of order"));
        }
        if entry.entry_type != EntryType::EntryNormal {
            return Err(Garbage("an entry that changes the membership"));
        }
        term = entry.term;
    }
    if !from_leader(raft, message)? {
        return Ok(());
    }
    // A leader has every committed entry (Raft §5.4.3), so that it agrees with us about ours.
    let theirs = message
        .entries
        .iter()
        .map(|entry| (entry.index, entry.term));
    for (index, term) in std::iter::once((message.index, message.log_term)).chain(theirs) {
        if index <= raft.raft_log.committed && !raft.raft_log.match_term(index, term) {
            return Err(Refusal::Impossible(format!(
                "replica {}, leading term {}, has an entry {index} of term {term}, but another one is committed there; \
                 a replica lost what it had promised to keep",
                message.from, message.term
            )));
        }
    }
    Ok(())
}

fn check_heartbeat(raft: &Raft<Log>, message: &Message) -> Result<(), Refusal> {
    let last = raft.raft_log.last_index();
    if from_leader(raft, message)? && message.commit > last {
        return Err(Refusal::Impossible(format!(
            "replica {} says that we hold entry {} and that it is committed, but our log ends at {last}; \
             the tail of our log was lost",
            message.from, message.commit
        )));
    }
    Ok(())
}

fn check_append_response(raft: &Raft<Log>, message: &Message) -> Result<(), Refusal> {
    let last = raft.raft_log.last_index();
    if message.request_snapshot != raft::INVALID_INDEX {
        return Err(Garbage("asks for a snapshot"));
    }
    if answers_us(raft, message) && (message.index > last || message.reject_hint > last) {
        return Err(Garbage("acknowledges what was not sent"));
    }
    check_commit_of_follower(raft, message)
}

fn check_commit_of_follower(raft: &Raft<Log>, message: &Message) -> Result<(), Refusal> {
    let last = raft.raft_log.last_index();
    if answers_us(raft, message) && message.commit > last {
        return Err(Refusal::Impossible(format!(
            "replica {} knows entry {} to be committed, but the log that we lead with ends at {last}; \
             replicas lost what they had promised to keep",
            message.from, message.commit
        )));
    }
    Ok(())
}

/// Whether a response is to this replica as the leader of its term.
fn answers_us(raft: &Raft<Log>, message: &Message) -> bool {
    raft.state == StateRole::Leader && message.term == raft.term
}
