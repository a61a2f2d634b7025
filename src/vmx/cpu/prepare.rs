//! What the CPU that the hypervisor runs on needs before VMXON.

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::super::capabilities::{Capabilities, FeatureControl};
use super::super::capability_msrs::{FixedBitsError, check_fixed};
use crate::virt::cpu::ResidentFeatures;

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
    let features = ResidentFeatures::of_this_cpu();

    let cr0 = Cr0::read_raw() | capabilities.cr0.fixed0 | Cr0Flags::NUMERIC_ERROR.bits();
    let cr0 = cr0 & !(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED).bits();
    let mut cr4 =
        Cr4::read_raw() | (capabilities.cr4.fixed0 & !Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits());
    if features.xcr0.is_some() {
        cr4 |= Cr4Flags::OSXSAVE.bits();
    }
    let unmet = |register| move |bits| UnmetFixedBits { register, bits };
    check_fixed(capabilities.cr0, cr0).map_err(unmet("CR0"))?;
    let vmxe = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
    check_fixed(capabilities.cr4, cr4 | vmxe).map_err(unmet("CR4"))?;
    // SAFETY: the values keep what was set and add what the CPU says it has or needs.
    unsafe {
        Cr0::write_raw(cr0);
        Cr4::write_raw(cr4);
    }
    Ok(features)
}
