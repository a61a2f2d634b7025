//! The EPT format: 4 levels of 512 entries (SDM "Extended Page-Table Mechanism (EPT)", volume 3C, 30.3).

use core::fmt;

use super::ept_entry::EptEntry;
use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, Rights, Write};
use crate::addr::{Gpa, Hpa, PageSize};

pub(super) const READ: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const EXECUTE: u64 = 1 << 2;
pub(super) const RWX: u64 = READ | WRITE | EXECUTE;
pub(super) const MEMORY_TYPE: u64 = 7 << 3;
pub(super) const IGNORE_PAT: u64 = 1 << 6;
/// In an entry that is not of the last level: this is a leaf.
pub(super) const LEAF: u64 = 1 << 7;
pub(super) const ACCESSED: u64 = 1 << 8;
pub(super) const DIRTY: u64 = 1 << 9;
pub(super) const USER_EXECUTE: u64 = 1 << 10;
/// Bit 11 is ignored by the CPU and ours to give away.
pub(super) const SOFT_LOW: u64 = 1 << 11;
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit 52 is ours: copy-on-write.
pub(super) const COW: u64 = 1 << 52;
pub(super) const SOFT_HIGH: u64 = 0x7ff << 53;
/// In an entry that grants nothing: the permissions it will have are in bits 12 to 15, and it is marked so.
pub(super) const ZERO_MARK: u64 = 0x000a_2e80_5a2e_0000;
pub(super) const MARK_FIELD: u64 = ADDRESS & !(0xf << 12);

/// The format of tables that translate guest-physical to host-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

/// How memory is cached (SDM "Memory Type Used for Accesses to Guest-Physical Addresses"; the numbers are the MTRRs').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB.
    WriteBack = 6,
}

impl MemoryType {
    const fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uncacheable => "uncacheable",
            Self::WriteCombining => "write-combining",
            Self::WriteThrough => "write-through",
            Self::WriteProtected => "write-protected",
            Self::WriteBack => "write-back",
        })
    }
}

/// What an EPT leaf says of its page. Writing without reading, which is a misconfiguration, cannot be expressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EptAttr(pub(super) u64); // a leaf without its address and without `LEAF`

impl EptAttr {
    const WB: u64 = (MemoryType::WriteBack as u64) << 3;
    /// Reading; write-back.
    pub const READ: Self = Self(READ | Self::WB);
    /// Reading and writing; write-back.
    pub const READ_WRITE: Self = Self(READ | WRITE | Self::WB);
    /// Reading and executing; write-back.
    pub const READ_EXECUTE: Self = Self(READ | EXECUTE | Self::WB);
    /// Reading, writing and executing; write-back.
    pub const READ_WRITE_EXECUTE: Self = Self(RWX | Self::WB);
    /// Executing alone; write-back. The CPU must have the capability for it.
    pub const EXECUTE: Self = Self(EXECUTE | Self::WB);
    /// Bits of [`Self::soft`].
    pub const SOFT_BITS: u32 = 12;

    pub(super) const fn with(self, bit: u64, set: bool) -> Self {
        Self(if set { self.0 | bit } else { self.0 & !bit })
    }
    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
    /// Whether the page may be read.
    pub const fn read(self) -> bool {
        self.has(READ)
    }
    /// Whether and how the page may be written.
    pub const fn write(self) -> Write {
        match (self.has(WRITE), self.has(COW)) {
            (true, _) => Write::Allowed,
            (false, true) => Write::CopyFirst,
            (false, false) => Write::Denied,
        }
    }
    /// Sets how the page may be written. What may be written may be read.
    pub const fn with_write(self, write: Write) -> Self {
        self.with(RWX & WRITE, matches!(write, Write::Allowed))
            .with(COW, matches!(write, Write::CopyFirst))
            .with(READ, self.has(READ) || matches!(write, Write::Allowed))
    }
    /// Whether instructions may be fetched from the page.
    pub const fn execute(self) -> bool {
        self.has(EXECUTE)
    }
    /// Sets whether instructions may be fetched from the page. One that could only be executed becomes readable.
    pub const fn with_execute(self, on: bool) -> Self {
        self.with(READ, self.has(READ) || !on).with(EXECUTE, on)
    }
    /// Whether user mode may fetch from the page, where the CPU tells the modes apart.
    pub const fn user_execute(self) -> bool {
        self.has(USER_EXECUTE)
    }
    /// Sets whether user mode may fetch from the page, where the CPU tells the modes apart.
    pub const fn with_user_execute(self, on: bool) -> Self {
        self.with(USER_EXECUTE, on)
    }
    /// The memory type.
    pub const fn memory_type(self) -> MemoryType {
        match MemoryType::from_bits((self.0 & MEMORY_TYPE) >> 3) {
            Some(memory_type) => memory_type,
            // Neither `decode` nor a method lets another number in.
            None => MemoryType::Uncacheable,
        }
    }
    /// Sets the memory type.
    pub const fn with_memory_type(self, memory_type: MemoryType) -> Self {
        Self(self.0 & !MEMORY_TYPE | (memory_type as u64) << 3)
    }
    /// Whether the guest's PAT has no say in the memory type.
    pub const fn ignore_pat(self) -> bool {
        self.has(IGNORE_PAT)
    }
    /// Sets whether the guest's PAT has no say in the memory type.
    pub const fn with_ignore_pat(self, on: bool) -> Self {
        self.with(IGNORE_PAT, on)
    }
    /// Whether the page has been used.
    pub const fn accessed(self) -> bool {
        self.has(ACCESSED)
    }
    /// Sets whether the page has been used.
    pub const fn with_accessed(self, on: bool) -> Self {
        self.with(ACCESSED, on)
    }
    /// Whether the page has been written.
    pub const fn dirty(self) -> bool {
        self.has(DIRTY)
    }
    /// Sets whether the page has been written.
    pub const fn with_dirty(self, on: bool) -> Self {
        self.with(DIRTY, on)
    }
    /// The bits that software may use (11 and 53 to 63; features that are off by default give some of them a meaning).
    pub const fn soft(self) -> u16 {
        ((self.0 & SOFT_LOW) >> 11 | (self.0 & SOFT_HIGH) >> 52) as u16
    }
    /// Sets the bits that software may use; of `soft` the lowest [`Self::SOFT_BITS`] bits count.
    pub const fn with_soft(self, soft: u16) -> Self {
        let soft = soft as u64;
        Self(self.0 & !(SOFT_LOW | SOFT_HIGH) | (soft & 1) << 11 | (soft >> 1) << 53)
    }
}

impl fmt::Debug for EptAttr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read() { "r" } else { "-" })?;
        f.write_str(match self.write() {
            Write::Allowed => "w",
            Write::CopyFirst => "c",
            Write::Denied => "-",
        })?;
        f.write_str(if self.execute() { "x" } else { "-" })?;
        for (on, name) in [
            (self.user_execute(), " user-execute"),
            (self.ignore_pat(), " ignore-pat"),
            (self.accessed(), " accessed"),
            (self.dirty(), " dirty"),
        ] {
            f.write_str(if on { name } else { "" })?;
        }
        write!(f, " {:?} soft {:#x}", self.memory_type(), self.soft())
    }
}

#[inline(always)]
fn rights_of(bits: u64) -> Rights {
    Rights::READ
        .when(bits & READ != 0)
        .or(Rights::WRITE.when(bits & WRITE != 0))
        .or(Rights::EXECUTE.when(bits & EXECUTE != 0))
        .or(Rights::USER.when(bits & USER_EXECUTE != 0))
}

impl Format for Ept {
    type Virt = Gpa;
    type Phys = Hpa;
    type Entry = EptEntry;
    type Attr = EptAttr;

    const LEVELS: u8 = 4;
    const INDEX_BITS: u32 = 9;
    const VIRT_BITS: u32 = 48;
    const SIGN_EXTENDED: bool = false;
    const PHYS_BITS: u32 = 52;

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    #[inline(always)]
    fn leaf_bits(level: u8, attr: EptAttr) -> u64 {
        attr.0 | if level > 1 { LEAF } else { 0 }
    }

    #[inline(always)]
    fn zero_bits(level: u8, attr: EptAttr) -> u64 {
        // Bits 2:0, and bit 10 where the modes are told apart, must be 0 in what is not present.
        let later = attr.0 & RWX | (attr.0 & USER_EXECUTE) >> 7;
        Self::leaf_bits(level, attr) & !(RWX | USER_EXECUTE) | later << 12 | ZERO_MARK
    }

    #[inline(always)]
    fn table_entry(table: Hpa) -> EptEntry {
        EptEntry::from_bits(table.as_u64() | RWX | USER_EXECUTE | ACCESSED)
    }

    fn restricted_table(table: Hpa, rights: Rights) -> EptEntry {
        let bit = |right, bit| if rights.contains(right) { bit } else { 0 };
        // Writing without reading is a misconfiguration.
        let granted = bit(Rights::READ, READ)
            | bit(Rights::WRITE, READ | WRITE)
            | bit(Rights::EXECUTE, EXECUTE)
            | bit(Rights::USER, USER_EXECUTE);
        EptEntry::from_bits(table.as_u64() | ACCESSED | granted)
    }

    #[inline(always)]
    fn decode(level: u8, entry: EptEntry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.to_bits();
        // What nearly every entry on the way down is: a table that everything may be done with.
        const OPEN: u64 = RWX | USER_EXECUTE;
        if level > 1 && bits & (OPEN | LEAF | MEMORY_TYPE | IGNORE_PAT) == OPEN {
            return Ok(Decoded::Table {
                table: Hpa::new(bits & ADDRESS),
                rights: Rights::ALL,
            });
        }
        if bits == 0 {
            return Ok(Decoded::Content(Content::Unmapped));
        }
        // SDM "EPT Misconfigurations", 30.3.3.1; execute-only is a matter of the CPU's capabilities, which are
        // asked by who chooses the attributes.
        match bits & RWX {
            0 => return Ok(Decoded::Content(absent(level, bits))),
            permissions if permissions & (READ | WRITE) == WRITE => {
                return Err(Fault::Misconfigured);
            }
            _ => {}
        }
        if level > 1 && bits & LEAF == 0 {
            // Bits 6:3 are reserved in what refers to a table.
            if bits & (MEMORY_TYPE | IGNORE_PAT) != 0 {
                return Err(Fault::Reserved);
            }
            return Ok(Decoded::Table {
                table: Hpa::new(bits & ADDRESS),
                rights: rights_of(bits),
            });
        }
        let below = match level {
            1 => 0,
            2 => (1 << 21) - 1,
            3 => (1 << 30) - 1,
            _ => return Err(Fault::Reserved),
        };
        if bits & ADDRESS & below != 0 {
            return Err(Fault::Reserved);
        }
        if MemoryType::from_bits((bits & MEMORY_TYPE) >> 3).is_none() {
            return Err(Fault::Misconfigured);
        }
        Ok(Decoded::Content(Content::Page {
            phys: Hpa::new(bits & ADDRESS),
            // Bit 7 of a 4 KiB leaf is ignored: it is not kept.
            attr: EptAttr(bits & !ADDRESS & !LEAF),
        }))
    }

    #[inline(always)]
    fn open_table(entry: EptEntry) -> Option<Hpa> {
        // Exactly where all four are set does taking them away leave zeroes in their places; what is between is ignored.
        let rest = entry.to_bits().wrapping_sub(RWX | USER_EXECUTE);
        let wrong = RWX | USER_EXECUTE | MEMORY_TYPE | IGNORE_PAT | LEAF;
        (rest & wrong == 0).then(|| Hpa::new(entry.to_bits() & ADDRESS))
    }

    #[inline(always)]
    fn rights(attr: EptAttr) -> Rights {
        rights_of(attr.0)
    }

    #[inline(always)]
    fn restrict(attr: EptAttr, by: Rights) -> Option<EptAttr> {
        let rights = rights_of(attr.0).and(by);
        if rights.and(Rights::READ.or(Rights::EXECUTE)) == Rights::NONE {
            return None;
        }
        let mut clear = 0;
        for (right, bit) in [
            (Rights::READ, READ | WRITE),
            (Rights::WRITE, WRITE),
            (Rights::EXECUTE, EXECUTE),
            (Rights::USER, USER_EXECUTE),
        ] {
            clear |= if by.contains(right) { 0 } else { bit };
        }
        Some(EptAttr(attr.0 & !clear))
    }

    #[inline(always)]
    fn hardware_may_change(entry: EptEntry) -> bool {
        entry.to_bits() & RWX != 0 && entry.to_bits() & (ACCESSED | DIRTY) != ACCESSED | DIRTY
    }

    #[inline(always)]
    fn merge_status(attr: EptAttr, other: EptAttr) -> EptAttr {
        EptAttr(attr.0 | other.0 & (ACCESSED | DIRTY))
    }
}

/// What an entry that grants nothing says.
#[inline(always)]
fn absent(level: u8, bits: u64) -> Content<Hpa, EptAttr> {
    let later = (bits >> 12) & 0xf;
    let legal = later & RWX != 0
        && later & (READ | WRITE) != WRITE
        && MemoryType::from_bits((bits & MEMORY_TYPE) >> 3).is_some();
    if bits & MARK_FIELD != ZERO_MARK || level > 3 || !legal {
        return Content::Unmapped;
    }
    let kept = bits & !(ADDRESS | LEAF | USER_EXECUTE);
    Content::ZeroOnDemand {
        attr: EptAttr(kept | later & RWX | (later & 8) << 7),
    }
}
