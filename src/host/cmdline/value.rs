//! Numbers, sizes and times as users write them.

use super::Problem;
use crate::addr::{AddrRange, Hpa, PAGE_SIZE};
use crate::ept::PagePolicy;

/// A length of time as a user gives it: by the clock, or in ticks of the time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// So many nanoseconds.
    Nanoseconds(u64),
    /// So many ticks of the time-stamp counter.
    Ticks(u64),
}

impl Duration {
    /// This time in ticks of a counter of `ticks_per_second`; as many as fit if that is more.
    pub fn ticks(self, ticks_per_second: u64) -> u64 {
        match self {
            Self::Ticks(ticks) => ticks,
            Self::Nanoseconds(ns) => {
                let ticks = u128::from(ns) * u128::from(ticks_per_second) / 1_000_000_000;
                u64::try_from(ticks).unwrap_or(u64::MAX)
            }
        }
    }
}

/// A number, decimal or `0x`, and what follows its digits.
fn number(text: &str) -> Option<(Result<u64, Problem>, &str)> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(end);
    if digits.is_empty() {
        return None;
    }
    Some((
        u64::from_str_radix(digits, radix).map_err(|_| Problem::Overflow),
        suffix,
    ))
}

/// A size in bytes: K, M, G, T are powers of 1024; a bare number counts in `unit`.
fn size(text: &str, unit: u64) -> Result<u64, Problem> {
    let (value, suffix) = number(text).ok_or(Problem::NotASize)?;
    let unit = match suffix {
        "" => unit,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1 << 40,
        _ => return Err(Problem::NotASize),
    };
    match value?.checked_mul(unit).ok_or(Problem::Overflow)? {
        0 => Err(Problem::Zero),
        bytes => Ok(bytes),
    }
}

pub(super) fn memory(text: &str, address_width: u32) -> Result<u64, Problem> {
    let bytes = size(text, 1)?;
    let last = bytes - 1;
    if last.checked_shr(address_width).unwrap_or(0) != 0 {
        return Err(Problem::BeyondWidth(address_width));
    }
    if bytes % PAGE_SIZE != 0 {
        Err(Problem::NotPages)
    } else {
        Ok(bytes)
    }
}

/// Whole pages of the machine's addresses, as in `0xfed00000:4K`.
pub(super) fn device(text: &str, address_width: u32) -> Result<AddrRange<Hpa>, Problem> {
    let (start, len) = text.split_once(':').ok_or(Problem::NotADevice)?;
    let start = match number(start) {
        Some((start, "")) => start?,
        _ => return Err(Problem::NotADevice),
    };
    let len = size(len, 1).map_err(|problem| match problem {
        Problem::NotASize => Problem::NotADevice,
        other => other,
    })?;
    let range = AddrRange::new(Hpa::new(start), len).ok_or(Problem::Overflow)?;
    let last = range.last().map_or(start, Hpa::as_u64);
    if !start.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
        Err(Problem::NotPages)
    } else if last.checked_shr(address_width).unwrap_or(0) != 0 {
        Err(Problem::BeyondWidth(address_width))
    } else {
        Ok(range)
    }
}

/// A number of things from 1 to `most`.
pub(super) fn count(text: &str, most: u64) -> Result<u64, Problem> {
    match number(text).ok_or(Problem::NotACount)? {
        (_, suffix) if !suffix.is_empty() => Err(Problem::NotACount),
        (Ok(0), _) => Err(Problem::Zero),
        (Ok(value), _) if value <= most => Ok(value),
        _ => Err(Problem::TooMany(most)),
    }
}

pub(super) fn pool(text: &str) -> Result<u64, Problem> {
    size(text, 1 << 20)
}

/// A time, or ticks with K, M, G as powers of 1000.
pub(super) fn duration(text: &str) -> Result<Duration, Problem> {
    let (value, suffix) = number(text).ok_or(Problem::NotADuration)?;
    let (unit, kind): (u64, fn(u64) -> Duration) = match suffix {
        "ns" => (1, Duration::Nanoseconds),
        "us" => (1_000, Duration::Nanoseconds),
        "ms" => (1_000_000, Duration::Nanoseconds),
        "s" => (1_000_000_000, Duration::Nanoseconds),
        "" => (1, Duration::Ticks),
        "K" | "k" => (1_000, Duration::Ticks),
        "M" => (1_000_000, Duration::Ticks),
        "G" | "g" => (1_000_000_000, Duration::Ticks),
        _ => return Err(Problem::NotADuration),
    };
    match value?.checked_mul(unit).ok_or(Problem::Overflow)? {
        0 => Err(Problem::Zero),
        length => Ok(kind(length)),
    }
}

/// Of what size pages are.
pub(super) fn page_policy(text: &str) -> Result<PagePolicy, Problem> {
    Ok(match text {
        "4k" | "4K" => PagePolicy::Small,
        "2m" | "2M" => PagePolicy::Large2M,
        "1g" | "1G" => PagePolicy::Large1G,
        "auto" => PagePolicy::Auto,
        _ => return Err(Problem::NotAPageSize),
    })
}
