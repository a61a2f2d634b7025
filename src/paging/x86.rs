//! The formats of x86's own page tables: amd64, 4 levels of 512 entries (SDM "4-Level Paging and 5-Level Paging", volume 3A,
//! 4.5), of which PAE paging has the lowest two (SDM "PAE Paging", 4.4), and i686, 2 levels of 1024 entries (SDM "32-Bit
//! Paging", 4.3), whose entries are those of 64 bits without what is above.

use core::fmt::Debug;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64};

use super::attr::Attr;
use super::entry::{Layout, Pte};
use super::format::Write;
use super::levels::Levels;
use crate::addr::{Address, Gpa, Gva, Hpa, Hva, PageSize};

/// Entries of 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits32;
/// Entries of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits64;

impl Layout for Bits32 {
    type Word = AtomicU32;
    const ALL: u64 = 0xffff_ffff;
    const ADDRESS: u64 = 0xffff_f000;
}

impl Layout for Bits64 {
    type Word = AtomicU64;
    const NO_EXECUTE: u64 = 1 << 63;
    /// Bits 52 to 62 (59 to 62 hold the protection key where that is enabled).
    const SOFT_HIGH: u64 = 0x7ff << 52;
}

/// The layouts of x86's own tables.
pub trait X86: Layout {}
impl X86 for Bits32 {}
impl X86 for Bits64 {}

/// An entry of an amd64 table.
pub type Amd64Entry = Pte<Bits64>;
/// What an amd64 leaf says of its page.
pub type Amd64Attr = Attr<Bits64>;
/// An entry of an i686 table.
pub type I686Entry = Pte<Bits32>;
/// What an i686 leaf says of its page.
pub type I686Attr = Attr<Bits32>;

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

/// The format of a 32-bit guest's tables without PAE. It has no execute permission: what can be read can be executed.
/// `LARGE` is CR4.PSE: without it there are no leaves of 4 MiB, and what marks one does not count.
#[derive(Clone, Copy, Debug)]
pub struct I686<const LARGE: bool = true>;

impl<V: Address + 'static, P: Address + 'static, const L: u8> Levels for Amd64<V, P, L> {
    type Virt = V;
    type Phys = P;
    type Layout = Bits64;
    const LEVELS: u8 = L;
    const SIGN_EXTENDED: bool = L == 4;
}

impl<const LARGE: bool> Levels for I686<LARGE> {
    type Virt = Gva;
    type Phys = Gpa;
    type Layout = Bits32;
    const LEVELS: u8 = 2;
    const INDEX_BITS: u32 = 10;
    const LEAF: u64 = if LARGE { Bits32::LEAF } else { 0 };

    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 if LARGE => Some(PageSize::Size4M),
            _ => None,
        }
    }
}

impl<L: X86> Attr<L> {
    /// A supervisor page, read-only, not executable where that can be, write-back, accessed and dirty already set, so that
    /// the CPU need not write to the tables.
    pub const READ: Self = Self::from_bits(L::PRESENT | L::ACCESSED | L::DIRTY | L::NO_EXECUTE);
    /// As [`Self::READ`], and writable.
    pub const READ_WRITE: Self = Self::READ.with_write(Write::Allowed);
    /// As [`Self::READ`], and executable.
    pub const READ_EXECUTE: Self = Self::READ.with_execute(true);

    /// Whether user mode may use the page.
    pub const fn user(self) -> bool {
        self.has(L::USER)
    }
    /// Sets whether user mode may use the page.
    pub const fn with_user(self, on: bool) -> Self {
        self.with(L::USER, on)
    }
    /// Whether the translation survives a load of CR3.
    pub const fn global(self) -> bool {
        self.has(L::GLOBAL)
    }
    /// Sets whether the translation survives a load of CR3.
    pub const fn with_global(self, on: bool) -> Self {
        self.with(L::GLOBAL, on)
    }
    /// The entry of the page attribute table that holds the memory type: PAT, PCD and PWT as a number of 3 bits.
    pub const fn pat_index(self) -> u8 {
        ((self.0 & L::MEMORY) >> 3 | (self.0 & L::PAT) >> 5) as u8
    }
    /// Chooses an entry of the page attribute table; of `index` the lowest 3 bits count.
    pub const fn with_pat_index(self, index: u8) -> Self {
        let index = index as u64;
        Self::from_bits(self.0 & !(L::MEMORY | L::PAT) | (index & 3) << 3 | (index & 4) << 5)
    }
}
