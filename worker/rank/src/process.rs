//! A rank as a process: what its worker tells it through the environment and two sockets, and how
//! it ends.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::Context as _;
use muster_cluster::command::NumericsClass;
use muster_cluster::error_chain;
use muster_proto::{frame, v1};
use muster_trainer::checkpoint;
use v1::rank_report::Report;

use crate::class::class;
use crate::life::live;
use crate::prepare::Build;
use crate::records;
use crate::shared::{Shared, Trouble};
use crate::tree::end_with_the_tree;

/// How a rank ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The coordinator dismissed it: it has done its part.
    Dismissed,
    /// Its worker is gone, or ended it.
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
    let address: SocketAddr = variable("MUSTER_RANK_ADDR")?
        .parse()
        .context("MUSTER_RANK_ADDR is no address")?;
    let host: IpAddr = variable("MUSTER_RANK_HOST")?
        .parse()
        .context("MUSTER_RANK_HOST is no IP address")?;
    let token = variable("MUSTER_RANK_TOKEN")?.into_bytes();
    let number = |name: &str| {
        let text = variable(name)?;
        text.parse::<u64>()
            .with_context(|| format!("{name} is {text:?}, a number was expected"))
    };
    let key = v1::RankKey {
        job: variable("MUSTER_RANK_JOB")?,
        history: number("MUSTER_RANK_HISTORY")?,
        generation: number("MUSTER_RANK_GENERATION")?,
        rank: u32::try_from(number("MUSTER_RANK_RANK")?)
            .context("MUSTER_RANK_RANK is too large")?,
        process: number("MUSTER_RANK_PROCESS")?,
    };
    let connect = |bulk| -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let hello = v1::RankHello {
            token: token.clone(),
            key: Some(key.clone()),
            bulk,
        };
        let hello = v1::FromRank {
            message: Some(v1::from_rank::Message::Hello(hello)),
        };
        stream.write_all(&frame::encode(&hello))?;
        Ok(stream)
    };
    let control =
        connect(false).with_context(|| format!("cannot reach the worker at {address}"))?;
    let bulk = connect(true).with_context(|| format!("cannot reach the worker at {address}"))?;
    let class = class(canary).context("cannot read this program's own file")?;
    run_rank(control, bulk, build, &class, host, || std::process::exit(1))
}

/// Runs one rank on its two connections to the worker, after the hellos. `on_lost` is called when
/// the worker is gone: a process then ends at once, whatever it computes.
///
/// # Errors
/// When the worker says something that is not our protocol before the work began.
pub fn run_rank(
    mut control: TcpStream,
    bulk: TcpStream,
    build: Build,
    class: &NumericsClass,
    host: IpAddr,
    on_lost: fn(),
) -> anyhow::Result<Ending> {
    let first: Option<v1::ToRank> = frame::read(&mut control).context("reading the assignment")?;
    let assignment = match first.and_then(|first| first.message) {
        Some(v1::to_rank::Message::Assignment(assignment)) => assignment,
        Some(other) => anyhow::bail!("the worker began with {other:?}; an assignment was expected"),
        None => return Ok(Ending::Ended),
    };
    let (sender, records) = channel();
    let shared = Arc::new(Shared::new(
        assignment.clone(),
        control.try_clone()?,
        sender,
        on_lost,
    ));
    let folder = assignment.checkpoint_folder.clone();
    let of_reader = Arc::clone(&shared);
    thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || {
            read_orders(&of_reader, control, &folder);
            of_reader.fail(Trouble::Lost);
        })?;
    records::start(&shared, records, bulk)?;
    let report = match live(&shared, &assignment, build, class, host) {
        Ok(()) => return Ok(Ending::Dismissed),
        Err(Trouble::Lost | Trouble::Closed) => return Ok(Ending::Ended),
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
            Report::Failed(v1::Failed { message })
        }
    };
    shared.report(report);
    shared.wait_for_the_end();
    Ok(Ending::Ended)
}

/// Takes what the worker says until the connection ends.
fn read_orders(shared: &Shared, mut control: TcpStream, folder: &str) {
    loop {
        let message = match frame::read::<v1::ToRank>(&mut control) {
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
        let Some(committed) = shared.take(message) else {
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
