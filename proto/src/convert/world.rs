//! Worlds and what is in them: ranks, shards, and how a step is finished.

use muster_cluster::Device;
use muster_cluster::ids::{Generation, History, Incarnation, ProcessId, RankId, Step};
use muster_cluster::shares::{Holders, Move};
use muster_cluster::state::{Finish, Heal, LedgerEntry, Part, Placement, Poison, World};
use muster_cluster::tree::Run;
use prost::Message as _;

use super::{BadMessage, worker_name};
use crate::v1;

/// Sets of shards for the wire.
#[must_use]
pub fn shards(runs: &[Run]) -> Vec<v1::Shards> {
    let shards = |run: &Run| v1::Shards {
        start: run.start,
        end: run.end,
    };
    runs.iter().map(shards).collect()
}

/// Sets of shards from the wire.
///
/// # Errors
/// Where one is empty.
pub fn runs(shards: Vec<v1::Shards>) -> Result<Vec<Run>, BadMessage> {
    let run = |v1::Shards { start, end }| {
        if start < end {
            Ok(Run { start, end })
        } else {
            Err(BadMessage::Senseless {
                what: "shards",
                why: format!("{start}..{end} is empty"),
            })
        }
    };
    shards.into_iter().map(run).collect()
}

impl From<&Poison> for v1::Poison {
    fn from(poison: &Poison) -> Self {
        Self {
            step: poison.step.0,
            shards: shards(&poison.shards),
            num_worlds: poison.num_worlds,
        }
    }
}

impl TryFrom<v1::Poison> for Poison {
    type Error = BadMessage;

    fn try_from(message: v1::Poison) -> Result<Self, BadMessage> {
        Ok(Self {
            step: Step(message.step),
            shards: runs(message.shards)?,
            num_worlds: message.num_worlds,
        })
    }
}

impl From<&Finish> for v1::FinishStep {
    fn from(finish: &Finish) -> Self {
        let part = |part: &Part| {
            let (heal_from, heal_state) = match &part.heal {
                None => (Vec::new(), false),
                Some(Heal::Reduced { from }) => (vec![from.0], false),
                Some(Heal::State { from }) => (from.iter().map(|rank| rank.0).collect(), true),
            };
            v1::FinishPart {
                shards: shards(&part.shards),
                heal_from,
                heal_state,
            }
        };
        Self {
            evaluated: finish.evaluated,
            parts: finish.parts.iter().map(part).collect(),
            moves: finish.moves.iter().map(Into::into).collect(),
            gather: finish.gather,
        }
    }
}

impl TryFrom<v1::FinishStep> for Finish {
    type Error = BadMessage;

    fn try_from(message: v1::FinishStep) -> Result<Self, BadMessage> {
        let part = |part: v1::FinishPart| {
            let from: Vec<RankId> = part.heal_from.into_iter().map(RankId).collect();
            let heal = match (from.as_slice(), part.heal_state) {
                ([], false) => None,
                ([from], false) => Some(Heal::Reduced { from: *from }),
                ([_, ..], true) => Some(Heal::State { from }),
                _ => {
                    return Err(BadMessage::Senseless {
                        what: "part of a step",
                        why: format!("it heals from {from:?}"),
                    });
                }
            };
            Ok(Part {
                shards: runs(part.shards)?,
                heal,
            })
        };
        Ok(Self {
            evaluated: message.evaluated,
            parts: message
                .parts
                .into_iter()
                .map(part)
                .collect::<Result<_, _>>()?,
            moves: message.moves.into_iter().map(Into::into).collect(),
            gather: message.gather,
        })
    }
}

impl From<&Move> for v1::ShareMove {
    fn from(one: &Move) -> Self {
        Self {
            share: one.share,
            from: one.from.0,
            to: one.to.0,
        }
    }
}

impl From<v1::ShareMove> for Move {
    fn from(message: v1::ShareMove) -> Self {
        Self {
            share: message.share,
            from: RankId(message.from),
            to: RankId(message.to),
        }
    }
}

impl From<&Holders> for v1::ShareHolders {
    fn from(holders: &Holders) -> Self {
        Self {
            owner: holders.owner.0,
            shadow: holders.shadow.map(|rank| rank.0),
        }
    }
}

impl From<v1::ShareHolders> for Holders {
    fn from(message: v1::ShareHolders) -> Self {
        Self {
            owner: RankId(message.owner),
            shadow: message.shadow.map(RankId),
        }
    }
}

impl v1::Assignment {
    /// What a process is that takes this assignment.
    #[must_use]
    pub fn key(&self) -> v1::RankKey {
        v1::RankKey {
            job: self.job.clone(),
            history: self.history,
            generation: self.generation,
            rank: self.rank,
            process: self.process,
        }
    }

    /// How long it is on the wire.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.encoded_len()
    }

    /// How many ranks the world has.
    #[must_use]
    pub fn num_ranks(&self) -> u32 {
        let sizes = self.layout.iter().map(|ranks| ranks.num_ranks);
        sizes.fold(0, u32::saturating_add)
    }
}

impl v1::Observation {
    /// How long it is on the wire.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.encoded_len()
    }
}

/// The ranks of a world, by rank, for the wire.
#[must_use]
pub fn placements(ranks: &[Placement]) -> Vec<v1::Placement> {
    let placement = |(rank, placement): (u32, &Placement)| v1::Placement {
        rank,
        worker: placement.worker.to_string(),
        incarnation: placement.incarnation.0,
        shards_start: placement.shards.start,
        shards_end: placement.shards.end,
        process: placement.process.0,
        cuda: placement.device.cuda(),
    };
    (0..).zip(ranks).map(placement).collect()
}

/// The ranks of a world, by rank, from the wire.
fn ranks(ranks: Vec<v1::Placement>) -> Result<Vec<Placement>, BadMessage> {
    let placement = |(rank, placement): (u32, v1::Placement)| {
        if placement.rank != rank || placement.shards_start >= placement.shards_end {
            return Err(BadMessage::Senseless {
                what: "world",
                why: format!("rank {rank} is out of place"),
            });
        }
        Ok(Placement {
            process: ProcessId(placement.process),
            worker: worker_name(&placement.worker)?,
            incarnation: Incarnation(placement.incarnation),
            device: Device::of(placement.cuda),
            shards: Run {
                start: placement.shards_start,
                end: placement.shards_end,
            },
        })
    };
    (0..).zip(ranks).map(placement).collect()
}

impl TryFrom<v1::WorldRecord> for LedgerEntry {
    type Error = BadMessage;

    /// The entry as it is recorded; its hash is the one that was told when it was made.
    fn try_from(message: v1::WorldRecord) -> Result<Self, BadMessage> {
        Ok(Self {
            history: History(message.history),
            generation: Generation(message.generation),
            first_step: Step(message.first_step),
            ranks: ranks(message.ranks)?,
            class: message.class.map(Into::into),
            reason: message.reason,
            stamp_ms: message.stamp_ms,
            hash: message.told_hash,
        })
    }
}

impl From<&World> for v1::World {
    fn from(world: &World) -> Self {
        Self {
            history: world.history.0,
            generation: world.generation.0,
            first_step: world.first_step.0,
            ranks: placements(&world.ranks),
            finish: world.finish.as_ref().map(Into::into),
            shares: world.shares.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::World> for World {
    type Error = BadMessage;

    fn try_from(message: v1::World) -> Result<Self, BadMessage> {
        Ok(Self {
            history: History(message.history),
            generation: Generation(message.generation),
            first_step: Step(message.first_step),
            ranks: ranks(message.ranks)?,
            finish: message.finish.map(TryInto::try_into).transpose()?,
            shares: message.shares.into_iter().map(Into::into).collect(),
        })
    }
}
