use super::super::fake::FakeVmcs;
use super::*;
use crate::virt::event::has_error_code;

fn protected_mode() -> FakeVmcs {
    let mut vmcs = FakeVmcs::new();
    vmcs.set(FieldNatural::GuestCr0, 0x8000_0021);
    vmcs
}

fn injected(event: Event, vmcs: &mut FakeVmcs) -> (u64, u64, u64) {
    inject(vmcs, event).unwrap();
    (
        vmcs.get(Field32::EntryInterruptionInformation),
        vmcs.get(Field32::EntryExceptionErrorCode),
        vmcs.get(Field32::EntryInstructionLength),
    )
}

#[test]
fn a_page_fault_delivers_its_error_code() {
    let vmcs = &mut protected_mode();
    assert_eq!(injected(Event::page_fault(6), vmcs), (0x8000_0b0e, 6, 0));
    assert_eq!(
        injected(Event::GENERAL_PROTECTION, vmcs),
        (0x8000_0b0d, 0, 0)
    );
    assert_eq!(injected(Event::INVALID_OPCODE, vmcs).0, 0x8000_0306);
}

#[test]
fn a_breakpoint_is_a_software_exception_with_a_length() {
    let vmcs = &mut protected_mode();
    let int3 = Event::breakpoint(1).unwrap();
    assert_eq!(injected(int3, vmcs), (0x8000_0603, 0, 1));
}

#[test]
fn debug_exceptions_are_not_int1() {
    let vmcs = &mut protected_mode();
    assert_eq!(injected(Event::DEBUG, vmcs).0, 0x8000_0301);
    let int1 = Event::int1(1).unwrap();
    assert_eq!(injected(int1, vmcs), (0x8000_0501, 0, 1));
}

#[test]
fn interrupts() {
    let vmcs = &mut protected_mode();
    assert_eq!(injected(Event::NMI, vmcs).0, 0x8000_0202);
}

#[test]
fn only_the_right_exceptions_have_an_error_code() {
    let with = [
        Event::DOUBLE_FAULT,
        Event::STACK_FAULT,
        Event::GENERAL_PROTECTION,
        Event::page_fault(0),
        Event::ALIGNMENT_CHECK,
    ];
    let without = [Event::DEBUG, Event::INVALID_OPCODE];
    for event in with.into_iter().chain(without) {
        let has_code = information(event) >> 11 & 1 != 0;
        assert_eq!(has_code, with.contains(&event), "{event:?}");
        assert_eq!(has_code, has_error_code(event.vector()), "{event:?}");
    }
    let vectors = (0..=255).filter(|vector| has_error_code(*vector));
    assert!(vectors.eq([8, 10, 11, 12, 13, 14, 17]));
}

#[test]
fn real_mode_exceptions_have_no_error_code() {
    let vmcs = &mut FakeVmcs::new();
    vmcs.remove(Field32::EntryExceptionErrorCode);
    assert_eq!(injected(Event::GENERAL_PROTECTION, vmcs).0, 0x8000_030d);
}

fn interrupted(information: u64, error_code: u64, length: u64) -> FakeVmcs {
    let mut vmcs = protected_mode();
    vmcs.set(Field32::IdtVectoringInformation, information)
        .set(Field32::IdtVectoringErrorCode, error_code)
        .set(Field32::ExitInstructionLength, length);
    vmcs
}

#[test]
fn an_interrupted_event_is_delivered_again_as_it_was() {
    // Each type, with its error code or instruction length. Bit 12 is undefined here and must not be injected.
    for (information, error_code, length) in [
        (0x8000_0020, 0, 0),
        (0x8000_0b0e, 7, 0),
        (0x8000_1b0d, 0x18, 0),
        (0x8000_0300, 0, 0),
        (0x8000_0480, 0, 2),
        (0x8000_0501, 0, 1),
        (0x8000_0603, 0, 1),
        (0x8000_0202, 0, 0),
    ] {
        let mut vmcs = interrupted(information, error_code, length);
        let event = interrupted_event(&vmcs).unwrap().unwrap();
        reinject(&mut vmcs, event).unwrap();
        let injected = vmcs.get(Field32::EntryInterruptionInformation);
        assert_eq!(injected, information & !(1 << 12), "{information:#x}");
        assert_eq!(vmcs.get(Field32::EntryExceptionErrorCode), error_code);
        assert_eq!(vmcs.get(Field32::EntryInstructionLength), length);
    }
}

#[test]
fn an_exit_that_interrupted_nothing_injects_nothing() {
    // The other bits are left over from before.
    let vmcs = interrupted(0x0000_0b0e, 7, 3);
    assert_eq!(interrupted_event(&vmcs), Ok(None));
}

#[test]
fn a_length_is_only_read_for_software_events() {
    let mut vmcs = interrupted(0x8000_0b0e, 7, 0);
    vmcs.remove(Field32::ExitInstructionLength);
    assert_eq!(interrupted_event(&vmcs), Ok(Some(Event::page_fault(7))));
    let vmcs = interrupted(0x8000_0480, 0, 0);
    assert_eq!(
        interrupted_event(&vmcs),
        Err(EventError::InstructionLength(0))
    );
}

#[test]
fn vectoring_of_an_impossible_type_is_an_error() {
    for information in [0x8000_0100, 0x8000_0700] {
        let error = interrupted_event(&interrupted(information, 0, 0)).unwrap_err();
        assert_eq!(error, EventError::BadVectoring(information as u32));
    }
}

#[test]
fn an_nmi_delivered_again_is_not_blocked_by_itself() {
    let mut vmcs = interrupted(0x8000_0202, 0, 0);
    vmcs.set(Field32::GuestInterruptibilityState, 8);
    let nmi = interrupted_event(&vmcs).unwrap().unwrap();
    reinject(&mut vmcs, nmi).unwrap();
    assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), 0);

    // Other events leave NMIs blocked.
    let mut vmcs = interrupted(0x8000_0b0e, 0, 0);
    vmcs.set(Field32::GuestInterruptibilityState, 8);
    let fault = interrupted_event(&vmcs).unwrap().unwrap();
    reinject(&mut vmcs, fault).unwrap();
    assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), 8);
}

#[test]
fn an_iret_that_is_undone_blocks_nmis_again() {
    let state_after = |vectoring, unblocking| {
        let mut vmcs = interrupted(vectoring, 0, 0);
        restore_nmi_blocking(&mut vmcs, unblocking).unwrap();
        vmcs.get(Field32::GuestInterruptibilityState)
    };
    assert_eq!(state_after(0, true), 8);
    assert_eq!(state_after(0, false), 0);
    assert_eq!(state_after(0x8000_0b0e, true), 0);
}

#[test]
fn a_debug_exception_in_a_shadow_pends_the_step_that_an_entry_demands() {
    for (blocking, rflags, debugctl, pending) in [
        (1, 0x102, 0, 0x4000),
        (2, 0x102, 0, 0x4000),
        (0, 0x102, 0, 0),
        (8, 0x102, 0, 0),
        (2, 0x002, 0, 0),
        (2, 0x102, 2, 0),
    ] {
        let vmcs = &mut protected_mode();
        vmcs.set(Field32::GuestInterruptibilityState, blocking)
            .set(FieldNatural::GuestRflags, rflags)
            .set(Field64::GuestDebugctl, debugctl);
        pend_single_step(vmcs).unwrap();
        let found = vmcs.get(FieldNatural::GuestPendingDebugExceptions);
        assert_eq!(found, pending, "blocking {blocking}, RFLAGS {rflags:#x}");
    }
}

#[test]
fn a_fault_pushes_the_resume_flag_and_takes_the_place_of_a_step() {
    use EventKind::{ExternalInterrupt, HardwareException, SoftwareInterrupt};
    for (event, fault) in [
        (Event::GENERAL_PROTECTION, true),
        (Event::INVALID_OPCODE, true),
        (Event::plain(7, HardwareException), true),
        (Event::page_fault(2), true),
        (Event::ALIGNMENT_CHECK, true),
        (Event::STACK_FAULT, true),
        // Of these, and of traps, the exit has stored what they push.
        (Event::DEBUG, false),
        (Event::DOUBLE_FAULT, false),
        (Event::plain(18, HardwareException), false),
        (Event::breakpoint(1).unwrap(), false),
        (Event::int1(1).unwrap(), false),
        (Event::plain(13, SoftwareInterrupt), false),
        (Event::NMI, false),
        (Event::plain(13, ExternalInterrupt), false),
    ] {
        for before in [0x102, 0x1_0102] {
            let mut vmcs = protected_mode();
            vmcs.set(FieldNatural::GuestRflags, before)
                .set(FieldNatural::GuestPendingDebugExceptions, 0x4000);
            raise(&mut vmcs, event).unwrap();
            let after = vmcs.get(FieldNatural::GuestRflags);
            let expected = if fault { before | 1 << 16 } else { before };
            assert_eq!(after, expected, "{event:?}");
            assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
            assert_ne!(vmcs.get(Field32::EntryInterruptionInformation), 0);
            // Only delivered again, it changes nothing of what the exit has stored.
            let mut vmcs = protected_mode();
            vmcs.set(FieldNatural::GuestRflags, before);
            reinject(&mut vmcs, event).unwrap();
            assert_eq!(vmcs.get(FieldNatural::GuestRflags), before, "{event:?}");
        }
    }
}
