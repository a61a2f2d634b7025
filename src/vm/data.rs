//! Data that guests share: a boot module of bytes, found by its name.

use core::fmt;

use super::cmdline::{DataOptions, GuestOptions, MapOption, Name};
use crate::addr::{AddrRange, Address, Hpa, PAGE_SIZE};
use crate::ept::{HostBytes, RegionKind};

/// Host bytes as one guest gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedData {
    /// The bytes. Other guests may see them, too.
    pub bytes: HostBytes,
    /// Whether the guest may write. What it writes is its own.
    pub write: bool,
}

impl SharedData {
    /// What the guest has there.
    pub const fn region_kind(&self) -> RegionKind {
        if self.write {
            RegionKind::CopyOnWrite(self.bytes)
        } else {
            RegionKind::ReadOnly(self.bytes)
        }
    }
}

/// Why data cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataError {
    /// No boot module is data of that name.
    NoSuchData(Name),
    /// No boot module is data of that name, to begin fuzzing with.
    NoSuchInput(Name),
    /// What has that name is a guest.
    IsGuest(Name),
    /// It has no bytes.
    Empty(Name),
    /// The boot loader has not put it at the start of a page.
    Unaligned {
        /// The data.
        name: Name,
        /// Where it is.
        address: Hpa,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchData(name) => write!(
                f,
                "map={name}: no boot module is data of that name, as in corpus.bin data name={name}"
            ),
            Self::NoSuchInput(name) => write!(
                f,
                "inputs={name}: no boot module is data of that name, as in first.bin data name={name}"
            ),
            Self::IsGuest(name) => write!(f, "map={name}: that is a guest, not data"),
            Self::Empty(name) => write!(f, "the data {name} has no bytes"),
            Self::Unaligned { name, address } => write!(
                f,
                "the boot loader put the data {name} at {address:#x}, not at the start of a page"
            ),
        }
    }
}
impl core::error::Error for DataError {}

/// Whether the bytes at `range` can be shared page by page.
///
/// # Errors
/// The range, where it is not aligned to pages or empty.
pub fn check(name: Name, range: AddrRange<Hpa>) -> Result<(), DataError> {
    let address = range.start();
    if range.is_empty() {
        Err(DataError::Empty(name))
    } else if !address.is_aligned(PAGE_SIZE) {
        Err(DataError::Unaligned { name, address })
    } else {
        Ok(())
    }
}

/// Where the data is that a guest asks for. `modules` are the command lines and places of all boot modules in their order;
/// of several data modules of one name, the first counts.
///
/// # Errors
/// The name that no module has, or bytes that cannot be shared page by page.
pub fn find<'a>(
    map: &MapOption,
    modules: impl Iterator<Item = (&'a str, AddrRange<Hpa>)>,
) -> Result<AddrRange<Hpa>, DataError> {
    let name = map.name;
    let mut missing = DataError::NoSuchData(name);
    for (index, (line, range)) in modules.enumerate() {
        match DataOptions::parse(line) {
            Some(Ok(data)) if data.name == name => return check(name, range).map(|()| range),
            None if guest_name(line, index) == Some(name) => missing = DataError::IsGuest(name),
            _ => {}
        }
    }
    Err(missing)
}

/// The name of the guest in module number `index`.
fn guest_name(line: &str, index: usize) -> Option<Name> {
    match GuestOptions::parse(line, index, u64::BITS) {
        Ok(guest) => Some(guest.name),
        Err(error) => error.whose.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    #[test]
    fn data_is_found_by_its_name_wherever_it_stands() {
        let name = |name: &str| Name::new(name).unwrap();
        let modules = [
            ("web.elf map=corpus mem=64M", range(0x1000, 5)),
            ("corpus.bin data name=corpus", range(0x2000, 5000)),
            ("b.bin data name=corpus", range(0x9000, 1)),
            ("none data", range(0xa000, 0)),
            ("odd data", range(0xb010, 1)),
            ("bad data mem=1M", range(0xc000, 1)),
            ("bad.elf mem=", range(0xd000, 1)),
            // A guest and data may have one name.
            ("both.elf", range(0xe000, 1)),
            ("both data", range(0xf000, 1)),
        ];
        let found = |asked: &str| {
            let (name, write) = (name(asked), true);
            find(&MapOption { name, write }, modules.into_iter())
        };
        assert_eq!(found("corpus"), Ok(range(0x2000, 5000)));
        assert_eq!(found("both"), Ok(range(0xf000, 1)));
        assert_eq!(found("Corpus"), Err(DataError::NoSuchData(name("Corpus"))));
        assert_eq!(found("web"), Err(DataError::IsGuest(name("web"))));
        assert_eq!(found("bad"), Err(DataError::IsGuest(name("bad"))));
        assert_eq!(found("none"), Err(DataError::Empty(name("none"))));
        let odd = DataError::Unaligned {
            name: name("odd"),
            address: Hpa::new(0xb010),
        };
        assert_eq!(found("odd"), Err(odd));
        assert!(odd.to_string().contains("0xb010"));
    }
}
