//! Events in the VMCS: what is injected at a VM entry, and what an exit interrupted.

use bit_field::BitField;

use super::advance::{set_resume_flag, undo_step};
use super::fields::{Field32, Field64, FieldNatural};
use super::guest_state::{BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, PENDING_BS};
use super::interruption::Interruption;
use super::vmcs::{Vmcs, VmcsError};
use crate::register_bits::{CR0_PE, DEBUGCTL_BTF, RFLAGS_TF};
use crate::virt::event::{Event, EventKind};

/// Why there is no event to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventError {
    /// The VMCS could not be accessed.
    Vmcs(VmcsError),
    /// A software event by an instruction of so many bytes: it has 1 to 15.
    InstructionLength(u32),
    /// IDT-vectoring information of a type that cannot have been interrupted.
    BadVectoring(u32),
}

impl From<VmcsError> for EventError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

/// The VM-entry interruption-information field for a guest whose CR0.PE is 1.
pub const fn information(event: Event) -> u32 {
    let code = (event.error_code().is_some() as u32) << 11;
    1 << 31 | code | (event.kind() as u32) << 8 | event.vector() as u32
}

/// Raises an exception at the instruction that exited, in its place: no step over the instruction is due, and a fault
/// pushes RFLAGS with RF set, so that the instruction does not meet its breakpoint again when it is executed again (SDM
/// "Instruction-Breakpoint Exception Condition", 19.3.1.1). The exit has stored RF as 0 if it was one by an instruction.
///
/// An event that is only delivered again, by [`reinject`], finds RFLAGS as it pushes it.
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn raise(vmcs: &mut impl Vmcs, event: Event) -> Result<(), VmcsError> {
    undo_step(vmcs)?;
    if event.is_fault() {
        set_resume_flag(vmcs)?;
    }
    inject(vmcs, event)
}

/// Has the next VM entry deliver an event. At most one can be delivered at an entry.
pub(super) fn inject(vmcs: &mut impl Vmcs, event: Event) -> Result<(), VmcsError> {
    let mut information = information(event);
    if let Some(code) = event.error_code() {
        // In real mode, no exception has an error code, and an entry that delivers one fails.
        if vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PE != 0 {
            vmcs.write32(Field32::EntryExceptionErrorCode, code)?;
        } else {
            information.set_bit(11, false);
        }
    }
    if event.length() != 0 {
        vmcs.write32(Field32::EntryInstructionLength, event.length().into())?;
    }
    vmcs.write32(Field32::EntryInterruptionInformation, information)
}

/// The event whose delivery the last exit interrupted, if there is one.
///
/// # Errors
/// What VMREAD says, or that no such event can be injected.
#[inline]
pub fn interrupted_event(vmcs: &impl Vmcs) -> Result<Option<Event>, EventError> {
    let information = vmcs.read32(Field32::IdtVectoringInformation)?;
    if information.get_bit(31) {
        return from_vectoring(information, vmcs).map(Some);
    }
    Ok(None)
}

#[cold]
fn from_vectoring(information: u32, vmcs: &impl Vmcs) -> Result<Event, EventError> {
    let bad = EventError::BadVectoring(information);
    let interruption = Interruption::decode(information).ok_or(bad)?;
    let Interruption { vector, kind, .. } = interruption;
    let kind = kind.of_event().ok_or(bad)?;
    if kind == EventKind::Nmi {
        return Ok(Event::NMI);
    }
    if interruption.kind.is_software() {
        let length = vmcs.read32(Field32::ExitInstructionLength)?;
        let event = Event::software(vector, kind, length);
        return event.ok_or(EventError::InstructionLength(length));
    }
    let event = Event::plain(vector, kind);
    // What the CPU has delivered once is right for it: in real mode it has no error code. An entry wants bits 31:16 to be 0; no
    // CPU without FRED pushes any of them.
    Ok(match kind {
        EventKind::HardwareException if interruption.has_error_code => {
            event.code(vmcs.read32(Field32::IdtVectoringErrorCode)? as u16)
        }
        _ => event,
    })
}

/// Delivers an event again whose delivery an exit interrupted, once the reason of the exit is dealt with.
///
/// An interrupted NMI already blocks NMIs, but an entry that injects one must find them unblocked (SDM "Checks on
/// Guest Non-Register State", 28.3.1.5).
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn reinject(vmcs: &mut impl Vmcs, event: Event) -> Result<(), VmcsError> {
    if event.kind() == EventKind::Nmi {
        let state = vmcs.read32(Field32::GuestInterruptibilityState)?;
        vmcs.write32(
            Field32::GuestInterruptibilityState,
            state & !BLOCKING_BY_NMI,
        )?;
    }
    inject(vmcs, event)
}

/// Blocks NMIs again where an IRET had unblocked them, but the exit undid that IRET. `nmi_unblocking` is bit 12 of
/// the exit's interruption information or of its qualification (EPT violation, page-modification log full).
///
/// Where the exit interrupted the delivery of an event, the bit is not defined (SDM "Resuming Guest Software After
/// Handling an Exception", 34.7.1.2).
///
/// # Errors
/// What VMREAD or VMWRITE says.
#[inline]
pub fn restore_nmi_blocking(vmcs: &mut impl Vmcs, nmi_unblocking: bool) -> Result<(), VmcsError> {
    if nmi_unblocking && !vmcs.read32(Field32::IdtVectoringInformation)?.get_bit(31) {
        let state = vmcs.read32(Field32::GuestInterruptibilityState)?;
        let blocked = state | BLOCKING_BY_NMI;
        vmcs.write32(Field32::GuestInterruptibilityState, blocked)?;
    }
    Ok(())
}

/// To be called when an exit for #DB is to go back to the guest. Such an exit leaves no debug exception pending, but an
/// entry in the shadow of STI or MOV SS with RFLAGS.TF demands that a single step is (SDM "Checks on Guest Non-Register
/// State", 28.3.1.5), and fails without. The delivery of the #DB drops it.
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn pend_single_step(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    let blocking = vmcs.read32(Field32::GuestInterruptibilityState)?;
    if blocking & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0
        || vmcs.read_natural(FieldNatural::GuestRflags)? & RFLAGS_TF == 0
        || vmcs.read64(Field64::GuestDebugctl)? & DEBUGCTL_BTF != 0
    {
        return Ok(());
    }
    let pending = vmcs.read_natural(FieldNatural::GuestPendingDebugExceptions)?;
    vmcs.write_natural(
        FieldNatural::GuestPendingDebugExceptions,
        pending | PENDING_BS,
    )
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
