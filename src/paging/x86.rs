//! The formats of x86's own page tables: amd64, 4 levels of 512 entries (SDM "4-Level Paging and 5-Level Paging", volume 3A,
//! 4.5), of which PAE paging has the lowest two (SDM "PAE Paging", 4.4), and i686, 2 levels of 1024 entries (SDM "32-Bit
//! Paging", 4.3).

use core::fmt::Debug;
use core::marker::PhantomData;

use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, FormatExt, Rights};
use super::x86_entry::*;
use crate::addr::{Address, Gpa, Gva, Hpa, Hva, PageSize};

/// An entry of an amd64 table.
pub type Amd64Entry = X86Entry<Bits64>;
/// What an amd64 leaf says of its page.
pub type Amd64Attr = X86Attr<Bits64>;
/// An entry of an i686 table.
pub type I686Entry = X86Entry<Bits32>;
/// What an i686 leaf says of its page.
pub type I686Attr = X86Attr<Bits32>;

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

/// What tells one of these formats from another.
pub trait X86: Copy + Debug + 'static {
    /// What is translated.
    type Virt: Address;
    /// What it is translated to.
    type Phys: Address;
    /// The width of the entries.
    type Width: Width;

    /// Levels of tables.
    const LEVELS: u8;
    /// Bits of the address that choose an entry of one table.
    const INDEX_BITS: u32;
    /// The bit by which an entry above level 1 says that it is a leaf; 0 where it cannot.
    const LEAF: u64;

    /// The size of a leaf at `level`, or `None` where none may stand.
    fn leaf_size(level: u8) -> Option<PageSize>;
}

impl<V: Address + 'static, P: Address + 'static, const L: u8> X86 for Amd64<V, P, L> {
    type Virt = V;
    type Phys = P;
    type Width = Bits64;

    const LEVELS: u8 = L;
    const INDEX_BITS: u32 = 9;
    const LEAF: u64 = PAGE_SIZE;

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 if L > 2 => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

impl<const LARGE: bool> X86 for I686<LARGE> {
    type Virt = Gva;
    type Phys = Gpa;
    type Width = Bits32;

    const LEVELS: u8 = 2;
    const INDEX_BITS: u32 = 10;
    const LEAF: u64 = if LARGE { PAGE_SIZE } else { 0 };

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 if LARGE => Some(PageSize::Size4M),
            _ => None,
        }
    }
}

impl<T: X86> Format for T {
    type Virt = T::Virt;
    type Phys = T::Phys;
    type Entry = X86Entry<T::Width>;
    type Attr = X86Attr<T::Width>;

    const LEVELS: u8 = T::LEVELS;
    const INDEX_BITS: u32 = T::INDEX_BITS;
    const VIRT_BITS: u32 = 12 + T::INDEX_BITS * T::LEVELS as u32;
    const SIGN_EXTENDED: bool = <T as Format>::VIRT_BITS == 48;
    const PHYS_BITS: u32 = 64 - T::Width::ADDRESS.leading_zeros();

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        <T as X86>::leaf_size(level)
    }

    #[inline(always)]
    fn leaf_bits(level: u8, attr: Self::Attr) -> u64 {
        attr.leaf_bits(level)
    }

    #[inline(always)]
    fn zero_bits(level: u8, attr: Self::Attr) -> u64 {
        attr.zero_bits(level)
    }

    #[inline(always)]
    fn table_entry(table: T::Phys) -> Self::Entry {
        Entry::from_bits(table.as_u64() | PRESENT | WRITABLE | USER | ACCESSED)
    }

    fn restricted_table(table: T::Phys, rights: Rights) -> Self::Entry {
        let (clear, set) = denied::<T::Width>(rights);
        Entry::from_bits(Self::table_entry(table).0 & !clear | set)
    }

    #[inline(always)]
    fn decode(level: u8, entry: Self::Entry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.0;
        let can_be_leaf = <T as X86>::leaf_size(level).is_some();
        if bits & PRESENT == 0 {
            return Ok(Decoded::Content(match X86Attr::of_zero(level, bits) {
                Some(attr) if can_be_leaf => Content::ZeroOnDemand { attr },
                _ => Content::Unmapped,
            }));
        }
        if level > 1 && bits & T::LEAF == 0 {
            return Ok(Decoded::Table {
                table: T::Phys::new(bits & T::Width::ADDRESS),
                rights: rights_of::<T::Width>(bits),
            });
        }
        // SDM table "Format of a PML4 Entry": bit 7 is reserved. In a leaf of 4 MiB, bits 20:13 would be the bits above 32
        // of the address (PSE-36), which this format does not use.
        let pat = if level == 1 { 0 } else { PAT_LARGE };
        let phys = bits & T::Width::ADDRESS & !pat;
        if !can_be_leaf || phys & Self::span_mask(level) != 0 {
            return Err(Fault::Reserved);
        }
        Ok(Decoded::Content(Content::Page {
            phys: T::Phys::new(phys),
            attr: X86Attr::of_leaf(level, bits),
        }))
    }

    #[inline(always)]
    fn open_table(entry: Self::Entry) -> Option<T::Phys> {
        // Exactly where the three are set does taking them away leave three zeroes and nothing borrowed from above.
        let rest = entry.0.wrapping_sub(PRESENT | WRITABLE | USER);
        let wrong = PRESENT | WRITABLE | USER | T::LEAF | T::Width::NO_EXECUTE;
        (rest & wrong == 0).then(|| T::Phys::new(entry.0 & T::Width::ADDRESS))
    }

    #[inline(always)]
    fn rights(attr: Self::Attr) -> Rights {
        attr.rights()
    }

    #[inline(always)]
    fn restrict(attr: Self::Attr, by: Rights) -> Option<Self::Attr> {
        Some(attr.restrict(by))
    }

    #[inline(always)]
    fn hardware_may_change(entry: Self::Entry) -> bool {
        entry.0 & PRESENT != 0 && entry.0 & (ACCESSED | DIRTY) != ACCESSED | DIRTY
    }

    #[inline(always)]
    fn merge_status(attr: Self::Attr, other: Self::Attr) -> Self::Attr {
        attr.merge_status(other)
    }
}
