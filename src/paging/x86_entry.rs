//! Entries of x86's own page tables, and what a leaf says of its page: those of 32 bits are those of 64 bits without what is
//! above (SDM "Format of a Page-Table Entry that Maps a 4-KByte Page", volume 3A, tables in 4.3 and 4.5).

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64};

use memory_addr::PhysAddr;
use page_table_entry::{GenericPTE, MappingFlags};

use super::format::{Entry, Rights, Write};
use super::word::AtomicWord;

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
/// In an entry that is not of the last level: this is a leaf.
pub(super) const PAGE_SIZE: u64 = 1 << 7;
pub(super) const PAT_4K: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// Bit 9 is ours: copy-on-write.
const COW: u64 = 1 << 9;
/// Bits 10 and 11 are the system's, and [`Width::SOFT_HIGH`].
const SOFT_LOW: u64 = 3 << 10;
pub(super) const PAT_LARGE: u64 = 1 << 12;
/// In the address field of an entry that is not present: to be filled with zeroes. Bit 12 is left to `PAT_LARGE`.
const ZERO_MARK: u64 = 0x000a_2e80_5a2e_8000;

/// What tells entries of one width from those of the other.
pub trait Width: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// The word that an entry is in memory.
    type Word: AtomicWord;
    /// The bits that there are.
    const ALL: u64;
    /// Those of the address.
    const ADDRESS: u64;
    /// The bit that forbids to execute; 0 where what can be read can be executed.
    const NO_EXECUTE: u64;
    /// What else is the system's above the address.
    const SOFT_HIGH: u64;
}

/// Entries of 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits32;
/// Entries of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits64;

impl Width for Bits32 {
    type Word = AtomicU32;
    const ALL: u64 = 0xffff_ffff;
    const ADDRESS: u64 = 0xffff_f000;
    const NO_EXECUTE: u64 = 0;
    const SOFT_HIGH: u64 = 0;
}

impl Width for Bits64 {
    type Word = AtomicU64;
    const ALL: u64 = u64::MAX;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const NO_EXECUTE: u64 = 1 << 63;
    /// Bits 52 to 62 (59 to 62 hold the protection key where that is enabled).
    const SOFT_HIGH: u64 = 0x7ff << 52;
}

/// An entry of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct X86Entry<W>(pub(super) u64, PhantomData<W>);

/// What a leaf says of its page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct X86Attr<W>(u64, PhantomData<W>); // a 4 KiB leaf without its address

impl<W: Width> X86Attr<W> {
    /// A supervisor page, read-only, not executable where that can be, write-back, accessed and dirty already set, so that
    /// the CPU need not write to the tables.
    pub const READ: Self = Self::from_bits(PRESENT | ACCESSED | DIRTY | W::NO_EXECUTE);
    /// As [`Self::READ`], and writable.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);
    /// Bits of [`Self::soft`].
    pub const SOFT_BITS: u32 = SOFT_LOW.count_ones() + W::SOFT_HIGH.count_ones();

    const fn from_bits(bits: u64) -> Self {
        Self(bits, PhantomData)
    }
    const fn with(self, bit: u64, set: bool) -> Self {
        Self::from_bits(if set { self.0 | bit } else { self.0 & !bit })
    }
    const fn has(self, bit: u64) -> bool {
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
    /// Whether instructions may be fetched from the page.
    pub const fn execute(self) -> bool {
        !self.has(W::NO_EXECUTE)
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
        let index = index as u64;
        let cleared = self.0 & !(WRITE_THROUGH | CACHE_DISABLE | PAT_4K);
        Self::from_bits(cleared | (index & 3) << 3 | (index & 4) << 5)
    }
    /// The bits that are the system's to use, as a number of [`Self::SOFT_BITS`] bits.
    pub const fn soft(self) -> u16 {
        ((self.0 & SOFT_LOW) >> 10 | (self.0 & W::SOFT_HIGH) >> 50) as u16
    }
    /// Sets the bits that are the system's; of `soft` the lowest [`Self::SOFT_BITS`] bits count.
    pub const fn with_soft(self, soft: u16) -> Self {
        let soft = soft as u64;
        let cleared = self.0 & !(SOFT_LOW | W::SOFT_HIGH);
        Self::from_bits(cleared | (soft & 3) << 10 | (soft << 50) & W::SOFT_HIGH)
    }

    /// The bits of a leaf of `level`, without its address: the PAT bit moves.
    #[inline(always)]
    pub(super) const fn leaf_bits(self, level: u8) -> u64 {
        match level {
            1 => self.0,
            _ => self.0 & !PAT_4K | (self.0 & PAT_4K) << 5 | PAGE_SIZE,
        }
    }
    /// Those of an entry that is to be filled with zeroes.
    #[inline(always)]
    pub(super) const fn zero_bits(self, level: u8) -> u64 {
        self.leaf_bits(level) & !PRESENT | ZERO_MARK & W::ADDRESS
    }
    /// What such an entry will grant, if `bits` are one.
    #[inline(always)]
    pub(super) const fn of_zero(level: u8, bits: u64) -> Option<Self> {
        match bits & W::ADDRESS & !PAT_LARGE == ZERO_MARK & W::ADDRESS {
            true => Some(Self::of_leaf(level, bits | PRESENT)),
            false => None,
        }
    }
    /// The inverse of [`Self::leaf_bits`], for any address.
    #[inline(always)]
    pub(super) const fn of_leaf(level: u8, bits: u64) -> Self {
        let flags = bits & !W::ADDRESS;
        Self::from_bits(match level {
            1 => flags,
            _ => flags & !PAGE_SIZE | (bits & PAT_LARGE) >> 5,
        })
    }
    #[inline(always)]
    pub(super) fn rights(self) -> Rights {
        rights_of::<W>(self.0)
    }
    #[inline(always)]
    pub(super) fn restrict(self, by: Rights) -> Self {
        let (clear, set) = denied::<W>(by);
        Self::from_bits(self.0 & !clear | set)
    }
    #[inline(always)]
    pub(super) const fn merge_status(self, other: Self) -> Self {
        Self::from_bits(self.0 | other.0 & (ACCESSED | DIRTY))
    }
}

impl X86Attr<Bits64> {
    /// As [`Self::READ`], and executable.
    pub const READ_EXECUTE: Self = Self::READ.with_execute(true);

    /// Sets whether instructions may be fetched from the page.
    pub const fn with_execute(self, on: bool) -> Self {
        self.with(Bits64::NO_EXECUTE, !on)
    }
}

/// What an entry grants, or lets through.
#[inline(always)]
pub(super) fn rights_of<W: Width>(bits: u64) -> Rights {
    Rights::READ
        .or(Rights::WRITE.when(bits & WRITABLE != 0))
        .or(Rights::EXECUTE.when(bits & W::NO_EXECUTE == 0))
        .or(Rights::USER.when(bits & USER != 0))
}

/// The bits to clear and those to set, that nothing is granted but `rights`.
#[inline(always)]
pub(super) fn denied<W: Width>(rights: Rights) -> (u64, u64) {
    let unless = |right, bit| if rights.contains(right) { 0 } else { bit };
    let clear = unless(Rights::WRITE, WRITABLE) | unless(Rights::USER, USER);
    (clear, unless(Rights::EXECUTE, W::NO_EXECUTE))
}

impl<W: Width> fmt::Debug for X86Attr<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.write() {
            Write::Allowed => "rw",
            Write::CopyFirst => "rc",
            Write::Denied => "r-",
        })?;
        for (on, name) in [
            (self.execute(), "x"),
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

impl<W: Width> Entry for X86Entry<W> {
    type Word = W::Word;
    const EMPTY: Self = Self(0, PhantomData);

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self(bits & W::ALL, PhantomData)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.0
    }
}

impl<W: Width> GenericPTE for X86Entry<W> {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        let mut entry = Self::EMPTY;
        entry.set_paddr(paddr);
        entry.set_flags(flags, is_huge);
        entry
    }
    fn new_table(paddr: PhysAddr) -> Self {
        let mut entry = Self::from_bits(PRESENT | WRITABLE | USER | ACCESSED);
        entry.set_paddr(paddr);
        entry
    }
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & W::ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        if !self.is_present() {
            return MappingFlags::empty();
        }
        let mut flags = MappingFlags::READ;
        flags.set(MappingFlags::WRITE, self.0 & WRITABLE != 0);
        flags.set(MappingFlags::EXECUTE, self.0 & W::NO_EXECUTE == 0);
        flags.set(MappingFlags::USER, self.0 & USER != 0);
        flags.set(MappingFlags::UNCACHED, self.0 & CACHE_DISABLE != 0);
        flags
    }
    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !W::ADDRESS | paddr.as_usize() as u64 & W::ADDRESS;
    }
    /// Replaces the permissions and the memory type; accessed, dirty, global and the software bits stay.
    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        if flags.is_empty() {
            return self.clear();
        }
        let device = flags.intersects(MappingFlags::DEVICE | MappingFlags::UNCACHED);
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let system = COW | SOFT_LOW | W::SOFT_HIGH;
        self.0 = self.0 & (W::ADDRESS | ACCESSED | DIRTY | GLOBAL | system)
            | PRESENT
            | bit(flags.contains(MappingFlags::WRITE), WRITABLE)
            | bit(!flags.contains(MappingFlags::EXECUTE), W::NO_EXECUTE)
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

impl<W: Width> fmt::Debug for X86Entry<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X86Entry({:#x}, {:?})", self.0, self.flags())
    }
}
