//! EPT violations: the guest touched memory that is not there yet, or not writable, or not its own.

use super::super::Host;
use super::super::mmio::MmioDevices;
use super::super::mmio::Translated;
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::mmio::Reported;
use crate::addr::{Gpa, Gva};
use crate::ept::{Reason, Resolution, Unresolved, Violation, ViolationFields};
use crate::frames::PhysMem;
use crate::vmx::event::restore_nmi_blocking;
use crate::vmx::pml::pml_full_unblocked_nmis;
use crate::vmx::{Field32, Field64, FieldNatural, Vmcs, VmcsError, undo_step};

/// In IDT-vectoring information: an event was being delivered.
const VALID: u64 = 1 << 31;
/// In the exit qualification: data was written.
const WRITE: u64 = 1 << 1;

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
        let plain = vectoring & VALID == 0 && pending == 0;
        // SAFETY: this is the violation by which the guest has just left the CPU.
        if plain && unsafe { self.space.fill(qualification, Gpa::new(gpa)) } {
            return Ok(Next::Resume);
        }
        Ok(self.any_violation())
    }

    /// The CPU has no room to log a page that it is about to mark dirty.
    pub(super) fn log_full(&mut self) -> Result<Next, VmcsError> {
        let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
        self.drain_pml()?;
        undo_step(&mut self.vmcs)?;
        restore_nmi_blocking(&mut self.vmcs, pml_full_unblocked_nmis(qualification))?;
        self.deliver_again()
    }

    /// Every kind of violation.
    #[inline(never)]
    fn any_violation(&mut self) -> Next {
        self.area.flush_is_due();
        let handled = self.violation();
        self.settle(handled)
    }

    fn violation(&mut self) -> Result<Next, VmcsError> {
        let vmcs = &self.vmcs;
        let [qualification, gpa, gva, rip] = vmcs.read_four([
            FieldNatural::ExitQualification.into(),
            Field64::GuestPhysicalAddress.into(),
            FieldNatural::GuestLinearAddress.into(),
            FieldNatural::GuestRip.into(),
        ])?;
        let during_delivery = vmcs.read32(Field32::IdtVectoringInformation)? >> 31 != 0;
        if !during_delivery && let Some(device) = self.space.device(qualification, Gpa::new(gpa)) {
            return self.mmio(&Reported {
                access: Translated {
                    gpa: Gpa::new(gpa),
                    gva: Gva::new(gva),
                    write: qualification & WRITE != 0,
                    device: Some(device),
                },
                rip: Gva::new(rip),
            });
        }
        let violation = Violation::decode(&ViolationFields {
            qualification,
            gpa: Gpa::new(gpa),
            gva: Gva::new(gva),
            rip: Gva::new(rip),
            during_delivery,
            advanced_information: self.machine.ept.advanced_information,
        });
        match self.space.resolve_rest(&violation) {
            Ok(Resolution::Retry(_)) => {}
            Ok(Resolution::Mmio { tag, offset }) => {
                return self.mmio_of(&violation, Some((tag, offset)));
            }
            Err(unresolved) if is_told(&unresolved) => return self.mmio_of(&violation, None),
            Err(unresolved) => return self.stop(Outcome::Memory(unresolved)),
        }
        undo_step(&mut self.vmcs)?;
        if violation.during_delivery {
            return self.deliver_again();
        }
        if violation.nmi_unblocked_by_iret {
            self.block_nmis_again(&violation)?;
        }
        Ok(Next::Resume)
    }

    #[cold]
    fn block_nmis_again(&mut self, violation: &Violation) -> Result<(), VmcsError> {
        restore_nmi_blocking(&mut self.vmcs, true)?;
        let state = self.vmcs.read32(Field32::GuestInterruptibilityState)?;
        log::debug!("{violation}: by an IRET; interruptibility state {state:#x} again");
        Ok(())
    }
}

/// Whether a device is told of what the region does not allow.
fn is_told(unresolved: &Unresolved) -> bool {
    let Reason::Denied { tag } = unresolved.reason else {
        return false;
    };
    unresolved.violation.access.write && MmioDevices::takes_denied_writes(tag)
}
