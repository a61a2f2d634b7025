//! Formats whose entries are said by a [`Layout`]: all that the walker asks for follows from it.

use core::fmt::Debug;

use super::attr::{Attr, high_pat};
use super::entry::{Layout, Pte, is_misconfigured, open, restricted, rights_of};
use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, FormatExt, Rights};
use crate::addr::{Address, PageSize};

/// What tells a format from another with such entries.
pub trait Levels: Copy + Debug + 'static {
    /// What is translated.
    type Virt: Address;
    /// What it is translated to.
    type Phys: Address;
    /// The entries.
    type Layout: Layout;

    /// Levels of tables.
    const LEVELS: u8 = 4;
    /// Bits of the address that choose an entry of one table.
    const INDEX_BITS: u32 = 9;
    /// Whether the bits above those that are translated equal the highest of them.
    const SIGN_EXTENDED: bool = false;
    /// The bit by which an entry above level 1 says that it is a leaf; 0 where it cannot.
    const LEAF: u64 = <Self::Layout as Layout>::LEAF;

    /// The size of a leaf at `level`, or `None` where none may stand.
    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

/// What must be 0 in what refers to a table: memory types belong in leaves (SDM "EPT Misconfigurations").
const fn reserved<L: Layout>() -> u64 {
    if L::READ == 0 { 0 } else { L::MEMORY }
}

/// Out of line: both bits are noted of nearly all that is replaced, and one branch tells (walker's row `unmap_range`).
#[cold]
#[inline(never)]
fn is_present<L: Layout>(bits: u64) -> bool {
    bits & L::PRESENT != 0
}

impl<T: Levels> Format for T {
    type Virt = T::Virt;
    type Phys = T::Phys;
    type Entry = Pte<T::Layout>;
    type Attr = Attr<T::Layout>;

    const LEVELS: u8 = T::LEVELS;
    const INDEX_BITS: u32 = T::INDEX_BITS;
    const VIRT_BITS: u32 = 12 + T::INDEX_BITS * T::LEVELS as u32;
    const SIGN_EXTENDED: bool = T::SIGN_EXTENDED;
    const PHYS_BITS: u32 = 64 - T::Layout::ADDRESS.leading_zeros();

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        <T as Levels>::leaf_size(level)
    }

    fn leaf_bits(level: u8, attr: Self::Attr) -> u64 {
        attr.leaf_bits(level)
    }

    fn zero_bits(level: u8, attr: Self::Attr) -> u64 {
        attr.zero_bits(level)
    }

    fn table_entry(table: T::Phys) -> Self::Entry {
        Entry::from_bits(table.as_u64() | open::<T::Layout>() | T::Layout::ACCESSED)
    }

    fn restricted_table(table: T::Phys, rights: Rights) -> Self::Entry {
        let read = Rights::READ.when(rights.contains(Rights::WRITE));
        let open = Self::table_entry(table).0;
        Entry::from_bits(restricted::<T::Layout>(open, rights.or(read)))
    }

    #[inline(always)]
    fn decode(level: u8, entry: Self::Entry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.0;
        if bits & T::Layout::PRESENT == 0 {
            return Ok(Decoded::Content(match Attr::of_zero(level, bits) {
                Some(attr) if bits != 0 && Self::leaf_size(level).is_some() => {
                    Content::ZeroOnDemand { attr }
                }
                _ => Content::Unmapped,
            }));
        }
        if is_misconfigured::<T::Layout>(bits) {
            return Err(Fault::Misconfigured);
        }
        if level > 1 && bits & T::LEAF == 0 {
            if bits & reserved::<T::Layout>() != 0 {
                return Err(Fault::Reserved);
            }
            return Ok(Decoded::Table {
                table: T::Phys::new(bits & T::Layout::ADDRESS),
                rights: rights_of::<T::Layout>(bits),
            });
        }
        // SDM table "Format of a PML4 Entry": bit 7 is reserved. In a leaf of 4 MiB, bits 20:13 would be the bits above 32
        // of the address (PSE-36), which this format does not use.
        let attr = Attr::<T::Layout>::of_leaf(level, bits);
        let phys = bits & T::Layout::ADDRESS & !high_pat::<T::Layout>(level);
        if Self::leaf_size(level).is_none() || phys & Self::span_mask(level) != 0 {
            return Err(Fault::Reserved);
        }
        if !T::Layout::has_memory_type(bits) {
            return Err(Fault::Misconfigured);
        }
        Ok(Decoded::Content(Content::Page {
            phys: T::Phys::new(phys),
            attr,
        }))
    }

    #[inline(always)]
    fn open_table(entry: Self::Entry) -> Option<T::Phys> {
        // Exactly where all of these are set does taking them away leave zeroes in their places and nothing borrowed from
        // above; what is between is ignored.
        let open = open::<T::Layout>();
        let closed = T::LEAF | T::Layout::NO_EXECUTE | reserved::<T::Layout>();
        let rest = entry.0.wrapping_sub(open);
        (rest & (open | closed) == 0).then(|| T::Phys::new(entry.0 & T::Layout::ADDRESS))
    }

    fn rights(attr: Self::Attr) -> Rights {
        rights_of::<T::Layout>(attr.0)
    }

    #[inline(always)]
    fn restrict(attr: Self::Attr, by: Rights) -> Option<Self::Attr> {
        let left = Attr::from_bits(restricted::<T::Layout>(attr.0, by));
        // Where reading is no bit, what is present stays so.
        (T::Layout::READ == 0 || left.has(T::Layout::PRESENT)).then_some(left)
    }

    fn hardware_may_change(entry: Self::Entry) -> bool {
        let noted = T::Layout::ACCESSED | T::Layout::DIRTY;
        entry.0 & noted != noted && is_present::<T::Layout>(entry.0)
    }

    fn merge_status(attr: Self::Attr, other: Self::Attr) -> Self::Attr {
        Attr::from_bits(attr.0 | other.0 & (T::Layout::ACCESSED | T::Layout::DIRTY))
    }
}
