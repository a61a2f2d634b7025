//! The EPT format: 4 levels of 512 entries (SDM "Extended Page-Table Mechanism (EPT)" and "EPT Paging-Structure Entries",
//! volume 3C, 30.3).

use core::sync::atomic::AtomicU64;

use super::attr::Attr;
use super::entry::{Layout, Pte};
use super::format::Write;
use super::levels::Levels;
use super::nested::{MemoryType, Nested, NestedLayout};
use crate::addr::{Gpa, Hpa};

/// The format of tables that translate guest-physical to host-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

impl Levels for Ept {
    type Virt = Gpa;
    type Phys = Hpa;
    type Layout = EptBits;
}

/// The layout of EPT entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptBits;

const TYPE: u64 = 7 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const WRITE_BACK: u64 = (MemoryType::WriteBack as u64) << 3;

impl Layout for EptBits {
    type Word = AtomicU64;
    const PRESENT: u64 = Self::READ | Self::WRITE | Self::EXECUTE;
    /// Bit 10 where the modes are told apart.
    const ABSENT: u64 = Self::PRESENT | Self::USER;
    const READ: u64 = 1 << 0;
    const EXECUTE: u64 = 1 << 2;
    /// The permission to fetch in user mode.
    const USER: u64 = 1 << 10;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;
    const GLOBAL: u64 = 0;
    const PAT: u64 = 0;
    const MEMORY: u64 = TYPE | IGNORE_PAT;
    const CACHED: u64 = WRITE_BACK;
    const UNCACHED: u64 = 0;
    const COW: u64 = 1 << 52;
    const SOFT_LOW: u64 = 1 << 11;
    const SOFT_HIGH: u64 = 0x7ff << 53;

    fn has_memory_type(bits: u64) -> bool {
        MemoryType::from_bits((bits & TYPE) >> 3).is_some()
    }
}

/// An entry of an EPT table.
pub type EptEntry = Pte<EptBits>;
/// What an EPT leaf says of its page.
pub type EptAttr = Attr<EptBits>;

impl NestedLayout for EptBits {
    const FETCH: u64 = Self::EXECUTE | Self::USER;
}

impl Nested for Ept {
    const READ: EptAttr = EptAttr::READ;
    /// Write-back tables, which every CPU that runs guests has, and a walk of length 4 (SDM "Extended-Page-Table Pointer (EPTP)",
    /// 26.6.11).
    fn pointer_bits(accessed_dirty: bool) -> u64 {
        6 | (4 - 1) << 3 | u64::from(accessed_dirty) << 6
    }
    fn page(memory_type: MemoryType) -> Option<EptAttr> {
        // The type is ours alone: what a guest's PAT makes uncacheable has the host as write-back, and one frame with two types
        // is undefined.
        let attr = EptAttr::READ.with_memory_type(memory_type);
        Some(attr.with_ignore_pat(true).with_accessed(true))
    }
    fn with_fetch(attr: EptAttr, on: bool) -> EptAttr {
        attr.with_execute(on).with_user_execute(on)
    }
}

impl Attr<EptBits> {
    /// Reading; write-back.
    pub const READ: Self = Self::from_bits(EptBits::READ | WRITE_BACK);
    /// Reading and writing; write-back.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);
    /// Reading and executing; write-back.
    pub const READ_EXECUTE: Self = Self::READ.with_execute(true);
    /// Reading, writing and executing; write-back.
    pub const READ_WRITE_EXECUTE: Self = Self::READ_WRITE.with_execute(true);
    /// Executing alone; write-back. The CPU must have the capability for it.
    pub const EXECUTE: Self = Self::from_bits(EptBits::EXECUTE | WRITE_BACK);

    /// Whether user mode may fetch from the page, where the CPU tells the modes apart.
    pub const fn user_execute(self) -> bool {
        self.has(EptBits::USER)
    }
    /// Sets whether user mode may fetch from the page, where the CPU tells the modes apart.
    pub const fn with_user_execute(self, on: bool) -> Self {
        self.with(EptBits::USER, on)
    }
    /// The memory type.
    pub const fn memory_type(self) -> MemoryType {
        match MemoryType::from_bits((self.0 & TYPE) >> 3) {
            Some(memory_type) => memory_type,
            // Neither `decode` nor a method lets another number in.
            None => MemoryType::Uncacheable,
        }
    }
    /// Sets the memory type.
    pub const fn with_memory_type(self, memory_type: MemoryType) -> Self {
        Self::from_bits(self.0 & !TYPE | (memory_type as u64) << 3)
    }
    /// Whether the guest's PAT has no say in the memory type.
    pub const fn ignore_pat(self) -> bool {
        self.has(IGNORE_PAT)
    }
    /// Sets whether the guest's PAT has no say in the memory type.
    pub const fn with_ignore_pat(self, on: bool) -> Self {
        self.with(IGNORE_PAT, on)
    }
}
