//! The EPT format: 4 levels of 512 entries (SDM "Extended Page-Table Mechanism (EPT)", volume 3C, 30.3).

use super::ept_attr::*;
use super::ept_entry::EptEntry;
use super::error::Fault;
use super::format::{Content, Decoded, DecodedOf, Entry, Format, Rights};
use crate::addr::{Gpa, Hpa, PageSize};

/// The format of tables that translate guest-physical to host-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

#[inline(always)]
fn rights_of(bits: u64) -> Rights {
    Rights::READ
        .when(bits & READ != 0)
        .or(Rights::WRITE.when(bits & WRITE != 0))
        .or(Rights::EXECUTE.when(bits & EXECUTE != 0))
        .or(Rights::USER.when(bits & USER_EXECUTE != 0))
}

impl Format for Ept {
    type Virt = Gpa;
    type Phys = Hpa;
    type Entry = EptEntry;
    type Attr = EptAttr;

    const LEVELS: u8 = 4;
    const INDEX_BITS: u32 = 9;
    const VIRT_BITS: u32 = 48;
    const SIGN_EXTENDED: bool = false;
    const PHYS_BITS: u32 = 52;

    #[inline(always)]
    fn leaf_size(level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    #[inline(always)]
    fn leaf_bits(level: u8, attr: EptAttr) -> u64 {
        attr.0 | if level > 1 { LEAF } else { 0 }
    }

    #[inline(always)]
    fn zero_bits(level: u8, attr: EptAttr) -> u64 {
        // Bits 2:0, and bit 10 where the modes are told apart, must be 0 in what is not present.
        let later = attr.0 & RWX | (attr.0 & USER_EXECUTE) >> 7;
        Self::leaf_bits(level, attr) & !(RWX | USER_EXECUTE) | later << 12 | ZERO_MARK
    }

    #[inline(always)]
    fn table_entry(table: Hpa) -> EptEntry {
        EptEntry::from_bits(table.as_u64() | TABLE)
    }

    fn restricted_table(table: Hpa, rights: Rights) -> EptEntry {
        let bit = |right, bit| if rights.contains(right) { bit } else { 0 };
        // Writing without reading is a misconfiguration.
        let granted = bit(Rights::READ, READ)
            | bit(Rights::WRITE, READ | WRITE)
            | bit(Rights::EXECUTE, EXECUTE)
            | bit(Rights::USER, USER_EXECUTE);
        EptEntry::from_bits(table.as_u64() | ACCESSED | granted)
    }

    #[inline(always)]
    fn decode(level: u8, entry: EptEntry) -> Result<DecodedOf<Self>, Fault> {
        let bits = entry.to_bits();
        // What nearly every entry on the way down is: a table that everything may be done with.
        const OPEN: u64 = RWX | USER_EXECUTE;
        if level > 1 && bits & (OPEN | LEAF | MEMORY_TYPE | IGNORE_PAT) == OPEN {
            return Ok(Decoded::Table {
                table: Hpa::new(bits & ADDRESS),
                rights: Rights::ALL,
            });
        }
        if bits == 0 {
            return Ok(Decoded::Content(Content::Unmapped));
        }
        // SDM "EPT Misconfigurations", 30.3.3.1; execute-only is a matter of the CPU's capabilities, which are
        // asked by who chooses the attributes.
        match bits & RWX {
            0 => return Ok(Decoded::Content(absent(level, bits))),
            permissions if permissions & (READ | WRITE) == WRITE => {
                return Err(Fault::Misconfigured);
            }
            _ => {}
        }
        if level > 1 && bits & LEAF == 0 {
            // Bits 6:3 are reserved in what refers to a table.
            if bits & (MEMORY_TYPE | IGNORE_PAT) != 0 {
                return Err(Fault::Reserved);
            }
            return Ok(Decoded::Table {
                table: Hpa::new(bits & ADDRESS),
                rights: rights_of(bits),
            });
        }
        let below = match level {
            1 => 0,
            2 => (1 << 21) - 1,
            3 => (1 << 30) - 1,
            _ => return Err(Fault::Reserved),
        };
        if bits & ADDRESS & below != 0 {
            return Err(Fault::Reserved);
        }
        if MemoryType::from_bits((bits & MEMORY_TYPE) >> 3).is_none() {
            return Err(Fault::Misconfigured);
        }
        Ok(Decoded::Content(Content::Page {
            phys: Hpa::new(bits & ADDRESS),
            // Bit 7 of a 4 KiB leaf is ignored: it is not kept.
            attr: EptAttr(bits & !ADDRESS & !LEAF),
        }))
    }

    #[inline(always)]
    fn open_table(entry: EptEntry) -> Option<Hpa> {
        // Exactly where all four are set does taking them away leave zeroes in their places; what is between is ignored.
        let rest = entry.to_bits().wrapping_sub(RWX | USER_EXECUTE);
        let wrong = RWX | USER_EXECUTE | MEMORY_TYPE | IGNORE_PAT | LEAF;
        (rest & wrong == 0).then(|| Hpa::new(entry.to_bits() & ADDRESS))
    }

    #[inline(always)]
    fn rights(attr: EptAttr) -> Rights {
        rights_of(attr.0)
    }

    #[inline(always)]
    fn restrict(attr: EptAttr, by: Rights) -> Option<EptAttr> {
        let rights = rights_of(attr.0).and(by);
        if rights.and(Rights::READ.or(Rights::EXECUTE)) == Rights::NONE {
            return None;
        }
        let mut clear = 0;
        for (right, bit) in [
            (Rights::READ, READ | WRITE),
            (Rights::WRITE, WRITE),
            (Rights::EXECUTE, EXECUTE),
            (Rights::USER, USER_EXECUTE),
        ] {
            clear |= if by.contains(right) { 0 } else { bit };
        }
        Some(EptAttr(attr.0 & !clear))
    }

    #[inline(always)]
    fn hardware_may_change(entry: EptEntry) -> bool {
        entry.to_bits() & RWX != 0 && entry.to_bits() & (ACCESSED | DIRTY) != ACCESSED | DIRTY
    }

    #[inline(always)]
    fn merge_status(attr: EptAttr, other: EptAttr) -> EptAttr {
        EptAttr(attr.0 | other.0 & (ACCESSED | DIRTY))
    }
}

/// What an entry that grants nothing says.
#[inline(always)]
fn absent(level: u8, bits: u64) -> Content<Hpa, EptAttr> {
    let later = (bits >> 12) & 0xf;
    let legal = later & RWX != 0
        && later & (READ | WRITE) != WRITE
        && MemoryType::from_bits((bits & MEMORY_TYPE) >> 3).is_some();
    if bits & MARK_FIELD != ZERO_MARK || level > 3 || !legal {
        return Content::Unmapped;
    }
    let kept = bits & !(ADDRESS | LEAF | USER_EXECUTE);
    Content::ZeroOnDemand {
        attr: EptAttr(kept | later & RWX | (later & 8) << 7),
    }
}
