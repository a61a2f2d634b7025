//! Events: what is injected at an entry, and what an exit interrupted (APM "Event Injection", 15.20, and "EXITINTINFO", 15.7.2).
//!
//! A VMRUN refuses an event of another form than these; there is no other way to make one.

use super::fields::{
    CR0, EVENT_INJECTION, EXIT_INTERRUPTION, IN_SHADOW, INTERRUPT_SHADOW, NEXT_RIP, RIP, V_IGN_TPR,
    V_INTR_MASKING, V_INTR_PRIO, V_IRQ, VIRTUAL_INTERRUPT,
};
use super::intercept::Intercept;
use super::neutral::{Event, EventKind};
use super::vmcb::Vmcb;
use crate::register_bits::CR0_PE;

const VALID: u64 = 1 << 31;
const HAS_CODE: u64 = 1 << 11;

/// What kind of event it is: bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Interrupt = 0,
    Nmi = 2,
    Exception = 3,
    SoftwareInterrupt = 4,
}

/// Something to be delivered to the guest through its IDT at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    vector: u8,
    kind: Kind,
    code: Option<u32>,
}

/// Why there is no event to be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionError {
    /// What the exit says to have interrupted is nothing that can be injected.
    BadInterruption(u64),
}

impl core::fmt::Display for InjectionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self::BadInterruption(bits) = self;
        write!(f, "exit interruption information {bits:#x} is no event")
    }
}

impl core::error::Error for InjectionError {}

impl Injection {
    /// A non-maskable interrupt. It must not be blocked.
    pub const NMI: Self = Self::plain(2, Kind::Nmi);

    const fn plain(vector: u8, kind: Kind) -> Self {
        Self {
            vector,
            kind,
            code: None,
        }
    }

    /// A maskable interrupt. The guest must be able to take it: see [`open_interrupt_window`].
    pub const fn interrupt(vector: u8) -> Self {
        Self::plain(vector, Kind::Interrupt)
    }

    /// The same event as this. INT1, INT3 and INTO raise exceptions here; RIP must be behind the instruction then, which is what
    /// they push.
    pub fn of(event: Event) -> Self {
        let kind = match event.kind() {
            EventKind::Nmi => return Self::NMI,
            EventKind::ExternalInterrupt => Kind::Interrupt,
            EventKind::SoftwareInterrupt => Kind::SoftwareInterrupt,
            _ => Kind::Exception,
        };
        Self {
            vector: event.vector(),
            kind,
            code: event.error_code(),
        }
    }

    /// The same, as the layers above know it. That a software event has an instruction of some length is known by RIP alone.
    pub const fn event(self) -> Event {
        let kind = match (self.kind, self.vector) {
            (Kind::Interrupt, _) => EventKind::ExternalInterrupt,
            (Kind::Nmi, _) => EventKind::Nmi,
            (Kind::Exception, 3 | 4) => EventKind::SoftwareException,
            (Kind::Exception, _) => EventKind::HardwareException,
            (Kind::SoftwareInterrupt, _) => EventKind::SoftwareInterrupt,
        };
        let event = Event::plain(self.vector, kind);
        match self.code {
            Some(code) => event.code(code as u16),
            None => event,
        }
    }

    /// The event whose delivery the last exit interrupted, if there is one.
    ///
    /// # Errors
    /// What the exit says to have interrupted cannot be injected.
    #[inline]
    pub fn interrupted(vmcb: &Vmcb) -> Result<Option<Self>, InjectionError> {
        match vmcb.get(EXIT_INTERRUPTION) {
            bits if bits & VALID == 0 => Ok(None),
            bits => Self::from_bits(bits).map(Some),
        }
    }

    #[cold]
    fn from_bits(bits: u64) -> Result<Self, InjectionError> {
        let vector = bits as u8;
        let bad = InjectionError::BadInterruption(bits);
        let kind = match bits >> 8 & 7 {
            0 => Kind::Interrupt,
            2 => return Ok(Self::NMI),
            // VMRUN refuses an exception with a vector of an interrupt, and with that of NMI.
            3 if vector < 32 && vector != 2 => Kind::Exception,
            4 => Kind::SoftwareInterrupt,
            _ => return Err(bad),
        };
        let has_code = kind == Kind::Exception && bits & HAS_CODE != 0;
        Ok(Self {
            vector,
            kind,
            code: has_code.then_some((bits >> 32) as u32),
        })
    }

    /// Whether it came of INT n, INT3 or INTO, so that RIP, which it pushes, must be behind that instruction.
    pub const fn is_software(self) -> bool {
        matches!(
            (self.kind, self.vector),
            (Kind::SoftwareInterrupt, _) | (Kind::Exception, 3 | 4)
        )
    }
    /// Whether it is an NMI: the guest blocks others until its IRET, which no CPU keeps note of here.
    pub const fn is_nmi(self) -> bool {
        matches!(self.kind, Kind::Nmi)
    }
    /// Its vector.
    pub const fn vector(self) -> u8 {
        self.vector
    }

    /// The field for a guest whose CR0.PE is 1.
    pub const fn bits(self) -> u64 {
        let code = match self.code {
            Some(code) => HAS_CODE | (code as u64) << 32,
            None => 0,
        };
        VALID | code | (self.kind as u64) << 8 | self.vector as u64
    }

    /// Has the next entry deliver this event. At most one can be delivered at an entry. `next_rip` is used of a CPU that saves
    /// it: it then pushes that of software events.
    pub fn inject(self, vmcb: &mut Vmcb) {
        let mut bits = self.bits();
        // In real mode, no exception has an error code.
        if vmcb.get(CR0) & CR0_PE == 0 {
            bits &= VALID | 0x7ff;
        }
        if self.is_software() {
            let rip = vmcb.get(RIP);
            vmcb.set(NEXT_RIP, rip);
        }
        vmcb.set(EVENT_INJECTION, bits);
    }
}

/// Whether a software event is to be delivered at the next entry.
pub fn is_injecting_software(vmcb: &Vmcb) -> bool {
    let bits = vmcb.get(EVENT_INJECTION);
    bits & VALID != 0 && Injection::from_bits(bits).is_ok_and(Injection::is_software)
}

/// Whether an event is to be delivered at the next entry.
pub fn is_injecting(vmcb: &Vmcb) -> bool {
    vmcb.get(EVENT_INJECTION) & VALID != 0
}

/// Has the guest exit as soon as it can take an interrupt: one is made pending that has the highest priority, and its delivery is
/// intercepted. It is never delivered itself.
pub fn open_interrupt_window(vmcb: &mut Vmcb) {
    set_window(vmcb, true);
}

/// The guest no longer exits for that.
pub fn close_interrupt_window(vmcb: &mut Vmcb) {
    set_window(vmcb, false);
}

fn set_window(vmcb: &mut Vmcb, open: bool) {
    const PENDING: u64 = V_IRQ | 0xf << V_INTR_PRIO | V_IGN_TPR;
    let other = vmcb.get(VIRTUAL_INTERRUPT) & !PENDING;
    vmcb.set(
        VIRTUAL_INTERRUPT,
        if open { other | PENDING } else { other },
    );
    let mut intercepts = vmcb.intercepts();
    intercepts.set(Intercept::VINTR, open);
    vmcb.set_intercepts(intercepts);
}

/// Keeps physical interrupts the host's, whatever the guest's RFLAGS.IF and CR8.
pub fn mask_physical_interrupts(vmcb: &mut Vmcb) {
    let bits = vmcb.get(VIRTUAL_INTERRUPT) | V_INTR_MASKING;
    vmcb.set(VIRTUAL_INTERRUPT, bits);
}

/// Whether the guest is in the shadow of STI or MOV SS, which lasts one instruction.
pub fn is_in_shadow(vmcb: &Vmcb) -> bool {
    vmcb.get(INTERRUPT_SHADOW) & IN_SHADOW != 0
}

#[cfg(test)]
mod tests {
    use super::super::fields::CLEAN;
    use super::*;

    fn protected() -> Vmcb {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(CR0, CR0_PE);
        vmcb
    }

    #[test]
    fn every_event_has_its_bits() {
        for (event, bits) in [
            (Injection::NMI, 0x8000_0202),
            (Injection::interrupt(0x30), 0x8000_0030),
            (Injection::of(Event::NMI), 0x8000_0202),
            (Injection::of(Event::INVALID_OPCODE), 0x8000_0306),
            (Injection::of(Event::GENERAL_PROTECTION), 0x8000_0b0d),
            (Injection::of(Event::page_fault(6)), 0x6_8000_0b0e),
            (Injection::of(Event::breakpoint(1).unwrap()), 0x8000_0303),
            (Injection::of(Event::int1(1).unwrap()), 0x8000_0301),
        ] {
            assert_eq!(event.bits(), bits, "{event:?}");
            let mut vmcb = protected();
            assert!(!is_injecting(&vmcb));
            event.inject(&mut vmcb);
            assert_eq!(vmcb.get(EVENT_INJECTION), bits);
            assert!(is_injecting(&vmcb));
        }
    }

    #[test]
    fn in_real_mode_there_is_no_error_code() {
        let mut vmcb = Vmcb::ZERO;
        Injection::of(Event::GENERAL_PROTECTION).inject(&mut vmcb);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0x8000_030d);
    }

    #[test]
    fn what_was_interrupted_is_injected_again() {
        for bits in [
            0x8000_0030,
            0x8000_0202,
            0x4_8000_0b0e,
            0x8000_0300,
            0x8000_0480,
            0x8000_0303,
        ] {
            let mut vmcb = protected();
            vmcb.set(EXIT_INTERRUPTION, bits);
            let event = Injection::interrupted(&vmcb).unwrap().unwrap();
            assert_eq!(Injection::of(event.event()), event);
            event.inject(&mut vmcb);
            assert_eq!(vmcb.get(EVENT_INJECTION), bits, "{bits:#x}");
        }
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(EXIT_INTERRUPTION, 0x7fff_ffff);
        assert_eq!(Injection::interrupted(&vmcb), Ok(None));
    }

    #[test]
    fn an_error_code_belongs_to_exceptions_only() {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(EXIT_INTERRUPTION, 0x7_8000_0830);
        let event = Injection::interrupted(&vmcb).unwrap().unwrap();
        assert_eq!(event, Injection::interrupt(0x30));
    }

    #[test]
    fn what_vmrun_would_refuse_is_an_error() {
        // Types that are reserved, and exceptions with the vector of an interrupt, or of NMI.
        for bits in [
            0x8000_0130,
            0x8000_0530,
            0x8000_0730,
            0x8000_0320,
            0x8000_0302,
        ] {
            let mut vmcb = Vmcb::ZERO;
            vmcb.set(EXIT_INTERRUPTION, bits);
            let error = Injection::interrupted(&vmcb).unwrap_err();
            assert_eq!(error, InjectionError::BadInterruption(bits));
            assert!(error.to_string().contains(&format!("{bits:#x}")));
        }
    }

    #[test]
    fn a_software_event_pushes_the_rip_that_stands_there() {
        let mut vmcb = protected();
        vmcb.set(RIP, 0x1001);
        let event = Injection::of(Event::breakpoint(1).unwrap());
        assert!(event.is_software() && !event.is_nmi() && Injection::NMI.is_nmi());
        event.inject(&mut vmcb);
        assert_eq!(vmcb.get(NEXT_RIP), 0x1001);
        let fault = Injection::of(Event::GENERAL_PROTECTION);
        assert!(!fault.is_software());
        assert_eq!(fault.vector(), 13);
    }

    #[test]
    fn a_window_is_an_interrupt_that_is_never_delivered() {
        let mut vmcb = Vmcb::ZERO;
        mask_physical_interrupts(&mut vmcb);
        let before = (vmcb.get(VIRTUAL_INTERRUPT), vmcb.intercepts());
        vmcb.is_known_to_the_cpu();
        open_interrupt_window(&mut vmcb);
        assert_eq!(vmcb.get(VIRTUAL_INTERRUPT), 0x11f_0100);
        assert!(vmcb.intercepts().has(Intercept::VINTR));
        // Both groups have changed.
        assert_eq!(vmcb.get(CLEAN) & 0b1001, 0);
        close_interrupt_window(&mut vmcb);
        assert_eq!((vmcb.get(VIRTUAL_INTERRUPT), vmcb.intercepts()), before);
    }

    #[test]
    fn a_shadow_is_one_bit() {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(INTERRUPT_SHADOW, 2);
        assert!(!is_in_shadow(&vmcb));
        vmcb.set(INTERRUPT_SHADOW, 3);
        assert!(is_in_shadow(&vmcb));
    }
}
