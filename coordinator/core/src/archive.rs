//! The jobs that are over, each as the bytes that a snapshot has of it. They are most of the jobs of a
//! cluster, hardly anybody asks for them, and as bytes they take a third of the memory. One comes back
//! when an entry of the log names it, and is decoded for who wants to see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::ids::JobName;
use muster_cluster::state::Job;
use muster_proto::convert::{self, BadMessage};
use muster_proto::v1;

use crate::coordinator::Account;

/// Jobs that are over. A copy shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Archive {
    jobs: BTreeMap<JobName, Ended>,
}

/// One of them.
#[derive(Clone, Debug)]
struct Ended {
    /// A `JobState`.
    state: Arc<[u8]>,
    /// How long its file of events is.
    event_bytes: u64,
}

/// A job, and what its events amount to.
pub(crate) type Known = (Arc<Job>, Arc<Account>);

impl Archive {
    pub(crate) fn put(&mut self, name: JobName, job: &Job, account: &Account) {
        let state = state_of(&name, job, account);
        let ended = Ended {
            state: convert::job_bytes(&state).into(),
            event_bytes: account.num_bytes,
        };
        self.jobs.insert(name, ended);
    }

    /// A job as it was put here; `None` where it is not here.
    ///
    /// # Errors
    /// When its bytes are those of another version.
    pub(crate) fn get(&self, name: &JobName) -> Result<Option<Known>, BadMessage> {
        let known = self.jobs.get(name).map(Ended::decode);
        known.transpose()
    }

    /// Takes a job out.
    ///
    /// # Errors
    /// When its bytes are those of another version; then it stays.
    pub(crate) fn take(&mut self, name: &JobName) -> Result<Option<Known>, BadMessage> {
        let known = self.get(name)?;
        self.jobs.remove(name);
        Ok(known)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &JobName> {
        self.jobs.keys()
    }

    /// How many bytes of events each job has.
    pub(crate) fn event_bytes(&self) -> impl Iterator<Item = (&JobName, u64)> {
        self.jobs.iter().map(|(name, job)| (name, job.event_bytes))
    }

    /// The jobs for a snapshot, by name.
    pub(crate) fn to_wire(&self) -> impl Iterator<Item = v1::EndedJob> {
        self.jobs.iter().map(|(name, job)| v1::EndedJob {
            name: name.to_string(),
            state: job.state.to_vec(),
            event_bytes: job.event_bytes,
        })
    }

    /// Takes a job from a snapshot. What is in it is looked at when it is asked for: the file that it is
    /// from has a hash.
    pub(crate) fn take_in(&mut self, job: v1::EndedJob) -> Result<(), BadMessage> {
        let ended = Ended {
            state: job.state.into(),
            event_bytes: job.event_bytes,
        };
        self.jobs.insert(convert::job_name(&job.name)?, ended);
        Ok(())
    }
}

impl Ended {
    fn decode(&self) -> Result<Known, BadMessage> {
        let mut state = convert::job_state_of(&self.state)?;
        let account = state.account.take().unwrap_or_default();
        let (_, job) = convert::job_of(state)?;
        Ok((Arc::new(job), Arc::new(Account::of_wire(account))))
    }
}

/// A job for a snapshot.
pub(crate) fn state_of(name: &JobName, job: &Job, account: &Account) -> v1::JobState {
    v1::JobState {
        account: Some(account.to_wire()),
        ..convert::job_state(name, job)
    }
}
