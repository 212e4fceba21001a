//! What a rank gives to those that follow it: a share of its state, and each step behind it. The other
//! side is in [`crate::follower`].
//!
//! A state comes in shares, each from another rank, and all of them must be of one step. So a follower
//! asks its givers with one ticket; each puts the tickets that it has into its note of a step; and behind
//! the step whose notes show all parts of a ticket together, every giver copies its share.
//!
//! Nobody waits for a follower: one that lets too many steps wait is let go, and begins again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::ids::ProcessId;

/// The most ranks that a state is fetched from at once.
pub const MAX_PARTS: u8 = 4;

/// Asks for one share of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// Who asks.
    pub process: ProcessId,
    /// Which of its attempts it is.
    pub attempt: u64,
    /// Which share, from 0.
    pub part: u8,
    /// Of how many; from 1 to [`MAX_PARTS`].
    pub parts: u8,
}

/// What a follower wants of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A share of its state.
    State(Ticket),
    /// The steps from this one on.
    Steps {
        /// How many steps the follower has applied.
        from: u64,
    },
}

/// What goes out to a follower next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<S, T> {
    /// The share that it asked for.
    Share(S),
    /// The step that it is to apply next.
    Step(T),
    /// It has been sent all there is: so many steps are applied here.
    Level {
        /// The number of steps.
        step: u64,
    },
    /// What it asked for is not here, or not any more.
    Refused(Ask),
}

/// The side of a rank. `S` is a share of the state, `T` what moves another rank a step on.
#[derive(Debug)]
pub struct Feed<S, T> {
    /// How many steps are applied; `None` while there is no state.
    at: Option<u64>,
    last: Option<(u64, T)>,
    max_waiting: usize,
    followers: BTreeMap<u64, Follower<S, T>>,
}

#[derive(Debug)]
struct Follower<S, T> {
    ticket: Option<Ticket>,
    /// What goes out before any step.
    first: VecDeque<Item<S, T>>,
    /// Steps that wait.
    steps: VecDeque<(u64, T)>,
    /// The first step that is kept for it; `None` where none is.
    keeps_from: Option<u64>,
    /// Whether steps go out: it has said from which on.
    flows: bool,
    /// Whether it has heard that it is level.
    is_level: bool,
}

impl<S, T> Default for Follower<S, T> {
    fn default() -> Self {
        Self {
            ticket: None,
            first: VecDeque::new(),
            steps: VecDeque::new(),
            keeps_from: None,
            flows: false,
            is_level: false,
        }
    }
}

impl<S, T> Follower<S, T> {
    fn refuse(&mut self, ask: Ask) {
        self.stop();
        self.first.push_back(Item::Refused(ask));
    }

    fn stop(&mut self) {
        self.steps.clear();
        self.keeps_from = None;
        self.flows = false;
        self.is_level = false;
    }
}

impl<S, T: Clone> Feed<S, T> {
    /// A feed that lets at most so many steps wait for a follower.
    #[must_use]
    pub fn new(max_waiting: usize) -> Self {
        Self {
            at: None,
            last: None,
            max_waiting,
            followers: BTreeMap::new(),
        }
    }

    /// Somebody follows, over a connection of this number.
    pub fn connected(&mut self, connection: u64) {
        self.followers.insert(connection, Follower::default());
    }

    /// A connection is no more.
    pub fn gone(&mut self, connection: u64) {
        self.followers.remove(&connection);
    }

    /// Whether somebody follows over this connection.
    #[must_use]
    pub fn has(&self, connection: u64) -> bool {
        self.followers.contains_key(&connection)
    }

    /// A follower wants something. What it wanted before, it wants no more.
    pub fn asked(&mut self, connection: u64, ask: Ask) {
        let Some(follower) = self.followers.get_mut(&connection) else {
            return;
        };
        let from = match ask {
            Ask::State(ticket) => {
                follower.stop();
                follower.ticket = Some(ticket);
                return;
            }
            Ask::Steps { from } => from,
        };
        follower.ticket = None;
        follower.steps.retain(|(step, _)| *step >= from);
        let Some(at) = self.at else {
            return follower.refuse(ask);
        };
        if follower.steps.is_empty()
            && let Some(last) = self.last.clone().filter(|(step, _)| *step == from)
        {
            follower.steps.push_back(last);
        }
        let next = follower.steps.front().map_or(at, |(step, _)| *step);
        if next > from {
            return follower.refuse(ask);
        }
        follower.keeps_from = Some(from);
        follower.flows = true;
        follower.is_level = false;
    }

    /// The tickets that are held here, for the note of the next step.
    #[must_use]
    pub fn tickets(&self) -> Vec<Ticket> {
        let followers = self.followers.values();
        followers.filter_map(|follower| follower.ticket).collect()
    }

    /// Which followers are to be given their shares behind the step whose notes hold these tickets.
    pub fn agreed(&mut self, notes: &[Ticket]) -> Vec<(u64, Ticket)> {
        let held: BTreeSet<&Ticket> = notes.iter().collect();
        let is_held = |ticket: &Ticket| {
            (0..ticket.parts).all(|part| held.contains(&Ticket { part, ..*ticket }))
        };
        let followers = self.followers.iter_mut();
        let agreed = followers.filter_map(|(connection, follower)| {
            let ticket = follower.ticket.take_if(|ticket| is_held(ticket))?;
            Some((*connection, ticket))
        });
        agreed.collect()
    }

    /// Gives a follower its share of the state as it is now. Of those who give one together, the first
    /// keeps the steps from there on.
    pub fn give(&mut self, connection: u64, ticket: Ticket, share: S) {
        if let Some(follower) = self.followers.get_mut(&connection) {
            follower.stop();
            follower.first.push_back(Item::Share(share));
            follower.keeps_from = self.at.filter(|_| ticket.part == 0);
        }
    }

    /// Another world begins. Shares that are not copied yet will not be: not all who hold the tickets
    /// have applied the same steps.
    pub fn entered(&mut self) {
        for follower in self.followers.values_mut() {
            if let Some(ticket) = follower.ticket.take() {
                follower.refuse(Ask::State(ticket));
            }
        }
    }

    /// The state is another one, after so many steps.
    pub fn restarted(&mut self, step: u64) {
        self.at = Some(step);
        self.last = None;
        for follower in self.followers.values_mut() {
            if let Some(from) = follower.keeps_from {
                follower.refuse(Ask::Steps { from });
            }
        }
    }

    /// A step is applied here, or is about to be. Those who have let too many wait follow no more: their
    /// connections are to be closed.
    pub fn applied(&mut self, step: u64, what: &T) -> Vec<u64> {
        self.at = Some(step + 1);
        self.last = Some((step, what.clone()));
        let mut slow = Vec::new();
        for (connection, follower) in &mut self.followers {
            if follower.keeps_from.is_none_or(|from| from > step) {
                continue;
            }
            follower.is_level = false;
            follower.steps.push_back((step, what.clone()));
            if follower.steps.len() > self.max_waiting {
                slow.push(*connection);
            }
        }
        for connection in &slow {
            self.followers.remove(connection);
        }
        slow
    }

    /// What goes out next over this connection, if anything waits.
    pub fn next(&mut self, connection: u64) -> Option<Item<S, T>> {
        let follower = self.followers.get_mut(&connection)?;
        if let Some(first) = follower.first.pop_front() {
            return Some(first);
        }
        if !follower.flows {
            return None;
        }
        if let Some((_, step)) = follower.steps.pop_front() {
            return Some(Item::Step(step));
        }
        let is_news = !std::mem::replace(&mut follower.is_level, true);
        let step = self.at.filter(|_| is_news)?;
        Some(Item::Level { step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fed = Item<&'static str, u64>;

    fn ticket(process: u64, part: u8) -> Ticket {
        Ticket {
            process: ProcessId(process),
            attempt: 1,
            part,
            parts: 2,
        }
    }

    fn feed_at(step: u64) -> Feed<&'static str, u64> {
        let mut feed = Feed::new(3);
        feed.restarted(step);
        feed.connected(1);
        feed
    }

    fn all(feed: &mut Feed<&'static str, u64>) -> Vec<Fed> {
        std::iter::from_fn(|| feed.next(1)).collect()
    }

    #[test]
    fn a_share_is_copied_behind_the_step_whose_notes_hold_all_parts_of_its_ticket() {
        let mut feed = feed_at(5);
        let mine = ticket(9, 0);
        feed.asked(1, Ask::State(mine));
        assert_eq!(feed.tickets(), [mine]);
        assert_eq!(feed.agreed(&[mine, ticket(8, 1)]), []);
        let older = Ticket {
            attempt: 0,
            ..ticket(9, 1)
        };
        assert_eq!(feed.agreed(&[mine, older]), []);
        assert_eq!(feed.agreed(&[ticket(9, 1), mine]), [(1, mine)]);
        assert_eq!(feed.tickets(), []);
        feed.applied(5, &5);
        feed.give(1, mine, "half");
        // Steps behind it are kept, and go out once the share has arrived.
        feed.applied(6, &6);
        assert_eq!(all(&mut feed), [Item::Share("half")]);
        feed.asked(1, Ask::Steps { from: 6 });
        assert_eq!(all(&mut feed), [Item::Step(6), Item::Level { step: 7 }]);
        feed.applied(7, &7);
        assert_eq!(all(&mut feed), [Item::Step(7), Item::Level { step: 8 }]);
    }

    #[test]
    fn steps_are_given_to_who_is_at_most_one_behind() {
        for (from, expected) in [
            (9, vec![Item::Level { step: 8 }]),
            (8, vec![Item::Level { step: 8 }]),
            (7, vec![Item::Step(7), Item::Level { step: 8 }]),
            (6, vec![Item::Refused(Ask::Steps { from: 6 })]),
        ] {
            let mut feed = feed_at(7);
            feed.applied(7, &7);
            feed.asked(1, Ask::Steps { from });
            assert_eq!(all(&mut feed), expected, "from {from}");
        }
        // Whoever is ahead is not sent what it has.
        let mut feed = feed_at(8);
        feed.asked(1, Ask::Steps { from: 9 });
        feed.applied(8, &8);
        feed.applied(9, &9);
        assert_eq!(all(&mut feed), [Item::Step(9), Item::Level { step: 10 }]);
        // And nobody without a state has steps.
        let mut empty = Feed::<&str, u64>::new(3);
        empty.connected(1);
        empty.asked(1, Ask::Steps { from: 0 });
        assert_eq!(empty.next(1), Some(Item::Refused(Ask::Steps { from: 0 })));
    }

    #[test]
    fn who_is_too_slow_is_let_go_and_nobody_waits() {
        let mut feed = feed_at(0);
        feed.asked(1, Ask::Steps { from: 0 });
        for step in 0..3 {
            assert_eq!(feed.applied(step, &step), []);
        }
        assert_eq!(feed.applied(3, &3), [1]);
        assert!(!feed.has(1));
        assert_eq!(feed.next(1), None);
    }

    #[test]
    fn another_world_or_another_state_ends_what_was_promised() {
        let mut feed = feed_at(3);
        feed.asked(1, Ask::State(ticket(9, 1)));
        feed.entered();
        assert_eq!(feed.tickets(), []);
        let refused = Item::Refused(Ask::State(ticket(9, 1)));
        assert_eq!(all(&mut feed), [refused]);
        feed.asked(1, Ask::Steps { from: 3 });
        feed.restarted(5);
        assert_eq!(all(&mut feed), [Item::Refused(Ask::Steps { from: 3 })]);
    }
}
