//! Events: what is injected at a VM entry, and what an exit interrupted.
//!
//! An [`Event`] can only be made in forms that a VM entry accepts (SDM "VM-Entry Control Fields", 28.2.1.3).

use core::fmt;

use bit_field::BitField;

use super::advance::{set_resume_flag, undo_step};
use super::fields::{Field32, Field64, FieldNatural};
use super::interruption::{Interruption, InterruptionType};
use super::register_bits::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, CR0_PE, DEBUGCTL_BTF, PENDING_BS,
    RFLAGS_TF,
};
use super::vmcs::{Vmcs, VmcsError};

/// Something to be delivered to the guest through its IDT at the next VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    vector: u8,
    kind: InterruptionType,
    error_code: Option<u32>,
    /// Of software events, and 0 of others.
    length: u8,
}

/// An event that no VM entry would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventError {
    /// An exception must have a vector of at most 31.
    NotAnException(u8),
    /// This vector belongs to an event of another kind: NMI, #BP or #OF.
    OtherKind(u8),
    /// This exception has an error code.
    ErrorCodeMissing(u8),
    /// This exception has no error code.
    ErrorCodeNotExpected(u8),
    /// An error code has 16 bits here.
    ErrorCodeTooWide(u32),
    /// An instruction has 1 to 15 bytes.
    InstructionLength(u32),
    /// IDT-vectoring information of a type that cannot have been interrupted.
    BadVectoring(u32),
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnException(vector) => write!(f, "vector {vector} is not of an exception"),
            Self::OtherKind(vector) => {
                write!(f, "vector {vector} is not of a hardware exception")
            }
            Self::ErrorCodeMissing(vector) => write!(f, "exception {vector} needs an error code"),
            Self::ErrorCodeNotExpected(vector) => {
                write!(f, "exception {vector} has no error code")
            }
            Self::ErrorCodeTooWide(code) => write!(f, "error code {code:#x} has more than 16 bits"),
            Self::InstructionLength(length) => {
                write!(f, "a software event by an instruction of {length} bytes")
            }
            Self::BadVectoring(information) => {
                write!(
                    f,
                    "IDT-vectoring information {information:#x} has no meaning"
                )
            }
        }
    }
}

impl core::error::Error for EventError {}

/// Why an interrupted event cannot be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReinjectError {
    /// The VMCS could not be accessed.
    Vmcs(VmcsError),
    /// What the CPU reported cannot be injected.
    Event(EventError),
}

impl From<VmcsError> for ReinjectError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}
impl From<EventError> for ReinjectError {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}
impl fmt::Display for ReinjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmcs(error) => fmt::Display::fmt(error, f),
            Self::Event(error) => write!(f, "cannot deliver an interrupted event again: {error}"),
        }
    }
}
impl core::error::Error for ReinjectError {}

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
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7, InterruptionType::HardwareException);
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self::plain(8, InterruptionType::HardwareException).code(0);
    /// #AC, whose error code is always 0.
    pub const ALIGNMENT_CHECK: Self = Self::plain(17, InterruptionType::HardwareException).code(0);
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

    /// An external interrupt. The guest must be able to take it now.
    pub const fn external_interrupt(vector: u8) -> Self {
        Self::plain(vector, InterruptionType::ExternalInterrupt)
    }
    /// #PF. CR2 is the caller's to set.
    pub const fn page_fault(code: u16) -> Self {
        Self::plain(14, InterruptionType::HardwareException).code(code)
    }
    /// A hardware exception. (INT n, INT1, INT3 and INTO have constructors of their own.)
    pub fn exception(vector: u8, error_code: Option<u32>) -> Result<Self, EventError> {
        match vector {
            2..=4 => return Err(EventError::OtherKind(vector)),
            32.. => return Err(EventError::NotAnException(vector)),
            _ => (),
        }
        match error_code {
            None if has_error_code(vector) => Err(EventError::ErrorCodeMissing(vector)),
            Some(_) if !has_error_code(vector) => Err(EventError::ErrorCodeNotExpected(vector)),
            Some(code) if code > 0xffff => Err(EventError::ErrorCodeTooWide(code)),
            error_code => Ok(Self {
                error_code,
                ..Self::plain(vector, InterruptionType::HardwareException)
            }),
        }
    }
    /// INT n, of `length` bytes.
    pub fn software_interrupt(vector: u8, length: u32) -> Result<Self, EventError> {
        Self::software(vector, InterruptionType::SoftwareInterrupt, length)
    }
    /// #DB by INT1, of `length` bytes.
    pub fn int1(length: u32) -> Result<Self, EventError> {
        Self::software(1, InterruptionType::PrivilegedSoftwareException, length)
    }
    /// #BP by INT3, of `length` bytes.
    pub fn breakpoint(length: u32) -> Result<Self, EventError> {
        Self::software(3, InterruptionType::SoftwareException, length)
    }
    /// #OF by INTO, of `length` bytes.
    pub fn overflow(length: u32) -> Result<Self, EventError> {
        Self::software(4, InterruptionType::SoftwareException, length)
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
    #[inline]
    pub fn interrupted(vmcs: &impl Vmcs) -> Result<Option<Self>, ReinjectError> {
        let information = vmcs.read32(Field32::IdtVectoringInformation)?;
        if information.get_bit(31) {
            return Self::from_vectoring(information, vmcs).map(Some);
        }
        Ok(None)
    }

    #[cold]
    fn from_vectoring(information: u32, vmcs: &impl Vmcs) -> Result<Self, ReinjectError> {
        let Some(interruption) = Interruption::decode(information) else {
            return Err(EventError::BadVectoring(information).into());
        };
        let Interruption { vector, kind, .. } = interruption;
        let length = || vmcs.read32(Field32::ExitInstructionLength);
        Ok(match kind {
            InterruptionType::ExternalInterrupt => Self::external_interrupt(vector),
            InterruptionType::Nmi => Self::NMI,
            InterruptionType::HardwareException => {
                let error_code = if interruption.has_error_code {
                    // An entry wants bits 31:16 to be 0; no CPU without FRED pushes any of them.
                    Some(vmcs.read32(Field32::IdtVectoringErrorCode)? & 0xffff)
                } else {
                    None
                };
                // What the CPU has delivered once is right for it: in real mode it has no error code.
                Self {
                    error_code,
                    ..Self::plain(vector, kind)
                }
            }
            InterruptionType::SoftwareInterrupt
            | InterruptionType::PrivilegedSoftwareException
            | InterruptionType::SoftwareException => Self::software(vector, kind, length()?)?,
            InterruptionType::Reserved | InterruptionType::OtherEvent => {
                return Err(EventError::BadVectoring(information).into());
            }
        })
    }

    /// Delivers an event again whose delivery an exit interrupted, once the reason of the exit is dealt with.
    ///
    /// An interrupted NMI already blocks NMIs, but an entry that injects one must find them unblocked (SDM "Checks on
    /// Guest Non-Register State", 28.3.1.5).
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
