//! The format of AMD's nested page tables: those of long mode, which translate guest-physical addresses (APM volume 2, "Nested
//! Paging", 15.25).
//!
//! Each access of a guest counts as one of user mode (15.25.5), so every entry lets that through. A walk of the guest's own tables
//! counts as a write, as it may set accessed and dirty: a page that holds such tables and may not be written stops each guest that
//! uses them.

use core::sync::atomic::AtomicU64;

use super::attr::Attr;
use super::entry::{Layout, Pte};
use super::format::Write;
use super::levels::Levels;
use super::nested::{MemoryType, Nested, NestedLayout};
use super::x86::Bits64;
use crate::addr::{Gpa, Hpa};

/// The format of nested page tables.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

impl Levels for Npt {
    type Virt = Gpa;
    type Phys = Hpa;
    type Layout = NptBits;
}

/// The layout of their entries: amd64's, in which the global bit means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NptBits;

impl Layout for NptBits {
    type Word = AtomicU64;
    const NO_EXECUTE: u64 = Bits64::NO_EXECUTE;
    const GLOBAL: u64 = 0;
    const SOFT_HIGH: u64 = Bits64::SOFT_HIGH;
}

impl NestedLayout for NptBits {
    const FETCH: u64 = 0;
}

/// An entry of a nested page table.
pub type NptEntry = Pte<NptBits>;
/// What a leaf of a nested page table says of its page.
pub type NptAttr = Attr<NptBits>;

/// Which entry of the host's page attribute table holds a memory type: the host leaves that as a CPU has it after reset (APM
/// "PAT Register", 7.8.2), which has no WC and no WP. What is uncacheable is so whatever the MTRRs and the guest say (7.8.5,
/// 15.25.8).
const fn pat_index(memory_type: MemoryType) -> Option<u64> {
    match memory_type {
        MemoryType::WriteBack => Some(0),
        MemoryType::WriteThrough => Some(1),
        MemoryType::Uncacheable => Some(3),
        MemoryType::WriteCombining | MemoryType::WriteProtected => None,
    }
}

impl Attr<NptBits> {
    /// Reading; write-back, accessed.
    pub const READ: Self =
        Self::from_bits(NptBits::PRESENT | NptBits::USER | NptBits::ACCESSED | NptBits::NO_EXECUTE);
    /// Reading and writing.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);

    /// The memory type, of those that [`NptAttr::with_memory_type`] gives.
    pub const fn memory_type(self) -> MemoryType {
        match (self.0 & NptBits::MEMORY) >> 3 {
            0 => MemoryType::WriteBack,
            1 => MemoryType::WriteThrough,
            _ => MemoryType::Uncacheable,
        }
    }
    /// Sets the memory type, if there is such a one.
    pub const fn with_memory_type(self, memory_type: MemoryType) -> Option<Self> {
        match pat_index(memory_type) {
            Some(index) => Some(Self::from_bits(
                self.0 & !(NptBits::MEMORY | NptBits::PAT) | index << 3,
            )),
            None => None,
        }
    }
}

impl Nested for Npt {
    const READ: NptAttr = NptAttr::READ;
    /// N_CR3 is the address alone; accessed and dirty are always set.
    fn pointer_bits(_accessed_dirty: bool) -> u64 {
        0
    }
    fn page(memory_type: MemoryType) -> Option<NptAttr> {
        NptAttr::READ.with_memory_type(memory_type)
    }
    fn with_fetch(attr: NptAttr, on: bool) -> NptAttr {
        attr.with_execute(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::{Content, Decoded, Entry, Format, Rights};

    const PHYS: Hpa = Hpa::new(0x000f_edc0_0000_0000);

    #[test]
    fn every_entry_lets_user_mode_through() {
        let all = Rights::READ
            .or(Rights::WRITE)
            .or(Rights::EXECUTE)
            .or(Rights::USER);
        let table = Npt::table_entry(PHYS);
        // Present, writable, user, accessed.
        assert_eq!(table.to_bits(), PHYS.as_u64() | 0x27);
        assert_eq!(Npt::open_table(table), Some(PHYS));
        let rights = all;
        let table = Decoded::Table {
            table: PHYS,
            rights,
        };
        assert_eq!(Npt::decode(4, Npt::table_entry(PHYS)), Ok(table));
        for memory_type in [
            MemoryType::WriteBack,
            MemoryType::WriteThrough,
            MemoryType::Uncacheable,
        ] {
            let attr = Npt::page(memory_type).unwrap();
            assert!(Npt::rights(attr).contains(Rights::READ.or(Rights::USER)));
            assert!(!attr.execute() && attr.accessed() && !attr.dirty());
        }
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let leaf = |level, attr| Npt::leaf_bits(level, attr);
        let read = NptAttr::READ;
        const NX: u64 = 1 << 63;
        assert_eq!(leaf(1, read), 0x25 | NX);
        assert_eq!(leaf(2, read), 0xa5 | NX);
        assert_eq!(leaf(3, NptAttr::READ_WRITE), 0xa7 | NX);
        assert_eq!(leaf(1, Npt::with_fetch(read, true)), 0x25);
        assert_eq!(leaf(1, read.with_dirty(true)), 0x65 | NX);
        // PWT is bit 3 and PCD bit 4.
        for (memory_type, bits) in [
            (MemoryType::WriteBack, Some(0)),
            (MemoryType::WriteThrough, Some(1 << 3)),
            (MemoryType::Uncacheable, Some(3 << 3)),
            (MemoryType::WriteCombining, None),
            (MemoryType::WriteProtected, None),
        ] {
            let page = Npt::page(memory_type);
            let expected = bits.map(|bits| bits | leaf(3, read));
            assert_eq!(page.map(|attr| leaf(3, attr)), expected, "{memory_type}");
            let told = page.map(NptAttr::memory_type);
            assert!(told.is_none_or(|told| told == memory_type));
        }
        assert_eq!(Npt::pointer_bits(true), 0);
    }

    #[test]
    fn leaves_of_all_sizes_are_what_was_put_there() {
        for level in 1..=3 {
            let attr = Npt::with_fetch(NptAttr::READ_WRITE, true).with_soft(0x1fff);
            let entry = NptEntry::from_bits(Npt::leaf_bits(level, attr) | PHYS.as_u64());
            let page = Content::Page { phys: PHYS, attr };
            assert_eq!(Npt::decode(level, entry), Ok(Decoded::Content(page)));
            assert_eq!(entry.frame(), PHYS);
            assert!(entry.grants_write() && !entry.write_protected().grants_write());
        }
        assert!(Npt::decode(4, NptEntry::from_bits(0xa5)).is_err());
    }
}
