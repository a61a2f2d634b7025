//! What the VMCS says of an exit.

use super::{Loaded, OnCpu};
use crate::addr::{Gpa, Gva};
use crate::ept::Violation;
use crate::virt::control_registers::CrAccess;
use crate::virt::event::Event;
use crate::virt::io::IoAccess;
use crate::virt::processor::{ExceptionExit, Exits, NoEvent, PortExit, PortString};
use crate::vmx::event::{EventError, interrupted_event};
use crate::vmx::fields::{Field32, Field64, FieldNatural};
use crate::vmx::interruption::Interruption;
use crate::vmx::qualification::{address_size, byte_access, cr_access, io_access};
use crate::vmx::segments::outs_segment;
use crate::vmx::vmcs::VmcsError;

/// In IDT-vectoring information: an event was being delivered.
const VALID: u64 = 1 << 31;

/// An instruction that exited.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub(super) rip: u64,
    pub(super) length: u64,
    pub(super) interruptibility: u64,
    pub(super) rflags: u64,
}

impl<V: OnCpu> Loaded<'_, V> {
    pub(super) fn qualification(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::ExitQualification)
    }
}

impl<V: OnCpu> Exits for Loaded<'_, V> {
    /// The exit qualification.
    type PortDetail = u64;
    type Place = Place;
    #[inline(always)]
    fn port_exit(&self) -> Result<PortExit<u64, Place>, VmcsError> {
        let [qualification, dr7, rip, length, interruptibility, rflags] = self.vmcs.read_six([
            FieldNatural::ExitQualification.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestRip.into(),
            Field32::ExitInstructionLength.into(),
            Field32::GuestInterruptibilityState.into(),
            FieldNatural::GuestRflags.into(),
        ])?;
        Ok(PortExit {
            byte: byte_access(qualification),
            dr7,
            detail: qualification,
            place: Place {
                rip,
                length,
                interruptibility,
                rflags,
            },
        })
    }
    fn port_access(qualification: u64) -> Option<IoAccess> {
        io_access(qualification)
    }
    fn port_string(&self) -> Result<Option<PortString>, VmcsError> {
        if !self.capabilities.basic.reports_ins_outs() {
            return Ok(None);
        }
        let information = self.vmcs.read32(Field32::ExitInstructionInformation)?;
        Ok(Some(PortString {
            address_size: address_size(information),
            segment: outs_segment(information),
            length: self.instruction_length()? as u8,
        }))
    }
    #[inline(always)]
    fn violation(&self) -> Result<(Violation, bool), VmcsError> {
        let [qualification, gpa, vectoring, pending] = self.vmcs.read_four([
            FieldNatural::ExitQualification.into(),
            Field64::GuestPhysicalAddress.into(),
            Field32::IdtVectoringInformation.into(),
            FieldNatural::GuestPendingDebugExceptions.into(),
        ])?;
        // SAFETY: this is the violation by which the guest has just left the CPU.
        let violation = unsafe { Violation::at_exit(qualification, Gpa::new(gpa)) };
        Ok((violation, vectoring & VALID == 0 && pending == 0))
    }
    fn physical_address(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestPhysicalAddress)
    }
    #[inline(always)]
    fn linear_address(&self) -> Result<Gva, VmcsError> {
        self.vmcs
            .read_natural(FieldNatural::GuestLinearAddress)
            .map(Gva::new)
    }
    fn was_delivering(&self) -> Result<bool, VmcsError> {
        let vectoring = self.vmcs.read32(Field32::IdtVectoringInformation)?;
        Ok(u64::from(vectoring) & VALID != 0)
    }
    fn cr_access(&self) -> Result<Option<CrAccess>, VmcsError> {
        self.qualification().map(cr_access)
    }
    fn exception(&self) -> Result<Option<ExceptionExit>, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        let interruption = Interruption::decode(information);
        Ok(interruption.and_then(|interruption| {
            Some(ExceptionExit {
                vector: interruption.vector,
                kind: interruption.kind.of_event()?,
                has_error_code: interruption.has_error_code,
            })
        }))
    }
    fn error_code(&self) -> Result<u32, VmcsError> {
        self.vmcs.read32(Field32::ExitInterruptionErrorCode)
    }
    fn fault_address(&self) -> Result<Gva, VmcsError> {
        self.qualification().map(Gva::new)
    }
    fn interrupt_vector(&self) -> Result<u8, VmcsError> {
        self.vmcs
            .read32(Field32::ExitInterruptionInformation)
            .map(|information| information as u8)
    }
    fn instruction_length(&self) -> Result<u32, VmcsError> {
        self.vmcs.read32(Field32::ExitInstructionLength)
    }
    fn interrupted(&self) -> Result<Option<Event>, NoEvent<VmcsError>> {
        interrupted_event(&self.vmcs).map_err(|error| match error {
            EventError::Vmcs(error) => NoEvent::State(error),
            EventError::InstructionLength(_) | EventError::BadVectoring(_) => NoEvent::Impossible,
        })
    }
}
