//! What can be wrong with a request, and with a table.

use core::fmt;

use crate::addr::{Address, PageSize};

/// Why an entry cannot be followed or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The table is not in the memory that tables may be read from.
    NotMemory,
    /// A bit that must be 0 is set: of the format, or a part of the address below the page's size.
    Reserved,
    /// A combination of permissions or memory type that the CPU refuses.
    Misconfigured,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMemory => "the table is not in memory",
            Self::Reserved => "a reserved bit is set",
            Self::Misconfigured => "the permissions or the memory type are not allowed",
        })
    }
}

/// Why an operation on page tables was refused. Nothing has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingError<V, P> {
    /// The virtual address or the length is not a multiple of a 4 KiB page.
    Unaligned {
        /// Where the range starts.
        start: V,
        /// Bytes asked for.
        len: u64,
    },
    /// The physical address is not a multiple of the page's size.
    UnalignedPhys {
        /// The physical address asked for.
        phys: P,
    },
    /// The range reaches an address that the format cannot translate: it wraps, or it is not canonical, or too wide.
    OutOfRange {
        /// Where the range starts.
        start: V,
        /// Bytes asked for.
        len: u64,
    },
    /// The physical range reaches beyond the width that the format has for physical addresses.
    PhysTooWide {
        /// Where the physical range starts.
        phys: P,
    },
    /// The format has no leaf of this size.
    NoSuchLeaf {
        /// The size asked for.
        size: PageSize,
    },
    /// Something is mapped there already.
    AlreadyMapped {
        /// The first address that is taken.
        address: V,
        /// The level of the entry that takes it.
        level: u8,
    },
    /// A table entry above grants less than the mapping asks for.
    Restricted {
        /// The first address concerned.
        address: V,
        /// The level of the entry that denies it.
        level: u8,
    },
    /// No memory for another table.
    OutOfTables,
    /// Something has as many references as can be counted, and would need one more. Nothing that is mapped has changed.
    TooManyReferences {
        /// Where it is.
        phys: P,
    },
    /// What a table holds cannot be followed.
    Bad {
        /// The first address that the entry would translate.
        address: V,
        /// The level of the entry.
        level: u8,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The limit on visited entries is reached.
    LimitReached {
        /// The address the walk had come to.
        address: V,
        /// The level it was reading.
        level: u8,
    },
}

impl<V: Address, P: Address> fmt::Display for PagingError<V, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned { start, len } => {
                write!(f, "{len:#x} bytes at {start} are not whole pages")
            }
            Self::UnalignedPhys { phys } => {
                write!(f, "physical address {phys} is not aligned to the page")
            }
            Self::OutOfRange { start, len } => {
                write!(
                    f,
                    "{len:#x} bytes at {start} reach an address that cannot be translated"
                )
            }
            Self::PhysTooWide { phys } => {
                write!(
                    f,
                    "the physical range at {phys} is wider than an entry can hold"
                )
            }
            Self::NoSuchLeaf { size } => {
                write!(f, "the format has no page of {:#x} bytes", size.bytes())
            }
            Self::AlreadyMapped { address, level } => {
                write!(f, "{address} is mapped already (level {level})")
            }
            Self::Restricted { address, level } => {
                write!(
                    f,
                    "the table entry above {address} (level {level}) grants less than was asked for"
                )
            }
            Self::OutOfTables => f.write_str("no memory for another table"),
            Self::TooManyReferences { phys } => {
                write!(f, "{phys} has as many references as can be counted")
            }
            Self::Bad {
                address,
                level,
                fault,
            } => {
                write!(f, "bad entry for {address} at level {level}: {fault}")
            }
            Self::LimitReached { address, level } => {
                write!(
                    f,
                    "too many entries: the limit was reached at {address}, level {level}"
                )
            }
        }
    }
}

impl<V: Address, P: Address> core::error::Error for PagingError<V, P> {}
