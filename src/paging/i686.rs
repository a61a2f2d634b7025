//! The i686 format: 2 levels of 1024 entries (SDM "32-Bit Paging", volume 3A, 4.3), 32-bit physical addresses.

use core::fmt;
use core::sync::atomic::AtomicU32;

use memory_addr::PhysAddr;
use page_table_entry::{GenericPTE, MappingFlags};

use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, Rights, Write};
use crate::addr::{Gpa, Gva, PageSize};

const PRESENT: u32 = 1 << 0;
const WRITABLE: u32 = 1 << 1;
const USER: u32 = 1 << 2;
const WRITE_THROUGH: u32 = 1 << 3;
const CACHE_DISABLE: u32 = 1 << 4;
const ACCESSED: u32 = 1 << 5;
const DIRTY: u32 = 1 << 6;
/// In a page-directory entry: this is a leaf.
const PAGE_SIZE: u32 = 1 << 7;
const PAT_4K: u32 = 1 << 7;
const GLOBAL: u32 = 1 << 8;
/// Bit 9 is ours: copy-on-write.
const COW: u32 = 1 << 9;
const SOFT: u32 = 3 << 10;
const PAT_LARGE: u32 = 1 << 12;
const ADDRESS: u32 = 0xffff_f000;
const FLAGS: u32 = !ADDRESS;
/// In the address field of an entry that is not present: to be filled with zeroes. Bit 12 is left to `PAT_LARGE`.
const ZERO_MARK: u32 = 0x5a2e_8000;
const MARK_FIELD: u32 = ADDRESS & !PAT_LARGE;

/// The format of a 32-bit guest's tables without PAE. It has no execute permission: what can be read can be executed.
/// `LARGE` is CR4.PSE: without it there are no leaves of 4 MiB, and what marks one does not count.
#[derive(Clone, Copy, Debug)]
pub struct I686<const LARGE: bool = true>;

/// An entry of an i686 table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct I686Entry(u32);

/// What an i686 leaf says of its page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct I686Attr(u32); // a 4 KiB leaf without its address

impl I686Attr {
    /// A supervisor page, read-only, write-back, accessed and dirty already set.
    pub const READ: Self = Self(PRESENT | ACCESSED | DIRTY);
    /// As [`Self::READ`], and writable.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);
    /// Bits of [`Self::soft`].
    pub const SOFT_BITS: u32 = 2;

    const fn with(self, bit: u32, set: bool) -> Self {
        Self(if set { self.0 | bit } else { self.0 & !bit })
    }
    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
    /// Whether and how the page may be written.
    pub const fn write(self) -> Write {
        match (self.has(WRITABLE), self.has(COW)) {
            (true, _) => Write::Allowed,
            (false, true) => Write::CopyFirst,
            (false, false) => Write::Denied,
        }
    }
    /// Sets how the page may be written.
    pub const fn with_write(self, write: Write) -> Self {
        self.with(WRITABLE, matches!(write, Write::Allowed))
            .with(COW, matches!(write, Write::CopyFirst))
    }
    /// Whether user mode may use the page.
    pub const fn user(self) -> bool {
        self.has(USER)
    }
    /// Sets whether user mode may use the page.
    pub const fn with_user(self, on: bool) -> Self {
        self.with(USER, on)
    }
    /// Whether the translation survives a load of CR3.
    pub const fn global(self) -> bool {
        self.has(GLOBAL)
    }
    /// Sets whether the translation survives a load of CR3.
    pub const fn with_global(self, on: bool) -> Self {
        self.with(GLOBAL, on)
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
    /// The entry of the page attribute table that holds the memory type: PAT, PCD and PWT as a number of 3 bits.
    pub const fn pat_index(self) -> u8 {
        (self.0 >> 3 & 3 | (self.0 & PAT_4K) >> 5) as u8
    }
    /// Chooses an entry of the page attribute table; of `index` the lowest 3 bits count.
    pub const fn with_pat_index(self, index: u8) -> Self {
        let index = index as u32;
        let cleared = self.0 & !(WRITE_THROUGH | CACHE_DISABLE | PAT_4K);
        Self(cleared | (index & 3) << 3 | (index & 4) << 5)
    }
    /// The two bits that are the system's to use.
    pub const fn soft(self) -> u16 {
        ((self.0 & SOFT) >> 10) as u16
    }
    /// Sets the bits that are the system's; of `soft` the lowest [`Self::SOFT_BITS`] bits count.
    pub const fn with_soft(self, soft: u16) -> Self {
        Self(self.0 & !SOFT | (soft as u32 & 3) << 10)
    }
}

impl fmt::Debug for I686Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.write() {
            Write::Allowed => "rw",
            Write::CopyFirst => "rc",
            Write::Denied => "r-",
        })?;
        for (on, name) in [
            (self.user(), " user"),
            (self.global(), " global"),
            (self.accessed(), " accessed"),
            (self.dirty(), " dirty"),
        ] {
            f.write_str(if on { name } else { "" })?;
        }
        write!(f, " pat {} soft {:#x}", self.pat_index(), self.soft())
    }
}

/// A 4 KiB leaf's flags as those of a leaf of `level`: the PAT bit moves.
#[inline(always)]
const fn to_level(level: u8, flags: u32) -> u32 {
    if level == 1 {
        flags
    } else {
        flags & !PAT_4K | (flags & PAT_4K) << 5 | PAGE_SIZE
    }
}

/// The inverse of [`to_level`].
#[inline(always)]
const fn from_level(level: u8, bits: u32) -> u32 {
    if level == 1 {
        bits & FLAGS
    } else {
        bits & FLAGS & !PAGE_SIZE | (bits & PAT_LARGE) >> 5
    }
}

impl<const LARGE: bool> Format for I686<LARGE> {
    type Virt = Gva;
    type Phys = Gpa;
    type Entry = I686Entry;
    type Attr = I686Attr;

    const LEVELS: u8 = 2;
    const INDEX_BITS: u32 = 10;
    const VIRT_BITS: u32 = 32;
    const SIGN_EXTENDED: bool = false;
    const PHYS_BITS: u32 = 32;

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 if LARGE => Some(PageSize::Size4M),
            _ => None,
        }
    }

    #[inline(always)]
    fn leaf_bits(level: u8, attr: I686Attr) -> u64 {
        to_level(level, attr.0) as u64
    }

    #[inline(always)]
    fn zero_bits(level: u8, attr: I686Attr) -> u64 {
        (to_level(level, attr.0) & !PRESENT | ZERO_MARK) as u64
    }

    #[inline(always)]
    fn table_entry(table: Gpa) -> I686Entry {
        I686Entry(table.as_u64() as u32 | PRESENT | WRITABLE | USER | ACCESSED)
    }

    fn restricted_table(table: Gpa, rights: Rights) -> I686Entry {
        let bit = |right, bit| if rights.contains(right) { bit } else { 0 };
        let granted = bit(Rights::WRITE, WRITABLE) | bit(Rights::USER, USER);
        I686Entry(table.as_u64() as u32 | PRESENT | ACCESSED | granted)
    }

    #[inline(always)]
    fn decode(level: u8, entry: I686Entry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.0;
        if bits & PRESENT == 0 {
            return Ok(Decoded::Content(if bits & MARK_FIELD == ZERO_MARK {
                Content::ZeroOnDemand {
                    attr: I686Attr(from_level(level, bits) | PRESENT),
                }
            } else {
                Content::Unmapped
            }));
        }
        if level > 1 && (!LARGE || bits & PAGE_SIZE == 0) {
            let rights = Rights::READ
                .or(Rights::EXECUTE)
                .or(Rights::WRITE.when(bits & WRITABLE != 0))
                .or(Rights::USER.when(bits & USER != 0));
            return Ok(Decoded::Table {
                table: Gpa::new((bits & ADDRESS) as u64),
                rights,
            });
        }
        let phys = bits & ADDRESS & if level == 1 { u32::MAX } else { !PAT_LARGE };
        // Bits 20:13 would be the bits above 32 of the address (PSE-36), which this format does not use.
        if level > 1 && phys & 0x003f_ffff != 0 {
            return Err(Fault::Reserved);
        }
        Ok(Decoded::Content(Content::Page {
            phys: Gpa::new(phys as u64),
            attr: I686Attr(from_level(level, bits)),
        }))
    }

    #[inline(always)]
    fn open_table(entry: I686Entry) -> Option<Gpa> {
        // Exactly where the three are set does taking them away leave three zeroes and nothing borrowed from above.
        let rest = entry.0.wrapping_sub(PRESENT | WRITABLE | USER);
        let wrong = PRESENT | WRITABLE | USER | if LARGE { PAGE_SIZE } else { 0 };
        (rest & wrong == 0).then(|| Gpa::new((entry.0 & ADDRESS) as u64))
    }

    #[inline(always)]
    fn rights(attr: I686Attr) -> Rights {
        Rights::READ
            .or(Rights::EXECUTE)
            .or(Rights::WRITE.when(attr.has(WRITABLE)))
            .or(Rights::USER.when(attr.user()))
    }

    #[inline(always)]
    fn restrict(attr: I686Attr, by: Rights) -> Option<I686Attr> {
        let mut clear = 0;
        if !by.contains(Rights::WRITE) {
            clear |= WRITABLE;
        }
        if !by.contains(Rights::USER) {
            clear |= USER;
        }
        Some(I686Attr(attr.0 & !clear))
    }

    #[inline(always)]
    fn hardware_may_change(entry: I686Entry) -> bool {
        entry.0 & PRESENT != 0 && entry.0 & (ACCESSED | DIRTY) != ACCESSED | DIRTY
    }

    #[inline(always)]
    fn merge_status(attr: I686Attr, other: I686Attr) -> I686Attr {
        I686Attr(attr.0 | other.0 & (ACCESSED | DIRTY))
    }
}

impl Entry for I686Entry {
    type Word = AtomicU32;
    const EMPTY: Self = Self(0);

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self(bits as u32)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.0 as u64
    }
}

impl GenericPTE for I686Entry {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        let mut entry = Self(paddr.as_usize() as u32 & ADDRESS);
        entry.set_flags(flags, is_huge);
        entry
    }
    fn new_table(paddr: PhysAddr) -> Self {
        <I686>::table_entry(Gpa::new((paddr.as_usize() as u32 & ADDRESS) as u64))
    }
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        if !self.is_present() {
            return MappingFlags::empty();
        }
        let mut flags = MappingFlags::READ | MappingFlags::EXECUTE;
        flags.set(MappingFlags::WRITE, self.0 & WRITABLE != 0);
        flags.set(MappingFlags::USER, self.0 & USER != 0);
        flags.set(MappingFlags::UNCACHED, self.0 & CACHE_DISABLE != 0);
        flags
    }
    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !ADDRESS | paddr.as_usize() as u32 & ADDRESS;
    }
    /// Replaces the permissions and the memory type; accessed, dirty, global and the software bits stay.
    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        if flags.is_empty() {
            self.0 = 0;
            return;
        }
        let device = flags.intersects(MappingFlags::DEVICE | MappingFlags::UNCACHED);
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        self.0 = self.0 & (ADDRESS | ACCESSED | DIRTY | GLOBAL | COW | SOFT)
            | PRESENT
            | bit(flags.contains(MappingFlags::WRITE), WRITABLE)
            | bit(flags.contains(MappingFlags::USER), USER)
            | bit(device, WRITE_THROUGH | CACHE_DISABLE)
            | bit(is_huge, PAGE_SIZE);
    }
    fn bits(self) -> usize {
        self.0 as usize
    }
    fn is_unused(&self) -> bool {
        self.0 == 0
    }
    fn is_present(&self) -> bool {
        self.0 & PRESENT != 0
    }
    fn is_huge(&self) -> bool {
        self.0 & PAGE_SIZE != 0
    }
    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl fmt::Debug for I686Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I686Entry({:#x}, {:?})", self.0, self.flags())
    }
}
