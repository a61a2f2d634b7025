//! What the bits of an EPT entry mean (SDM "EPT Paging-Structure Entries").

use core::fmt;

use super::format::Write;

pub(super) const READ: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const EXECUTE: u64 = 1 << 2;
pub(super) const RWX: u64 = READ | WRITE | EXECUTE;
/// In an entry that refers to a table: all that lies below may be done.
pub(super) const TABLE: u64 = RWX | USER_EXECUTE | ACCESSED;
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
    pub(super) const fn from_bits(bits: u64) -> Option<Self> {
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
