//! The lock of a job's folder, which keeps two runs of one job apart. The kernel frees it when its
//! process ends, however it ends; the process id in the file is for people only.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::failure::Failure;

/// Makes the job's folder, and keeps another run of the same job out of it while the file is open.
pub(crate) fn lock(folder: &Path) -> Result<File, Failure> {
    let unusable = |error: std::io::Error| {
        Failure::bad_input(format!(
            "{}: {error}; say with --state where to keep state",
            folder.display()
        ))
    };
    std::fs::create_dir_all(folder).map_err(unusable)?;
    // Not truncated: the process id in it may be that of a run that has the lock.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(folder.join("lock")).map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(Failure::bad_input(format!(
                "{}: in use by another command{}; wait for it, or give this one a folder of its own with --state, or a job of another name with --set name=...",
                folder.display(),
                holder(&file)
            )));
        }
        Err(error) => return Err(unusable(error.into())),
    }
    file.set_len(0).map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
}

/// Who has the lock, in words; nothing when the file does not say.
fn holder(file: &File) -> String {
    // More than the digits of any process id.
    let mut text = String::new();
    let read = file.take(20).read_to_string(&mut text);
    let pid = read.ok().and_then(|_| text.trim().parse::<u32>().ok());
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_process_that_has_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        // Twice: the refused one must not wipe out what the next one reads.
        for _ in 0..2 {
            let refused = lock(folder.path()).unwrap_err().text;
            let pid = format!("(pid {})", std::process::id());
            assert!(
                refused.contains("in use by another") && refused.contains(&pid),
                "{refused}"
            );
        }
        drop(first);
        assert!(lock(folder.path()).is_ok(), "free again");
    }

    #[test]
    fn a_lock_file_that_says_nonsense_is_still_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        std::fs::write(folder.path().join("lock"), "\u{1F980} no number").unwrap();
        let refused = lock(folder.path()).unwrap_err().text;
        assert!(refused.contains("by another command; wait"), "{refused}");
        drop(first);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_with_the_option_that_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        std::fs::write(&taken, "a file").unwrap();
        let refused = lock(&taken.join("job")).unwrap_err().text;
        assert!(
            refused.contains("taken") && refused.contains("--state"),
            "{refused}"
        );
    }
}
