//! What a CPU says about itself.

use core::arch::x86_64::CpuidResult;

use bit_field::BitField;

/// Asking a CPU.
pub trait CpuRead {
    /// CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// RDMSR of an MSR that CPUID or another MSR has said to exist.
    fn rdmsr(&self, index: u32) -> u64;
}

/// Bits of a physical address, also known as MAXPHYADDR, and of a linear address.
pub fn address_bits(cpu: &impl CpuRead) -> (u8, u8) {
    if highest_extended_leaf(cpu) < 0x8000_0008 {
        return (36, 48);
    }
    let widths = cpu.cpuid(0x8000_0008, 0).eax;
    (widths.get_bits(0..8) as u8, widths.get_bits(8..16) as u8)
}

/// The highest extended leaf, or 0 of a CPU that has none.
pub fn highest_extended_leaf(cpu: &impl CpuRead) -> u32 {
    let highest = cpu.cpuid(0x8000_0000, 0).eax;
    // A CPU without extended leaves answers with the data of another leaf.
    if highest.get_bits(16..32) == 0x8000 {
        highest
    } else {
        0
    }
}

/// Whether there are pages of 1 GiB, in tables of every kind (CPUID.80000001H:EDX\[bit 26\]).
pub fn has_gib_pages(cpu: &impl CpuRead) -> bool {
    let has_leaf = cpu.cpuid(0x8000_0000, 0).eax >= 0x8000_0001;
    has_leaf && cpu.cpuid(0x8000_0001, 0).edx >> 26 & 1 != 0
}
