//! What a rank lacks that enters a world, and how it gets it; see `worker/rank/src/heal/exchange.rs`.

use muster_cluster::state::Heal;
use muster_collective::Error;

use super::super::env::{Env, Point};
use super::super::net::Node;
use super::gift::{decode_records, decode_state, encode_records, encode_state};
use super::meet::{Meeting, Received};
use super::work::Last;
use super::{Joined, Rank};

/// What a rank lacks that enters a world, as the byte that says so.
pub(super) const NOTHING: u8 = 0;
pub(super) const REDUCED: u8 = 1;
pub(super) const STATE: u8 = 2;

/// What a rank has of what it is given.
pub(super) enum Taken {
    NotYet,
    All(Option<Received>),
    Spoiled,
}

impl Meeting {
    /// Takes what was given so far, and says what is lacking where a giver does not have it.
    pub(super) fn take(
        &mut self,
        joined: &mut Joined,
        heard: &mut Vec<Vec<u8>>,
    ) -> Result<Taken, Error> {
        let from = match &self.need {
            None => return Ok(Taken::All(None)),
            Some(Heal::Reduced { from }) => vec![*from],
            Some(Heal::State { from }) => from.clone(),
        };
        let is_heal = matches!(self.need, Some(Heal::Reduced { .. }));
        // How many messages come of each.
        let count = match (is_heal, self.lack) {
            (false, NOTHING) => 1,
            (false, REDUCED) if heard.is_empty() => 1,
            (false, REDUCED) => 4,
            _ => 2,
        };
        let givers = if !is_heal && self.lack != STATE {
            1
        } else {
            from.len()
        };
        while heard.len() < count * givers {
            match joined.group.hear(from[heard.len() / count]) {
                None => return Ok(Taken::NotYet),
                Some(message) => heard.push(message?),
            }
        }
        if is_heal {
            return Ok(Taken::All(Some(Received::Reduced(
                Last::decode(heard),
                Vec::new(),
            ))));
        }
        match (self.lack, heard.len()) {
            (NOTHING, _) => {
                let records = decode_records(&heard[0]);
                Ok(Taken::All(Some(Received::Records(records))))
            }
            (REDUCED, 1) => {
                let word = if heard[0] == [1] {
                    NOTHING
                } else {
                    heard.clear();
                    self.lack = STATE;
                    joined.group.say(from[0], vec![STATE]);
                    STATE
                };
                for giver in &from[1..] {
                    joined.group.say(*giver, vec![word]);
                }
                self.take(joined, heard)
            }
            (REDUCED, _) => {
                let records = decode_records(&heard[3]);
                let last = Last::decode(&heard[1..]);
                Ok(Taken::All(Some(Received::Reduced(last, records))))
            }
            _ => Ok(match decode_state(heard) {
                Some((state, records)) => Taken::All(Some(Received::State(state, records))),
                None => Taken::Spoiled,
            }),
        }
    }
}

impl Rank {
    /// Answers those who have said what they lack.
    pub(super) fn give_what_they_lack(
        &mut self,
        meeting: &mut Meeting,
        joined: &mut Joined,
        env: &mut Env,
    ) -> Result<(), Error> {
        let work = self.work.as_ref().expect("it is prepared");
        let last = work.last.as_ref();
        let last = last.filter(|last| last.step + 1 == meeting.first_step);
        let records = encode_records(&meeting.records);
        let mut left = Vec::new();
        for (rank, is_first) in std::mem::take(&mut meeting.lacking) {
            let mut is_done = false;
            while !is_done && let Some(word) = joined.group.hear(rank) {
                env.point(Point::Giving, Node::Rank { pid: self.pid });
                let messages = match (word?[..].first().copied(), last) {
                    (Some(NOTHING), _) if is_first => vec![records.clone()],
                    (Some(NOTHING), _) => Vec::new(),
                    (Some(REDUCED), None) => vec![vec![0]],
                    (Some(REDUCED), Some(last)) => {
                        let [head, vector] = last.encode();
                        vec![vec![1], head, vector, records.clone()]
                    }
                    _ => encode_state(&work.state, &meeting.records).to_vec(),
                };
                is_done = messages != [[0]];
                for message in messages {
                    joined.group.say(rank, message);
                }
            }
            if !is_done {
                left.push((rank, is_first));
            }
        }
        meeting.lacking = left;
        Ok(())
    }
}
