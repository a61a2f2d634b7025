//! Whose processors guests run on: what is said of them in the same words.

use core::fmt;

use super::cpuid::Enabled;
use super::guest::Guest;
use super::machine::Machine;
use super::outcome::Outcome;
use super::vcpu::VcpuError;
use crate::frames::PhysMem;
use crate::svm;
use crate::svm::loaded::{Refused, UnknownInstruction};
use crate::virt::Processor;
use crate::vmx::VmcsError;
use crate::vmx::controls::Secondary;
use crate::vmx::cpu::{self, CurrentVmcs, GuestVmcsError};
use crate::vmx::loaded::{self, Loaded, OnCpu};

/// A CPU that runs guests.
pub(super) type Operation = cpu::Operation;
/// What the CPU has, and what of it is used.
pub(super) type Found = cpu::Found;
/// What a CPU holds of a guest.
pub(super) type GuestControl = cpu::GuestVmcs;
/// The state in it.
pub(super) type GuestState = crate::vmx::GuestState;
/// Where a guest begins.
pub(super) type Start64 = crate::vmx::Start64;
/// Why a CPU cannot run guests.
pub type CpuStartError = cpu::StartError;
/// Why what a CPU holds of a guest could not be loaded or accessed.
pub type ControlError = GuestVmcsError;

/// A part of a guest's state could not be read or written: our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// In a VMCS.
    Vmcs(VmcsError),
    /// With SVM.
    Svm(UnknownInstruction),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmcs(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StateError {}

impl From<VmcsError> for StateError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

impl From<UnknownInstruction> for StateError {
    fn from(error: UnknownInstruction) -> Self {
        Self::Svm(error)
    }
}

/// A guest could not be entered: our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// With VMX.
    Vmx(loaded::EntryError),
    /// With SVM.
    Svm(Refused),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for EntryError {}

impl From<loaded::EntryError> for EntryError {
    fn from(error: loaded::EntryError) -> Self {
        Self::Vmx(error)
    }
}

impl From<Refused> for EntryError {
    fn from(error: Refused) -> Self {
        Self::Svm(error)
    }
}

impl Found {
    /// What of it guests may use.
    pub(super) fn enabled(&self) -> Enabled {
        Enabled {
            rdtscp: self.controls.has(Secondary::EnableRdtscp),
            invpcid: self.controls.has(Secondary::EnableInvpcid),
            unrestricted: self.controls.has(Secondary::UnrestrictedGuest),
        }
    }
}

/// A processor of which what fails can be said in these words.
pub(super) trait Cpu:
    Processor<Error: Into<StateError>, EntryError: Into<EntryError>>
{
    /// What an error of its own says. `None`: it is another's.
    fn own(error: EntryError) -> Option<Self::EntryError>;
}

impl<V: OnCpu> Cpu for Loaded<'_, V> {
    fn own(error: EntryError) -> Option<loaded::EntryError> {
        match error {
            EntryError::Vmx(error) => Some(error),
            EntryError::Svm(_) => None,
        }
    }
}

impl<C: svm::loaded::OnCpu> Cpu for svm::loaded::Loaded<'_, C> {
    fn own(error: EntryError) -> Option<Refused> {
        match error {
            EntryError::Svm(error) => Some(error),
            EntryError::Vmx(_) => None,
        }
    }
}

impl From<GuestVmcsError> for Outcome {
    fn from(error: GuestVmcsError) -> Self {
        match error {
            GuestVmcsError::Field(error) => Self::State(error.into()),
            GuestVmcsError::Instruction(fail) => {
                Self::Entry(loaded::EntryError::Instruction(fail).into())
            }
        }
    }
}

impl<M: PhysMem> Guest<'_, M> {
    /// Lets `change` at the VMCS of the guest, which does not run. A VM entry that the CPU then refuses ends the guest with
    /// a report.
    ///
    /// # Errors
    /// Of `change`, or the guest has no VMCS to load.
    ///
    /// # Safety
    /// `change` must write nothing but guest state: host state and controls are what keeps the hypervisor safe.
    pub unsafe fn with_vmcs(
        &mut self,
        machine: &mut Machine<'_, M>,
        change: impl FnOnce(&mut CurrentVmcs) -> Result<(), VmcsError>,
    ) -> Result<(), VcpuError> {
        let mut vmcs = self
            .vcpu
            .control
            .make_current(&mut machine.cpu)
            .map_err(GuestVmcsError::from)?;
        Ok(change(&mut vmcs).map_err(GuestVmcsError::from)?)
    }
}
