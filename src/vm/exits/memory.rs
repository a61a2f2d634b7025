//! EPT violations: the guest touched memory that is not there yet, or not writable, or not its own.

use super::super::Host;
use super::super::mmio::MmioDevices;
use super::super::outcome::{MemoryFault, Outcome};
use super::super::run::{Next, Running};
use crate::addr::{Gpa, Gva};
use crate::ept::{Reason, Resolution, Unresolved, Violation};
use crate::frames::PhysMem;
use crate::vmx::event::restore_nmi_blocking;
use crate::vmx::pml::pml_full_unblocked_nmis;
use crate::vmx::{Field32, Field64, FieldNatural, Vmcs, VmcsError, undo_step};

/// In IDT-vectoring information: an event was being delivered.
const VALID: u64 = 1 << 31;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Makes the access possible, or stops the guest.
    #[inline(always)]
    pub fn ept_violation(&mut self) -> Result<Next, VmcsError> {
        let [qualification, gpa, vectoring, pending] = self.vmcs.read_four([
            FieldNatural::ExitQualification.into(),
            Field64::GuestPhysicalAddress.into(),
            Field32::IdtVectoringInformation.into(),
            FieldNatural::GuestPendingDebugExceptions.into(),
        ])?;
        // SAFETY: this is the violation by which the guest has just left the CPU.
        let violation = unsafe { Violation::at_exit(qualification, Gpa::new(gpa)) };
        if vectoring & VALID != 0 || pending != 0 {
            return Ok(self.special_violation(violation));
        }
        match self.space.resolve(&violation) {
            Ok(Resolution::Retry(_)) => Ok(Next::Resume),
            other => Ok(self.not_mapped(violation, other)),
        }
    }

    /// The CPU has no room to log a page that it is about to mark dirty.
    pub(super) fn log_full(&mut self) -> Result<Next, VmcsError> {
        let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
        self.drain_pml()?;
        undo_step(&mut self.vmcs)?;
        restore_nmi_blocking(&mut self.vmcs, pml_full_unblocked_nmis(qualification))?;
        self.deliver_again()
    }

    /// A violation after which there is more to do than to let the guest try again.
    #[cold]
    #[inline(never)]
    fn special_violation(&mut self, violation: Violation) -> Next {
        let done = self.space.resolve(&violation);
        self.not_mapped(violation, done)
    }

    fn try_again(&mut self, violation: Violation) -> Result<Next, VmcsError> {
        undo_step(&mut self.vmcs)?;
        if self.during_delivery()? {
            return self.deliver_again();
        }
        if violation.nmi_unblocked_by_iret() {
            self.block_nmis_again(violation)?;
        }
        Ok(Next::Resume)
    }

    /// An access that no mapping makes possible, or after which there is more to do.
    #[cold]
    #[inline(never)]
    fn not_mapped(&mut self, violation: Violation, done: Result<Resolution, Unresolved>) -> Next {
        self.area.flush_is_due();
        let handled = match done {
            Ok(Resolution::Retry(_) | Resolution::Special(_)) => self.try_again(violation),
            other => self.report(violation, other),
        };
        self.settle(handled)
    }

    fn report(
        &mut self,
        violation: Violation,
        done: Result<Resolution, Unresolved>,
    ) -> Result<Next, VmcsError> {
        let device = match done {
            Ok(Resolution::Mmio { tag, offset }) => Some((tag, offset)),
            Err(unresolved) if !is_reported(&unresolved) => {
                let fault = MemoryFault {
                    unresolved,
                    gva: Gva::new(self.vmcs.read_natural(FieldNatural::GuestLinearAddress)?),
                    rip: Gva::new(self.vmcs.read_natural(FieldNatural::GuestRip)?),
                    during_delivery: self.during_delivery()?,
                };
                return self.stop(Outcome::Memory(fault));
            }
            _ => None,
        };
        self.mmio_of(violation, device)
    }

    /// Whether an event was being delivered.
    pub(super) fn during_delivery(&self) -> Result<bool, VmcsError> {
        let vectoring = self.vmcs.read32(Field32::IdtVectoringInformation)?;
        Ok(u64::from(vectoring) & VALID != 0)
    }

    #[cold]
    fn block_nmis_again(&mut self, violation: Violation) -> Result<(), VmcsError> {
        restore_nmi_blocking(&mut self.vmcs, true)?;
        let state = self.vmcs.read32(Field32::GuestInterruptibilityState)?;
        log::debug!("{violation}: by an IRET; interruptibility state {state:#x} again");
        Ok(())
    }
}

/// Whether a device has a say in what the region does not allow.
fn is_reported(unresolved: &Unresolved) -> bool {
    let Reason::Denied { tag } = unresolved.reason else {
        return false;
    };
    unresolved.violation.is_write() && MmioDevices::takes_denied_writes(tag)
}
