//! What a process did to the files of a folder, as `record.c` recorded it, and what a loss of power
//! leaves of it.
//!
//! The disk of this model promises no more than POSIX: what a file contains is durable once
//! `fsync` or `fdatasync` of the file returns, a name once `fsync` of its folder does. Of all else
//! any part may be there or not, each sector of 512 bytes for itself. `sync_file_range` promises
//! nothing: it neither empties the disk's cache nor writes a file's length.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::ENTRIES;
use super::workload::Random;

const SECTOR: usize = 512;

/// One thing that a process did.
#[derive(Debug)]
pub(super) enum Event {
    Create {
        inode: u64,
        name: PathBuf,
    },
    Folder,
    Write {
        inode: u64,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        inode: u64,
        length: usize,
    },
    Fsync {
        inode: u64,
        name: PathBuf,
    },
    Fdatasync {
        inode: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        name: PathBuf,
    },
    /// It said something on its standard output.
    Said(String),
}

/// Compiles the recorder; the inner error says why it cannot be used here.
pub(super) fn compile(folder: &Path) -> Result<PathBuf, String> {
    let (source, library) = (folder.join("record.c"), folder.join("record.so"));
    fs::write(&source, include_str!("record.c")).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source);
    match compiler.args(["-ldl", "-lpthread"]).output() {
        Ok(output) if output.status.success() => Ok(library),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("cc: {error}")),
    }
}

/// Makes a process record what it does to a folder.
pub(super) fn preload(command: &mut Command, library: &Path, folder: &Path, to: &Path) {
    command
        .env("LD_PRELOAD", library)
        .env("MUSTER_RECORD_FOLDER", folder)
        .env("MUSTER_RECORD_TO", to);
}

/// Reads a record.
pub(super) fn read(path: &Path) -> Vec<Event> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut events = Vec::new();
    while let Some((head, body)) = rest.split_first_chunk::<25>() {
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let int = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let (inode, number) = (long(1), long(9) as usize);
        let (name, body) = body.split_at(int(17));
        let (data, body) = body.split_at(int(21));
        let path = |bytes: &[u8]| PathBuf::from(str::from_utf8(bytes).unwrap());
        let name = path(name);
        events.push(match head[0] {
            b'c' => Event::Create { inode, name },
            b'm' => Event::Folder,
            b'w' => Event::Write {
                inode,
                at: number,
                data: data.to_vec(),
            },
            b't' => Event::Truncate {
                inode,
                length: number,
            },
            b'f' => Event::Fsync { inode, name },
            b'd' => Event::Fdatasync { inode },
            b'r' => Event::Rename {
                from: name,
                to: path(data),
            },
            b'u' => Event::Unlink { name },
            b'x' => Event::Said(String::from_utf8_lossy(data).into_owned()),
            other => panic!("record of kind {other}"),
        });
        rest = body;
    }
    events
}

/// A sync that the disk forgets, to see that somebody notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forgets {
    Nothing,
    Fdatasync,
    FsyncOfFolders,
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rest {
    /// None of it is there.
    Gone,
    /// All is there that was done before a moment.
    Until,
    /// Some writes are there.
    SomeWrites,
    /// Some sectors are there.
    SomeSectors,
}

/// The files of a folder: their content by path.
pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    Write { at: usize, data: Vec<u8> },
    Truncate { length: usize },
}

#[derive(Debug)]
enum Naming {
    Link {
        name: PathBuf,
        file: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        file: usize,
    },
    Unlink {
        name: PathBuf,
    },
}

/// A disk that remembers what of its content is durable.
#[derive(Debug)]
pub(super) struct Disk {
    forgets: Forgets,
    files: Vec<File>,
    by_inode: BTreeMap<u64, usize>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<Naming>,
}

impl Disk {
    /// A folder as it is, all of it durable.
    pub(super) fn of(folder: &Path, forgets: Forgets) -> Self {
        let mut disk = Self {
            forgets,
            files: Vec::new(),
            by_inode: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
        };
        for (name, (inode, now)) in contents(folder) {
            let durable = now.clone();
            disk.by_inode.insert(inode, disk.files.len());
            disk.names.insert(name, disk.files.len());
            disk.files.push(File {
                durable,
                now,
                pending: Vec::new(),
            });
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Create { inode, name } => {
                let file = self.files.len();
                self.files.push(File::default());
                self.by_inode.insert(*inode, file);
                self.names.insert(name.clone(), file);
                let name = name.clone();
                self.pending_names.push(Naming::Link { name, file });
            }
            Event::Write { inode, at, data } => {
                let file = self.file(*inode);
                put(&mut file.now, *at, data);
                let (at, data) = (*at, data.clone());
                file.pending.push(Pending::Write { at, data });
            }
            Event::Truncate { inode, length } => {
                let (file, length) = (self.file(*inode), *length);
                file.now.resize(length, 0);
                file.pending.push(Pending::Truncate { length });
            }
            Event::Fdatasync { inode } => {
                if self.forgets != Forgets::Fdatasync {
                    self.file(*inode).sync();
                }
            }
            Event::Fsync { inode, name } => {
                if !self.by_inode.contains_key(inode) {
                    if self.forgets != Forgets::FsyncOfFolders {
                        self.sync_names(name);
                    }
                } else {
                    self.file(*inode).sync();
                }
            }
            Event::Rename { from, to } => {
                let file = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), file);
                let (from, to) = (from.clone(), to.clone());
                self.pending_names.push(Naming::Rename { from, to, file });
            }
            Event::Unlink { name } => {
                self.names.remove(name).unwrap();
                self.pending_names
                    .push(Naming::Unlink { name: name.clone() });
            }
            Event::Folder | Event::Said(_) => {}
        }
    }

    fn file(&mut self, inode: u64) -> &mut File {
        &mut self.files[self.by_inode[&inode]]
    }

    fn sync_names(&mut self, folder: &Path) {
        let pending = std::mem::take(&mut self.pending_names);
        for naming in pending {
            if naming.name().parent() == Some(folder) {
                naming.apply(&mut self.durable_names);
            } else {
                self.pending_names.push(naming);
            }
        }
    }

    /// All of it, as the process sees it.
    pub(super) fn now(&self) -> Image {
        let now = self.names.iter();
        now.map(|(name, file)| (name.clone(), self.files[*file].now.clone()))
            .collect()
    }

    /// What is there after a loss of power at this moment.
    pub(super) fn after_power_loss(&self, rest: Rest, random: &mut Random) -> Image {
        let mut names = self.durable_names.clone();
        // A file system keeps the order of what it does to its names.
        let num_names = match rest {
            Rest::Gone => 0,
            _ => random.below(self.pending_names.len() as u64 + 1) as usize,
        };
        for naming in &self.pending_names[..num_names] {
            naming.apply(&mut names);
        }
        names
            .into_iter()
            .map(|(name, file)| (name, self.files[file].some(rest, random)))
            .collect()
    }
}

impl File {
    fn sync(&mut self) {
        self.durable = self.now.clone();
        self.pending.clear();
    }

    /// The content with some of what is not durable.
    fn some(&self, rest: Rest, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let num_kept = match rest {
            Rest::Gone => 0,
            Rest::Until => random.below(self.pending.len() as u64 + 1) as usize,
            Rest::SomeWrites | Rest::SomeSectors => self.pending.len(),
        };
        for pending in &self.pending[..num_kept] {
            if matches!(rest, Rest::SomeWrites) && random.one_in(2) {
                continue;
            }
            match pending {
                Pending::Write { at, data } if matches!(rest, Rest::SomeSectors) => {
                    let mut from = 0;
                    while from < data.len() {
                        let to = data.len().min(from + SECTOR - (at + from) % SECTOR);
                        if random.one_in(2) {
                            put(&mut bytes, at + from, &data[from..to]);
                        }
                        from = to;
                    }
                }
                Pending::Write { at, data } => put(&mut bytes, *at, data),
                Pending::Truncate { length } => bytes.resize(*length, 0),
            }
        }
        // A length may be on the disk before the bytes.
        if !matches!(rest, Rest::Gone) && random.one_in(2) && bytes.len() < self.now.len() {
            bytes.resize(self.now.len(), 0);
        }
        bytes
    }
}

impl Naming {
    fn name(&self) -> &Path {
        match self {
            Self::Link { name, .. } | Self::Unlink { name } => name,
            Self::Rename { to, .. } => to,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link { name, file } => drop(names.insert(name.clone(), *file)),
            Self::Rename { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Self::Unlink { name } => drop(names.remove(name)),
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

/// The inodes and the bytes of a folder's files, the engine's among them.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = BTreeMap::new();
    for part in ["", ENTRIES] {
        for file in fs::read_dir(folder.join(part)).into_iter().flatten() {
            let path = file.unwrap().path();
            let about = fs::metadata(&path).unwrap();
            if about.is_file() {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, (about.ino(), fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// A folder's files.
pub(super) fn image_of(folder: &Path) -> Image {
    contents(folder)
        .into_iter()
        .map(|(name, (_, bytes))| (name, bytes))
        .collect()
}

/// Makes a folder that has these files.
pub(super) fn lay_out(image: &Image, folder: &Path) {
    fs::create_dir_all(folder.join(ENTRIES)).unwrap();
    for (name, bytes) in image {
        fs::write(folder.join(name), bytes).unwrap();
    }
}
