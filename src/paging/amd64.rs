//! The amd64 format: 4 levels of 512 entries (SDM "4-Level Paging and 5-Level Paging", volume 3A, 4.5), of which PAE paging
//! has the lowest two (SDM "PAE Paging", 4.4).

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;

use memory_addr::PhysAddr;
use page_table_entry::x86_64::PTF;
use page_table_entry::{GenericPTE, MappingFlags};

use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, Rights, Write};
use crate::addr::{Address, Gpa, Gva, Hpa, Hva, PageSize};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In an entry that is not of the last level: this is a leaf.
const PAGE_SIZE: u64 = 1 << 7;
const PAT_4K: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// Bit 9 is ours: copy-on-write.
const COW: u64 = 1 << 9;
const PAT_LARGE: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What is not the address, in a 4 KiB leaf.
const FLAGS: u64 = !ADDRESS;
/// Bits 10, 11 and 52 to 62 are the system's (59 to 62 hold the protection key where that is enabled).
const SOFT_LOW: u64 = 3 << 10;
const SOFT_HIGH: u64 = 0x7ff << 52;
/// In the address field of an entry that is not present: to be filled with zeroes. Bit 12 is left to `PAT_LARGE`.
const ZERO_MARK: u64 = 0x000a_2e80_5a2e_8000;
const MARK_FIELD: u64 = ADDRESS & !PAT_LARGE;

/// The format of tables that translate `V` to `P`.
#[derive(Clone, Copy, Debug)]
pub struct Amd64<V, P, const LEVELS: u8 = 4>(PhantomData<(V, P)>);
/// A guest's own tables.
pub type GuestAmd64 = Amd64<Gva, Gpa>;
/// What a guest with PAE paging has below each of the four entries of its top table: the CPU holds those in registers
/// (SDM "PDPTE Registers", 4.4.1), so they are no table to be walked. Addresses are those within the GiB of the entry.
pub type GuestPae = Amd64<Gva, Gpa, 2>;
/// The hypervisor's own tables.
pub type HostAmd64 = Amd64<Hva, Hpa>;

/// An entry of an amd64 table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Amd64Entry(u64);

/// What an amd64 leaf says of its page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Amd64Attr(u64); // a 4 KiB leaf without its address

impl Amd64Attr {
    /// A supervisor page, read-only, not executable, write-back, accessed and dirty already set, so that the CPU need
    /// not write to the tables.
    pub const READ: Self = Self(PRESENT | ACCESSED | DIRTY | NO_EXECUTE);
    /// As [`Self::READ`], and writable.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);
    /// As [`Self::READ`], and executable.
    pub const READ_EXECUTE: Self = Self::READ.with_execute(true);
    /// Bits of [`Self::soft`].
    pub const SOFT_BITS: u32 = 13;

    const fn with(self, bit: u64, set: bool) -> Self {
        Self(if set { self.0 | bit } else { self.0 & !bit })
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
        !self.has(NO_EXECUTE)
    }
    /// Sets whether instructions may be fetched from the page.
    pub const fn with_execute(self, on: bool) -> Self {
        self.with(NO_EXECUTE, !on)
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
        Self(self.0 & !(3 << 3 | PAT_4K) | (index & 3) << 3 | (index & 4) << 5)
    }
    /// The bits that are the system's to use, as a number of [`Self::SOFT_BITS`] bits.
    pub const fn soft(self) -> u16 {
        ((self.0 & SOFT_LOW) >> 10 | (self.0 & SOFT_HIGH) >> 50) as u16
    }
    /// Sets the bits that are the system's; of `soft` the lowest [`Self::SOFT_BITS`] bits count.
    pub const fn with_soft(self, soft: u16) -> Self {
        let soft = soft as u64;
        Self(self.0 & !(SOFT_LOW | SOFT_HIGH) | (soft & 3) << 10 | (soft << 50) & SOFT_HIGH)
    }
}

impl fmt::Debug for Amd64Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("r")?;
        f.write_str(match self.write() {
            Write::Allowed => "w",
            Write::CopyFirst => "c",
            Write::Denied => "-",
        })?;
        f.write_str(if self.execute() { "x" } else { "-" })?;
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
const fn to_level(level: u8, flags: u64) -> u64 {
    if level == 1 {
        flags
    } else {
        flags & !PAT_4K | (flags & PAT_4K) << 5 | PAGE_SIZE
    }
}

/// The inverse of [`to_level`].
#[inline(always)]
const fn from_level(level: u8, bits: u64) -> u64 {
    if level == 1 {
        bits & FLAGS
    } else {
        bits & FLAGS & !PAGE_SIZE | (bits & PAT_LARGE) >> 5
    }
}

impl<V: Address + 'static, P: Address + 'static, const L: u8> Format for Amd64<V, P, L> {
    type Virt = V;
    type Phys = P;
    type Entry = Amd64Entry;
    type Attr = Amd64Attr;

    const LEVELS: u8 = L;
    const INDEX_BITS: u32 = 9;
    const VIRT_BITS: u32 = 12 + 9 * L as u32;
    const SIGN_EXTENDED: bool = L == 4;
    const PHYS_BITS: u32 = 52;

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 if L > 2 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    #[inline(always)]
    fn leaf_bits(level: u8, attr: Amd64Attr) -> u64 {
        to_level(level, attr.0)
    }

    #[inline(always)]
    fn zero_bits(level: u8, attr: Amd64Attr) -> u64 {
        to_level(level, attr.0) & !PRESENT | ZERO_MARK
    }

    #[inline(always)]
    fn table_entry(table: P) -> Amd64Entry {
        Amd64Entry(table.as_u64() | PRESENT | WRITABLE | USER | ACCESSED)
    }

    fn restricted_table(table: P, rights: Rights) -> Amd64Entry {
        let bit = |right, bit| if rights.contains(right) { bit } else { 0 };
        let no_execute = if rights.contains(Rights::EXECUTE) {
            0
        } else {
            NO_EXECUTE
        };
        let granted = bit(Rights::WRITE, WRITABLE) | bit(Rights::USER, USER);
        Amd64Entry(table.as_u64() | PRESENT | ACCESSED | granted | no_execute)
    }

    #[inline(always)]
    fn decode(level: u8, entry: Amd64Entry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.0;
        if bits & PRESENT == 0 {
            return Ok(Decoded::Content(
                if bits & MARK_FIELD == ZERO_MARK && level < 4 {
                    Content::ZeroOnDemand {
                        attr: Amd64Attr(from_level(level, bits) | PRESENT),
                    }
                } else {
                    Content::Unmapped
                },
            ));
        }
        if level > 1 && bits & PAGE_SIZE == 0 {
            let rights = Rights::READ
                .or(Rights::WRITE.when(bits & WRITABLE != 0))
                .or(Rights::EXECUTE.when(bits & NO_EXECUTE == 0))
                .or(Rights::USER.when(bits & USER != 0));
            return Ok(Decoded::Table {
                table: P::new(bits & ADDRESS),
                rights,
            });
        }
        let below = match level {
            1 => 0,
            2 => (1 << 21) - 1,
            3 => (1 << 30) - 1,
            // SDM table "Format of a PML4 Entry": bit 7 is reserved.
            _ => return Err(Fault::Reserved),
        };
        let phys = bits & ADDRESS & if level == 1 { u64::MAX } else { !PAT_LARGE };
        if phys & below != 0 {
            return Err(Fault::Reserved);
        }
        Ok(Decoded::Content(Content::Page {
            phys: P::new(phys),
            attr: Amd64Attr(from_level(level, bits)),
        }))
    }

    #[inline(always)]
    fn open_table(entry: Amd64Entry) -> Option<P> {
        // Exactly where the three are set does taking them away leave three zeroes and nothing borrowed from above.
        let rest = entry.0.wrapping_sub(PRESENT | WRITABLE | USER);
        let wrong = PRESENT | WRITABLE | USER | PAGE_SIZE | NO_EXECUTE;
        (rest & wrong == 0).then(|| P::new(entry.0 & ADDRESS))
    }

    #[inline(always)]
    fn rights(attr: Amd64Attr) -> Rights {
        Rights::READ
            .or(Rights::WRITE.when(attr.has(WRITABLE)))
            .or(Rights::EXECUTE.when(attr.execute()))
            .or(Rights::USER.when(attr.user()))
    }

    #[inline(always)]
    fn restrict(attr: Amd64Attr, by: Rights) -> Option<Amd64Attr> {
        let mut clear = 0;
        if !by.contains(Rights::WRITE) {
            clear |= WRITABLE;
        }
        if !by.contains(Rights::USER) {
            clear |= USER;
        }
        let set = if by.contains(Rights::EXECUTE) {
            0
        } else {
            NO_EXECUTE
        };
        Some(Amd64Attr(attr.0 & !clear | set))
    }

    #[inline(always)]
    fn hardware_may_change(entry: Amd64Entry) -> bool {
        entry.0 & PRESENT != 0 && entry.0 & (ACCESSED | DIRTY) != ACCESSED | DIRTY
    }

    #[inline(always)]
    fn merge_status(attr: Amd64Attr, other: Amd64Attr) -> Amd64Attr {
        Amd64Attr(attr.0 | other.0 & (ACCESSED | DIRTY))
    }
}

impl Entry for Amd64Entry {
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

impl GenericPTE for Amd64Entry {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        let mut entry = Self(paddr.as_usize() as u64 & ADDRESS);
        entry.set_flags(flags, is_huge);
        entry
    }
    fn new_table(paddr: PhysAddr) -> Self {
        HostAmd64::table_entry(Hpa::new(paddr.as_usize() as u64 & ADDRESS))
    }
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        PTF::from_bits_truncate(self.0).into()
    }
    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !ADDRESS | paddr.as_usize() as u64 & ADDRESS;
    }
    /// Replaces the permissions and the memory type; accessed, dirty, global and the software bits stay.
    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        if flags.is_empty() {
            self.0 = 0;
            return;
        }
        let keep = ADDRESS | ACCESSED | DIRTY | GLOBAL | COW | SOFT_LOW | SOFT_HIGH;
        let large = if is_huge { PAGE_SIZE } else { 0 };
        self.0 = self.0 & keep | PTF::from(flags).bits() | large;
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

impl fmt::Debug for Amd64Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Amd64Entry({:#x}, {:?})", self.0, self.flags())
    }
}
