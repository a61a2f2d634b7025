//! Events: what is injected at a VM entry, and what an exit interrupted.
//!
//! An [`Event`] can only be made in forms that a VM entry accepts (SDM "VM-Entry Control Fields", 28.2.1.3).

use bit_field::BitField;

use super::advance::{set_resume_flag, undo_step};
use super::fields::{Field32, Field64, FieldNatural};
use super::guest_state::{BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, PENDING_BS};
use super::interruption::{Interruption, InterruptionType};
use super::vmcs::{Vmcs, VmcsError};
use crate::register_bits::{CR0_PE, DEBUGCTL_BTF, RFLAGS_TF};

/// Something to be delivered to the guest through its IDT at the next VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    vector: u8,
    kind: InterruptionType,
    error_code: Option<u32>,
    /// Of software events, and 0 of others.
    length: u8,
}

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

/// Whether the exception with this vector pushes an error code, where CR0.PE is 1.
pub(super) const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

impl Event {
    /// A non-maskable interrupt. It must not be blocked.
    pub const NMI: Self = Self::plain(2, InterruptionType::Nmi);
    /// #DB. DR6 is the caller's to set.
    pub const DEBUG: Self = Self::plain(1, InterruptionType::HardwareException);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::plain(6, InterruptionType::HardwareException);
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self::plain(8, InterruptionType::HardwareException).code(0);
    /// #AC, whose error code is always 0.
    pub const ALIGNMENT_CHECK: Self = Self::plain(17, InterruptionType::HardwareException).code(0);
    /// #SS(0).
    pub const STACK_FAULT: Self = Self::plain(12, InterruptionType::HardwareException).code(0);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self =
        Self::plain(13, InterruptionType::HardwareException).code(0);

    const fn plain(vector: u8, kind: InterruptionType) -> Self {
        Self {
            vector,
            kind,
            error_code: None,
            length: 0,
        }
    }
    const fn code(self, code: u16) -> Self {
        Self {
            error_code: Some(code as u32),
            ..self
        }
    }

    /// #PF. CR2 is the caller's to set.
    pub const fn page_fault(code: u16) -> Self {
        Self::plain(14, InterruptionType::HardwareException).code(code)
    }
    /// #DB by INT1, of `length` bytes.
    ///
    /// # Errors
    /// No instruction has that many bytes.
    pub fn int1(length: u32) -> Result<Self, EventError> {
        Self::software(1, InterruptionType::PrivilegedSoftwareException, length)
    }
    /// #BP by INT3, of `length` bytes.
    ///
    /// # Errors
    /// No instruction has that many bytes.
    pub fn breakpoint(length: u32) -> Result<Self, EventError> {
        Self::software(3, InterruptionType::SoftwareException, length)
    }
    fn software(vector: u8, kind: InterruptionType, length: u32) -> Result<Self, EventError> {
        match u8::try_from(length) {
            Ok(length @ 1..=15) => Ok(Self {
                length,
                ..Self::plain(vector, kind)
            }),
            _ => Err(EventError::InstructionLength(length)),
        }
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.vector
    }
    /// The type.
    pub const fn kind(self) -> InterruptionType {
        self.kind
    }
    /// The error code, if it has one.
    pub const fn error_code(self) -> Option<u32> {
        self.error_code
    }

    /// The VM-entry interruption-information field for a guest whose CR0.PE is 1.
    pub const fn information(self) -> u32 {
        let code = (self.error_code.is_some() as u32) << 11;
        1 << 31 | code | (self.kind as u32) << 8 | self.vector as u32
    }

    /// Whether it is a fault: the instruction is to be executed again once it is dealt with. #DB can be one or a trap, #DF and
    /// #MC are aborts; of these an exit has stored RFLAGS as they push it.
    const fn is_fault(self) -> bool {
        matches!(self.kind, InterruptionType::HardwareException)
            && !matches!(self.vector, 1 | 8 | 18)
    }

    /// Raises this exception at the instruction that exited, in its place: no step over the instruction is due, and a fault
    /// pushes RFLAGS with RF set, so that the instruction does not meet its breakpoint again when it is executed again (SDM
    /// "Instruction-Breakpoint Exception Condition", 19.3.1.1). The exit has stored RF as 0 if it was one by an instruction.
    ///
    /// An event that is only delivered again, by [`Event::reinject`], finds RFLAGS as it pushes it.
    ///
    /// # Errors
    /// What VMREAD or VMWRITE says.
    pub fn raise(self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        undo_step(vmcs)?;
        if self.is_fault() {
            set_resume_flag(vmcs)?;
        }
        self.inject(vmcs)
    }

    /// Has the next VM entry deliver this event. At most one can be delivered at an entry.
    pub(super) fn inject(self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let mut information = self.information();
        if let Some(code) = self.error_code {
            // In real mode, no exception has an error code, and an entry that delivers one fails.
            if vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PE != 0 {
                vmcs.write32(Field32::EntryExceptionErrorCode, code)?;
            } else {
                information.set_bit(11, false);
            }
        }
        if self.length != 0 {
            vmcs.write32(Field32::EntryInstructionLength, self.length.into())?;
        }
        vmcs.write32(Field32::EntryInterruptionInformation, information)
    }

    /// The event whose delivery the last exit interrupted, if there is one.
    ///
    /// # Errors
    /// What VMREAD says, or that no such event can be injected.
    #[inline]
    pub fn interrupted(vmcs: &impl Vmcs) -> Result<Option<Self>, EventError> {
        let information = vmcs.read32(Field32::IdtVectoringInformation)?;
        if information.get_bit(31) {
            return Self::from_vectoring(information, vmcs).map(Some);
        }
        Ok(None)
    }

    #[cold]
    fn from_vectoring(information: u32, vmcs: &impl Vmcs) -> Result<Self, EventError> {
        let bad = EventError::BadVectoring(information);
        let interruption = Interruption::decode(information).ok_or(bad)?;
        let Interruption { vector, kind, .. } = interruption;
        Ok(match kind {
            InterruptionType::ExternalInterrupt => Self::plain(vector, kind),
            InterruptionType::Nmi => Self::NMI,
            // What the CPU has delivered once is right for it: in real mode it has no error code. An entry wants bits 31:16
            // to be 0; no CPU without FRED pushes any of them.
            InterruptionType::HardwareException if interruption.has_error_code => {
                Self::plain(vector, kind).code(vmcs.read32(Field32::IdtVectoringErrorCode)? as u16)
            }
            InterruptionType::HardwareException => Self::plain(vector, kind),
            software if software.is_software() => {
                Self::software(vector, kind, vmcs.read32(Field32::ExitInstructionLength)?)?
            }
            _ => return Err(bad),
        })
    }

    /// Delivers an event again whose delivery an exit interrupted, once the reason of the exit is dealt with.
    ///
    /// An interrupted NMI already blocks NMIs, but an entry that injects one must find them unblocked (SDM "Checks on
    /// Guest Non-Register State", 28.3.1.5).
    ///
    /// # Errors
    /// What VMREAD or VMWRITE says.
    pub fn reinject(self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        if self.kind == InterruptionType::Nmi {
            let state = vmcs.read32(Field32::GuestInterruptibilityState)?;
            vmcs.write32(
                Field32::GuestInterruptibilityState,
                state & !BLOCKING_BY_NMI,
            )?;
        }
        self.inject(vmcs)
    }

    /// What the guest is to get when `second`, an exception that the host raises, meets this event, whose delivery
    /// was interrupted (SDM "Interrupt 8, Double Fault Exception (#DF)", 7.15).
    pub fn followed_by(self, second: Self) -> Combined {
        if self.kind != InterruptionType::HardwareException {
            // Not an exception: what was to be delivered is lost in hardware too, unless it is delivered later.
            return Combined::Second;
        }
        match (Class::of(self.vector), Class::of(second.vector)) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault) => Combined::TripleFault,
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => Combined::DoubleFault,
            _ => Combined::Second,
        }
    }
}

/// What comes of two exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// The second, as if it were alone.
    Second,
    /// #DF.
    DoubleFault,
    /// The guest is shut down.
    TripleFault,
}

/// The class of an exception, which decides what two of them make.
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(vector: u8) -> Self {
        match vector {
            0 | 10..=13 | 21 => Self::Contributory,
            14 | 20 => Self::PageFault,
            8 => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
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
