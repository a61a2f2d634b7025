//! The memory type that the machine gives a physical address (SDM "Memory Type Range Registers (MTRRs)", volume 3A,
//! 12.11).

use crate::addr::{AddrRange, Address, Hpa};
use crate::paging::MemoryType;
use bit_field::BitField;

/// How many variable ranges are looked at, more than any CPU has.
const MAX_VARIABLE: usize = 16;
/// Where the fixed ranges end.
const FIXED_END: u64 = 0x10_0000;

/// What the MTRRs say.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    enabled: bool,
    write_combining: bool,
    default: MemoryType,
    /// The types of 64 KiB, 16 KiB and 4 KiB ranges from 0 on, a byte each, where they are enabled.
    fixed: Option<[u64; 11]>,
    variable: [Option<Variable>; MAX_VARIABLE],
}

#[derive(Clone, Copy, Debug)]
struct Variable {
    base: u64,
    mask: u64,
    memory_type: MemoryType,
}

/// The registers, as they are read.
#[derive(Clone, Copy, Debug)]
pub struct MtrrRegisters<'a> {
    /// IA32_MTRRCAP.
    pub capability: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub default: u64,
    /// The fixed-range registers in the order of their addresses: 64K_00000, 16K_80000, 16K_A0000, 4K_C0000 to 4K_F8000.
    pub fixed: [u64; 11],
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn, as many as the capability says.
    pub variable: &'a [(u64, u64)],
}

fn memory_type(bits: u64) -> MemoryType {
    match bits & 0xff {
        1 => MemoryType::WriteCombining,
        4 => MemoryType::WriteThrough,
        5 => MemoryType::WriteProtected,
        6 => MemoryType::WriteBack,
        // 0, and what is reserved.
        _ => MemoryType::Uncacheable,
    }
}

impl Mtrrs {
    /// Decodes the registers of a CPU whose physical addresses have `width` bits.
    pub fn decode(registers: &MtrrRegisters<'_>, width: u32) -> Self {
        let default = registers.default;
        let enabled = default.get_bit(11);
        let with_fixed = enabled && default.get_bit(10) && registers.capability.get_bit(8);
        let address = (1u64 << width.clamp(32, 52)) - 0x1000;
        let mut variable = [None; MAX_VARIABLE];
        let on = registers
            .variable
            .iter()
            .filter(|(_, mask)| enabled && mask.get_bit(11));
        for (slot, (base, mask)) in variable.iter_mut().zip(on) {
            let mask = mask & address;
            *slot = Some(Variable {
                base: base & mask,
                mask,
                memory_type: memory_type(*base),
            });
        }
        Self {
            enabled,
            write_combining: registers.capability.get_bit(10),
            default: memory_type(default),
            fixed: with_fixed.then_some(registers.fixed),
            variable,
        }
    }

    /// Whether the CPU has this memory type.
    pub fn offers(&self, memory_type: MemoryType) -> bool {
        memory_type != MemoryType::WriteCombining || self.write_combining
    }

    /// The type of the byte at `address`.
    pub fn type_at(&self, address: Hpa) -> MemoryType {
        let address = address.as_u64();
        if !self.enabled {
            return MemoryType::Uncacheable;
        }
        if let (Some(fixed), true) = (&self.fixed, address < FIXED_END) {
            // Which of 88 ranges, 8 to a register.
            let range = match address {
                0..0x8_0000 => address >> 16,
                0x8_0000..0xc_0000 => 8 + ((address - 0x8_0000) >> 14),
                _ => 24 + ((address - 0xc_0000) >> 12),
            };
            let register = fixed.get(range as usize / 8).copied().unwrap_or(0);
            return memory_type(register >> (range % 8 * 8));
        }
        // "MTRR Precedences": uncacheable wins, write-through wins over write-back, all else is undefined: uncacheable.
        let hits = self
            .variable
            .iter()
            .flatten()
            .filter(|v| address & v.mask == v.base);
        let combined = hits.map(|v| v.memory_type).reduce(|a, b| match (a, b) {
            _ if a == b => a,
            (MemoryType::WriteThrough, MemoryType::WriteBack) => a,
            (MemoryType::WriteBack, MemoryType::WriteThrough) => b,
            _ => MemoryType::Uncacheable,
        });
        combined.unwrap_or(self.default)
    }

    /// The type of all of a range, or `None` where it is not the same everywhere.
    pub fn type_of(&self, range: AddrRange<Hpa>) -> Option<MemoryType> {
        let found = self.type_at(range.start());
        let last = range.last()?;
        let mut at = range.start();
        while let Some(next) = self.next_change(at).filter(|next| *next <= last) {
            if self.type_at(next) != found {
                return None;
            }
            at = next;
        }
        Some(found)
    }

    /// The first address behind `at` where another type may begin.
    fn next_change(&self, at: Hpa) -> Option<Hpa> {
        let address = at.as_u64();
        if self.fixed.is_some() && address < FIXED_END {
            let size = match address {
                0..0x8_0000 => 0x1_0000,
                0x8_0000..0xc_0000 => 0x4000,
                _ => 0x1000,
            };
            return at.align_down(size).checked_add(size);
        }
        // A variable range begins and ends at a multiple of its mask's lowest bit.
        let steps = self
            .variable
            .iter()
            .flatten()
            .filter(|v| v.mask != 0)
            .filter_map(|v| {
                let size = 1 << v.mask.trailing_zeros();
                let end = at.align_down(size).checked_add(size)?;
                let inside = address & v.mask == v.base;
                // Outside a contiguous range, its base is the next change.
                let contiguous = (v.mask | (size - 1)).count_ones() + v.mask.leading_zeros() == 64;
                match (inside, contiguous) {
                    (false, true) => (v.base > address).then_some(Hpa::new(v.base)),
                    _ => Some(end),
                }
            });
        steps.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryType::*;

    const GIB: u64 = 1 << 30;
    const ON: u64 = 1 << 11;

    fn mask(size: u64) -> u64 {
        ((1 << 40) - size) | ON
    }

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    fn decode(default: u64, variable: &[(u64, u64)]) -> Mtrrs {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[2] = 0; // A0000: the screen
        fixed[3] = 0x0606_0606_0606_0505; // C0000, C1000: write-protected
        let registers = MtrrRegisters {
            capability: 1 << 10 | 1 << 8 | 8,
            default,
            fixed,
            variable,
        };
        Mtrrs::decode(&registers, 40)
    }

    #[test]
    fn switched_off_all_is_uncacheable() {
        let mtrrs = decode(6, &[(6, mask(GIB))]);
        assert_eq!(mtrrs.type_of(range(0, 4 * GIB)), Some(Uncacheable));
    }

    #[test]
    fn fixed_ranges_come_first_where_they_are_on() {
        let mtrrs = decode(ON | 1 << 10 | 6, &[]);
        for (at, expected) in [
            (0, WriteBack),
            (0x9_ffff, WriteBack),
            (0xa_0000, Uncacheable),
            (0xb_ffff, Uncacheable),
            (0xc_0000, WriteProtected),
            (0xc_1fff, WriteProtected),
            (0xc_2000, WriteBack),
            (0xf_ffff, WriteBack),
        ] {
            assert_eq!(mtrrs.type_at(Hpa::new(at)), expected, "{at:#x}");
        }
        assert_eq!(mtrrs.type_of(range(0, 0xa_0000)), Some(WriteBack));
        assert_eq!(mtrrs.type_of(range(0, 0xa_0001)), None);
        assert_eq!(mtrrs.type_of(range(0xa_0000, 0x2_0000)), Some(Uncacheable));
        assert_eq!(mtrrs.type_of(range(0xf_f000, 0x2000)), Some(WriteBack));
        assert_eq!(decode(ON | 6, &[]).type_at(Hpa::new(0xa_0000)), WriteBack);
    }

    #[test]
    fn variable_ranges_overlap_as_the_manual_says() {
        // All of memory write-back, a hole for devices below 4 GiB.
        let mtrrs = decode(
            ON | 6,
            &[(0xc000_0000, mask(GIB)), (4, mask(GIB)), (6, mask(2 * GIB))],
        );
        assert_eq!(mtrrs.type_of(range(0xc000_0000, GIB)), Some(Uncacheable));
        assert_eq!(mtrrs.type_of(range(0, GIB)), Some(WriteThrough));
        assert_eq!(mtrrs.type_of(range(GIB, 2 * GIB)), Some(WriteBack));
        assert_eq!(mtrrs.type_of(range(0, GIB + 1)), None);
        assert_eq!(mtrrs.type_of(range(GIB, 2 * GIB + 1)), None);
        assert_eq!(mtrrs.type_of(range(0xffff_f000, 0x2000)), None);
        assert_eq!(mtrrs.type_of(range(4 * GIB, 100 * GIB)), Some(WriteBack));
        let clash = decode(ON, &[(1, mask(GIB)), (6, mask(GIB)), (5, 0)]);
        assert_eq!(clash.type_at(Hpa::new(5)), Uncacheable);
        // The last one is switched off.
        assert_eq!(
            decode(ON | 6, &[(0, mask(GIB) & !ON)]).type_at(Hpa::new(0)),
            WriteBack
        );
    }

    #[test]
    fn a_small_range_in_the_middle_is_not_missed() {
        let hole = (GIB + 0x20_0000, mask(0x1000));
        for order in [[hole, (6, mask(4 * GIB))], [(6, mask(4 * GIB)), hole]] {
            let mtrrs = decode(ON, &order);
            assert_eq!(mtrrs.type_of(range(0, 4 * GIB)), None);
            assert_eq!(mtrrs.type_of(range(0, GIB + 0x20_0000)), Some(WriteBack));
            assert_eq!(mtrrs.type_of(range(GIB + 0x20_1000, GIB)), Some(WriteBack));
        }
        assert!(decode(0, &[]).offers(WriteCombining));
    }
}
