//! What the leaves of a space say beside what the CPU reads: whose their frame is.

use crate::addr::Hpa;
use crate::frames::{Frame, FrameRef};
use crate::paging::{
    Attr, Content, Decoded, DecodedOf, Entry, Format, Levels, Nested, NestedLayout, Pte,
};
use core::sync::atomic::{AtomicU64, Ordering};

/// An entry of format `F`, and what a leaf of it says.
pub(in crate::ept) type PteOf<F> = Pte<<F as Levels>::Layout>;
pub(in crate::ept) type AttrOf<F> = Attr<<F as Levels>::Layout>;

/// The bits of entries that are looked at and changed without decoding all of them, beside those of [`Layout`](crate::paging::Layout).
pub(in crate::ept) trait Marks: NestedLayout {
    /// All entries in use have it.
    const USED: u64 = if Self::READ == 0 {
        Self::PRESENT
    } else {
        Self::READ
    };
    /// The mark of a leaf that it had lost [`DIRTY`](crate::paging::Layout::DIRTY) to a harvest since the last reset, to which that must not be lost.
    const HARVESTED: u64 = Attr::<Self>::soft_mask(1 << 2);
    /// [`Origin::Zero`] and [`Origin::Host`] have it in a leaf; entries of tables have none.
    const NOT_OWN: u64 = Attr::<Self>::soft_mask(Origin::Zero.bits());
    /// [`Origin::Host`] in a leaf.
    const HOST: u64 = Attr::<Self>::soft_mask(Origin::Host.bits());

    /// Whether nothing may be fetched, of an entry in use.
    #[inline(always)]
    fn denies_fetch(bits: u64) -> bool {
        bits & (Self::FETCH | Self::NO_EXECUTE) == Self::NO_EXECUTE
    }
    /// The same bits with fetching denied.
    #[inline(always)]
    fn no_fetch(bits: u64) -> u64 {
        bits & !Self::FETCH | Self::NO_EXECUTE
    }
    /// Allows fetching in a leaf.
    #[inline(always)]
    fn allow_fetch(leaf: &AtomicU64) {
        if Self::FETCH != 0 {
            leaf.fetch_or(Self::FETCH, Ordering::AcqRel);
        }
        if Self::NO_EXECUTE != 0 {
            leaf.fetch_and(!Self::NO_EXECUTE, Ordering::AcqRel);
        }
    }
}

impl<L: NestedLayout> Marks for L {}

/// Where the frame behind a leaf came from. It stands in software bits of the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A frame that was given out zeroed; counted.
    Filled,
    /// The one zero page that all spaces share; counted, never writable.
    Zero,
    /// A copy of another frame or of host bytes; counted.
    Copied,
    /// Memory that no allocator manages: a module's bytes or a device; not counted.
    Host,
}

impl Origin {
    const BITS: u16 = 3;

    /// The leaf with nothing in its software bits but this.
    pub(in crate::ept) const fn alone<L: NestedLayout>(attr: Attr<L>) -> Attr<L> {
        attr.with_soft(attr.soft() & Self::BITS)
    }

    /// The origin that a leaf tells.
    #[inline(always)]
    pub const fn of<L: NestedLayout>(attr: Attr<L>) -> Self {
        match attr.soft() & Self::BITS {
            0 => Self::Filled,
            1 => Self::Zero,
            2 => Self::Copied,
            _ => Self::Host,
        }
    }
    const fn bits(self) -> u16 {
        match self {
            Self::Filled => 0,
            Self::Zero => 1,
            Self::Copied => 2,
            Self::Host => 3,
        }
    }
    /// The leaf with this origin.
    #[inline(always)]
    pub const fn mark<L: NestedLayout>(self, attr: Attr<L>) -> Attr<L> {
        attr.with_soft(attr.soft() & !Self::BITS | self.bits())
    }
    /// Whether the leaf holds a counted reference to its frame.
    #[inline(always)]
    pub const fn is_counted(self) -> bool {
        !matches!(self, Self::Host)
    }
}

/// The software bit of leaves that were part of a large page from which instructions were fetched.
pub(in crate::ept) const FETCHED: u16 = 1 << 3;

/// Whether the page was part of a large one from which instructions were fetched.
pub(in crate::ept) fn was_fetched<L: NestedLayout>(attr: Attr<L>) -> bool {
    attr.soft() & FETCHED != 0
}

/// What an entry of a lowest table comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ept) enum Holds {
    /// Nothing.
    Hole,
    /// The zero page.
    ZeroPage,
    /// Memory that no allocator manages.
    Host,
    /// A frame that was filled or copied, and may not be written.
    Frame,
    /// A page that may be written.
    Writable,
}

impl Holds {
    /// Looks at an entry of a lowest table, which is as ours are.
    #[inline(always)]
    pub fn of<L: NestedLayout>(entry: Pte<L>) -> Self {
        let bits = entry.to_bits();
        if bits & L::USED == 0 {
            Self::Hole
        } else if bits & L::WRITE != 0 {
            Self::Writable
        } else if bits & L::NOT_OWN == 0 {
            Self::Frame
        } else if bits & L::HOST == L::HOST {
            Self::Host
        } else {
            Self::ZeroPage
        }
    }
}

/// The frame that a leaf of a lowest table refers to, if it is one that can be a space's own: filled or copied.
#[inline]
pub(in crate::ept) fn own_frame<L: NestedLayout>(bits: u64) -> Option<Hpa> {
    (bits & L::USED != 0 && bits & L::NOT_OWN == 0).then(|| Pte::<L>::from_bits(bits).frame())
}

/// Where an entry leads that is read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ept) enum Way<T> {
    /// To a table.
    Table(T),
    /// To a page that is a counted frame or more.
    Counted(Hpa),
    /// Elsewhere: nothing is there, or the host's.
    Other,
}

/// Looks where an entry of a table of `level` leads, which is as ours are: no table withholds reading.
#[inline(always)]
pub(in crate::ept) fn step<L: NestedLayout>(level: u8, entry: Pte<L>) -> Way<Hpa> {
    let bits = entry.to_bits();
    let is_leaf = level == 1 || bits & L::LEAF != 0;
    if bits & L::USED == 0 || is_leaf && bits & L::HOST == L::HOST {
        Way::Other
    } else if is_leaf {
        Way::Counted(entry.frame())
    } else {
        Way::Table(entry.frame())
    }
}

/// The table or the page to which an entry, as ours are, holds a counted reference: the fast path to what [`decode`] and
/// [`Origin::is_counted`] say.
#[inline(always)]
pub(in crate::ept) fn counted<L: NestedLayout>(entry: Pte<L>) -> Option<Hpa> {
    let bits = entry.to_bits();
    // Two branches rather than one condition: the first is the frequent one (bench drop.*, reset.cold).
    if bits & L::PRESENT == 0 {
        return None;
    }
    if bits & L::HOST == L::HOST {
        return None;
    }
    Some(entry.frame())
}

/// The reference of an entry, looked at.
///
/// # Safety
/// The entry must stand in a table of a space, and stay there as long as the result lives.
#[inline(always)]
pub(in crate::ept) unsafe fn lent<'a, L: NestedLayout>(entry: Pte<L>) -> Option<FrameRef<'a>> {
    // SAFETY: the caller's: tables hold what `Frame::into_raw` gave.
    counted(entry).map(|address| unsafe { FrameRef::from_raw(address) })
}

/// The reference that an entry held: the one way by which bits become an owner.
///
/// # Safety
/// The entry must have stood in a table of a space, and have been taken out for good, or be lost with its table.
#[inline(always)]
pub(in crate::ept) unsafe fn owned<L: NestedLayout>(entry: Pte<L>) -> Option<Frame> {
    // SAFETY: as above.
    counted(entry).map(|address| unsafe { Frame::from_raw(address) })
}

/// What an entry of a table of `level` says. An entry that cannot be decoded is a bug of ours; it says nothing.
#[inline(always)]
pub(in crate::ept) fn decode<F: Nested>(level: u8, entry: PteOf<F>) -> DecodedOf<F> {
    F::decode(level, entry).unwrap_or(Decoded::Content(Content::Unmapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::{Ept, EptAttr, EptEntry, Rights, Write};

    #[test]
    fn the_quick_look_sees_what_is_there() {
        use Origin::{Copied, Filled, Host, Zero};
        let phys = Hpa::new(0x000f_edcb_a987_6000);
        let entry = |attr| EptEntry::from_bits(Ept::leaf_bits(1, attr) | phys.as_u64());
        let base = EptAttr::READ_EXECUTE.with_dirty(true).with_soft(0xffc);
        for (origin, seen) in [
            (Filled, Holds::Frame),
            (Copied, Holds::Frame),
            (Zero, Holds::ZeroPage),
            (Host, Holds::Host),
        ] {
            let leaf = entry(origin.mark(base));
            assert_eq!((Holds::of(leaf), leaf.frame()), (seen, phys));
            let writable = entry(origin.mark(base.with_write(Write::Allowed)));
            assert_eq!(Holds::of(writable), Holds::Writable);
        }
        assert_eq!(Holds::of(EptEntry::EMPTY), Holds::Hole);
    }

    #[test]
    fn counted_references_are_those_that_decoding_tells() {
        let phys = Hpa::new(0x000f_edc0_0000_0000);
        let table = Ept::table_entry(phys);
        let closed = Ept::restricted_table(phys, Rights::READ.or(Rights::EXECUTE));
        for entry in [EptEntry::EMPTY, table, closed, table.write_protected()] {
            let told = match decode::<Ept>(3, entry) {
                Decoded::Table { table, .. } => Some(table),
                Decoded::Content(_) => None,
            };
            assert_eq!(counted(entry), told, "{entry:?}");
        }
        let attrs = [
            EptAttr::READ,
            EptAttr::EXECUTE,
            EptAttr::READ_WRITE_EXECUTE.with_dirty(true),
        ];
        for level in 1..=3 {
            for origin in [Origin::Filled, Origin::Zero, Origin::Copied, Origin::Host] {
                for attr in attrs.map(|attr| origin.mark(attr.with_accessed(true))) {
                    let entry = EptEntry::from_bits(Ept::leaf_bits(level, attr) | phys.as_u64());
                    let page = Content::Page { phys, attr };
                    assert_eq!(decode::<Ept>(level, entry), Decoded::Content(page));
                    assert_eq!(counted(entry), origin.is_counted().then_some(phys));
                }
            }
            let later = Ept::zero_bits(level, EptAttr::READ_WRITE);
            assert_eq!(counted(EptEntry::from_bits(later)), None);
        }
    }

    #[test]
    fn origins_survive_in_the_leaf_and_touch_nothing_else() {
        for base in [
            EptAttr::READ,
            EptAttr::READ_WRITE_EXECUTE
                .with_dirty(true)
                .with_soft(0xffc),
        ] {
            for origin in [Origin::Filled, Origin::Zero, Origin::Copied, Origin::Host] {
                let marked = origin.mark(base);
                assert_eq!(Origin::of(marked), origin);
                assert_eq!(Origin::Filled.mark(marked), Origin::Filled.mark(base));
                assert_eq!(marked.soft() & !3, base.soft() & !3);
            }
        }
    }
}
