//! The daemon of a machine, as `muster-worker` makes it of the agent: processes, their connections,
//! the stream to the coordinator, and the records that are not acknowledged.

use std::collections::BTreeMap;

use muster_proto::v1;
use muster_worker_core::agent::records::Unacked;
use muster_worker_core::agent::{Agent, Input, Output, Place, place};
use v1::from_worker::Message as ToCoordinator;

use super::env::{Env, Spawn};
use super::net::{
    Event, MS, Message, Node, SECOND, StreamId, TO_COORDINATOR, Time, Timer, seat_place,
};
use super::rank::short;

const HEARTBEAT: Time = 250 * MS;

/// The first and the longest wait between two attempts to reach the coordinator.
const MIN_WAIT: Time = 100 * MS;
const MAX_WAIT: Time = 2_000 * MS;

/// How long it takes to notice that nobody answers, at the beginning and later. The product takes
/// longer; nothing rests on it but time.
const CONNECT_TIMEOUT: Time = SECOND;
const PING: Time = 3 * SECOND;

#[derive(Debug)]
struct Process {
    pid: Option<u32>,
    /// It is to be killed as soon as it runs.
    is_killed: bool,
    control: Option<StreamId>,
    bulk: Option<StreamId>,
    key: v1::RankKey,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) host: u32,
    pub(crate) life: u64,
    agent: Agent,
    processes: BTreeMap<Place, Process>,
    unacked: Unacked,
    /// The streams to the coordinator, for control and for bulk.
    link: Option<(StreamId, StreamId)>,
    wait: Time,
    /// The seats of coordinators, the one to try next, and where the leader is, if one said so.
    seats: Vec<u32>,
    next_seat: usize,
    leader: Option<u32>,
}

pub(crate) fn name(host: u32) -> String {
    format!("w{host}")
}

impl Worker {
    pub(crate) fn new(
        host: u32,
        life: u64,
        num_devices: u32,
        seats: Vec<u32>,
        env: &mut Env,
    ) -> Self {
        let worker = v1::RegisterWorker {
            worker: name(host),
            incarnation: life,
            num_devices,
            class: Some(v1::NumericsClass::default()),
            host: "127.0.0.1".to_owned(),
            gpus: Vec::new(),
        };
        let node = Node::Worker { host, life };
        env.net.timer_between(node, (MS, 50 * MS), Timer::Connect);
        env.net.timer(node, HEARTBEAT, Timer::Heartbeat);
        Self {
            host,
            life,
            agent: Agent::new(worker),
            processes: BTreeMap::new(),
            unacked: Unacked::default(),
            link: None,
            wait: MIN_WAIT,
            seats,
            next_seat: 0,
            leader: None,
        }
    }

    pub(crate) fn node(&self) -> Node {
        Node::Worker {
            host: self.host,
            life: self.life,
        }
    }

    pub(crate) fn streams(&self) -> Option<(StreamId, StreamId)> {
        self.link
    }

    pub(crate) fn handle(&mut self, event: Event, env: &mut Env) {
        match event {
            Event::Letter(_) => {}
            Event::Timer(timer) => self.timer(timer, env),
            Event::Message { stream, message } => self.message(stream, message, env),
            Event::End { stream } => self.ended(stream, env),
        }
    }

    fn timer(&mut self, timer: Timer, env: &mut Env) {
        match timer {
            Timer::Heartbeat => {
                env.net.timer(self.node(), HEARTBEAT, Timer::Heartbeat);
                self.say(ToCoordinator::Heartbeat(v1::Heartbeat {}), env);
                if let Some((control, _)) = self.link
                    && env.net.silence(control, self.node()) > PING
                {
                    self.ended(control, env);
                }
            }
            Timer::Connect => self.dial(env),
            Timer::Spawned(key) => self.spawned(key, env),
            Timer::Ended { key, reason } => {
                self.processes.remove(&place(&key));
                let log_tail = String::new();
                let key = Some(key);
                let exited = v1::RankExited {
                    key,
                    reason,
                    log_tail,
                };
                self.input(Input::Exited(exited), env);
            }
            _ => {}
        }
    }

    /// Goes where the leader is said to be, or tries the next one.
    fn dial(&mut self, env: &mut Env) {
        let next = self.seats.get(self.next_seat % self.seats.len()).copied();
        self.next_seat += 1;
        let Some(seat) = self.leader.take().or(next) else {
            return;
        };
        let hosts = [self.host, seat_place(seat)];
        let is_silent = env.is_dark(seat) || env.net.is_cut(hosts);
        match env.at(seat) {
            Some(coordinator) if !is_silent => self.connect(coordinator, hosts, env),
            _ => {
                let silence = if is_silent { CONNECT_TIMEOUT } else { 0 };
                env.net
                    .timer(self.node(), self.wait + silence, Timer::Connect);
                self.wait = (self.wait * 2).min(MAX_WAIT);
            }
        }
    }

    fn connect(&mut self, coordinator: Node, hosts: [u32; 2], env: &mut Env) {
        let ends = [self.node(), coordinator];
        let control = env.net.open(ends, Some(hosts), TO_COORDINATOR);
        let bulk = env.net.open(ends, Some(hosts), TO_COORDINATOR);
        self.link = Some((control, bulk));
        env.net.send(self.node(), bulk, Message::Subscribe);
        for record in self.unacked.iter() {
            env.net
                .send(self.node(), bulk, Message::Record(record.clone()));
        }
        self.input(Input::Connected, env);
    }

    fn ended(&mut self, stream: StreamId, env: &mut Env) {
        env.net.close(self.node(), stream);
        let Some((control, bulk)) = self.link else {
            return;
        };
        if stream == control || stream == bulk {
            self.link = None;
            env.net.tear(control);
            env.net.tear(bulk);
            self.input(Input::Disconnected, env);
            env.net.timer(self.node(), self.wait, Timer::Connect);
            self.wait = (self.wait * 2).min(MAX_WAIT);
        }
    }

    fn message(&mut self, stream: StreamId, message: Message, env: &mut Env) {
        match message {
            Message::NotLeading(leader) => self.leader = leader,
            // What comes over a stream that was replaced is for nobody.
            Message::ToWorker(message) if self.link.is_some_and(|link| link.0 == stream) => {
                self.wait = MIN_WAIT;
                self.input(Input::FromCoordinator(message), env);
            }
            Message::Ack(ack) => self.acknowledged(&ack, env),
            Message::Knock { key, is_bulk } => {
                let Some(process) = self.processes.get_mut(&place(&key)) else {
                    env.net.close(self.node(), stream);
                    return;
                };
                if is_bulk {
                    process.bulk = Some(stream);
                } else {
                    process.control = Some(stream);
                    self.input(Input::RankConnected(key), env);
                }
            }
            Message::FromRank(report) => self.input(Input::FromRank(report), env),
            Message::Record(record) => {
                if self.unacked.keep(&record)
                    && let Some((_, bulk)) = self.link
                {
                    env.net.send(self.node(), bulk, Message::Record(record));
                }
            }
            _ => {}
        }
    }

    /// Tells every process of the history: each may become the one that sends the records.
    fn acknowledged(&mut self, ack: &v1::RecordAck, env: &mut Env) {
        self.unacked.acknowledged(ack);
        for process in self.processes.values() {
            let is_of_history = process.key.job == ack.job && process.key.history == ack.history;
            if let Some(bulk) = process.bulk.filter(|_| is_of_history) {
                let ack = v1::to_rank::Message::Ack(ack.clone());
                env.net.send(self.node(), bulk, Message::ToRank(ack));
            }
        }
    }

    fn say(&self, message: ToCoordinator, env: &mut Env) {
        if let Some((control, _)) = self.link {
            env.net
                .send(self.node(), control, Message::FromWorker(message));
        }
    }

    fn input(&mut self, input: Input, env: &mut Env) {
        let mut outputs = Vec::new();
        self.agent.handle(input, &mut outputs);
        for output in outputs {
            match output {
                Output::Start(key, _) => {
                    let process = Process {
                        pid: None,
                        is_killed: false,
                        control: None,
                        bulk: None,
                        key: key.clone(),
                    };
                    self.processes.insert(place(&key), process);
                    let timer = Timer::Spawned(key);
                    env.net.timer_between(self.node(), (MS, 30 * MS), timer);
                }
                Output::Kill(key) => {
                    if let Some(process) = self.processes.get_mut(&place(&key)) {
                        process.is_killed = true;
                        self.kill(&place(&key), env);
                    }
                }
                Output::ToRank(key, message) => {
                    let process = self.processes.get_mut(&place(&key));
                    if let Some(process) = process
                        && let Some(control) = process.control
                    {
                        process.key = key;
                        env.net.send(self.node(), control, Message::ToRank(message));
                    }
                }
                Output::ToCoordinator(message) => self.say(message, env),
                Output::Refused(reason) => {
                    let violation = format!("worker w{} was refused: {reason}", self.host);
                    env.oracle.blame(violation);
                }
            }
        }
    }

    fn kill(&self, place: &Place, env: &mut Env) {
        if let Some(pid) = self.processes.get(place).and_then(|process| process.pid) {
            let timer = Timer::Kill(Node::Rank { pid });
            env.net.timer_between(Node::Outside, (1, MS), timer);
        }
    }

    fn spawned(&mut self, key: v1::RankKey, env: &mut Env) {
        let Some(process) = self.processes.get_mut(&place(&key)) else {
            return;
        };
        let pid = env.new_pid();
        process.pid = Some(pid);
        let is_killed = process.is_killed;
        env.log(format_args!(
            "p{pid} is {} on w{}.{}",
            short(&key),
            self.host,
            self.life
        ));
        env.spawns.push(Spawn {
            pid,
            host: self.host,
            life: self.life,
            key: key.clone(),
        });
        if is_killed {
            self.kill(&place(&key), env);
        }
        self.input(Input::Started { key, pid }, env);
    }

    pub(crate) fn view(&self) -> String {
        let running: Vec<String> = self.agent.running().map(short).collect();
        format!("w{}.{} runs {running:?}", self.host, self.life)
    }
}
