//! The memory type that the machine gives a physical address (SDM "Memory Type Range Registers (MTRRs)", volume 3A,
//! 12.11).

use crate::addr::{AddrRange, Address, Hpa, PAGE_SIZE};
use crate::frames::MemoryMap;
use crate::paging::MemoryType;
use arrayvec::ArrayVec;
use bit_field::BitField;
use core::fmt;

/// How many variable ranges there can be: their registers end where the first fixed one is.
pub const VARIABLE_MAX: usize = 40;
/// What the MTRRs say.
#[derive(Clone, Debug)]
pub struct Mtrrs {
    enabled: bool,
    write_combining: bool,
    default: MemoryType,
    /// The types of 64 KiB, 16 KiB and 4 KiB ranges from 0 on, a byte each, where they are enabled.
    fixed: Option<[u64; 11]>,
    variable: ArrayVec<Variable, VARIABLE_MAX>,
    /// The bits of a page's address that the CPU has.
    address: u64,
}

#[derive(Clone, Copy, Debug)]
struct Variable {
    base: u64,
    mask: u64,
    memory_type: MemoryType,
}

/// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
pub type VariableRegisters = ArrayVec<(u64, u64), VARIABLE_MAX>;

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
    pub variable: &'a VariableRegisters,
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

/// Which of the 88 fixed ranges, 8 to a register, an address is in, and how large that is.
const fn fixed_range(address: u64) -> Option<(u64, u64)> {
    Some(match address {
        0..0x8_0000 => (address >> 16, 1 << 16),
        0x8_0000..0xc_0000 => (8 + ((address - 0x8_0000) >> 14), 1 << 14),
        0xc_0000..0x10_0000 => (24 + ((address - 0xc_0000) >> 12), 1 << 12),
        _ => return None,
    })
}

impl Mtrrs {
    /// Decodes the registers of a CPU whose physical addresses have `width` bits.
    pub fn decode(registers: &MtrrRegisters<'_>, width: u32) -> Self {
        let default = registers.default;
        let enabled = default.get_bit(11);
        let with_fixed = enabled && default.get_bit(10) && registers.capability.get_bit(8);
        let address = (1u64 << width.clamp(32, 52)) - PAGE_SIZE;
        let on = registers.variable.iter();
        let on = on.filter(|(_, mask)| enabled && mask.get_bit(11));
        let variable = on.map(|(base, mask)| Variable {
            base: base & mask & address,
            mask: mask & address,
            memory_type: memory_type(*base),
        });
        Self {
            enabled,
            write_combining: registers.capability.get_bit(10),
            default: memory_type(default),
            fixed: with_fixed.then_some(registers.fixed),
            variable: variable.collect(),
            address,
        }
    }

    /// Whether they are switched on. Switched off, they make all memory uncacheable.
    pub const fn is_enabled(&self) -> bool {
        self.enabled
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
        if let (Some(fixed), Some((range, _))) = (&self.fixed, fixed_range(address)) {
            let register = fixed.get(range as usize / 8).copied().unwrap_or(0);
            return memory_type(register >> (range % 8 * 8));
        }
        // "MTRR Precedences": uncacheable wins, write-through wins over write-back, all else is undefined: uncacheable.
        let hits = self.variable.iter();
        let hits = hits.filter(|v| address & v.mask == v.base);
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
        let mut pieces = self.pieces(range);
        let (_, first) = pieces
            .next()
            .unwrap_or((range, self.type_at(range.start())));
        pieces.all(|(_, other)| other == first).then_some(first)
    }

    /// Takes out of `memory` what is not write-back, page by page, and returns that.
    pub fn take_not_write_back(&self, memory: &mut MemoryMap) -> MemoryMap {
        let mut taken = MemoryMap::new();
        let all = memory.clone();
        for (piece, memory_type) in all.ranges().flat_map(|range| self.pieces(range)) {
            if memory_type != MemoryType::WriteBack {
                memory.remove(piece);
                taken.add(piece);
            }
        }
        taken
    }

    /// The range in pieces of one type each; neighbours may have the same.
    fn pieces(&self, range: AddrRange<Hpa>) -> impl Iterator<Item = (AddrRange<Hpa>, MemoryType)> {
        let mut rest = range;
        core::iter::from_fn(move || {
            let (start, last) = (rest.start(), rest.last()?);
            let next = self.next_change(start).filter(|next| *next <= last);
            let len = next.map_or(rest.len(), |next| next.as_u64() - start.as_u64());
            let piece = AddrRange::new(start, len)?;
            rest = AddrRange::new(next.unwrap_or(start), rest.len() - len)?;
            Some((piece, self.type_at(start)))
        })
    }

    /// The first address behind `at` where another type may begin.
    fn next_change(&self, at: Hpa) -> Option<Hpa> {
        let address = at.as_u64();
        if let (Some(_), Some((_, size))) = (self.fixed, fixed_range(address)) {
            return at.align_down(size).checked_add(size);
        }
        // A variable range begins and ends at a multiple of its mask's lowest bit.
        let variable = self.variable.iter().filter(|v| v.mask != 0);
        let steps = variable.filter_map(|v| {
            let size = 1 << v.mask.trailing_zeros();
            let end = at.align_down(size).checked_add(size)?;
            let inside = address & v.mask == v.base;
            // Outside a contiguous range, its base is the next change. Where the mask lacks high bits, there are more.
            let contiguous = v.mask | (size - 1) & self.address == self.address;
            match (inside, contiguous) {
                (false, true) => (v.base > address).then_some(Hpa::new(v.base)),
                _ => Some(end),
            }
        });
        steps.min()
    }
}

impl fmt::Display for Mtrrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = self.variable.len();
        let fixed = if self.fixed.is_some() { "" } else { "no " };
        let default = self.default;
        write!(
            f,
            "default {default}, {variable} variable ranges, {fixed}fixed ones"
        )
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
            variable: &variable.iter().copied().collect(),
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

    #[test]
    fn a_mask_without_the_high_bits_repeats_its_range() {
        // As firmware writes it that takes 36 bits for all that there are.
        let short = |size: u64| ((1 << 36) - size) | ON;
        let mtrrs = decode(ON, &[(6 | GIB, short(GIB))]);
        assert_eq!(mtrrs.type_of(range(0, GIB)), Some(Uncacheable));
        assert_eq!(mtrrs.type_of(range(GIB, GIB)), Some(WriteBack));
        let again = (1 << 36) + GIB;
        assert_eq!(mtrrs.type_of(range(again, GIB)), Some(WriteBack));
        assert_eq!(mtrrs.type_of(range(2 * GIB, 64 * GIB)), None);
    }

    /// Ranges: where they begin and how long they are.
    type Ranges = Vec<(u64, u64)>;

    fn taken(mtrrs: &Mtrrs, memory: &[(u64, u64)]) -> (Ranges, Ranges) {
        let sorted = |map: &MemoryMap| {
            let mut all: Vec<_> = map
                .ranges()
                .map(|r| (r.start().as_u64(), r.len()))
                .collect();
            all.sort_unstable();
            all
        };
        let mut map = MemoryMap::new();
        memory
            .iter()
            .for_each(|&(start, len)| map.add(range(start, len)));
        let taken = mtrrs.take_not_write_back(&mut map);
        (sorted(&map), sorted(&taken))
    }

    #[test]
    fn memory_that_is_not_write_back_is_taken_out() {
        let memory = [(0x1000, 0x9_e000), (0x10_0000, 3 * GIB), (4 * GIB, GIB)];
        let all_wb = decode(ON | 1 << 10 | 6, &[]);
        assert_eq!(taken(&all_wb, &memory).1, []);
        // One page for a device in the middle, and the top write-through.
        let holes = [
            (0x3000_0000, mask(0x1000)),
            (4 | 0xc000_0000, mask(GIB)),
            (4 | (4 * GIB), mask(GIB)),
        ];
        let (left, gone) = taken(&decode(ON | 1 << 10 | 6, &holes), &memory);
        assert_eq!(
            left,
            [
                (0x1000, 0x9_e000),
                (0x10_0000, 0x2ff0_0000),
                (0x3000_1000, 0x8fff_f000)
            ]
        );
        assert_eq!(
            gone,
            [
                (0x3000_0000, 0x1000),
                (0xc000_0000, 0x10_0000),
                (4 * GIB, GIB)
            ]
        );
        // What firmware leaves that covers less than there is.
        let (left, gone) = taken(&decode(ON, &[(6, mask(2 * GIB))]), &memory);
        assert_eq!(left, [(0x1000, 0x9_e000), (0x10_0000, 2 * GIB - 0x10_0000)]);
        assert_eq!(gone, [(2 * GIB, GIB + 0x10_0000), (4 * GIB, GIB)]);
        // The fixed ranges count below 1 MiB.
        let (left, gone) = taken(
            &decode(ON | 1 << 10, &[(6, mask(GIB))]),
            &[(0x9_0000, 0x4_0000)],
        );
        assert_eq!(left, [(0x9_0000, 0x1_0000), (0xc_2000, 0xe000)]);
        assert_eq!(gone, [(0xa_0000, 0x2_2000)]);
    }

    #[test]
    fn what_they_say_is_told_in_a_line() {
        assert_eq!(
            decode(ON | 1 << 10 | 6, &[(0, mask(GIB)), (0, 0)]).to_string(),
            "default write-back, 1 variable ranges, fixed ones"
        );
        assert!(!decode(6, &[]).is_enabled());
        assert!(decode(ON, &[]).is_enabled());
    }
}
