//! What the leaves of a space say beside what the CPU reads: whose their frame is.

use crate::addr::Hpa;
use crate::paging::{Decoded, DecodedOf, Entry, Ept, EptAttr, EptEntry, Format};

/// Where the frame behind a leaf came from. It stands in software bits of the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A frame that was given out zeroed; counted.
    Filled,
    /// The one frame of zeroes that all spaces share; counted, never writable.
    Zero,
    /// A copy of another frame or of host bytes; counted.
    Copied,
    /// Memory that no allocator manages: a module's bytes or a device; not counted.
    Host,
}

impl Origin {
    const BITS: u16 = 3;

    /// The origin that a leaf tells.
    #[inline(always)]
    pub const fn of(attr: EptAttr) -> Self {
        match attr.soft() & Self::BITS {
            0 => Self::Filled,
            1 => Self::Zero,
            2 => Self::Copied,
            _ => Self::Host,
        }
    }
    /// The leaf with this origin.
    #[inline(always)]
    pub const fn mark(self, attr: EptAttr) -> EptAttr {
        let bits = match self {
            Self::Filled => 0,
            Self::Zero => 1,
            Self::Copied => 2,
            Self::Host => 3,
        };
        attr.with_soft(attr.soft() & !Self::BITS | bits)
    }
    /// Whether the leaf holds a counted reference to its frame.
    #[inline(always)]
    pub const fn is_counted(self) -> bool {
        !matches!(self, Self::Host)
    }
}

/// The page of a leaf of the lowest level that can be read and not written: the quick way to know, made for entries of ours,
/// which are as they must be.
#[inline(always)]
pub(super) fn read_only_page(entry: EptEntry) -> Option<(Hpa, Origin)> {
    const READ: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let bits = entry.to_bits();
    // Where `EptAttr::soft` has its lowest bits.
    let origin = match (bits >> 53 & 1, bits >> 11 & 1) {
        (0, 0) => Origin::Filled,
        (0, _) => Origin::Zero,
        (_, 0) => Origin::Copied,
        _ => Origin::Host,
    };
    (bits & (READ | WRITE) == READ).then_some((Hpa::new(bits & ADDRESS), origin))
}

/// What an entry of a table of `level` says. An entry that cannot be decoded is a bug of ours; it says nothing.
#[inline(always)]
pub(super) fn decode(level: u8, entry: EptEntry) -> DecodedOf<Ept> {
    Ept::decode(level, entry).unwrap_or(Decoded::Content(crate::paging::Content::Unmapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::Write;

    #[test]
    fn a_read_only_page_is_told_from_everything_else() {
        let phys = Hpa::new(0x000f_edcb_a987_6000);
        for write in [Write::Denied, Write::Allowed] {
            for origin in [Origin::Filled, Origin::Zero, Origin::Copied, Origin::Host] {
                let base = EptAttr::READ_EXECUTE.with_dirty(true).with_soft(0xffc);
                let attr = origin.mark(base.with_write(write));
                let entry = EptEntry::from_bits(Ept::leaf_bits(1, attr) | phys.as_u64());
                let expected = (write == Write::Denied).then_some((phys, origin));
                assert_eq!(read_only_page(entry), expected);
            }
        }
        assert_eq!(read_only_page(EptEntry::EMPTY), None);
        let attr = EptAttr::EXECUTE;
        assert_eq!(
            read_only_page(EptEntry::from_bits(Ept::leaf_bits(1, attr))),
            None
        );
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
