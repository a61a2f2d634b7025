//! The VMCS of a guest that does not run, for self-tests of the kernel.

use super::backend::OnVmx;
use super::guest::Guest;
use super::machine::Machine;
use super::vcpu::VcpuError;
use crate::frames::PhysMem;
use crate::vmx::VmcsError;
use crate::vmx::cpu::{CurrentVmcs, GuestVmcsError};

impl<M: PhysMem> Guest<'_, M, OnVmx> {
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
        machine: &mut Machine<'_, M, OnVmx>,
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
