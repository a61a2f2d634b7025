//! What guests are called: their names, and the numbers of forks.

use core::fmt;

/// The longest name of a guest.
pub const NAME_MAX: usize = 32;
/// The name of a guest: 1 to 32 of `[A-Za-z0-9._-]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: u8,
}

impl Name {
    /// `text` as a name, if it is one.
    pub fn new(text: &str) -> Option<Self> {
        let legal = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_name_byte);
        legal.then(|| Self::from_bytes(text.bytes()))
    }

    /// The name that follows from a path: the file's name without `.elf`, with `-` for what a name cannot hold.
    pub fn from_path(path: &str) -> Option<Self> {
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = file.strip_suffix(".elf").unwrap_or(file);
        let tame = |b: u8| if is_name_byte(b) { b } else { b'-' };
        (!stem.is_empty()).then(|| Self::from_bytes(stem.bytes().map(tame)))
    }

    /// `guest0`, `guest1`, ...: the name of a module that has neither path nor name.
    pub fn numbered(index: usize) -> Self {
        let mut digits = [0; 20];
        let mut rest = index;
        let mut len = 0;
        for digit in &mut digits {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            len += 1;
            if rest == 0 {
                break;
            }
        }
        Self::from_bytes(
            b"guest"
                .iter()
                .chain(digits.iter().take(len).rev())
                .copied(),
        )
    }

    /// At most the first 32 of `bytes`, all of which are name bytes.
    fn from_bytes(source: impl Iterator<Item = u8>) -> Self {
        let mut name = Self {
            bytes: [0; NAME_MAX],
            len: 0,
        };
        for (slot, byte) in name.bytes.iter_mut().zip(source) {
            *slot = byte;
            name.len += 1;
        }
        name
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// Which fork of its template a guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkId {
    /// The first has 0; so has a guest that is no fork.
    pub number: u64,
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
