//! The way to the worker's daemon: where its door is at present, and how a rank comes in. Daemons
//! come and go while ranks live.

use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use muster_proto::{frame, v1};

/// How often a rank looks for another daemon.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A connection that lasts so long was not one that a daemon ends at once, since it does not know the
/// rank.
const ADMITTED: Duration = Duration::from_secs(1);

/// What a rank needs to come in.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    /// The file in which each daemon tells where it listens.
    pub(crate) file: PathBuf,
    pub(crate) token: Vec<u8>,
    /// How long a rank goes on without a daemon.
    pub(crate) orphan: Duration,
}

/// Which of a rank's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// For orders and reports. `is_new`: of a rank that has had no assignment yet.
    Control { is_new: bool },
    /// For records and their acknowledgements.
    Bulk,
}

impl Door {
    /// The visits of one side, to one daemon after another.
    pub(crate) fn visits(&self, side: Side) -> Visits<'_> {
        Visits {
            door: self,
            side,
            since: Instant::now(),
            last: None,
        }
    }

    fn knock(&self, key: &v1::RankKey, side: Side) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address()?)?;
        stream.set_nodelay(true)?;
        let hello = v1::RankHello {
            token: self.token.clone(),
            key: Some(key.clone()),
            bulk: side == Side::Bulk,
            is_new: side == Side::Control { is_new: true },
        };
        let hello = v1::FromRank {
            message: Some(v1::from_rank::Message::Hello(hello)),
        };
        stream.write_all(&frame::encode(&hello))?;
        Ok(stream)
    }

    /// Where the daemon listens. Behind the port of one that has ended may be a stranger.
    fn address(&self) -> io::Result<SocketAddr> {
        let text = fs::read_to_string(&self.file)?;
        let Some((address, pid, started)) = parse(&text) else {
            return Err(io::Error::other(format!("it says {text:?}")));
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        if start_time(&stat) != Some(started) {
            return Err(io::Error::other(format!("process {pid} is another one")));
        }
        Ok(address)
    }
}

/// One side of a rank, which comes in again whenever its connection has ended.
#[derive(Debug)]
pub(crate) struct Visits<'a> {
    door: &'a Door,
    side: Side,
    /// Since when no daemon has let it in.
    since: Instant,
    /// When the last connection began.
    last: Option<Instant>,
}

impl Visits<'_> {
    /// Comes in as what the rank is at present; `None` when no daemon let it in for too long.
    pub(crate) fn next(&mut self, key: &v1::RankKey) -> Option<TcpStream> {
        let (door, now) = (self.door, Instant::now());
        match self.last {
            // It was shown out again: a daemon that does not know it would be asked for ever.
            Some(last) if now.duration_since(last) < ADMITTED => self.pause(),
            _ => self.since = now,
        }
        loop {
            let knocked = door.knock(key, self.side);
            if self.since.elapsed() >= door.orphan {
                let (error, orphan_ms) = (knocked.err(), door.orphan.as_millis());
                tracing::error!(?error, "no worker for {orphan_ms} ms; this rank ends");
                return None;
            }
            match knocked {
                Ok(stream) => {
                    self.last = Some(Instant::now());
                    return Some(stream);
                }
                Err(_) => self.pause(),
            }
        }
    }

    fn pause(&self) {
        thread::sleep(LOOK_EVERY.min(self.door.orphan));
    }
}

/// `<address> <process id> <its start time>`.
fn parse(text: &str) -> Option<(SocketAddr, u32, &str)> {
    let mut words = text.split_ascii_whitespace();
    let address = words.next()?.parse().ok()?;
    let pid = words.next()?.parse().ok()?;
    Some((address, pid, words.next()?))
}

/// The 22nd field of `/proc/PID/stat`; the second, in parentheses, may contain anything: proc(5).
fn start_time(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::path::Path;

    fn door(file: &Path, orphan: Duration) -> Door {
        Door {
            file: file.to_owned(),
            token: b"secret".to_vec(),
            orphan,
        }
    }

    fn own_start() -> String {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        start_time(&stat).unwrap().to_owned()
    }

    #[test]
    fn a_rank_finds_the_door_that_a_later_daemon_opens() {
        let file = std::env::temp_dir().join(format!("muster-door-{}", std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // At first it tells of a daemon that has ended, and whose port a stranger has.
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = format!(
            "{} {} 1\n",
            stranger.local_addr().unwrap(),
            std::process::id()
        );
        fs::write(&file, text).unwrap();
        let of_rank = door(&file, Duration::from_secs(60));
        let key = v1::RankKey {
            job: "job".to_owned(),
            ..Default::default()
        };
        let own = key.clone();
        let rank = thread::spawn(move || of_rank.visits(Side::Control { is_new: true }).next(&own));
        thread::sleep(2 * LOOK_EVERY);
        let text = format!("{address} {} {}\n", std::process::id(), own_start());
        fs::write(&file, text).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        assert!(rank.join().unwrap().is_some());
        let hello = v1::RankHello {
            token: b"secret".to_vec(),
            key: Some(key),
            bulk: false,
            is_new: true,
        };
        assert_eq!(
            frame::read::<v1::FromRank>(&mut stream)
                .unwrap()
                .unwrap()
                .message,
            Some(v1::from_rank::Message::Hello(hello))
        );
        stranger.set_nonblocking(true).unwrap();
        assert!(stranger.accept().is_err(), "a stranger is shown no token");
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_rank_without_a_daemon_gives_up_in_time() {
        let nowhere = door(Path::new("/nonexistent/door"), Duration::from_millis(1));
        let mut visits = nowhere.visits(Side::Bulk);
        assert!(visits.next(&v1::RankKey::default()).is_none());
    }

    #[test]
    fn a_rank_that_every_daemon_shows_out_gives_up_in_time() {
        let file = std::env::temp_dir().join(format!("muster-out-{}", std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let text = format!("{address} {} {}\n", std::process::id(), own_start());
        fs::write(&file, text).unwrap();
        let of_rank = door(&file, Duration::from_millis(300));
        let rank = thread::spawn(move || {
            let mut visits = of_rank.visits(Side::Bulk);
            let key = v1::RankKey::default();
            std::iter::from_fn(|| visits.next(&key)).count()
        });
        let mut num_knocks = 0;
        listener.set_nonblocking(true).unwrap();
        while !rank.is_finished() {
            match listener.accept() {
                Ok(_) => num_knocks += 1,
                Err(_) => thread::yield_now(),
            }
        }
        let num_visits = rank.join().unwrap();
        // What came while this thread did not look.
        while listener.accept().is_ok() {
            num_knocks += 1;
        }
        assert!(
            num_visits <= 4 && num_knocks >= num_visits,
            "{num_visits}, {num_knocks}"
        );
        fs::remove_file(&file).unwrap();
    }
}
