//! What ranks do together where each keeps shares of the optimizer's state: shares move when a world
//! begins, and behind each update the owners of shares tell all others the parameters.
//!
//! ```text
//! move     = the values of the share, a vector from the giver to the taker; all moves in one order
//! gather   = rounds of all-gathers: the parameters of the shares that a rank tells, f32, little-endian
//! digests  = of each share that a rank owns: its number (u32), BLAKE3 (32 bytes)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_cluster::shares::{Holders, Move, NUM_SHARES, optimizer_hash};
use muster_collective::Group;
use muster_proto::v1;
use muster_trainer::checkpoint::Content;
use muster_trainer::shares;
use muster_worker_core::rank::RankMachine;

use crate::halt;
use crate::shared::Trouble;
use crate::work::{Work, closed_by, failed};

/// What a rank tells of parameters at a time.
const ROUND_ELEMENTS: usize = (64 << 20) / size_of::<f32>();

/// How a world shares the optimizer's state.
#[derive(Debug)]
pub(crate) struct Sharing {
    rank: u32,
    size: usize,
    holders: Vec<Holders>,
    moves: Vec<Move>,
    /// Whether some rank lacks parameters when the world begins.
    pub(crate) gather: bool,
}

impl Sharing {
    /// What an assignment says; `None` where every rank keeps everything.
    ///
    /// # Errors
    /// When shares have no holder, or one that is no rank of the world.
    pub(crate) fn of(assignment: &v1::Assignment) -> Result<Option<Self>, Trouble> {
        if assignment.state_shares.is_empty() {
            return Ok(None);
        }
        let shares = assignment.state_shares.iter().copied();
        let finish = assignment.finish.as_ref();
        let moves = finish.into_iter().flat_map(|finish| &finish.moves);
        let sharing = Self {
            rank: assignment.rank,
            size: assignment.num_ranks() as usize,
            holders: shares.map(Into::into).collect(),
            moves: moves.copied().map(Into::into).collect(),
            gather: finish.is_some_and(|finish| finish.gather),
        };
        let is_rank = |rank: u32| (rank as usize) < sharing.size;
        let is_whole = sharing.holders.len() == NUM_SHARES as usize
            && sharing.holders.iter().all(|one| {
                is_rank(one.owner.0) && one.shadow.is_none_or(|shadow| is_rank(shadow.0))
            })
            && sharing
                .moves
                .iter()
                .all(|one| one.share < NUM_SHARES && is_rank(one.from.0) && is_rank(one.to.0));
        if is_whole {
            Ok(Some(sharing))
        } else {
            Err(Trouble::Failed(
                "the assignment gives shares of the optimizer's state to ranks that there are not"
                    .to_owned(),
            ))
        }
    }

    /// The shares that this rank is to keep.
    pub(crate) fn kept(&self) -> BTreeSet<u32> {
        let holders = (0u32..).zip(&self.holders);
        let mine = |one: &Holders| {
            let ranks = std::iter::once(one.owner).chain(one.shadow);
            ranks.into_iter().any(|rank| rank.0 == self.rank)
        };
        holders
            .filter(|(_, one)| mine(one))
            .map(|(share, _)| share)
            .collect()
    }

    /// The shares that this rank tells the others of, and writes into checkpoints.
    fn owned(&self) -> BTreeSet<u32> {
        let holders = (0u32..).zip(&self.holders);
        let owned = holders.filter(|(_, one)| one.owner.0 == self.rank);
        owned.map(|(share, _)| share).collect()
    }

    /// By rank: the shares whose parameters it tells. When a world begins, those that are copied
    /// are told by who had them.
    fn tellers(&self, at_begin: bool) -> Vec<Vec<u32>> {
        let mut tellers = vec![Vec::new(); self.size];
        for (share, holders) in (0u32..).zip(&self.holders) {
            let mut moves = self.moves.iter().filter(|_| at_begin);
            let is_new = |one: &&Move| one.share == share && one.to == holders.owner;
            let teller = moves.find(is_new).map_or(holders.owner, |one| one.from);
            tellers[teller.0 as usize].push(share);
        }
        tellers
    }

    /// The files of a checkpoint that this rank writes.
    pub(crate) fn files(&self) -> Vec<Content> {
        let params = (self.rank == 0).then_some(Content::Params);
        let shares = self.owned().into_iter().map(Content::Share);
        params.into_iter().chain(shares).collect()
    }
}

impl Work<'_> {
    /// Brings this rank's shares and parameters to where the world begins.
    pub(crate) fn begin_sharing(
        &mut self,
        group: &mut Group,
        sharing: &Sharing,
        timeout: Duration,
    ) -> Result<(), Trouble> {
        // What moves is kept by all who have it until whoever takes it has it, too.
        let mut kept = sharing.kept();
        kept.extend(sharing.moves.iter().map(|one| one.share));
        self.give_up_all_but(&kept)?;
        for one in &sharing.moves {
            self.shared.check()?;
            if [one.from.0, one.to.0].contains(&sharing.rank) {
                halt::at(self.shared, "move");
            }
            if one.from.0 == sharing.rank {
                let state = self.trainer.optimizer_state();
                let values = state.shares.get(&one.share).ok_or_else(|| {
                    let (share, to) = (one.share, one.to);
                    Trouble::Failed(format!(
                        "rank {to} is to be given share {share} of the optimizer's state, which \
                         is not here"
                    ))
                })?;
                group
                    .send_vector(one.to, values, timeout)
                    .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
            } else if one.to.0 == sharing.rank {
                let num_values = self.trainer.num_share_values(one.share);
                let values = group
                    .recv_vector(one.from, num_values, timeout)
                    .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
                self.trainer
                    .take_share(one.share, values)
                    .map_err(|error| failed(&error))?;
                self.tell_kept();
            }
        }
        if sharing.gather {
            self.gather(group, sharing, true, timeout)?;
        }
        Ok(())
    }

    /// Behind the first step that all ranks have made: what moved is where it is to be.
    pub(crate) fn give_up_what_moved(&mut self, sharing: &Sharing) -> Result<(), Trouble> {
        if sharing.moves.is_empty() {
            return Ok(());
        }
        self.give_up_all_but(&sharing.kept())
    }

    fn give_up_all_but(&mut self, kept: &BTreeSet<u32>) -> Result<(), Trouble> {
        let here = self.trainer.optimizer_state().shares.keys().copied();
        let (left, given_up): (Vec<u32>, Vec<u32>) = here.partition(|one| kept.contains(one));
        if given_up.is_empty() {
            return Ok(());
        }
        // Said first: a world that is closed before has been told that they are here, and may be
        // healed by them.
        let left = shares::runs(left);
        if !self.shared.tell(|machine| machine.gives_up_all_but(left)) {
            self.shared.check()?;
            return Err(Trouble::Closed);
        }
        self.trainer.keep(kept);
        Ok(())
    }

    fn tell_kept(&self) {
        let shares = self.trainer.optimizer_state().shares.keys().copied();
        let kept = shares::runs(shares);
        self.shared.tell(|machine| machine.keeps(kept));
    }

    /// Takes over the parameters that other ranks have updated. It ends on no rank before every
    /// rank has made its own updates.
    pub(crate) fn gather(
        &mut self,
        group: &mut Group,
        sharing: &Sharing,
        at_begin: bool,
        timeout: Duration,
    ) -> Result<(), Trouble> {
        halt::at(self.shared, "gather");
        let rounds = self.rounds(&sharing.tellers(at_begin));
        for round in rounds {
            let mut bytes: Vec<u8> = Vec::new();
            for share in round.get(sharing.rank as usize).into_iter().flatten() {
                bytes.extend_from_slice(bytemuck::cast_slice(self.trainer.parameters(*share)));
            }
            let all = group
                .all_gather(bytes, timeout)
                .map_err(|error| closed_by(self.shared, group.world().generation.0, &error))?;
            for (rank, (shares, bytes)) in round.iter().zip(&all).enumerate() {
                if rank == sharing.rank as usize {
                    continue;
                }
                let (values, rest) = bytes.as_chunks();
                let mut values = values.iter();
                for share in shares {
                    let parameters = self.trainer.parameters_mut(*share);
                    if values.len() < parameters.len() {
                        return Err(wrong_length(rank));
                    }
                    for (parameter, value) in parameters.iter_mut().zip(values.by_ref()) {
                        *parameter = f32::from_le_bytes(*value);
                    }
                }
                if values.next().is_some() || !rest.is_empty() {
                    return Err(wrong_length(rank));
                }
            }
        }
        self.shared.tell(RankMachine::gathered);
        Ok(())
    }

    /// Divides what each rank tells into rounds, at least one.
    fn rounds(&self, tellers: &[Vec<u32>]) -> Vec<Vec<Vec<u32>>> {
        let mut rounds = vec![vec![Vec::new(); tellers.len()]];
        for (rank, shares) in tellers.iter().enumerate() {
            let (mut round, mut num_elements) = (0, 0);
            for share in shares {
                let len = self.trainer.parameters(*share).len();
                if num_elements > 0 && num_elements + len > ROUND_ELEMENTS {
                    (round, num_elements) = (round + 1, 0);
                }
                num_elements += len;
                if round == rounds.len() {
                    rounds.push(vec![Vec::new(); tellers.len()]);
                }
                rounds[round][rank].push(*share);
            }
        }
        rounds
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
            let digest = self.trainer.optimizer_state().digest(share);
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
