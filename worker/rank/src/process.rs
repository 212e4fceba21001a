//! A rank as a process: what its worker tells it through the environment and two sockets, and how
//! it ends. It goes on while its worker has no daemon, for a while.

use std::io::{self, Write as _};
use std::net::{IpAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use muster_cluster::command::NumericsClass;
use muster_cluster::error_chain;
use muster_proto::{frame, v1};
use muster_trainer::checkpoint;
use v1::rank_report::Report;

use crate::class::class;
use crate::door::{Door, Side};
use crate::halt;
use crate::life::live;
use crate::prepare::Build;
use crate::records;
use crate::shared::{Shared, Trouble};
use crate::tree::end_with_the_tree;

/// How a rank ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The coordinator dismissed it: it has done its part.
    Dismissed,
    /// Its worker is gone for too long, or ended it.
    Ended,
}

/// Runs the process of a rank, as its worker starts it: `build` makes the learner of a job,
/// `canary` is the digest of a fixed computation.
#[must_use]
pub fn rank_main(build: Build, canary: fn() -> String) -> ExitCode {
    match start(build, canary) {
        Ok(Ending::Dismissed) => ExitCode::SUCCESS,
        Ok(Ending::Ended) => ExitCode::FAILURE,
        Err(error) => {
            // The log may be gone with the worker.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(build: Build, canary: fn() -> String) -> anyhow::Result<Ending> {
    let variable = |name: &str| {
        std::env::var(name)
            .with_context(|| format!("{name} is not set; ranks are started by `muster worker`"))
    };
    if std::env::var_os("MUSTER_TREE").is_some() {
        end_with_the_tree()?;
    }
    let host: IpAddr = variable("MUSTER_RANK_HOST")?
        .parse()
        .context("MUSTER_RANK_HOST is no IP address")?;
    let number = |name: &str| {
        let text = variable(name)?;
        text.parse::<u64>()
            .with_context(|| format!("{name} is {text:?}, a number was expected"))
    };
    let door = Door {
        file: variable("MUSTER_RANK_DOOR")?.into(),
        token: variable("MUSTER_RANK_TOKEN")?.into_bytes(),
        orphan: Duration::from_millis(number("MUSTER_RANK_ORPHAN_MS")?),
    };
    let key = v1::RankKey {
        job: variable("MUSTER_RANK_JOB")?,
        history: number("MUSTER_RANK_HISTORY")?,
        generation: number("MUSTER_RANK_GENERATION")?,
        rank: u32::try_from(number("MUSTER_RANK_RANK")?)
            .context("MUSTER_RANK_RANK is too large")?,
        process: number("MUSTER_RANK_PROCESS")?,
    };
    let class = class(canary).context("cannot read this program's own file")?;
    run_rank(&door, &key, build, &class, host)
}

/// The first assignment, and the connection that it came on; `None` when there is no worker.
///
/// # Errors
/// When the worker says something else first.
fn first_assignment(
    door: &Door,
    key: &v1::RankKey,
) -> anyhow::Result<Option<(v1::Assignment, TcpStream)>> {
    let mut visits = door.visits(Side::Control { is_new: true });
    while let Some(mut control) = visits.next(key) {
        match frame::read::<v1::ToRank>(&mut control) {
            Ok(Some(v1::ToRank {
                message: Some(v1::to_rank::Message::Assignment(assignment)),
            })) => return Ok(Some((assignment, control))),
            Ok(Some(other)) => {
                anyhow::bail!("the worker began with {other:?}; an assignment was expected")
            }
            // The daemon ended, and another one may come.
            Ok(None) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Runs one rank, through all daemons of its worker.
fn run_rank(
    door: &Door,
    key: &v1::RankKey,
    build: Build,
    class: &NumericsClass,
    host: IpAddr,
) -> anyhow::Result<Ending> {
    halt::without_state(key, "begin");
    let Some((assignment, control)) = first_assignment(door, key)? else {
        return Ok(Ending::Ended);
    };
    let Some(bulk) = door.visits(Side::Bulk).next(key) else {
        return Ok(Ending::Ended);
    };
    let (sender, records) = channel();
    let on_lost = || std::process::exit(1);
    let shared = Arc::new(Shared::new(
        assignment.clone(),
        control.try_clone()?,
        sender,
        on_lost,
    ));
    let folder = assignment.checkpoint_folder.clone();
    let (of_reader, through) = (Arc::clone(&shared), door.clone());
    thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || obey(&of_reader, control, &through, &folder))?;
    records::start(&shared, records, bulk, door.clone())?;
    let report = match live(&shared, &assignment, build, class, host) {
        Ok(()) => return Ok(Ending::Dismissed),
        Err(Trouble::Lost | Trouble::Closed) => return Ok(Ending::Ended),
        // Its worker reports how it ended, and the last line of its log with it.
        Err(Trouble::Fault(message)) => anyhow::bail!(message),
        Err(Trouble::Damaged {
            history,
            step,
            reason,
        }) => {
            tracing::warn!(step, reason, "the checkpoint is damaged");
            Report::CheckpointDamaged(v1::CheckpointDamaged {
                history,
                step,
                reason,
            })
        }
        Err(Trouble::Failed(message)) => {
            tracing::error!(message, "the job cannot go on");
            let ranks = Vec::new();
            Report::Failed(v1::Failed { message, ranks })
        }
        Err(Trouble::Undecided { message, ranks }) => {
            tracing::error!(message, "the job cannot go on");
            Report::Failed(v1::Failed { message, ranks })
        }
    };
    shared.report(report);
    shared.wait_for_the_end();
    Ok(Ending::Ended)
}

/// Takes orders from one daemon of the worker after another.
fn obey(shared: &Shared, mut control: TcpStream, door: &Door, folder: &str) {
    let mut visits = door.visits(Side::Control { is_new: false });
    loop {
        read_orders(shared, &mut control, folder);
        let next = visits.next(&shared.key());
        let next = next.and_then(|stream| Some((stream.try_clone().ok()?, stream)));
        let Some((writing, reading)) = next else {
            return shared.fail(Trouble::Lost);
        };
        tracing::info!("talks to another daemon of its worker");
        shared.talk_to(writing);
        control = reading;
    }
}

/// Takes what a daemon says until the connection ends.
fn read_orders(shared: &Shared, control: &mut TcpStream, folder: &str) {
    loop {
        let message = match frame::read::<v1::ToRank>(control) {
            Ok(Some(v1::ToRank {
                message: Some(message),
            })) => message,
            Ok(Some(_)) => continue,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the worker's connection for orders failed");
                return;
            }
        };
        let told = halt::name(&message);
        let committed = shared.take(message);
        if let Some(told) = told {
            halt::at(shared, told);
        }
        let Some(committed) = committed else {
            continue;
        };
        if shared.key().rank == 0
            && let Err(error) = checkpoint::remove_retired(folder.as_ref(), &committed.keep)
        {
            tracing::warn!(
                error = error_chain(&error),
                "old checkpoint files could not be removed"
            );
        }
    }
}
