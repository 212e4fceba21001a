//! The audit of a step, as `train.audit_every` asks for it: one shard is computed a second time, by
//! another rank, and the step is applied only when both results have the same hash. Who computes what,
//! and who is wrong, is decided in `worker-core`.
//!
//! A wrong rank is named in the report that closes the world: its contributions are thrown away with
//! it, and the next world computes them again.

use muster_cluster::ids::ShardId;
use muster_collective::Group;
use muster_trainer::{DeviceError, ShardNote, Vector};
use muster_worker_core::audit::{self, Audit, Hash, Verdict, Vote};
use muster_worker_core::rank::Cause;

use crate::shared::Trouble;
use crate::work::{Work, World, failed};

/// BLAKE3 of the hash of a contribution, which is made where it lies, and of its note.
pub(crate) fn hash(values: &Vector, note: &ShardNote) -> Result<Hash, DeviceError> {
    let mut bytes = values.hash()?.as_bytes().to_vec();
    note.encode(&mut bytes);
    Ok(blake3::hash(&bytes).into())
}

impl Work<'_> {
    /// The shard of the step that comes next which is audited, if one is.
    pub(crate) fn audited_shard(&self) -> Option<u32> {
        let train = &self.spec.train;
        let step = self.trainer.step().0;
        audit::shard(train.seed, step, train.audit_every, train.logical_shards)
    }

    /// The audit of the step that comes next.
    pub(crate) fn audit(&self, world: &World) -> Option<Audit> {
        let step = self.trainer.step().0;
        let shard = self.audited_shard()?;
        Audit::new(self.spec.train.seed, step, shard, world.brings(step))
    }

    /// Computes a shard's contribution, and gives its hash alone.
    pub(crate) fn hash_again(&mut self, shard: u32) -> Result<Hash, Trouble> {
        self.shared.check()?;
        let (values, note) = self.compute(ShardId(shard))?;
        let hash = hash(&values, &note).map_err(|error| failed(&error))?;
        if let Vector::Host(values) = values {
            self.pool.give(values);
        }
        Ok(hash)
    }

    /// Compares what the two ranks of an audit told all others. Where they differ, nothing of the step
    /// is applied in this world.
    pub(crate) fn settle(
        &mut self,
        audit: Audit,
        hashes: [Option<Hash>; 2],
        group: &mut Group,
        world: &World,
    ) -> Result<(), Trouble> {
        let [Some(brought), Some(audited)] = hashes else {
            return Err(Trouble::Failed(format!(
                "a rank says nothing of the audit of shard {}",
                audit.shard
            )));
        };
        if brought == audited {
            return Ok(());
        }
        let (step, shard) = (self.trainer.step(), audit.shard);
        tracing::warn!(%step, shard, "two ranks computed different contributions");
        let mine = self.hash_again(shard)?;
        let again = group
            .all_gather(mine.to_vec(), world.timeout)
            .map_err(|error| self.closed_by(world.plan.generation, &error))?;
        let vote = |rank, hash| Vote { rank, hash };
        let mut votes = vec![vote(audit.brings, brought), vote(audit.audits, audited)];
        for (rank, bytes) in (0u32..).zip(&again) {
            let hash = Hash::try_from(&bytes[..]).map_err(|error| failed(&error))?;
            votes.push(vote(rank, hash));
        }
        let suspects = match audit::judge(&votes) {
            Verdict::Wrong(ranks) => ranks,
            Verdict::Undecided => {
                let mut ranks = vec![audit.brings, audit.audits];
                ranks.dedup();
                let names: Vec<String> = ranks.iter().map(|rank| format!("rank {rank}")).collect();
                let message = format!(
                    "step {step} was not applied: {} computed shard {shard} with different results, \
                     and too few others agree on one; a device gives wrong numbers, or those of the \
                     model depend on more than its samples",
                    names.join(" and "),
                );
                return Err(Trouble::Undecided { message, ranks });
            }
        };
        let names: Vec<String> = suspects.iter().map(u32::to_string).collect();
        let reason = format!(
            "what rank {} computes of shard {shard} of step {step} is not what the others do",
            names.join(" and rank ")
        );
        let cause = Cause {
            reason,
            suspects,
            ..Cause::default()
        };
        self.shared.close(world.plan.generation, cause);
        Err(Trouble::Closed)
    }
}
