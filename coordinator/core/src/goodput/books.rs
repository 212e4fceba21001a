//! The books of a submission as a snapshot has them.

use muster_proto::v1;

use super::{End, Goodput, World};

impl Goodput {
    /// The books for a snapshot.
    pub(crate) fn to_wire(&self) -> v1::Books {
        let times = |times: &std::collections::BTreeMap<u64, super::RankTime>| {
            let times = times.iter();
            times.map(|(step, time)| (*step, (*time).into())).collect()
        };
        v1::Books {
            submitted_s: self.submitted_s,
            worlds: self.worlds.iter().map(World::to_wire).collect(),
            steps: times(&self.steps),
            settled: times(&self.settled),
            void_s: self.void_s,
            ended_s: self.end.map(|end| end.at_s),
            rests: self.end.is_some_and(|end| end.rests),
        }
    }

    /// The books from a snapshot.
    pub(crate) fn of_wire(books: v1::Books) -> Self {
        let times = |times: std::collections::BTreeMap<u64, v1::RankTime>| {
            let times = times.into_iter();
            times.map(|(step, time)| (step, time.into())).collect()
        };
        Self {
            submitted_s: books.submitted_s,
            worlds: books.worlds.into_iter().map(World::of_wire).collect(),
            steps: times(books.steps),
            settled: times(books.settled),
            void_s: books.void_s,
            end: books.ended_s.map(|at_s| End {
                at_s,
                rests: books.rests,
            }),
        }
    }
}

impl World {
    fn to_wire(&self) -> v1::WorldTime {
        v1::WorldTime {
            generation: self.generation,
            history: self.history,
            size: self.size,
            heals: self.heals,
            made_s: self.made_s,
            begun_s: self.begun_s,
            last_s: self.last_s,
            evaluated_s: self.evaluated_s,
            step: self.step,
            meeting_s: self.meeting_s,
            lost_s: self.lost_s,
        }
    }

    fn of_wire(world: v1::WorldTime) -> Self {
        Self {
            generation: world.generation,
            history: world.history,
            size: world.size,
            heals: world.heals,
            made_s: world.made_s,
            begun_s: world.begun_s,
            last_s: world.last_s,
            evaluated_s: world.evaluated_s,
            step: world.step,
            meeting_s: world.meeting_s,
            lost_s: world.lost_s,
        }
    }
}
