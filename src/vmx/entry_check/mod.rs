//! After a VM entry that failed: which of the manual's checks the VMCS does not pass.
//!
//! The CPU says no more than in which of three groups a check failed (SDM "VM Entries", chapter 28). Here the checks
//! of the group are made again in software, in the manual's order, and each that fails is named. Checks on features
//! that no guest of ours uses are left out: CET, FRED, PKRS, IA32_BNDCFGS, IA32_RTIT_CTL, IA32_LBR_CTL, UINV,
//! IA32_PERF_GLOBAL_CTRL, SMM, APIC virtualization, VMCS shadowing, sub-page permissions and HLAT.

mod controls;
mod guest;
mod guest_segments;
mod host;

use core::fmt;

use super::capabilities::Capabilities;
use super::controls::{Control, ControlSet};
use super::exit::EntryFailure;
use super::fields::{Field, Field64, FieldNatural};
use super::instruction_error::{InstructionError, VmFail};
use super::vmcs::{Vmcs, VmcsError};
use crate::virt::control_registers::FixedBits;
use crate::virt::{self, Rule};

/// A check that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// The field that is wrong.
    pub field: Field,
    /// What is in it.
    pub value: u64,
    /// What the manual wants of it.
    pub rule: Rule,
}

impl fmt::Display for FailedCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:#x}: {}", self.field, self.value, self.rule)
    }
}

/// The checks that failed, in the manual's order.
pub type FailedChecks = virt::FailedChecks<FailedCheck>;

/// A group of checks that fail in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckGroup {
    /// SDM "Checks on VMX Controls", 28.2.1.
    Controls,
    /// SDM "Checks on Host Control Registers, MSRs, and SSP" and following, 28.2.2 to 28.2.4.
    HostState,
    /// SDM "Checks on the Guest State Area", 28.3.1.
    GuestState,
}

impl CheckGroup {
    /// The group in which a VMLAUNCH or VMRESUME found a fault that failed so.
    pub const fn of_instruction(fail: VmFail) -> Option<Self> {
        match fail {
            VmFail::Valid(InstructionError::EntryInvalidControls) => Some(Self::Controls),
            VmFail::Valid(InstructionError::EntryInvalidHostState) => Some(Self::HostState),
            _ => None,
        }
    }
    /// The group in which a VM entry found a fault that failed so.
    pub const fn of_entry(failure: EntryFailure) -> Option<Self> {
        match failure {
            EntryFailure::InvalidGuestState(_) => Some(Self::GuestState),
            _ => None,
        }
    }
}

/// Makes the checks of `group` on the current VMCS.
///
/// # Errors
/// The first field that cannot be read.
pub fn failed_checks(
    group: CheckGroup,
    vmcs: &impl Vmcs,
    capabilities: &Capabilities,
) -> Result<FailedChecks, VmcsError> {
    let mut checker = Checker {
        vmcs,
        capabilities,
        controls: ControlSet::read(vmcs)?,
        failed: FailedChecks::default(),
    };
    match group {
        CheckGroup::Controls => checker.check_controls()?,
        CheckGroup::HostState => checker.check_host()?,
        CheckGroup::GuestState => checker.check_guest()?,
    }
    Ok(checker.failed)
}

struct Checker<'a, V> {
    vmcs: &'a V,
    capabilities: &'a Capabilities,
    controls: ControlSet,
    failed: FailedChecks,
}

impl<V: Vmcs> Checker<'_, V> {
    fn has(&self, control: impl Into<Control>) -> bool {
        self.controls.has(control)
    }
    fn get(&self, field: impl Into<Field>) -> Result<u64, VmcsError> {
        self.vmcs.read_any(field.into())
    }
    /// Notes that `field` breaks `rule`.
    fn broken(&mut self, field: impl Into<Field>, rule: Rule) -> Result<(), VmcsError> {
        let field = field.into();
        let value = self.get(field)?;
        self.failed.add(FailedCheck { field, value, rule });
        Ok(())
    }
    /// Notes that `field` is not as these words want it.
    fn fail(&mut self, field: impl Into<Field>, words: &'static str) -> Result<(), VmcsError> {
        self.broken(field, Rule::Words(words))
    }
    /// That these bits of `field` are 0.
    fn require_zero(&mut self, field: impl Into<Field>, bits: u64) -> Result<(), VmcsError> {
        let field = field.into();
        if self.get(field)? & bits != 0 {
            self.broken(field, Rule::Zero(bits))?;
        }
        Ok(())
    }
    fn require_canonical(&mut self, field: impl Into<Field>) -> Result<(), VmcsError> {
        let field = field.into();
        if !is_canonical(self.get(field)?, self.capabilities.linear_bits) {
            self.fail(field, "must be canonical")?;
        }
        Ok(())
    }
    /// That `field` is the address of a structure aligned to `1 << align_bits` in physical memory.
    fn require_physical(&mut self, field: Field64, align_bits: u32) -> Result<(), VmcsError> {
        self.require_zero(field, (1 << align_bits) - 1)?;
        let bits = match self.capabilities.basic.addresses_are_32_bit() {
            true => 32,
            false => self.capabilities.physical_bits,
        };
        self.require_width(field, bits)
    }
    fn require_width(&mut self, field: impl Into<Field>, bits: u8) -> Result<(), VmcsError> {
        let field = field.into();
        if !is_physical(self.get(field)?, bits) {
            let rule = "must not set bits beyond the physical-address width";
            self.fail(field, rule)?;
        }
        Ok(())
    }
    fn require_fixed(
        &mut self,
        field: FieldNatural,
        fixed: FixedBits,
        not_checked: u64,
    ) -> Result<(), VmcsError> {
        if fixed.wrong(self.get(field)?) & !not_checked != 0 {
            let rule = match field {
                FieldNatural::HostCr0 | FieldNatural::GuestCr0 => {
                    "must have the bits that VMX operation fixes (IA32_VMX_CR0_FIXED0, _FIXED1)"
                }
                _ => "must have the bits that VMX operation fixes (IA32_VMX_CR4_FIXED0, _FIXED1)",
            };
            self.fail(field, rule)?;
        }
        Ok(())
    }
    fn require_pat(&mut self, field: Field64) -> Result<(), VmcsError> {
        let pat = self.get(field)?.to_le_bytes();
        if !pat.iter().all(|t| matches!(t, 0 | 1 | 4..=7)) {
            let rule =
                "each of its 8 bytes must be 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB) or 7 (UC-)";
            self.fail(field, rule)?;
        }
        Ok(())
    }
    fn require_efer_reserved(&mut self, field: Field64) -> Result<(), VmcsError> {
        self.require_zero(field, !(1 << 0 | 1 << 8 | 1 << 10 | 1 << 11))
    }
}

const fn is_canonical(address: u64, linear_bits: u8) -> bool {
    let unused = 64_u32.saturating_sub(linear_bits as u32);
    match (address as i64).checked_shl(unused) {
        Some(shifted) => shifted >> unused == address as i64,
        None => false,
    }
}

const fn is_physical(address: u64, physical_bits: u8) -> bool {
    match address.checked_shr(physical_bits as u32) {
        Some(beyond) => beyond == 0,
        None => true,
    }
}

#[cfg(test)]
mod tests;
