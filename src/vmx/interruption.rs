//! Interruption information: what the CPU says about an event that it delivered, or that exited.

use bit_field::BitField;

use crate::virt::event::EventKind;

/// The type of an interruption: bits 10:8 of all interruption-information fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptionType {
    /// External interrupt.
    ExternalInterrupt = 0,
    /// Not used.
    Reserved = 1,
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
    /// Other event.
    OtherEvent = 7,
}

impl InterruptionType {
    /// Whether an instruction asked for it, whose length its delivery needs.
    pub const fn is_software(self) -> bool {
        matches!(
            self,
            Self::SoftwareInterrupt | Self::PrivilegedSoftwareException | Self::SoftwareException
        )
    }
    /// As the kind of an event, where it is one.
    pub const fn of_event(self) -> Option<EventKind> {
        Some(match self {
            Self::ExternalInterrupt => EventKind::ExternalInterrupt,
            Self::Nmi => EventKind::Nmi,
            Self::HardwareException => EventKind::HardwareException,
            Self::SoftwareInterrupt => EventKind::SoftwareInterrupt,
            Self::PrivilegedSoftwareException => EventKind::PrivilegedSoftwareException,
            Self::SoftwareException => EventKind::SoftwareException,
            Self::Reserved | Self::OtherEvent => return None,
        })
    }
    /// The type that bits 2:0 of `number` encode.
    pub const fn from_low_bits(number: u32) -> Self {
        match number & 7 {
            0 => Self::ExternalInterrupt,
            1 => Self::Reserved,
            2 => Self::Nmi,
            3 => Self::HardwareException,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftwareException,
            6 => Self::SoftwareException,
            _ => Self::OtherEvent,
        }
    }
}

/// What an interruption-information field says where its valid bit is 1 (SDM "Information for VM Exits Due to
/// Vectored Events", 26.9.2, and "... That Occur During Event Delivery", 26.9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// The vector.
    pub vector: u8,
    /// The type.
    pub kind: InterruptionType,
    /// Whether the error-code field that goes with it is valid.
    pub has_error_code: bool,
    /// Whether an IRET that had unblocked NMIs met this. Not defined of IDT-vectoring information and #DF.
    pub nmi_unblocking: bool,
}

impl Interruption {
    /// From the VM-exit interruption-information or the IDT-vectoring information field.
    #[inline]
    pub fn decode(information: u32) -> Option<Self> {
        information.get_bit(31).then(|| Self {
            vector: information.get_bits(0..8) as u8,
            kind: InterruptionType::from_low_bits(information >> 8),
            has_error_code: information.get_bit(11),
            nmi_unblocking: information.get_bit(12) && information.get_bits(0..8) != 8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_information_is_decoded() {
        let nmi = Interruption::decode(0x8000_0202).unwrap();
        assert_eq!((nmi.kind, nmi.vector), (InterruptionType::Nmi, 2));
        assert!(!nmi.has_error_code && !nmi.nmi_unblocking);
        let fault = Interruption::decode(0x8000_1b0e).unwrap();
        assert!(fault.has_error_code && fault.nmi_unblocking);
        assert_eq!(fault.kind, InterruptionType::HardwareException);
        assert_eq!(fault.vector, 14);
        assert!(!Interruption::decode(0x8000_1b08).unwrap().nmi_unblocking);
        for number in 0..8 {
            assert_eq!(InterruptionType::from_low_bits(number) as u32, number);
        }
    }

    #[test]
    fn nothing_is_decoded_where_the_valid_bit_is_0() {
        assert_eq!(Interruption::decode(0x7fff_ffff), None);
    }
}
