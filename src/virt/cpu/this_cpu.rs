//! The CPU that the hypervisor runs on.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use super::super::cpuid::CpuRead;

/// The CPU that executes this.
#[derive(Clone, Copy, Debug)]
pub struct ThisCpu;

impl CpuRead for ThisCpu {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        __cpuid_count(leaf, subleaf)
    }
    fn rdmsr(&self, index: u32) -> u64 {
        // SAFETY: the trait's callers read only what CPUID or a capability MSR has said to exist.
        unsafe { x86::msr::rdmsr(index) }
    }
}
