//! An entry of an EPT table.

use core::fmt;
use core::sync::atomic::AtomicU64;

use memory_addr::PhysAddr;
use page_table_entry::{GenericPTE, MappingFlags};

use super::ept_attr::*;
use super::format::Entry;
use crate::addr::Hpa;

/// An entry of an EPT table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct EptEntry(u64);

impl Entry for EptEntry {
    type Word = AtomicU64;
    const EMPTY: Self = Self(0);

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.0
    }
}

impl EptEntry {
    /// This entry without the right to write. What it refers to and everything below becomes read-only.
    pub const fn write_protected(self) -> Self {
        Self(self.0 & !WRITE)
    }
    /// What a page's or a table's entry of the lowest levels refers to.
    #[inline(always)]
    pub const fn frame(self) -> Hpa {
        Hpa::new(self.0 & ADDRESS)
    }
    /// Whether the entry grants writing.
    pub const fn grants_write(self) -> bool {
        self.0 & WRITE != 0
    }
}

impl GenericPTE for EptEntry {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        let mut entry = Self(paddr.as_usize() as u64 & ADDRESS);
        entry.set_flags(flags, is_huge);
        entry
    }
    fn new_table(paddr: PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 & ADDRESS | TABLE)
    }
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        if !self.is_present() {
            return MappingFlags::empty();
        }
        let mut flags = MappingFlags::empty();
        flags.set(MappingFlags::READ, self.0 & READ != 0);
        flags.set(MappingFlags::WRITE, self.0 & WRITE != 0);
        flags.set(MappingFlags::EXECUTE, self.0 & EXECUTE != 0);
        flags.set(MappingFlags::USER, self.0 & USER_EXECUTE != 0);
        flags.set(MappingFlags::UNCACHED, self.0 & MEMORY_TYPE == 0);
        flags
    }
    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !ADDRESS | paddr.as_usize() as u64 & ADDRESS;
    }
    /// Replaces the permissions and the memory type; accessed, dirty and the software bits stay. No permission at
    /// all gives the empty entry, and writing gives reading too: nothing else would be legal.
    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        let access = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
        if !flags.intersects(access) {
            self.0 = 0;
            return;
        }
        let device = flags.intersects(MappingFlags::DEVICE | MappingFlags::UNCACHED);
        let memory_type = if device {
            MemoryType::Uncacheable
        } else {
            MemoryType::WriteBack
        };
        let write = flags.contains(MappingFlags::WRITE);
        let attr = EptAttr(self.0 & (ACCESSED | DIRTY | COW | SOFT_LOW | SOFT_HIGH))
            .with_memory_type(memory_type)
            .with(READ, write || flags.contains(MappingFlags::READ))
            .with(WRITE, write)
            .with(EXECUTE, flags.contains(MappingFlags::EXECUTE))
            .with(USER_EXECUTE, flags.contains(MappingFlags::USER));
        self.0 = self.0 & ADDRESS | attr.0 | if is_huge { LEAF } else { 0 };
    }
    fn bits(self) -> usize {
        self.0 as usize
    }
    fn is_unused(&self) -> bool {
        self.0 == 0
    }
    fn is_present(&self) -> bool {
        self.0 & RWX != 0
    }
    fn is_huge(&self) -> bool {
        self.0 & LEAF != 0
    }
    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl fmt::Debug for EptEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EptEntry({:#x}, {:?})", self.0, self.flags())
    }
}
