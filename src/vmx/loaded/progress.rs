//! What goes into a VMCS before its guest goes on.

use super::exits::Place;
use super::{Loaded, OnCpu};
use crate::virt::processor::Progress;
use crate::virt::{BreakpointHits, Event};
use crate::vmx::advance::{
    advance_rip, advance_rip_by, advance_rip_from, pend_breakpoints, repeat, restart, undo_step,
};
use crate::vmx::event::{pend_single_step, raise, reinject, restore_nmi_blocking};
use crate::vmx::fields::{Field32, FieldNatural};
use crate::vmx::pml::pml_full_unblocked_nmis;
use crate::vmx::qualification::{DebugException, InstructionTimeout};
use crate::vmx::vmcs::VmcsError;

/// DR7.GD: access to debug registers raises #DB.
const DR7_GD: u64 = 1 << 13;

impl<V: OnCpu> Progress for Loaded<'_, V> {
    fn survives_timeout(&mut self) -> Result<bool, VmcsError> {
        let timeout = InstructionTimeout::decode(self.qualification()?);
        if !timeout.context_is_lost {
            restore_nmi_blocking(&mut self.vmcs, timeout.nmi_unblocked_by_iret)?;
        }
        Ok(!timeout.context_is_lost)
    }
    fn note_debug_exception(&mut self) -> Result<(), VmcsError> {
        let exception = DebugException::decode(self.qualification()?);
        self.vmcs.update_dr6(|dr6| exception.to_dr6(dr6));
        if exception.debug_register_access() {
            let dr7 = self.vmcs.read_natural(FieldNatural::GuestDr7)?;
            self.vmcs
                .write_natural(FieldNatural::GuestDr7, dr7 & !DR7_GD)?;
        }
        Ok(())
    }
    #[inline(always)]
    fn advance(&mut self) -> Result<(), VmcsError> {
        advance_rip(&mut self.vmcs)
    }
    #[inline(always)]
    fn advance_by(&mut self, length: u8) -> Result<(), VmcsError> {
        advance_rip_by(&mut self.vmcs, length)
    }
    #[inline(always)]
    fn advance_from(&mut self, place: Place) -> Result<(), VmcsError> {
        let Place {
            rip,
            length,
            interruptibility,
            rflags,
        } = place;
        advance_rip_from(&mut self.vmcs, rip, length, interruptibility, rflags)
    }
    fn repeat(&mut self) -> Result<(), VmcsError> {
        repeat(&mut self.vmcs)
    }
    fn restart(&mut self) -> Result<(), VmcsError> {
        restart(&mut self.vmcs)
    }
    fn undo_step(&mut self) -> Result<(), VmcsError> {
        undo_step(&mut self.vmcs)
    }
    fn pend_breakpoints(&mut self, met: BreakpointHits) -> Result<(), VmcsError> {
        pend_breakpoints(&mut self.vmcs, met)
    }
    fn pend_single_step(&mut self) -> Result<(), VmcsError> {
        pend_single_step(&mut self.vmcs)
    }
    fn raise(&mut self, event: Event) -> Result<(), VmcsError> {
        raise(&mut self.vmcs, event)
    }
    fn reinject(&mut self, event: Event) -> Result<(), VmcsError> {
        reinject(&mut self.vmcs, event)
    }
    fn block_nmis_again(&mut self) -> Result<u32, VmcsError> {
        restore_nmi_blocking(&mut self.vmcs, true)?;
        self.vmcs.read32(Field32::GuestInterruptibilityState)
    }
    fn retry_logged(&mut self) -> Result<(), VmcsError> {
        let unblocked = pml_full_unblocked_nmis(self.qualification()?);
        undo_step(&mut self.vmcs)?;
        restore_nmi_blocking(&mut self.vmcs, unblocked)
    }
}
