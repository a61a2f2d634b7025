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
use super::fields::Field;
use super::instruction_error::{InstructionError, VmFail};
use super::vmcs::{Vmcs, VmcsError};

/// A check that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// The field that is wrong.
    pub field: Field,
    /// What is in it.
    pub value: u64,
    /// What the manual wants of it.
    pub rule: &'static str,
}

impl fmt::Display for FailedCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:#x}: {}", self.field, self.value, self.rule)
    }
}

/// The checks that failed, in the manual's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailedChecks {
    named: [Option<FailedCheck>; Self::NAMED],
    count: usize,
}

impl FailedChecks {
    /// How many are named; more are counted.
    pub const NAMED: usize = 16;

    /// How many checks failed. Where it is none, the CPU has made a check that is not made here.
    pub const fn count(&self) -> usize {
        self.count
    }
    /// The first of them.
    pub fn iter(&self) -> impl Iterator<Item = &FailedCheck> {
        self.named.iter().flatten()
    }
    fn add(&mut self, check: FailedCheck) {
        if let Some(place) = self.named.get_mut(self.count) {
            *place = Some(check);
        }
        self.count += 1;
    }
}

impl fmt::Display for FailedChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("no failed check found\n");
        }
        for check in self.iter() {
            writeln!(f, "{check}")?;
        }
        if let Some(more @ 1..) = self.count.checked_sub(Self::NAMED) {
            writeln!(f, "and {more} more")?;
        }
        Ok(())
    }
}

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
    /// Notes that `field` breaks `rule` unless `holds`.
    fn require(
        &mut self,
        holds: bool,
        field: impl Into<Field>,
        rule: &'static str,
    ) -> Result<(), VmcsError> {
        if !holds {
            let field = field.into();
            let value = self.vmcs.read_any(field)?;
            self.failed.add(FailedCheck { field, value, rule });
        }
        Ok(())
    }
    fn require_canonical(&mut self, field: impl Into<Field>) -> Result<(), VmcsError> {
        let field = field.into();
        let address = self.vmcs.read_any(field)?;
        let holds = is_canonical(address, self.capabilities.linear_bits);
        self.require(holds, field, "must be canonical")
    }
    /// That `field` is the address of a structure aligned to `1 << align_bits` in physical memory.
    fn require_physical(
        &mut self,
        field: impl Into<Field>,
        align_bits: u32,
        unaligned: &'static str,
    ) -> Result<(), VmcsError> {
        let field = field.into();
        let address = self.vmcs.read_any(field)?;
        self.require(address & ((1 << align_bits) - 1) == 0, field, unaligned)?;
        let narrow = self.capabilities.basic.addresses_are_32_bit();
        let bits = if narrow {
            32
        } else {
            self.capabilities.physical_bits
        };
        self.require(
            is_physical(address, bits),
            field,
            "must not set bits beyond the physical-address width",
        )
    }
    fn require_pat(&mut self, field: impl Into<Field>) -> Result<(), VmcsError> {
        let field = field.into();
        let pat = self.vmcs.read_any(field)?;
        let valid = pat.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7));
        self.require(
            valid,
            field,
            "each of its 8 bytes must be 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB) or 7 (UC-)",
        )
    }
    fn require_efer_reserved(&mut self, field: impl Into<Field>) -> Result<(), VmcsError> {
        const DEFINED: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
        let field = field.into();
        let efer = self.vmcs.read_any(field)?;
        self.require(efer & !DEFINED == 0, field, "reserved bits must be 0")
    }
    fn require_cr3(&mut self, field: impl Into<Field>) -> Result<(), VmcsError> {
        let field = field.into();
        let cr3 = self.vmcs.read_any(field)?;
        self.require(
            is_physical(cr3, self.capabilities.physical_bits),
            field,
            "bits 63:52 and bits beyond the physical-address width must be 0",
        )
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
