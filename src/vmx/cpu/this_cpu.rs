//! The CPU that the hypervisor runs on: what it says of itself, and what it needs before VMXON.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::super::capabilities::{Capabilities, CpuRead, FeatureControl};
use super::super::capability_msrs::FixedBitsError;
use super::resident::ResidentFeatures;

/// x87, SSE, AVX and the three of AVX-512: what guests may have where the CPU has it.
const XCR0_OFFERED: u64 = 0b1110_0111;

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

/// Why this CPU cannot enter VMX operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmetFixedBits {
    /// CR0 or CR4.
    pub register: &'static str,
    /// Which bits are wrong.
    pub bits: FixedBitsError,
}

impl core::fmt::Display for UnmetFixedBits {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} does not fit VMX operation: {}",
            self.register, self.bits
        )
    }
}

impl core::error::Error for UnmetFixedBits {}

/// Makes IA32_FEATURE_CONTROL, CR0 and CR4 fit for VMXON and switches XSAVE on where the CPU has it.
///
/// # Errors
/// The register of which the CPU fixes bits in another way than the kernel needs them.
///
/// # Safety
/// To be called in the kernel, at CPL 0, on the CPU that `capabilities` were read from; nothing else may be using the
/// register bits concerned.
pub unsafe fn prepare(capabilities: &Capabilities) -> Result<ResidentFeatures, UnmetFixedBits> {
    if let FeatureControl::Unlocked { to_write } = capabilities.feature_control {
        // SAFETY: the MSR is there and not locked, and the value was made from its own.
        unsafe { x86::msr::wrmsr(x86::msr::IA32_FEATURE_CONTROL, to_write) };
    }
    let has = |leaf: u32, register: fn(CpuidResult) -> u32, bit: u32| {
        ThisCpu.cpuid(0, 0).eax >= leaf && register(ThisCpu.cpuid(leaf, 0)) >> bit & 1 != 0
    };
    let xsave = has(1, |r| r.ecx, 26) && has(0xd, |r| r.eax, 0);

    let cr0 = Cr0::read_raw() | capabilities.cr0.fixed0 | Cr0Flags::NUMERIC_ERROR.bits();
    let cr0 = cr0 & !(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED).bits();
    let mut cr4 =
        Cr4::read_raw() | (capabilities.cr4.fixed0 & !Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits());
    if xsave {
        cr4 |= Cr4Flags::OSXSAVE.bits();
    }
    let unmet = |register| move |bits| UnmetFixedBits { register, bits };
    capabilities.cr0.check(cr0).map_err(unmet("CR0"))?;
    let vmxe = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
    capabilities.cr4.check(cr4 | vmxe).map_err(unmet("CR4"))?;
    // SAFETY: the values keep what was set and add what the CPU says it has or needs.
    unsafe {
        Cr0::write_raw(cr0);
        Cr4::write_raw(cr4);
    }
    let offered = u64::from(ThisCpu.cpuid(0xd, 0).eax) & XCR0_OFFERED;
    // A component of AVX-512 without the others cannot be switched on.
    let offered = if offered & 0b1110_0000 == 0b1110_0000 {
        offered
    } else {
        offered & 0b111
    };
    let xcr0 = xsave.then_some(offered);
    let extended = ThisCpu.cpuid(0x8000_0000, 0).eax >= 0x8000_0001;
    let tsc_aux = extended && ThisCpu.cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0;
    // CPUID says where they are gone.
    let x87_selectors = !has(7, |r| r.ebx, 13);
    Ok(ResidentFeatures {
        xcr0,
        tsc_aux,
        x87_selectors,
    })
}
