//! What a format says about its tables, and the values that all formats share.

use core::fmt::Debug;

use page_table_entry::GenericPTE;

use super::error::{Fault, PagingError};
use super::word::AtomicWord;
use crate::addr::{Address, PageSize};

/// The highest number of levels of any format.
pub const MAX_LEVELS: usize = 4;

/// The error of an operation on tables of format `F`.
pub type Error<F> = PagingError<<F as Format>::Virt, <F as Format>::Phys>;

/// An entry of some format: what [`GenericPTE`] lacks is its width and a way from the bits.
pub trait Entry: GenericPTE + Eq {
    /// The word that an entry is in memory.
    type Word: AtomicWord;
    /// Bytes of an entry in memory.
    const BYTES: usize = size_of::<Self::Word>();

    /// The entry that is all zeroes: nothing, in every format.
    const EMPTY: Self;

    /// The entry with these bits.
    fn from_bits(bits: u64) -> Self;
    /// The bits of this entry.
    fn to_bits(self) -> u64;
}

/// Whether and how a page may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Not at all.
    Denied,
    /// In place.
    Allowed,
    /// A write faults, and is to be given a private copy: the copy-on-write mark is set, the right to write is not.
    CopyFirst,
}

/// What an entry grants, and may therefore pass on to what is below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights(u8);

impl Rights {
    /// Everything.
    pub const ALL: Self = Self(0xf);
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reading.
    pub const READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Fetching instructions.
    pub const EXECUTE: Self = Self(4);
    /// User mode, or in EPT fetching in user mode.
    pub const USER: Self = Self(8);

    /// The rights in this set and in `other`.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// The rights in this set or in `other`.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// `self` where `condition` holds, else nothing.
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }
    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a range of addresses leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<P, A> {
    /// Nothing.
    Unmapped,
    /// A page of memory. Copy-on-write is a value of the attributes' [`Write`].
    Page {
        /// Where it starts.
        phys: P,
        /// Who may do what with it.
        attr: A,
    },
    /// Not present: the first access is to be given a zeroed page with these attributes.
    ZeroOnDemand {
        /// Who may do what with it then.
        attr: A,
    },
}

impl<P: Copy, A: Copy> Content<P, A> {
    /// Whether there is a page, or will be at the first access.
    #[inline(always)]
    pub const fn is_mapped(self) -> bool {
        !matches!(self, Self::Unmapped)
    }
    /// Who may do what with it.
    pub fn attr(self) -> Option<A> {
        match self {
            Self::Page { attr, .. } | Self::ZeroOnDemand { attr } => Some(attr),
            Self::Unmapped => None,
        }
    }
    /// The same with other attributes.
    #[inline(always)]
    pub fn with_attr(self, change: impl FnOnce(A) -> Option<A>) -> Self {
        match self {
            Self::Page { phys, attr } => match change(attr) {
                Some(attr) => Self::Page { phys, attr },
                None => Self::Unmapped,
            },
            Self::ZeroOnDemand { attr } => match change(attr) {
                Some(attr) => Self::ZeroOnDemand { attr },
                None => Self::Unmapped,
            },
            Self::Unmapped => Self::Unmapped,
        }
    }
    /// This, where `next` is the same `bytes` further on and `join` makes one of both's attributes.
    pub(super) fn joined(
        self,
        next: Self,
        bytes: u64,
        join: impl FnOnce(A, A) -> Option<A>,
    ) -> Option<Self>
    where
        P: Address,
    {
        match (self, next) {
            (Self::Page { phys, .. }, Self::Page { phys: p, .. })
                if phys.checked_add(bytes) == Some(p) => {}
            (Self::ZeroOnDemand { .. }, Self::ZeroOnDemand { .. }) => {}
            _ => return None,
        }
        let attr = join(self.attr()?, next.attr()?)?;
        Some(self.with_attr(|_| Some(attr)))
    }
    /// What the bits of the leaf for the next `bytes` are greater by.
    pub(super) const fn step(self, bytes: u64) -> u64 {
        match self {
            Self::Page { .. } => bytes,
            _ => 0,
        }
    }
}

/// What a range leads to in format `F`.
pub type ContentOf<F> = Content<<F as Format>::Phys, <F as Format>::Attr>;

/// One leaf, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<V, P, A> {
    /// The first address that it translates, sign-extended where the format does so.
    pub virt: V,
    /// Its size.
    pub size: PageSize,
    /// What is there. Never [`Content::Unmapped`] where an iterator yields it.
    pub content: Content<P, A>,
}

/// A leaf of format `F`.
pub type MappingOf<F> = Mapping<<F as Format>::Virt, <F as Format>::Phys, <F as Format>::Attr>;

impl<V: Address, P: Address, A: Copy> Mapping<V, P, A> {
    /// Where `address`, which must be in this mapping, is in physical memory. `None` where there is no memory yet.
    pub fn phys_of(&self, address: V) -> Option<P> {
        match self.content {
            Content::Page { phys, .. } => {
                let offset = address.as_u64() & (self.size.bytes() - 1);
                Some(P::new(phys.as_u64() | offset))
            }
            _ => None,
        }
    }
}

/// An entry, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<P, A, T = P> {
    /// A table one level down.
    Table {
        /// Where it is.
        table: T,
        /// What the entry lets through.
        rights: Rights,
    },
    /// A leaf, or nothing.
    Content(Content<P, A>),
}

/// What an entry of format `F` says.
pub type DecodedOf<F> = Decoded<<F as Format>::Phys, <F as Format>::Attr>;

/// How one kind of page table encodes its entries. The level of the last table is 1, as in the manuals.
pub trait Format: Copy + Debug + 'static {
    /// What is translated.
    type Virt: Address;
    /// What it is translated to. Tables refer to tables by it too.
    type Phys: Address;
    /// An entry.
    type Entry: Entry;
    /// What a leaf says of its page beside the address.
    type Attr: Copy + Eq + Debug;

    /// Levels of tables.
    const LEVELS: u8;
    /// Bits of the address that choose an entry of one table.
    const INDEX_BITS: u32;
    /// Bits of an address that are translated.
    const VIRT_BITS: u32;
    /// Whether the bits above must equal the highest translated one; else they must be 0.
    const SIGN_EXTENDED: bool;
    /// Bits of the widest physical address.
    const PHYS_BITS: u32;

    /// The size of a leaf at `level`, or `None` where none may stand.
    fn leaf_size(level: u8) -> Option<PageSize>;
    /// The bits of a leaf beside its address.
    fn leaf_bits(level: u8, attr: Self::Attr) -> u64;
    /// The bits of an entry that is to be filled with a zeroed page on the first access.
    fn zero_bits(level: u8, attr: Self::Attr) -> u64;
    /// The entry that refers to the table and lets everything through.
    fn table_entry(table: Self::Phys) -> Self::Entry;
    /// The entry that refers to the table and lets through what is in `rights`. Reading is let through where the
    /// format cannot deny it, or where writing is.
    fn restricted_table(table: Self::Phys, rights: Rights) -> Self::Entry;
    /// What an entry of a table of `level` says.
    ///
    /// # Errors
    /// What the CPU would refuse of it.
    fn decode(level: u8, entry: Self::Entry) -> Result<DecodedOf<Self>, Fault>;
    /// The table that an entry of a `level` above 1 refers to, where the entry lets everything through: the frequent
    /// case of [`Format::decode`], decided by one comparison.
    fn open_table(entry: Self::Entry) -> Option<Self::Phys>;
    /// What a leaf with these attributes grants.
    fn rights(attr: Self::Attr) -> Rights;
    /// The attributes with what `by` does not contain taken away; `None` where nothing is left.
    fn restrict(attr: Self::Attr, by: Rights) -> Option<Self::Attr>;
    /// Whether the CPU may set a bit of this leaf (accessed, dirty) on its own.
    fn hardware_may_change(entry: Self::Entry) -> bool;
    /// The attributes with accessed and dirty set where `other` has them.
    fn merge_status(attr: Self::Attr, other: Self::Attr) -> Self::Attr;
}

/// Numbers that follow from a format's constants.
pub(super) trait FormatExt: Format {
    /// Entries of a table.
    const ENTRIES: usize = 1 << Self::INDEX_BITS;
    /// The bits of an address that are translated.
    const VIRT_MASK: u64 = (1 << Self::VIRT_BITS) - 1;

    /// The bits of an address that one entry of `level` covers.
    #[inline(always)]
    fn shift(level: u8) -> u32 {
        12 + Self::INDEX_BITS * (level as u32 - 1)
    }
    /// Bytes that one entry of `level` covers, less 1.
    fn span_mask(level: u8) -> u64 {
        (1 << Self::shift(level)) - 1
    }
    /// Which entry of a table of `level` is for `va`.
    #[inline(always)]
    fn index(va: u64, level: u8) -> usize {
        (va >> Self::shift(level)) as usize & (Self::ENTRIES - 1)
    }
    /// The level at which a leaf of `size` stands.
    #[inline(always)]
    fn level_of(size: PageSize) -> Result<u8, Error<Self>> {
        (1..=Self::LEVELS)
            .find(|&level| Self::leaf_size(level) == Some(size))
            .ok_or(PagingError::NoSuchLeaf { size })
    }
    /// Whether leaves of `level` can refer to `len` bytes of the content.
    #[inline(always)]
    fn check(level: u8, content: ContentOf<Self>, len: u64) -> Result<(), Error<Self>> {
        if let Content::Page { phys, .. } = content {
            if phys.as_u64() & Self::span_mask(level) != 0 {
                return Err(PagingError::UnalignedPhys { phys });
            }
            // No range is so long that its last address could be small again.
            let last = phys.as_u64().wrapping_add(len.saturating_sub(1));
            if (phys.as_u64() | last) >> Self::PHYS_BITS != 0 {
                return Err(PagingError::PhysTooWide { phys });
            }
        }
        Ok(())
    }
    /// The address whose translated bits are `va`.
    #[inline(always)]
    fn virt(va: u64) -> Self::Virt {
        let unused = 64 - Self::VIRT_BITS;
        Self::Virt::new(if Self::SIGN_EXTENDED {
            ((va << unused) as i64 >> unused) as u64
        } else {
            va
        })
    }
    /// Whether the unused bits of the address are as they must be.
    #[inline(always)]
    fn is_canonical(address: Self::Virt) -> bool {
        Self::virt(address.as_u64() & Self::VIRT_MASK) == address
    }
    /// The translated bits of one address.
    #[inline(always)]
    fn va_of(address: Self::Virt) -> Result<u64, Error<Self>> {
        if Self::is_canonical(address) {
            Ok(address.as_u64() & Self::VIRT_MASK)
        } else {
            Err(out_of_range(address, 1))
        }
    }
    /// The translated bits of the first and the last address of a range of whole pages; `None` of an empty one.
    #[inline]
    fn pages(start: Self::Virt, len: u64) -> Result<Option<(u64, u64)>, Error<Self>> {
        if !start.is_aligned(0x1000) || len & 0xfff != 0 {
            return Err(PagingError::Unaligned { start, len });
        }
        let Some(more) = len.checked_sub(1) else {
            return match Self::is_canonical(start) {
                true => Ok(None),
                false => Err(out_of_range(start, len)),
            };
        };
        let half = u32::from(Self::SIGN_EXTENDED);
        match start.checked_add(more) {
            // Both ends in the same half: then all between them is.
            Some(last)
                if Self::is_canonical(start)
                    && (start.as_u64() ^ last.as_u64()) >> (Self::VIRT_BITS - half) == 0 =>
            {
                let first = start.as_u64() & Self::VIRT_MASK;
                Ok(Some((first, first + more)))
            }
            _ => Err(out_of_range(start, len)),
        }
    }
    /// The translated bits of the first and last address that can be translated in any range of addresses.
    fn clamp(start: Self::Virt, len: u64) -> Option<(u64, u64)> {
        let first = start.as_u64();
        let last = first.saturating_add(len.checked_sub(1)?);
        let (low_end, high_start) = if Self::SIGN_EXTENDED {
            let half = 1u64 << (Self::VIRT_BITS - 1);
            (half - 1, half.wrapping_neg())
        } else {
            // There is no high part.
            (Self::VIRT_MASK, u64::MAX)
        };
        let hole = |a: u64| a > low_end && (!Self::SIGN_EXTENDED || a < high_start);
        let first = match hole(first) {
            true if Self::SIGN_EXTENDED => high_start,
            true => return None,
            false => first,
        };
        let last = if hole(last) { low_end } else { last };
        (first <= last).then_some((first & Self::VIRT_MASK, last & Self::VIRT_MASK))
    }
    /// The content of an entry of `level` as bits, without the address.
    fn bits_of(level: u8, content: ContentOf<Self>) -> u64 {
        match content {
            Content::Unmapped => 0,
            Content::Page { attr, .. } => Self::leaf_bits(level, attr),
            Content::ZeroOnDemand { attr } => Self::zero_bits(level, attr),
        }
    }
    /// The entry of `level` for this content.
    fn encode(level: u8, content: ContentOf<Self>) -> Self::Entry {
        let phys = match content {
            Content::Page { phys, .. } => phys.as_u64(),
            _ => 0,
        };
        Self::Entry::from_bits(Self::bits_of(level, content) | phys)
    }
}

impl<F: Format> FormatExt for F {}

/// Out of line, so that the compiler prepares nothing for it where all is well.
#[cold]
#[inline(never)]
fn out_of_range<V, P>(start: V, len: u64) -> PagingError<V, P> {
    PagingError::OutOfRange { start, len }
}
