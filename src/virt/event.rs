//! Events: what is injected at a VM entry, and what an exit interrupted.
//!
//! An [`Event`] can only be made in forms that an entry accepts (SDM "VM-Entry Control Fields", 28.2.1.3).

/// What kind of an event it is, by the number that both makers give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// External interrupt.
    ExternalInterrupt = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// Software interrupt: INT n.
    SoftwareInterrupt = 4,
    /// Privileged software exception: INT1.
    PrivilegedSoftwareException = 5,
    /// Software exception: INT3 and INTO.
    SoftwareException = 6,
}

/// Something to be delivered to the guest through its IDT at the next VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    vector: u8,
    kind: EventKind,
    error_code: Option<u32>,
    /// Of software events, and 0 of others.
    length: u8,
}

/// Whether the exception with this vector pushes an error code, where CR0.PE is 1.
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

impl Event {
    /// A non-maskable interrupt. It must not be blocked.
    pub const NMI: Self = Self::plain(2, EventKind::Nmi);
    /// #DB. DR6 is the caller's to set.
    pub const DEBUG: Self = Self::plain(1, EventKind::HardwareException);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::plain(6, EventKind::HardwareException);
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self::plain(8, EventKind::HardwareException).code(0);
    /// #AC, whose error code is always 0.
    pub const ALIGNMENT_CHECK: Self = Self::plain(17, EventKind::HardwareException).code(0);
    /// #SS(0).
    pub const STACK_FAULT: Self = Self::plain(12, EventKind::HardwareException).code(0);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::plain(13, EventKind::HardwareException).code(0);

    /// One without an error code, by no instruction.
    pub(crate) const fn plain(vector: u8, kind: EventKind) -> Self {
        Self {
            vector,
            kind,
            error_code: None,
            length: 0,
        }
    }
    /// The same with an error code.
    pub(crate) const fn code(self, code: u16) -> Self {
        Self {
            error_code: Some(code as u32),
            ..self
        }
    }

    /// #PF. CR2 is the caller's to set.
    pub const fn page_fault(code: u16) -> Self {
        Self::plain(14, EventKind::HardwareException).code(code)
    }
    /// #DB by INT1, of `length` bytes. `None`: no instruction has that many.
    pub fn int1(length: u32) -> Option<Self> {
        Self::software(1, EventKind::PrivilegedSoftwareException, length)
    }
    /// #BP by INT3, of `length` bytes. `None`: no instruction has that many.
    pub fn breakpoint(length: u32) -> Option<Self> {
        Self::software(3, EventKind::SoftwareException, length)
    }
    /// One by an instruction of `length` bytes. `None`: no instruction has that many.
    pub(crate) fn software(vector: u8, kind: EventKind, length: u32) -> Option<Self> {
        match u8::try_from(length) {
            Ok(length @ 1..=15) => Some(Self {
                length,
                ..Self::plain(vector, kind)
            }),
            _ => None,
        }
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.vector
    }
    /// The type.
    pub const fn kind(self) -> EventKind {
        self.kind
    }
    /// The error code, if it has one.
    pub const fn error_code(self) -> Option<u32> {
        self.error_code
    }

    /// The length in bytes of the instruction of a software event, 0 of others.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether it is a fault: the instruction is to be executed again once it is dealt with. #DB can be one or a trap, #DF and
    /// #MC are aborts; of these an exit has stored RFLAGS as they push it.
    pub const fn is_fault(self) -> bool {
        matches!(self.kind, EventKind::HardwareException) && !matches!(self.vector, 1 | 8 | 18)
    }

    /// What the guest is to get when `second`, an exception that the host raises, meets this event, whose delivery
    /// was interrupted (SDM "Interrupt 8, Double Fault Exception (#DF)", 7.15).
    pub fn followed_by(self, second: Self) -> Combined {
        if self.kind != EventKind::HardwareException {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_its_error_code() {
        assert_eq!(Event::page_fault(6).error_code(), Some(6));
        assert_eq!(Event::GENERAL_PROTECTION.error_code(), Some(0));
        let not_present = Event::plain(11, EventKind::HardwareException).code(0x18);
        assert_eq!(not_present.error_code(), Some(0x18));
        assert_eq!(Event::INVALID_OPCODE.error_code(), None);
        assert_eq!(Event::NMI.error_code(), None);
    }

    #[test]
    fn two_exceptions_make_a_double_fault_and_three_a_triple_fault() {
        let exception = |vector| Event::plain(vector, EventKind::HardwareException);
        for (first, second, expected) in [
            (13, 13, Combined::DoubleFault),
            (0, 11, Combined::DoubleFault),
            (13, 14, Combined::Second),
            (14, 13, Combined::DoubleFault),
            (14, 14, Combined::DoubleFault),
            (6, 14, Combined::Second),
            (14, 6, Combined::Second),
            (8, 14, Combined::TripleFault),
            (8, 13, Combined::TripleFault),
            (8, 6, Combined::Second),
        ] {
            let combined = exception(first).followed_by(exception(second));
            assert_eq!(combined, expected, "{first} then {second}");
        }
        let interrupt = Event::plain(32, EventKind::ExternalInterrupt);
        assert_eq!(interrupt.followed_by(exception(14)), Combined::Second);
    }

    #[test]
    fn the_length_of_a_software_event_is_that_of_an_instruction() {
        for length in [0, 16, 256 + 2, u32::MAX] {
            assert_eq!(Event::breakpoint(length), None);
        }
    }
}
