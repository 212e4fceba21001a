//! Machines with a network between them that can be cut: network namespaces of this test's own,
//! joined by a bridge. It needs `unshare`, `nsenter` and `ip`, and a system that lets a user make
//! namespaces; where there are none, a test says so and is skipped.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// Set in the process of a test that has namespaces of its own.
const INSIDE: &str = "MUSTER_TESTS_INSIDE";

/// A network that this process is the only host of, with the machines that were joined to it.
#[derive(Debug)]
pub struct Network {
    machines: Vec<Child>,
}

/// A machine of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine(usize);

impl Network {
    /// The address of the host, on which the test itself runs.
    pub const HOST: &str = "10.77.0.254";

    /// Runs a test of this name in namespaces of its own: `None` to the one who asks first, for
    /// whom the test is over then, and the network to the process that runs it once more in there.
    ///
    /// # Panics
    /// When the test fails in there.
    #[must_use]
    pub fn enter(test: &str) -> Option<Self> {
        if std::env::var_os(INSIDE).is_some() {
            return Some(Self::inside());
        }
        if let Err(why) = can_enter() {
            // With a captured output it is seen by who asks for it, as for every test.
            eprintln!("{test}: SKIPPED, there are no network namespaces here: {why}");
            return None;
        }
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = unshare();
        command
            .arg(program)
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1");
        let output = command.output().expect("unshare was there just now");
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (told(&output.stdout), told(&output.stderr));
        println!("{stdout}");
        eprintln!("{stderr}");
        assert!(output.status.success(), "{test} failed in its namespaces");
        assert!(stdout.contains("1 passed"), "{test} is no test");
        None
    }

    fn inside() -> Self {
        ip("link set lo up");
        ip("link add br0 type bridge");
        ip(&format!("addr add {}/24 dev br0", Self::HOST));
        // Else it is that of one of its ports, and another one when that is cut: machines would send to
        // the old one for as long as they remember it.
        ip("link set br0 address 02:00:00:00:00:fe");
        ip("link set br0 up");
        Self {
            machines: Vec::new(),
        }
    }

    /// Joins one more machine.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn join(&mut self) -> Machine {
        // It lives as long as its input is open: no longer than this process.
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("read its output");
        assert_eq!(line, "ready\n");
        let pid = child.id();
        self.machines.push(child);
        let machine = Machine(self.machines.len());
        let (port, address) = (machine.port(), machine.ip());
        ip(&format!(
            "link add {port} type veth peer name eth0 netns {pid}"
        ));
        ip(&format!("link set {port} master br0"));
        ip(&format!("link set {port} up"));
        self.ip_at(machine, "link set lo up");
        self.ip_at(machine, &format!("addr add {address}/24 dev eth0"));
        self.ip_at(machine, "link set eth0 up");
        machine
    }

    /// The same command, to be run on a machine.
    #[must_use]
    pub fn on(&self, machine: Machine, command: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there
            .arg(self.namespace(machine))
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            there.current_dir(folder);
        }
        there
    }

    /// From now on what a machine sends or is sent is lost on the way.
    pub fn cut(&self, machine: Machine) {
        ip(&format!("link set {} nomaster", machine.port()));
    }

    /// Ends a [`cut`](Self::cut).
    pub fn mend(&self, machine: Machine) {
        ip(&format!("link set {} master br0", machine.port()));
    }

    /// From now on what two machines send each other is lost on the way.
    pub fn cut_between(&self, one: Machine, other: Machine) {
        self.ip_at(one, &format!("route add blackhole {}/32", other.ip()));
        self.ip_at(other, &format!("route add blackhole {}/32", one.ip()));
    }

    /// Ends a [`cut_between`](Self::cut_between).
    pub fn mend_between(&self, one: Machine, other: Machine) {
        self.ip_at(one, &format!("route del blackhole {}/32", other.ip()));
        self.ip_at(other, &format!("route del blackhole {}/32", one.ip()));
    }

    fn namespace(&self, machine: Machine) -> String {
        format!("--net=/proc/{}/ns/net", self.machines[machine.0 - 1].id())
    }

    fn ip_at(&self, machine: Machine, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(self.namespace(machine)).arg("ip");
        succeed(command.args(arguments.split(' ')));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            // It may have ended already.
            let _ = machine.kill();
            let _ = machine.wait();
        }
    }
}

impl Machine {
    /// Its address.
    #[must_use]
    pub fn ip(self) -> String {
        format!("10.77.0.{}", self.0)
    }

    /// Its end of the bridge.
    fn port(self) -> String {
        format!("port{}", self.0)
    }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]);
    command
}

/// Whether there can be what a network is made of.
fn can_enter() -> Result<(), String> {
    let script = "ip link add br0 type bridge && ip link add probe0 type veth peer name probe1 && \
                  unshare --net nsenter --net=/proc/self/ns/net true";
    let output = unshare()
        .args(["sh", "-c", script])
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(stderr.lines().collect::<Vec<_>>().join("; "))
}

fn ip(arguments: &str) {
    succeed(Command::new("ip").args(arguments.split(' ')));
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().expect("it was found before");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
