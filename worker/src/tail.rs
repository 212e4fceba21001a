//! The log of a rank's process. The process writes to the file itself, so that its output does not
//! depend on its worker; the worker reads it from where it was read before.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A longer line is told in pieces.
const MAX_LINE_BYTES: usize = 16 << 10;

/// How many lines are read at once.
const MAX_LINES: usize = 1024;

/// What is kept of one process's output: a longer log is emptied.
const MAX_LOG_BYTES: u64 = 64 << 20;

/// How many of the last lines a report of the exit carries.
const TAIL_LINES: usize = 10;

/// A log that is read.
#[derive(Debug)]
pub(crate) struct Tail {
    log: File,
    /// Up to where lines were told.
    offset: u64,
    /// Bytes behind it that are no whole line yet.
    rest: Vec<u8>,
    last: VecDeque<String>,
    /// The file that holds the offset.
    mark: PathBuf,
}

/// The file that a process's output goes to.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn open_log(folder: &Path, process: u64) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("p{process}.log"));
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(true).open(path)
}

impl Tail {
    /// Reads a log from its present end.
    ///
    /// # Errors
    /// When the system fails.
    pub(crate) fn begin(log: File, mark: PathBuf) -> io::Result<Self> {
        let offset = log.metadata()?.len();
        let tail = Self::at(log, mark, offset);
        tail.remember()?;
        Ok(tail)
    }

    /// Reads a log from where an earlier daemon was; from its start, where that is not known.
    pub(crate) fn go_on(log: File, mark: PathBuf) -> Self {
        let offset = std::fs::read_to_string(&mark).ok();
        let offset = offset.and_then(|text| text.trim().parse().ok());
        Self::at(log, mark, offset.unwrap_or_default())
    }

    fn at(log: File, mark: PathBuf, offset: u64) -> Self {
        Self {
            log,
            offset,
            rest: Vec::new(),
            last: VecDeque::new(),
            mark,
        }
    }

    fn remember(&self) -> io::Result<()> {
        std::fs::write(&self.mark, format!("{}\n", self.offset))
    }

    /// The next lines. `is_over`: nobody writes any more, and the last line may have no end.
    ///
    /// # Errors
    /// When the system fails.
    pub(crate) fn read(&mut self, is_over: bool) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut buffer = vec![0; MAX_LINE_BYTES];
        while lines.len() < MAX_LINES {
            let at = self.offset + self.rest.len() as u64;
            let read = self.log.read_at(&mut buffer, at)?;
            if read == 0 {
                break;
            }
            self.rest.extend_from_slice(&buffer[..read]);
            self.cut(&mut lines);
        }
        if is_over && lines.len() < MAX_LINES && !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.take(&rest, &mut lines);
        }
        if !lines.is_empty() {
            self.remember()?;
        }
        self.bound()?;
        Ok(lines)
    }

    fn cut(&mut self, lines: &mut Vec<String>) {
        let rest = std::mem::take(&mut self.rest);
        let mut rest = &rest[..];
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(rest.len(), |end| end + 1);
            if end.is_none() && len < MAX_LINE_BYTES {
                break;
            }
            let (line, behind) = rest.split_at(len.min(MAX_LINE_BYTES));
            self.take(line, lines);
            rest = behind;
        }
        self.rest = rest.to_vec();
    }

    fn take(&mut self, line: &[u8], lines: &mut Vec<String>) {
        self.offset += line.len() as u64;
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        self.last.push_back(line.clone());
        if self.last.len() > TAIL_LINES {
            self.last.pop_front();
        }
        lines.push(line);
    }

    /// Empties a log that fills the disk.
    ///
    /// # Errors
    /// When the system fails.
    pub(crate) fn bound(&mut self) -> io::Result<()> {
        let len = self.log.metadata()?.len();
        if len > MAX_LOG_BYTES {
            self.log.set_len(0)?;
            (&self.log).write_all(b"(the log was full; what came before is not kept)\n")?;
        }
        if len > MAX_LOG_BYTES || len < self.offset {
            self.offset = 0;
            self.rest.clear();
            self.remember()?;
        }
        Ok(())
    }

    /// The last lines that were read.
    pub(crate) fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("muster-tail-{name}-{}", std::process::id()))
    }

    #[test]
    fn another_reader_goes_on_behind_the_last_whole_line_that_was_told() {
        let folder = folder("goes-on");
        let mut log = open_log(&folder, 7).unwrap();
        log.write_all(b"of an older process\n").unwrap();
        let mark = folder.join("mark");
        let mut tail = Tail::begin(open_log(&folder, 7).unwrap(), mark.clone()).unwrap();
        assert_eq!(tail.read(false).unwrap(), [""; 0]);
        log.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(tail.read(false).unwrap(), ["one", "two"]);
        log.write_all(b"ee\nfour").unwrap();

        let mut tail = Tail::go_on(open_log(&folder, 7).unwrap(), mark);
        assert_eq!(tail.read(false).unwrap(), ["three"]);
        assert_eq!(tail.read(true).unwrap(), ["four"], "it has ended");
        assert_eq!(tail.last_lines(), "three\nfour");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_a_full_log_is_emptied() {
        let folder = folder("bounds");
        let mut log = open_log(&folder, 7).unwrap();
        let mut tail = Tail::begin(open_log(&folder, 7).unwrap(), folder.join("mark")).unwrap();
        let long = "x".repeat(MAX_LINE_BYTES + 3) + "\n";
        log.write_all(long.as_bytes()).unwrap();
        let lens: Vec<usize> = tail.read(false).unwrap().iter().map(String::len).collect();
        assert_eq!(lens, [MAX_LINE_BYTES, 3]);

        log.set_len(MAX_LOG_BYTES + 1).unwrap();
        tail.bound().unwrap();
        log.write_all(b"more\n").unwrap();
        let lines = tail.read(false).unwrap();
        assert!(
            lines[0].contains("was full") && lines[1] == "more",
            "{lines:?}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
