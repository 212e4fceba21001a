//! The two ways out: standard output for what was asked for, standard error for remarks. Neither
//! panics when nobody reads.

use std::io::Write as _;

/// Tells a person something on standard error. That nobody reads it, or that the disk behind it is
/// full, is no reason to stop what is being done, so it is not `eprintln!`, which panics then.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints lines; false when nobody reads any more, such as behind `| head`.
pub(crate) fn print_lines(lines: impl IntoIterator<Item = String>) -> bool {
    let mut stdout = std::io::stdout().lock();
    lines
        .into_iter()
        .all(|line| writeln!(stdout, "{line}").is_ok())
}
