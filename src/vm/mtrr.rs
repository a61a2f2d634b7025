//! Reading the MTRRs of a CPU.

use core::fmt;

use bit_field::BitField;

use crate::ept::{MtrrRegisters, Mtrrs, VARIABLE_MAX, VariableRegisters};
use crate::virt::cpuid::CpuRead;
use crate::virt::cpuid::address_bits;

/// CPUID leaf 1, EDX: there are MTRRs.
const HAS_MTRRS: usize = 12;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_MTRR_PHYSBASE0: u32 = 0x200;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// In the order of the addresses that they are about.
const FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// Why MTRRs say nothing about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMtrrs {
    /// The CPU has none.
    Absent,
    /// They are switched off, as by no firmware of a real machine: all memory would be uncacheable.
    Off,
    /// More variable ranges than there are registers for.
    TooMany(u32),
}

impl fmt::Display for NoMtrrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("this CPU has no MTRRs"),
            Self::Off => f.write_str("the MTRRs are switched off"),
            Self::TooMany(count) => write!(
                f,
                "IA32_MTRRCAP claims {count} variable MTRRs, and there are at most {VARIABLE_MAX}"
            ),
        }
    }
}

/// Reads the MTRRs.
///
/// # Errors
/// Why the CPU's MTRRs say nothing.
pub fn read_mtrrs(cpu: &impl CpuRead) -> Result<Mtrrs, NoMtrrs> {
    if cpu.cpuid(0, 0).eax < 1 || !cpu.cpuid(1, 0).edx.get_bit(HAS_MTRRS) {
        return Err(NoMtrrs::Absent);
    }
    let capability = cpu.rdmsr(IA32_MTRRCAP);
    let fixed = if capability.get_bit(8) {
        FIXED.map(|register| cpu.rdmsr(register))
    } else {
        [0; 11]
    };
    let count = capability.get_bits(0..8) as u32;
    // One that were left out could be about memory that must not be used.
    if count as usize > VARIABLE_MAX {
        return Err(NoMtrrs::TooMany(count));
    }
    let pairs = (0..count).map(|range| {
        let base = IA32_MTRR_PHYSBASE0 + 2 * range;
        (cpu.rdmsr(base), cpu.rdmsr(base + 1))
    });
    let variable: VariableRegisters = pairs.collect();
    let registers = MtrrRegisters {
        capability,
        default: cpu.rdmsr(IA32_MTRR_DEF_TYPE),
        fixed,
        variable: &variable,
    };
    let (physical_bits, _) = address_bits(cpu);
    let mtrrs = Mtrrs::decode(&registers, physical_bits.into());
    if mtrrs.is_enabled() {
        Ok(mtrrs)
    } else {
        Err(NoMtrrs::Off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{AddrRange, Hpa};
    use crate::ept::MemoryType::{self, Uncacheable, WriteBack, WriteProtected};
    use core::arch::x86_64::CpuidResult;

    /// A CPU whose MSRs are these; reading another is a fault.
    struct Cpu {
        edx: u32,
        msrs: Vec<(u32, u64)>,
    }
    impl CpuRead for Cpu {
        fn cpuid(&self, leaf: u32, _: u32) -> CpuidResult {
            let (eax, edx) = match leaf {
                0 => (1, 0),
                1 => (0, self.edx),
                0x8000_0000 => (0x8000_0008, 0),
                0x8000_0008 => (39, 0),
                _ => (0, 0),
            };
            let (ebx, ecx) = (0, 0);
            CpuidResult { eax, ebx, ecx, edx }
        }
        fn rdmsr(&self, index: u32) -> u64 {
            let found = self.msrs.iter().find(|(msr, _)| *msr == index);
            found
                .unwrap_or_else(|| panic!("#GP: RDMSR of {index:#x}"))
                .1
        }
    }

    const ON: u64 = 1 << 11;
    const FIXED_ON: u64 = 1 << 10;

    fn with_fixed(default: u64, variable: &[(u64, u64)]) -> Cpu {
        let all_wb = 0x0606_0606_0606_0606;
        let mut msrs = vec![(0xfe, 1 << 8 | variable.len() as u64), (0x2ff, default)];
        msrs.extend([(0x250, all_wb), (0x258, all_wb), (0x259, 0), (0x268, 5)]);
        msrs.extend((0x269..=0x26f).map(|msr| (msr, all_wb)));
        for (msr, (base, mask)) in (0x200..).step_by(2).zip(variable) {
            msrs.extend([(msr, *base), (msr + 1, *mask)]);
        }
        let edx = 1 << HAS_MTRRS;
        Cpu { edx, msrs }
    }

    fn type_of(mtrrs: &Mtrrs, start: u64, len: u64) -> Option<MemoryType> {
        mtrrs.type_of(AddrRange::new(Hpa::new(start), len).unwrap())
    }

    #[test]
    fn a_cpu_without_mtrrs_is_not_asked_for_them() {
        let none = |edx| Cpu { edx, msrs: vec![] };
        for edx in [0, !(1 << HAS_MTRRS)] {
            assert_eq!(read_mtrrs(&none(edx)).err(), Some(NoMtrrs::Absent));
        }
    }

    #[test]
    fn registers_that_the_capability_does_not_list_are_not_read() {
        let edx = 1 << HAS_MTRRS;
        let cpu = Cpu {
            edx,
            msrs: vec![(0xfe, 0), (0x2ff, ON | FIXED_ON | 6)],
        };
        let mtrrs = read_mtrrs(&cpu).unwrap();
        assert_eq!(type_of(&mtrrs, 0, 1 << 32), Some(WriteBack));
    }

    #[test]
    fn no_variable_range_is_left_out() {
        let cpu = |count: u64| {
            let mut cpu = with_fixed(ON | FIXED_ON | 6, &[]);
            cpu.msrs[0].1 = 1 << 8 | count;
            let hole = ((1 << 39) - (1 << 20)) | ON;
            let registers = (0..count.min(40)).flat_map(|n| {
                let msr = 0x200 + 2 * n as u32;
                [(msr, (1 + n) << 30), (msr + 1, hole)]
            });
            cpu.msrs.extend(registers);
            cpu
        };
        let mtrrs = read_mtrrs(&cpu(40)).unwrap();
        for n in 1..=40u64 {
            assert_eq!(type_of(&mtrrs, n << 30, 1 << 20), Some(Uncacheable), "{n}");
        }
        for count in [41, 255] {
            let error = read_mtrrs(&cpu(count)).err();
            assert_eq!(error, Some(NoMtrrs::TooMany(count as u32)));
        }
    }

    #[test]
    fn each_register_is_about_its_own_addresses() {
        let hole = |size: u64| ((1 << 39) - size) | ON;
        let cpu = with_fixed(
            ON | FIXED_ON | 6,
            &[
                (0x4000_0000, hole(0x1000_0000)),
                (0x7000_0000, hole(0x1000)),
            ],
        );
        let mtrrs = read_mtrrs(&cpu).unwrap();
        for (start, len, expected) in [
            (0, 0xa_0000, Some(WriteBack)),
            (0xa_0000, 0x2_0000, Some(Uncacheable)),
            (0xc_0000, 0x1000, Some(WriteProtected)),
            (0xc_8000, 0x3ff3_8000, Some(WriteBack)),
            (0x4000_0000, 0x1000_0000, Some(Uncacheable)),
            (0x7000_0000, 0x1000, Some(Uncacheable)),
            (0x7000_1000, 1 << 38, Some(WriteBack)),
        ] {
            assert_eq!(type_of(&mtrrs, start, len), expected, "{start:#x}");
        }
    }

    #[test]
    fn switched_off_they_say_nothing() {
        let cpu = with_fixed(FIXED_ON | 6, &[]);
        assert_eq!(read_mtrrs(&cpu).err(), Some(NoMtrrs::Off));
    }
}
