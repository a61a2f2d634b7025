//! A figure that a guest files for the report of the run.

use core::fmt;

use arrayvec::ArrayString;
use offshoot_abi::FIGURE_NAME_MAX;

use super::name::Name;

/// The name of a figure: 1 to 32 of `[a-z0-9._]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FigureName(ArrayString<FIGURE_NAME_MAX>);

impl FigureName {
    /// `bytes` as a name, if they are one.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let legal = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_');
        if bytes.is_empty() || !bytes.iter().all(legal) {
            return None;
        }
        ArrayString::from(core::str::from_utf8(bytes).ok()?)
            .ok()
            .map(Self)
    }
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FigureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Debug for FigureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// TSC ticks; of an emulator whose TSC counts instructions, those.
    #[default]
    Ticks,
    /// Bytes.
    Bytes,
    /// Forks.
    Forks,
    /// Frames.
    Frames,
    /// A number of other things, or of times.
    Count,
}

impl Unit {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticks => "instructions",
            Self::Bytes => "bytes",
            Self::Forks => "forks",
            Self::Frames => "frames",
            Self::Count => "count",
        }
    }
}

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Who filed it, or whom the hypervisor filed it about.
    pub guest: Name,
    /// Whether the hypervisor did.
    pub host: bool,
    /// What it is.
    pub name: FigureName,
    /// Its value.
    pub value: u64,
    /// What it counts. What guests file counts ticks.
    pub unit: Unit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "exit.cpuid", "fork.16m_2", &"x".repeat(32)] {
            assert_eq!(FigureName::new(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in ["", "A", "a b", "a\"", "ä", "a\n", &"x".repeat(33)] {
            assert_eq!(FigureName::new(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(FigureName::new(&[b'a', 0xff]), None);
    }
}
