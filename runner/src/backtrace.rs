//! The backtraces that an image prints are addresses; here they get the names of functions and lines of source.

use std::path::Path;
use std::process::{Command, Stdio};

/// The address in a line of a backtrace, which is two blanks and sixteen hexadecimal digits.
pub fn address(line: &str) -> Option<u64> {
    let digits = line.strip_prefix("  ")?;
    if digits.len() != 16 || digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// The places in `kernel` that a backtrace names, or nothing if `addr2line` of the binutils is missing: this is a
/// convenience.
pub fn places(kernel: &Path, addresses: &[u64]) -> Vec<String> {
    if addresses.is_empty() {
        return Vec::new();
    }
    // All but the first are where a call returns to, which may be on the next line or in the next function.
    let calls = addresses
        .iter()
        .enumerate()
        .map(|(at, address)| format!("{:#x}", address.saturating_sub(u64::from(at > 0))));
    let output = Command::new("addr2line")
        .args(["--functions", "--pretty-print", "--demangle", "--inlines"])
        .arg("--exe")
        .arg(kernel)
        .args(calls)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_only_in_backtraces() {
        assert_eq!(address("  ffffffff8010ff85"), Some(0xffff_ffff_8010_ff85));
        assert_eq!(address("  ffffffff8010ff85 x"), None);
        assert_eq!(address("ffffffff8010ff85"), None);
        assert_eq!(address("  +fffffff8010ff85"), None);
        assert_eq!(address("hello:   ffffffff8010ff85"), None);
    }

    #[test]
    fn a_kernel_that_cannot_be_read_has_no_places() {
        assert!(places(Path::new("/none"), &[0x1000]).is_empty());
    }
}
