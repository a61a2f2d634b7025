//! What can be wrong with a command line.

use core::fmt;

use crate::vm::name::Name;

/// Whose command line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The hypervisor's own.
    Hypervisor,
    /// That of a guest.
    Guest(Name),
    /// That of data, which may have no name.
    Data(Option<Name>),
}

impl Whose {
    /// The name of the guest or the data.
    pub const fn name(self) -> Option<Name> {
        match self {
            Self::Hypervisor => None,
            Self::Guest(name) => Some(name),
            Self::Data(name) => name,
        }
    }
}

/// What is wrong with a command line, where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmdlineError<'a> {
    /// Whose line it is.
    pub whose: Whose,
    /// The key.
    pub key: &'a str,
    /// What stood after `=`, if that was there.
    pub value: Option<&'a str>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with one word of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No such option.
    UnknownKey,
    /// The option stands there twice.
    Repeated,
    /// `=` and a value are missing.
    NeedsValue,
    /// A flag was given a value.
    TakesNoValue,
    /// Not 1 to 32 of `[A-Za-z0-9._-]`.
    NotAName,
    /// Not a number with K, M or G.
    NotASize,
    /// Not `500ms`, `2s` or a number of ticks.
    NotADuration,
    /// Not a log level.
    NotALevel,
    /// Not the name of data, or that with `:ro`.
    NotAMap,
    /// Not the address and the size of a device.
    NotADevice,
    /// An option of guests.
    NotForData,
    /// Nothing gives it a name.
    NeedsName,
    /// Not a number of things.
    NotACount,
    /// More things than this.
    TooMany(u64),
    /// More generations of forks than this.
    TooDeep(usize),
    /// Not a way to reset a fork.
    NotAReset,
    /// Nothing of forks that could be measured.
    NotAMeasure,
    /// Not `on` or `off`.
    NotOnOrOff,
    /// Not an ending that can be expected.
    NotExpectable,
    /// Not a size of pages.
    NotAPageSize,
    /// Not what can be done against side channels.
    NotMitigations,
    /// Not what a machine does after a run.
    NotAnEnd,
    /// Not who is a tenant of his own.
    NotATenant,
    /// Zero.
    Zero,
    /// Not a multiple of 4 KiB.
    NotPages,
    /// More than 2^64.
    Overflow,
    /// More than this many address bits can reach.
    BeyondWidth(u32),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => "there is no such option",
            Self::Repeated => "given twice",
            Self::NeedsValue => "needs a value, as in key=value",
            Self::TakesNoValue => "takes no value",
            Self::NotAName => "a name is 1 to 32 characters out of A-Z a-z 0-9 . _ -",
            Self::NotASize => "not a size, as in 64M, 1G or 0x100000",
            Self::NotADuration => "not a time, as in 500ms, 2s, or ticks as in 100M",
            Self::NotALevel => "not one of off, error, warn, info, debug, trace",
            Self::NotAMap => "not the name of a data module, as in corpus or corpus:ro",
            Self::NotADevice => "not an address and a size, as in 0xfed00000:4K",
            Self::NotForData => "data takes no option but name=",
            Self::NeedsName => "it needs a name, as in data name=corpus",
            Self::NotACount => "not a number, as in 1000",
            Self::NotAReset => "not one of warm, cold, auto",
            Self::NotAMeasure => "not one of fork, all",
            Self::NotOnOrOff => "not on or off",
            Self::NotExpectable => "not crash",
            Self::NotMitigations => "not auto, off, or some of l1tf,mds,ibpb,rsb,ibrs,bhi,multihit",
            Self::NotAnEnd => "not one of poweroff, reset, halt",
            Self::NotATenant => "not one of line, fork",
            Self::TooMany(most) => return write!(f, "more than {most}"),
            Self::TooDeep(most) => return write!(f, "more than {most} generations of forks"),
            Self::NotAPageSize => "not one of 4k, 2m, 1g, auto",
            Self::Zero => "must not be zero",
            Self::NotPages => "not a multiple of 4 KiB",
            Self::Overflow => "too large",
            Self::BeyondWidth(bits) => {
                return write!(f, "more than the {bits} bits of a physical address reach");
            }
        })
    }
}

impl fmt::Display for CmdlineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whose {
            Whose::Hypervisor => f.write_str("command line: ")?,
            Whose::Guest(name) => write!(f, "guest {name}: ")?,
            Whose::Data(Some(name)) => write!(f, "data {name}: ")?,
            Whose::Data(None) => f.write_str("data module without a name: ")?,
        }
        write!(f, "{}", Clipped(self.key))?;
        if let Some(value) = self.value {
            write!(f, "={}", Clipped(value))?;
        }
        write!(f, ": {}", self.problem)
    }
}
impl core::error::Error for CmdlineError<'_> {}

/// What a user wrote, made harmless and short.
struct Clipped<'a>(&'a str);

impl fmt::Display for Clipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 48;
        for c in self.0.chars().take(MOST) {
            write!(f, "{}", c.escape_debug())?;
        }
        if self.0.chars().nth(MOST).is_some() {
            f.write_str("...")
        } else {
            Ok(())
        }
    }
}
