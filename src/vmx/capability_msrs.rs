//! The VMX capability MSRs, each as a type that knows its bits (SDM "VMX Capability Reporting Facility", appendix A).

use core::fmt;

use bit_field::BitField;

use super::controls::Control;
use crate::virt::control_registers::FixedBits;

/// IA32_VMX_BASIC (SDM "Basic VMX Information", A.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basic(pub u64);

impl Basic {
    /// What the first 31 bits of a VMXON or VMCS region must say.
    pub fn revision(self) -> u32 {
        self.0.get_bits(0..31) as u32
    }
    /// Whether regions must lie below 4 GiB.
    pub fn addresses_are_32_bit(self) -> bool {
        self.0.get_bit(48)
    }
    /// Whether exits of INS and OUTS say in the VM-exit instruction-information field which segment and address
    /// size they use.
    pub fn reports_ins_outs(self) -> bool {
        self.0.get_bit(54)
    }
    /// Whether there are the TRUE control MSRs.
    pub fn has_true_controls(self) -> bool {
        self.0.get_bit(55)
    }
    /// Whether a hardware exception may be injected with or without error code, whatever its vector.
    pub fn any_error_code(self) -> bool {
        self.0.get_bit(56)
    }
}

/// IA32_VMX_MISC (SDM "Miscellaneous Data", A.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misc(pub u64);

impl Misc {
    /// The VMX-preemption timer counts down by 1 when bit X of the TSC changes. This is X.
    fn preemption_timer_shift(self) -> u32 {
        self.0.get_bits(0..5) as u32
    }
    /// The timer value that lasts `tsc_cycles`, rounded up; the largest there is where that is too long.
    pub fn preemption_timer_value(self, tsc_cycles: u64) -> u32 {
        let shift = self.preemption_timer_shift();
        let whole = tsc_cycles >> shift;
        let rest = tsc_cycles & ((1 << shift) - 1);
        u32::try_from(whole + u64::from(rest != 0)).unwrap_or(u32::MAX)
    }
    /// Whether the guest may be entered halted.
    pub fn halt_activity(self) -> bool {
        self.0.get_bit(6)
    }
    /// Whether the guest may be entered shut down.
    pub fn shutdown_activity(self) -> bool {
        self.0.get_bit(7)
    }
    /// Whether the guest may be entered waiting for a SIPI.
    pub fn wait_for_sipi_activity(self) -> bool {
        self.0.get_bit(8)
    }
    /// How many CR3-target values there are.
    pub fn cr3_targets(self) -> u32 {
        self.0.get_bits(16..25) as u32
    }
    /// Whether a software event may be injected with an instruction length of 0.
    pub fn zero_length_injection(self) -> bool {
        self.0.get_bit(30)
    }
}

/// A control register that VMX operation does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBitsError {
    /// These bits are 0 and must be 1.
    pub must_set: u64,
    /// These bits are 1 and must be 0.
    pub must_clear: u64,
}

/// Whether `value` has every bit as VMX operation fixes it.
///
/// # Errors
/// Which bits are wrong.
pub const fn check_fixed(fixed: FixedBits, value: u64) -> Result<(), FixedBitsError> {
    if fixed.wrong(value) == 0 {
        return Ok(());
    }
    Err(FixedBitsError {
        must_set: fixed.fixed0 & !value,
        must_clear: value & !fixed.fixed1,
    })
}

impl fmt::Display for FixedBitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.must_set, self.must_clear) {
            (set, 0) => write!(f, "bits {set:#x} must be 1 in VMX operation"),
            (0, clear) => write!(f, "bits {clear:#x} must be 0 in VMX operation"),
            (set, clear) => write!(
                f,
                "bits {set:#x} must be 1 and bits {clear:#x} must be 0 in VMX operation"
            ),
        }
    }
}

impl core::error::Error for FixedBitsError {}

/// The settings a CPU allows of one word of controls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllowedSettings {
    /// A bit that is 1 here must be 1 (the "allowed 0-settings").
    pub must_be_one: u64,
    /// A bit that is 0 here must be 0 (the "allowed 1-settings").
    pub may_be_one: u64,
}

impl AllowedSettings {
    /// Whether `control` of this word may be 1.
    pub const fn offers(self, control: Control) -> bool {
        self.may_be_one & control.mask() != 0
    }
    /// From a capability MSR with the allowed 0-settings in its low and the allowed 1-settings in its high half.
    pub const fn from_halves(msr: u64) -> Self {
        Self {
            must_be_one: msr & 0xffff_ffff,
            may_be_one: msr >> 32,
        }
    }
    /// From a capability MSR of a word of 64 controls, all of which may be 0.
    pub const fn all_may_be_zero(msr: u64) -> Self {
        Self {
            must_be_one: 0,
            may_be_one: msr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_basic_msr_of_a_westmere() {
        let basic = Basic(0x00da_0400_0000_000f);
        assert_eq!(basic.revision(), 15);
        assert!(basic.has_true_controls() && basic.reports_ins_outs());
        assert!(!basic.addresses_are_32_bit() && !basic.any_error_code());
        assert_eq!(
            Basic(1 << 31).revision(),
            0,
            "bit 31 is not of the revision"
        );
    }

    #[test]
    fn the_preemption_timer_rounds_up_and_saturates() {
        let misc = Misc(0x401e7);
        assert_eq!(misc.preemption_timer_shift(), 7);
        assert_eq!(misc.preemption_timer_value(0), 0);
        assert_eq!(misc.preemption_timer_value(1), 1);
        assert_eq!(misc.preemption_timer_value(128), 1);
        assert_eq!(misc.preemption_timer_value(129), 2);
        assert_eq!(misc.preemption_timer_value(u64::MAX), u32::MAX);
        assert_eq!(Misc(0).preemption_timer_value(u64::MAX), u32::MAX);
        assert_eq!(misc.cr3_targets(), 4);
        assert!(misc.halt_activity() && misc.wait_for_sipi_activity());
    }

    #[test]
    fn fixed_bits_are_checked_bit_by_bit() {
        let cr0 = FixedBits {
            fixed0: 0x8000_0021,
            fixed1: 0xffff_ffff,
        };
        assert_eq!(check_fixed(cr0, 0x8000_0021), Ok(()));
        // `!fixed0 | value != 0`, as it is often written, is true of every value.
        let error = check_fixed(cr0, 0x8000_0001).unwrap_err();
        assert_eq!((error.must_set, error.must_clear), (0x20, 0));
        assert_eq!(error.to_string(), "bits 0x20 must be 1 in VMX operation");
        let error = check_fixed(cr0, 1 << 32).unwrap_err();
        assert_eq!((error.must_set, error.must_clear), (0x8000_0021, 1 << 32));
        assert_eq!(cr0.apply(1 << 32), 0x8000_0021);
        assert_eq!(check_fixed(cr0, cr0.apply(u64::MAX)), Ok(()));
        assert_eq!(check_fixed(cr0.for_unrestricted_guest(), 0x20), Ok(()));
        assert!(check_fixed(cr0.for_unrestricted_guest(), 0).is_err());
    }
}
