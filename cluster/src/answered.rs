//! The answers to the requests of clients, remembered so that a request which is made again, after a
//! lost answer or the loss of a leader, gets the first answer and is not done twice.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use crate::apply::{Answer, Effect, Refusal};
use crate::command::RequestId;

/// So many are remembered in any case, and so many at most.
const MIN_ANSWERED: usize = 4096;
const MAX_ANSWERED: usize = 1 << 16;

/// How long an answer is remembered, by the stamps of the log: far longer than a client asks again.
const REMEMBERED_MS: u64 = 120_000;

/// What is remembered of an answer: of a refusal, its words.
pub type Remembered = Result<Effect, String>;

/// The answers, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    answers: VecDeque<(u64, RequestId, Remembered)>,
    /// How many came before the oldest of them.
    num_forgotten: u64,
    /// Where each is, counted from the first that ever came. By the request's number: ids are drawn by
    /// chance, and numbers are compared at once.
    places: BTreeMap<u128, u64>,
}

impl Answered {
    /// The answer that a request got, if it is remembered.
    #[must_use]
    pub fn answer_to(&self, request: RequestId) -> Option<Answer> {
        let place = self.places.get(&number(request))? - self.num_forgotten;
        let (_, _, answer) = self.answers.get(usize::try_from(place).ok()?)?;
        Some(answer.clone().map_err(Refusal::Earlier))
    }

    /// Remembers the answer of an entry with this stamp, and forgets what is long past.
    pub fn remember(&mut self, request: RequestId, answer: &Answer, stamp_ms: u64) {
        let answer = answer.clone().map_err(|refusal| refusal.to_string());
        self.restore(stamp_ms, request, answer);
        while let Some((stamp, oldest, _)) = self.answers.front()
            && self.answers.len() > MIN_ANSWERED
            && (self.answers.len() > MAX_ANSWERED || stamp.saturating_add(REMEMBERED_MS) < stamp_ms)
        {
            self.places.remove(&number(*oldest));
            self.answers.pop_front();
            self.num_forgotten += 1;
        }
    }

    /// Puts an answer behind the others, as a snapshot has it.
    pub fn restore(&mut self, stamp_ms: u64, request: RequestId, answer: Remembered) {
        let place = self.num_forgotten + self.answers.len() as u64;
        match self.places.entry(number(request)) {
            Entry::Vacant(vacant) => {
                vacant.insert(place);
                self.answers.push_back((stamp_ms, request, answer));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// All of them, oldest first, each with the stamp of its entry.
    pub fn iter(&self) -> impl Iterator<Item = (u64, RequestId, &Remembered)> {
        let answers = self.answers.iter();
        answers.map(|(stamp, request, answer)| (*stamp, *request, answer))
    }
}

fn number(request: RequestId) -> u128 {
    u128::from_le_bytes(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64) -> RequestId {
        u128::from(number).to_le_bytes()
    }

    #[test]
    fn an_answer_is_forgotten_when_it_is_old_and_many_followed() {
        let mut answered = Answered::default();
        let refusal = Refusal::UnknownJob("a".to_owned());
        answered.remember(request(0), &Err(refusal.clone()), 0);
        let again = answered.answer_to(request(0)).unwrap().unwrap_err();
        assert_eq!(again.to_string(), refusal.to_string());
        for number in 1..=MIN_ANSWERED as u64 {
            answered.remember(request(number), &Ok(Effect::Registered), REMEMBERED_MS);
        }
        assert!(
            answered.answer_to(request(0)).is_some(),
            "it is not old yet"
        );
        answered.remember(request(9999), &Ok(Effect::Registered), REMEMBERED_MS + 1);
        assert!(answered.answer_to(request(0)).is_none());
        assert_eq!(answered.answer_to(request(1)), Some(Ok(Effect::Registered)));
        assert_eq!(answered.iter().count(), answered.places.len());
    }

    #[test]
    fn answers_are_forgotten_when_there_are_too_many() {
        let mut answered = Answered::default();
        for number in 0..=MAX_ANSWERED as u64 {
            answered.remember(request(number), &Ok(Effect::Registered), 0);
        }
        assert_eq!(answered.answer_to(request(0)), None);
        assert_eq!(answered.answer_to(request(1)), Some(Ok(Effect::Registered)));
        assert_eq!(answered.iter().count(), MAX_ANSWERED);
    }
}
