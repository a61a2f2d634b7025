//! What follows from a guest's CPUID for its control registers and MSRs.

use bit_field::BitField;
use x86_64::registers::control::Cr4Flags;

use super::CpuidTable;

/// What the CPU of a guest can do, as far as control registers and MSRs must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The bits that CR4 may have.
    pub cr4: u64,
    /// The bits that XCR0 may have; 0 without XSAVE.
    pub xcr0: u64,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// The bits from there up to 51, which no entry of a page table may have.
    pub beyond_physical: u64,
    /// EFER.NXE and no-execute pages.
    pub no_execute: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// PSE-36: addresses of more than 32 bits in pages of 4 MiB.
    pub wide_4_mib_pages: bool,
    /// RDTSCP or RDPID, and with them IA32_TSC_AUX.
    pub tsc_aux: bool,
}

impl CpuidTable {
    /// What a guest's CPU can do.
    pub fn features(&self) -> Features {
        let [_, leaf_1, _, _, _, _, _, leaf_7, ..] = self.basic;
        let extended = &self.extended;
        // Who offers a bit of CR4: the register and bit of CPUID (SDM "Control Registers", 2.5).
        let cr4 = [
            (
                leaf_1.edx.get_bit(1),
                Cr4Flags::VIRTUAL_8086_MODE_EXTENSIONS,
            ),
            (
                leaf_1.edx.get_bit(1),
                Cr4Flags::PROTECTED_MODE_VIRTUAL_INTERRUPTS,
            ),
            (leaf_1.edx.get_bit(4), Cr4Flags::TIMESTAMP_DISABLE),
            (leaf_1.edx.get_bit(2), Cr4Flags::DEBUGGING_EXTENSIONS),
            (leaf_1.edx.get_bit(3), Cr4Flags::PAGE_SIZE_EXTENSION),
            (leaf_1.edx.get_bit(6), Cr4Flags::PHYSICAL_ADDRESS_EXTENSION),
            (leaf_1.edx.get_bit(13), Cr4Flags::PAGE_GLOBAL),
            // RDPMC is there without counters: it raises #GP.
            (true, Cr4Flags::PERFORMANCE_MONITOR_COUNTER),
            (leaf_1.edx.get_bit(24), Cr4Flags::OSFXSR),
            (leaf_1.edx.get_bit(25), Cr4Flags::OSXMMEXCPT_ENABLE),
            (
                leaf_7.ecx.get_bit(2),
                Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION,
            ),
            (leaf_7.ebx.get_bit(0), Cr4Flags::FSGSBASE),
            (leaf_1.ecx.get_bit(17), Cr4Flags::PCID),
            (leaf_1.ecx.get_bit(26), Cr4Flags::OSXSAVE),
            (
                leaf_7.ebx.get_bit(7),
                Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
            ),
            (
                leaf_7.ebx.get_bit(20),
                Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION,
            ),
        ];
        let offered = cr4
            .iter()
            .filter(|(there, _)| *there)
            .map(|(_, flag)| flag.bits());
        let physical_bits = match extended[8].eax as u8 {
            0 => 36,
            bits => bits.min(52),
        };
        Features {
            beyond_physical: beyond(physical_bits),
            physical_bits,
            cr4: offered.fold(0, |all, bit| all | bit),
            xcr0: self.xsave.xcr0(),
            no_execute: extended[1].edx.get_bit(20),
            wide_4_mib_pages: leaf_1.edx.get_bit(17),
            gib_pages: extended[1].edx.get_bit(26),
            tsc_aux: extended[1].edx.get_bit(27) || leaf_7.ecx.get_bit(22),
        }
    }
}

/// The bits of an address beyond so many, up to 51.
pub(in super::super) const fn beyond(physical_bits: u8) -> u64 {
    u64::MAX.unbounded_shl(physical_bits as u32) & ((1 << 52) - 1)
}
