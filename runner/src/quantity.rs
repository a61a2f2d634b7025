//! Sizes and times as a user writes them: `512`, `512M`, `2G`; `90`, `90s`, `2m`.

use crate::Error;
use std::time::Duration;

/// Reads a memory size in MiB: a number of MiB, or a number with `M` or `G`.
///
/// # Errors
/// The text, where it is no size, or not between 16 MiB and 64 GiB.
pub fn mebibytes(text: &str) -> Result<u32, Error> {
    let bad = || Error::asked(text, "not a size of memory: write 512, 512M or 2G");
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let size = number(digits)
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(bad)?;
    // Below this GRUB has no room to load the image; above it Bochs has no address to put it at.
    if !(16..=65536).contains(&size) {
        return Err(Error::asked(text, "the machine needs 16M to 64G of memory"));
    }
    Ok(size)
}

/// Reads a time limit: a number of seconds, or a number with `s` or `m`.
///
/// # Errors
/// The text, where it is no time or 0.
pub fn limit(text: &str) -> Result<Duration, Error> {
    let bad = || Error::asked(text, "not a time limit: write 90, 90s or 2m");
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number(digits)
        .and_then(|number| number.checked_mul(unit))
        .filter(|&seconds| seconds > 0)
        .ok_or_else(bad)?;
    Ok(Duration::from_secs(seconds.into()))
}

/// A decimal number without a sign: `parse` alone would also take `+1`.
fn number(digits: &str) -> Option<u32> {
    if digits.starts_with('+') {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mebibytes("512").unwrap(), 512);
        assert_eq!(mebibytes("64M").unwrap(), 64);
        assert_eq!(mebibytes("2G").unwrap(), 2048);
        for bad in [
            "",
            "M",
            "-1",
            "+512",
            "1.5G",
            "512MiB",
            "4294967295G",
            "0",
            "8",
            "65G",
        ] {
            let error = mebibytes(bad).unwrap_err().to_string();
            assert!(error.starts_with(bad), "{error}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(limit("90").unwrap(), Duration::from_secs(90));
        assert_eq!(limit("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(limit("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "0", "s", "1h", "-1", "99999999999m"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }
}
