//! What the guest's processor demands of entries, by the format of their table, beyond what the walker does.

use super::translation::{ADDRESS, Paging, Translation};
use crate::addr::{Gpa, Gva};
use crate::paging::{Amd64, Format, I686};

/// In an entry that is not of the last level: a leaf.
const LEAF: u64 = 1 << 7;

/// A format of guests' own tables.
pub(super) trait GuestFormat: Format<Virt = Gva, Phys = Gpa> {
    /// Whether a present entry of `level` has a bit that must be 0.
    fn is_reserved(level: u8, bits: u64, translation: &Translation) -> bool;
    /// The page of a leaf of `level`.
    fn page(level: u8, bits: u64) -> u64;
}

impl<const LEVELS: u8> GuestFormat for Amd64<Gva, Gpa, LEVELS> {
    fn is_reserved(level: u8, bits: u64, translation: &Translation) -> bool {
        // SDM tables "Format of a ... Entry", 5.4 and 5.5. Bit 12 of a large leaf is of the memory type.
        let leaf = match (level, bits & LEAF != 0) {
            (4, _) => LEAF,
            (3, true) if translation.gib_pages => (1 << 30) - (1 << 13),
            (3, true) => LEAF,
            (2, true) => (1 << 21) - (1 << 13),
            _ => 0,
        };
        bits & (leaf | translation.reserved) != 0
    }
    fn page(level: u8, bits: u64) -> u64 {
        bits & ADDRESS & u64::MAX << (12 + 9 * u32::from(level - 1))
    }
}

impl<const LARGE: bool> GuestFormat for I686<LARGE> {
    fn is_reserved(level: u8, bits: u64, translation: &Translation) -> bool {
        match translation.paging {
            Paging::ThirtyTwoBit {
                large: Some(reserved),
                ..
            } if level == 2 && bits & LEAF != 0 => bits & reserved != 0,
            _ => false,
        }
    }
    /// Bits 39 to 32 of the address of a leaf of 4 MiB are its bits 20 to 13.
    fn page(level: u8, bits: u64) -> u64 {
        match level {
            1 => bits & 0xffff_f000,
            _ => bits & 0xffc0_0000 | (bits >> 13 & 0xff) << 32,
        }
    }
}
