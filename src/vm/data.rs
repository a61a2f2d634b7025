//! Data that guests share: bytes of the host with a name.

use core::fmt;

use super::name::Name;
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
