//! How much memory this process had at most, as Linux counts it.

/// The most resident memory that this process ever had, in bytes; 0 where the system does not say.
pub(crate) fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    peak_of(&status).unwrap_or_default()
}

/// `VmHWM` of a `/proc/<pid>/status`, which is in units of 1024 bytes (proc_pid_status(5)).
fn peak_of(status: &str) -> Option<u64> {
    let rest = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let number = rest.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_systems_text() {
        let status = "Name:\tmuster\nVmPeak:\t  300 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(peak_of(status), Some(2 << 20));
        for status in [
            "",
            "VmHWM:\n",
            "VmHWM:\tmuch kB\n",
            "VmHWM: 18446744073709551615 kB",
        ] {
            assert_eq!(peak_of(status), None, "{status:?}");
        }
    }

    #[test]
    fn a_vector_that_was_written_is_in_the_peak_also_when_it_is_gone() {
        let before = peak_bytes();
        assert!(
            before > 1 << 20,
            "a process of Rust has more than {before} bytes"
        );
        let num_bytes = 64 << 20;
        let vector = vec![1u8; num_bytes];
        assert_eq!(std::hint::black_box(&vector).len(), num_bytes);
        drop(vector);
        assert!(peak_bytes() >= before.max(num_bytes as u64));
    }
}
