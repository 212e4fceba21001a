//! What a group of three coordinators does on this machine, beside etcd 3.4 where that is installed:
//! the same load over the same kind of connection, in rounds that alternate.
//!
//! A group's processes are in `group`, how both systems are spoken to in `system`, and what one
//! measurement does in the file of its name.

use std::future::Future;
use std::path::Path;

mod commits;
mod failover;
mod group;
mod jobs;
mod load;
mod steps;
mod submit;
mod system;
mod workers;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Commits,
    Failover,
    Steps,
    Submit,
    Workers,
    Jobs,
}

const TABLES: [(&str, Table); 6] = [
    ("commits", Table::Commits),
    ("failover", Table::Failover),
    ("steps", Table::Steps),
    ("submit", Table::Submit),
    ("workers", Table::Workers),
    ("jobs", Table::Jobs),
];

/// Which tables are wanted, and how often or how much is measured for them.
#[derive(Debug)]
pub(crate) struct What {
    tables: Vec<Table>,
    number: Option<usize>,
}

impl What {
    /// All tables where none is named; `None` where nobody can know what is meant.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let (tables, number) = match arguments {
            [] => (TABLES.map(|(_, table)| table).to_vec(), None),
            [name, rest @ ..] => {
                let (_, table) = TABLES.iter().find(|(known, _)| known == name)?;
                let number = match rest {
                    [] => None,
                    [number] => Some(number.parse().ok().filter(|number| *number > 0)?),
                    _ => return None,
                };
                (vec![*table], number)
            }
        };
        Some(Self { tables, number })
    }
}

/// Measures, one table after another, and prints each when it is there.
pub(crate) fn run(muster: &Path, what: &What) -> Result<String, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut tables = Vec::new();
        for table in &what.tables {
            let number = |default: usize| what.number.unwrap_or(default);
            let table = async {
                match table {
                    Table::Commits => commits::run(muster, number(5)).await,
                    Table::Failover => failover::run(muster, number(20)).await,
                    Table::Steps => steps::run(muster, number(5)).await,
                    Table::Submit => submit::run(muster, number(3)).await,
                    Table::Workers => workers::run(muster, number(10_000)).await,
                    Table::Jobs => jobs::run(muster, number(100_000)).await,
                }
            };
            tables.push(or_interrupted(Box::pin(table)).await?);
        }
        Ok(tables.join("\n\n"))
    })
}

/// A measurement that is interrupted is dropped, and its processes end with it.
async fn or_interrupted(
    measured: impl Future<Output = Result<String, String>>,
) -> Result<String, String> {
    tokio::select! {
        measured = measured => measured,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
    }
}
