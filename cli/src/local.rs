//! A cluster on this machine: coordinators and workers as children of one command, which ends them
//! all with itself. What is done with the cluster is the command's.

mod lock;
mod patience;
mod tree;

use std::net::TcpListener;
use std::path::PathBuf;

use crate::failure::Failure;

pub(crate) use lock::lock;
pub(crate) use tree::{Role, Tree, start_coordinator};

/// The members of a local group, and how they are started.
pub(crate) struct Coordinators {
    /// Where the group keeps its folders and logs.
    pub(crate) folder: PathBuf,
    pub(crate) number: u32,
    /// The first port; the members have those from there on. 0: free ones.
    pub(crate) port: u16,
    /// More arguments of each.
    pub(crate) arguments: Vec<String>,
}

/// A coordinator that serves.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: u32,
    pub(crate) address: String,
    pub(crate) pid: u32,
}

/// Where a member is going to listen.
struct Port {
    number: u16,
    /// Keeps it from everybody else until the member is started.
    _kept: Option<TcpListener>,
}

impl Port {
    fn given(number: u16) -> Self {
        Self {
            number,
            _kept: None,
        }
    }

    fn free() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        Ok(Self {
            number: listener.local_addr()?.port(),
            _kept: Some(listener),
        })
    }
}

impl Coordinators {
    /// Starts all members, and returns when all serve.
    pub(crate) async fn start(&self, tree: &mut Tree) -> Result<Vec<Member>, Failure> {
        self.check_folders()?;
        let ports = self.ports()?;
        let peers: Vec<String> = (1..)
            .zip(&ports)
            .map(|(id, port): (u32, _)| format!("{id}=127.0.0.1:{}", port.number))
            .collect();
        let peers = peers.join(",");
        let mut members = Vec::new();
        for (id, port) in (1..).zip(ports) {
            let mut role = self.role(id, port.number, &peers);
            drop(port);
            let (address, pid) = start_coordinator(&mut role, tree).await?;
            members.push(Member { id, address, pid });
        }
        Ok(members)
    }

    /// A group of another size has another log, which does not know what this one knew.
    fn check_folders(&self) -> Result<(), Failure> {
        let has = |id: u32| self.folder.join(folder_of(id, 2)).exists();
        let is_alone = self.folder.join(folder_of(1, 1)).exists();
        let before = if is_alone {
            1
        } else {
            (1..).take_while(|id| has(*id)).count()
        };
        if !is_alone && !matches!(before, 0 | 3 | 5) {
            return Err(Failure::bad_input(format!(
                "{}: a start of several coordinators was interrupted here, and only {before} of them have a folder; \
                 remove coordinator-1 to coordinator-{before} there, or give another folder with --state",
                self.folder.display()
            )));
        }
        if before == 0 || before == self.number as usize {
            return Ok(());
        }
        Err(Failure::bad_input(format!(
            "{}: {before} coordinators kept their state here before, and now there are to be {}; say --coordinators {before}, or another folder with --state",
            self.folder.display(),
            self.number
        )))
    }

    fn ports(&self) -> Result<Vec<Port>, Failure> {
        if self.port != 0 {
            let ports = (0..self.number).map(|offset| {
                let port = u32::from(self.port) + offset;
                let port = u16::try_from(port);
                let port = port.map_err(|_| {
                    Failure::bad_input(format!(
                        "--port {}: there are not enough ports above it",
                        self.port
                    ))
                });
                port.map(Port::given)
            });
            return ports.collect();
        }
        if self.number == 1 {
            return Ok(vec![Port::given(0)]);
        }
        let ports = (0..self.number).map(|_| Port::free());
        Ok(ports.collect::<std::io::Result<_>>()?)
    }

    fn role(&self, id: u32, port: u16, peers: &str) -> Role {
        let name = folder_of(id, self.number);
        let listen = format!("127.0.0.1:{port}");
        let data = self.folder.join(&name).display().to_string();
        let mut arguments: Vec<String> = [
            "coordinator",
            "--tree",
            "--ready-json",
            "--listen",
            &listen,
            "--data",
            &data,
        ]
        .map(str::to_owned)
        .to_vec();
        if self.number > 1 {
            let id = id.to_string();
            arguments.extend(["--id", &id, "--peers", peers, "--moved"].map(str::to_owned));
        }
        arguments.extend(self.arguments.iter().cloned());
        Role {
            log: self.folder.join(format!("{name}.log")),
            name,
            arguments,
        }
    }
}

/// The folder of a member.
fn folder_of(id: u32, number: u32) -> String {
    if number == 1 {
        "coordinator".to_owned()
    } else {
        format!("coordinator-{id}")
    }
}

/// Where all members are.
pub(crate) fn addresses(members: &[Member]) -> Vec<String> {
    members
        .iter()
        .map(|member| member.address.clone())
        .collect()
}

/// A worker of a local cluster.
pub(crate) fn worker(
    folder: &std::path::Path,
    number: u32,
    join: &[String],
    more: &[&str],
) -> Role {
    let name = format!("worker-{number}");
    let state = folder.join(&name).display().to_string();
    let join = join.join(",");
    let arguments = [
        "worker", "--tree", "--join", &join, "--name", &name, "--state", &state,
    ];
    Role {
        arguments: arguments
            .iter()
            .chain(more)
            .map(|&text| text.to_owned())
            .collect(),
        log: folder.join(format!("{name}.log")),
        name,
    }
}
