//! Carries out what a rank does about its shares of the optimizer's state: it moves them when a world
//! begins, and tells and takes parameters behind each update. What is to be done when is decided in
//! [`muster_worker_core::sharing`].
//!
//! ```text
//! move     = the share's values, then its parameters, each a vector from the giver to the taker; all
//!            moves in one order
//! gather   = rounds of all-gathers: the parameters of the shares that a rank tells, f32, little-endian
//! digests  = of each share that a rank owns: its number (u32), BLAKE3 (32 bytes)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_cluster::ids::RankId;
use muster_cluster::shares::{NUM_SHARES, optimizer_hash};
use muster_collective::Group;
use muster_trainer::checkpoint::Content;
use muster_worker_core::sharing::{Deed, Sharing, rounds};

use crate::halt;
use crate::shared::Trouble;
use crate::work::{Work, closed_by, failed};

/// What a rank tells of parameters at a time.
const ROUND_ELEMENTS: usize = (64 << 20) / size_of::<f32>();

/// The files of a checkpoint that a rank writes.
pub(crate) fn files(sharing: &Sharing) -> Vec<Content> {
    let params = sharing.is_first().then_some(Content::Params);
    let shares = sharing.owned().into_iter().map(Content::Share);
    params.into_iter().chain(shares).collect()
}

impl Work<'_> {
    /// The shares of the optimizer's state that are here.
    pub(crate) fn shares_here(&self) -> BTreeSet<u32> {
        self.trainer.kept().into_iter().collect()
    }

    /// Does all this, in order, or ends at the first that cannot be done.
    pub(crate) fn share(
        &mut self,
        group: &mut Group,
        deeds: Vec<Deed>,
        timeout: Duration,
    ) -> Result<(), Trouble> {
        for deed in deeds {
            match deed {
                Deed::Say(word) => {
                    if !self.shared.tell(|machine| word.tell(machine)) {
                        self.shared.check()?;
                        return Err(Trouble::Closed);
                    }
                }
                Deed::Free { all_but } => self.trainer.keep(&all_but),
                Deed::Give { share, to } => self.give(group, share, to, timeout)?,
                Deed::Take { share, from } => self.take(group, share, from, timeout)?,
                Deed::Gather { tellers } => self.gather(group, &tellers, timeout)?,
            }
        }
        Ok(())
    }

    fn give(
        &self,
        group: &mut Group,
        share: u32,
        to: RankId,
        timeout: Duration,
    ) -> Result<(), Trouble> {
        self.shared.check()?;
        halt::at(self.shared, "move");
        let values = self.trainer.share(share).map_err(|error| failed(&error))?;
        let values = values.ok_or_else(|| {
            Trouble::Failed(format!(
                "rank {to} is to be given share {share} of the optimizer's state, which is not here"
            ))
        })?;
        let parameters = self.trainer.parameters(share);
        let parameters = parameters.map_err(|error| failed(&error))?;
        for vector in [&values[..], &parameters] {
            group
                .send_vector(to, vector, timeout)
                .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        group: &mut Group,
        share: u32,
        from: RankId,
        timeout: Duration,
    ) -> Result<(), Trouble> {
        self.shared.check()?;
        halt::at(self.shared, "move");
        let num_values = self.trainer.num_share_values(share);
        let num_parameters = self.trainer.num_parameters(share);
        let mut receive = |len| {
            group
                .recv_vector(from, len, timeout)
                .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))
        };
        let (values, parameters) = (receive(num_values)?, receive(num_parameters)?);
        self.trainer
            .take_share(share, values)
            .map_err(|error| failed(&error))?;
        self.trainer.set_parameters(share, &parameters);
        Ok(())
    }

    /// Takes over the parameters that other ranks have updated. It ends on no rank before every
    /// rank has made its own updates.
    fn gather(
        &mut self,
        group: &mut Group,
        tellers: &[Vec<u32>],
        timeout: Duration,
    ) -> Result<(), Trouble> {
        halt::at(self.shared, "gather");
        let own = group.world().rank.0 as usize;
        let num_elements = |share| self.trainer.num_parameters(share);
        for round in rounds(tellers, ROUND_ELEMENTS, num_elements) {
            let mut bytes: Vec<u8> = Vec::new();
            for share in round.get(own).into_iter().flatten() {
                let parameters = self.trainer.parameters(*share);
                let parameters = parameters.map_err(|error| failed(&error))?;
                bytes.extend_from_slice(bytemuck::cast_slice(&parameters));
            }
            let all = group
                .all_gather(bytes, timeout)
                .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
            for (rank, (shares, bytes)) in round.iter().zip(&all).enumerate() {
                if rank == own {
                    continue;
                }
                let (values, rest) = bytes.as_chunks();
                let mut values = values.iter();
                for share in shares {
                    let num_parameters = self.trainer.num_parameters(*share);
                    if values.len() < num_parameters {
                        return Err(wrong_length(rank));
                    }
                    let values = values.by_ref().take(num_parameters);
                    let parameters: Vec<f32> = values.map(|x| f32::from_le_bytes(*x)).collect();
                    self.trainer.set_parameters(*share, &parameters);
                }
                if values.next().is_some() || !rest.is_empty() {
                    return Err(wrong_length(rank));
                }
            }
        }
        Ok(())
    }

    /// The hash of the optimizer's state, of which each rank knows the shares that it owns.
    pub(crate) fn shared_hash(
        &self,
        group: &mut Group,
        sharing: &Sharing,
        timeout: Duration,
    ) -> Result<String, Trouble> {
        let mut mine = Vec::new();
        for share in sharing.owned() {
            let digest = self.trainer.share_digest(share);
            let digest = digest.map_err(|error| failed(&error))?;
            let digest = digest.ok_or_else(|| not_told(share))?;
            mine.extend(share.to_le_bytes());
            mine.extend(digest);
        }
        let all = group
            .all_gather(mine, timeout)
            .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
        let mut told = BTreeMap::new();
        for bytes in &all {
            let (digests, _) = bytes.as_chunks::<36>();
            for one in digests {
                let (share, digest) = one.split_first_chunk().expect("36 bytes are more than 4");
                told.insert(u32::from_le_bytes(*share), digest);
            }
        }
        let digest = |share: u32| {
            let digest = told
                .get(&share)
                .and_then(|digest| (*digest).try_into().ok());
            digest.ok_or_else(|| not_told(share))
        };
        let digests = (0..NUM_SHARES).map(digest);
        Ok(optimizer_hash(&digests.collect::<Result<Vec<_>, _>>()?))
    }
}

fn wrong_length(rank: usize) -> Trouble {
    Trouble::Failed(format!(
        "rank {rank} told parameters of another length than its shares have"
    ))
}

fn not_told(share: u32) -> Trouble {
    Trouble::Failed(format!(
        "no rank has the digest of share {share} of the optimizer's state"
    ))
}
