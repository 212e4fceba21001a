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
    /// Comes in as what the rank is at present; `None` when no daemon was there for too long.
    pub(crate) fn enter(&self, key: &v1::RankKey, side: Side) -> Option<TcpStream> {
        let since = Instant::now();
        loop {
            match self.knock(key, side) {
                Ok(stream) => return Some(stream),
                Err(error) if since.elapsed() >= self.orphan => {
                    tracing::error!(%error, "no worker for {} ms; this rank ends", self.orphan.as_millis());
                    return None;
                }
                Err(_) => thread::sleep(LOOK_EVERY.min(self.orphan)),
            }
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
        let rank = thread::spawn(move || of_rank.enter(&own, Side::Control { is_new: true }));
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
        assert!(nowhere.enter(&v1::RankKey::default(), Side::Bulk).is_none());
    }
}
