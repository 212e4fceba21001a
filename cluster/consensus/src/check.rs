//! What a message must be before raft-rs may see it.
//!
//! raft-rs trusts its peers: it panics on well-formed messages that no correct replica sends, such
//! as a commit index beyond the log. Every condition that it takes for granted is looked at here.
//! Nothing is changed here; what a message does is raft-rs's.

use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{Raft, StateRole};

use crate::change;
use crate::log::{self, Log};
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
    // A term of 0 would mark a local message, which skips every check of raft-rs's. Priorities are
    // never given.
    if message.term == 0 || message.priority != 0 || message.deprecated_priority != 0 {
        return Err(Garbage("uses what no replica uses"));
    }
    check_context(&message)?;
    let is_answer = matches!(
        message.msg_type,
        MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
    );
    // Who asks may belong to the group by an entry that is not here yet.
    if is_answer && raft.prs().get(from.0).is_none() {
        return Err(Garbage(
            "an answer of a replica that does not belong to the group",
        ));
    }
    if message.has_snapshot() != (message.msg_type == MessageType::MsgSnapshot) {
        return Err(Garbage(
            "a snapshot where none belongs, or none where one does",
        ));
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
        MessageType::MsgSnapshot => check_snapshot(raft, &message)?,
        MessageType::MsgTimeoutNow => {
            let leader = raft.leader_id;
            let is_other = leader != raft::INVALID_ID && leader != message.from;
            if message.term > raft.term || message.term == raft.term && is_other {
                return Err(Garbage("an order of somebody who does not lead"));
            }
        }
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

/// A context forces a vote, or acknowledges a read.
fn check_context(message: &Message) -> Result<(), Refusal> {
    let is_known = match message.msg_type {
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => {
            message.context.is_empty() || message.context.len() == size_of::<u64>()
        }
        MessageType::MsgRequestVote => {
            message.context.is_empty() || &message.context[..] == raft::CAMPAIGN_TRANSFER
        }
        _ => message.context.is_empty(),
    };
    if is_known {
        Ok(())
    } else {
        Err(Garbage("a context that no replica uses"))
    }
}

fn check_snapshot(raft: &Raft<Log>, message: &Message) -> Result<(), Refusal> {
    let metadata = message.get_snapshot().get_metadata();
    let (index, term) = (metadata.index, metadata.term);
    if index == 0 || index > MAX_NUMBER || term == 0 || term > message.term {
        return Err(Garbage("a snapshot of no place in a log"));
    }
    let membership = log::membership_of(metadata.get_conf_state());
    let is_group = membership.is_some_and(|membership| {
        let both = membership.voters.intersection(&membership.learners);
        !membership.voters.is_empty() && both.count() == 0 && !membership.has(ReplicaId(0))
    });
    if !is_group {
        return Err(Garbage("a snapshot of no group"));
    }
    if from_leader(raft, message)?
        && index <= raft.raft_log.committed
        && index >= raft.raft_log.first_index()
        && !raft.raft_log.match_term(index, term)
    {
        return Err(Refusal::Impossible(format!(
            "replica {} has a snapshot through entry {index} of term {term}, but another entry is committed there; \
             a replica lost what it had promised to keep",
            message.from
        )));
    }
    Ok(())
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
        let is_known = match entry.entry_type {
            EntryType::EntryNormal => true,
            EntryType::EntryConfChange => change::decode(&entry.data).is_some(),
            EntryType::EntryConfChangeV2 => false,
        };
        if !is_known {
            return Err(Garbage("a change of the membership that no replica makes"));
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
        // What is behind a snapshot cannot be compared any more.
        let is_here = index + 1 >= raft.raft_log.first_index();
        if is_here && index <= raft.raft_log.committed && !raft.raft_log.match_term(index, term) {
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
