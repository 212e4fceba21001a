//! A worker's state folder: which daemon it belongs to, where that one's door is, and in which life
//! the worker is. What processes it has is in [`crate::roster`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_proto::v1;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::alive::Identity;

/// How long the daemon before this one may take to let go of the folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_RETRY_WAIT: Duration = Duration::from_millis(50);

/// The folder, which no other daemon uses meanwhile.
#[derive(Debug)]
pub(crate) struct Home {
    folder: PathBuf,
    /// The kernel frees it when this process ends, however it ends.
    _lock: File,
}

/// One life of a worker: as long as it lasts, none of the worker's processes is lost without proof.
/// Daemons may come and go in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Life {
    pub(crate) incarnation: u64,
    pub(crate) class: v1::NumericsClass,
}

impl Home {
    /// Makes the folder, and waits for a daemon that is ending.
    ///
    /// # Errors
    /// When it cannot be made, or another daemon keeps it; the text says which.
    pub(crate) async fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            // The process id in it may be that of a daemon that has the lock.
            .truncate(false)
            .open(folder.join("lock"))?;
        let deadline = tokio::time::Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY_WAIT).await;
                }
                Err(Errno::WOULDBLOCK) => {
                    let text = format!("in use by another worker{}", holder(&lock));
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
                }
                Err(error) => return Err(error.into()),
            }
        }
        lock.set_len(0)?;
        writeln!(&lock, "{}", std::process::id())?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// The folder of ranks' logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The folder of the roster.
    pub(crate) fn ranks(&self) -> PathBuf {
        self.folder.join("ranks")
    }

    /// Where ranks read the address of the door.
    pub(crate) fn door(&self) -> PathBuf {
        self.folder.join("door")
    }

    /// Says where the door is now, and whose it is: once that process has ended, the port may be a
    /// stranger's.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn publish_door(&self, address: SocketAddr) -> io::Result<()> {
        let Some(identity) = Identity::of(std::process::id()) else {
            return Err(io::Error::other("/proc does not tell about this process"));
        };
        let text = format!("{address} {} {}\n", identity.pid, identity.started);
        write_whole(&self.door(), text.as_bytes())
    }

    /// The life that was begun last; `None` when none is known.
    pub(crate) fn life(&self) -> Option<Life> {
        let text = fs::read(self.folder.join("life")).ok()?;
        let line: Value = serde_json::from_slice(&text).ok()?;
        let part = |name: &str| line[name].as_str().map(str::to_owned);
        Some(Life {
            incarnation: line["incarnation"].as_u64()?,
            class: v1::NumericsClass {
                build: part("build")?,
                canary: part("canary")?,
                libc: part("libc")?,
                cpu: part("cpu")?,
                gpu: String::new(),
            },
        })
    }

    /// Begins a life.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn begin(&self, life: &Life) -> io::Result<()> {
        let line = json!({
            "incarnation": life.incarnation,
            "build": life.class.build,
            "canary": life.class.canary,
            "libc": life.class.libc,
            "cpu": life.class.cpu,
        });
        write_whole(&self.folder.join("life"), format!("{line}\n").as_bytes())
    }
}

/// Writes a file that only its owner reads, so that a reader finds the old one or the new one.
///
/// # Errors
/// When the system fails.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&new)?.write_all(bytes)?;
    // A crash of the machine ends what these files tell of, so that nothing has to reach the disk.
    fs::rename(&new, path)
}

/// Who has the lock, in words; nothing when the file does not say.
fn holder(file: &File) -> String {
    let mut text = String::new();
    // More than the digits of any process id.
    let read = file.take(20).read_to_string(&mut text);
    let pid = read.ok().and_then(|_| text.trim().parse::<u32>().ok());
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}
