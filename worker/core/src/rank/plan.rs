//! What a rank is told of its job and of its place in a world, as finished numbers.

/// What holds for a job whatever its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many steps the job has.
    pub total_steps: u64,
    /// A checkpoint after every so many steps; at least 1.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept. When more than so many wait for the coordinator, none is added.
    pub checkpoint_keep: u32,
    /// An evaluation after every so many steps; always one at the end.
    pub evaluate_every: Option<u64>,
    /// How many files a checkpoint has.
    pub num_files: u32,
    /// Whether ranks keep shares of the optimizer's state, and not all of it.
    pub is_shared: bool,
}

/// A rank's place in one world, as finished numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankPlan {
    /// The number of the world.
    pub generation: u64,
    /// Its number.
    pub rank: u32,
    /// How many ranks the world has; at least 1.
    pub size: u32,
    /// The step that the world begins with.
    pub first_step: u64,
    /// Whether the world goes on where another one was, and the evaluation that follows the steps
    /// so far is done; `None` for a world that starts from a checkpoint or from initial values.
    pub healed: Option<bool>,
    /// The step of the newest committed checkpoint.
    pub committed: u64,
}

impl RankPlan {
    /// The files of a checkpoint that this rank writes.
    pub fn files(&self, num_files: u32) -> impl Iterator<Item = u32> + use<> {
        let (rank, size) = (self.rank, self.size.max(1));
        (0..num_files).filter(move |file| file % size == rank)
    }

    /// The chunks of an evaluation that a rank of this world computes.
    pub fn chunks(&self, rank: u32, num_chunks: u32) -> impl Iterator<Item = u32> + use<> {
        let size = self.size.max(1);
        (0..num_chunks).filter(move |chunk| chunk % size == rank)
    }
}
