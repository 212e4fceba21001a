//! Ends a process with the tree of processes that it belongs to.

use std::io;
use std::thread;

/// The exit code of a process whose tree lost its root.
const EXIT_WITHOUT_ROOT: i32 = 3;

/// Ends this process when standard input ends: a pipe that only the root of the tree holds open for
/// writing, so that its end is the root's, however the root ended. Nothing is ever written to it.
///
/// # Errors
/// When the system has no thread left.
pub fn end_with_the_tree() -> io::Result<()> {
    thread::Builder::new().name("tree".to_owned()).spawn(|| {
        // A pipe that fails is as good as one that ended.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(EXIT_WITHOUT_ROOT);
    })?;
    Ok(())
}
