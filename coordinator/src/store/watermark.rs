//! How far the store had come, in a file of its own beside the engine's.
//!
//! The engine recovers up to the first batch it cannot read and cuts off the rest without a word,
//! which is right for what was never synced and wrong for all else: a vote or an acknowledged entry
//! must not be forgotten. So every batch has a number inside of the engine, and this file has the
//! number of the last one that was synced. A store that comes back with less has lost something.
//!
//! The file is 12 bytes, which no disk tears: a CRC-32 and the number, little-endian. It is written
//! after each sync and not synced itself: an older number is only a weaker witness.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const NAME: &str = "watermark";
const LENGTH: usize = 12;

/// The open file.
#[derive(Debug)]
pub(super) struct Watermark(File);

impl Watermark {
    /// Opens the file beside a store that came back with this many batches, or makes it beside a
    /// new store. The inner error says what does not fit.
    pub(super) fn open(folder: &Path, num_batches: u64) -> io::Result<Result<Self, String>> {
        let path = folder.join(NAME);
        if !path.try_exists()? {
            if num_batches > 0 {
                return Ok(Err(format!("the file {NAME} is missing")));
            }
            let mut watermark = Self(File::create_new(path)?);
            watermark.begin(folder)?;
            return Ok(Ok(watermark));
        }
        let file = File::options().read(true).write(true).open(path)?;
        let mut bytes = [0; LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => bytes = [0; LENGTH],
            Err(error) => return Err(error),
        }
        if num_batches == 0 && bytes == [0; LENGTH] {
            // The power failed while a new store was made: the name was durable, its bytes were not.
            let mut watermark = Self(file);
            watermark.begin(folder)?;
            return Ok(Ok(watermark));
        }
        let synced = number_in(&bytes);
        if bytes != encode(synced) {
            return Ok(Err(format!("the file {NAME} is not as it was written")));
        }
        if num_batches < synced {
            return Ok(Err(format!(
                "batch {synced} was durable, but it ends with batch {num_batches}"
            )));
        }
        Ok(Ok(Self(file)))
    }

    /// Makes the file of a new store durable, before anything else of it is.
    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        self.raise(0)?;
        self.0.sync_all()?;
        File::open(folder)?.sync_all()
    }

    /// Says that this many batches are durable.
    pub(super) fn raise(&mut self, num_batches: u64) -> io::Result<()> {
        self.0.write_all_at(&encode(num_batches), 0)
    }
}

fn encode(num_batches: u64) -> [u8; LENGTH] {
    let number = num_batches.to_le_bytes();
    let mut bytes = [0; LENGTH];
    bytes[..4].copy_from_slice(&crc32fast::hash(&number).to_le_bytes());
    bytes[4..].copy_from_slice(&number);
    bytes
}

fn number_in(bytes: &[u8; LENGTH]) -> u64 {
    u64::from_le_bytes(bytes[4..].try_into().expect("8 of 12 bytes"))
}
