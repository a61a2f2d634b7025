//! Going on behind an instruction that the host has carried out for the guest, and raising exceptions in its place.

use super::event::{Injection, is_injecting};
use super::exit::Exit;
use super::feature::{Feature, Features};
use super::fields::{CR2, DEBUGCTL, DR6, EFER, IN_SHADOW, INTERRUPT_SHADOW, NEXT_RIP, RFLAGS, RIP};
use super::neutral::{CodeMode, Event, SegmentRegister};
use super::segment::read_segment;
use super::vmcb::Vmcb;
use crate::register_bits::{DEBUGCTL_BTF, RFLAGS_RF, RFLAGS_TF};

/// DR6.BS: a single step.
const DR6_BS: u64 = 1 << 14;

/// What code the guest executes.
pub fn code_mode(vmcb: &Vmcb) -> CodeMode {
    let cs = read_segment(vmcb, SegmentRegister::Cs).access;
    CodeMode::of(vmcb.get(EFER), cs)
}

/// Where the instruction behind the one that has exited is, as far as the CPU tells it. Where it does not,
/// [`exiting_instruction`](super::exiting::exiting_instruction) knows how long it is.
#[inline(always)]
pub fn next_rip(vmcb: &Vmcb, exit: &Exit, features: Features) -> Option<u64> {
    if features.has(Feature::NextRipSave) {
        return Some(vmcb.get(NEXT_RIP));
    }
    match exit {
        Exit::Io(access) => Some(access.next_rip),
        _ => None,
    }
}

/// Moves the guest behind an instruction of so many bytes, as [`advance_to`] does. Outside 64-bit mode, RIP wraps at 32 bits.
#[inline(always)]
pub fn advance_by(vmcb: &mut Vmcb, length: u8) {
    let rip = vmcb.get(RIP);
    let next = rip.wrapping_add(length.into());
    let next = if (rip ^ next) >> 32 == 0 {
        next
    } else {
        next & code_mode(vmcb).linear_mask()
    };
    advance_to(vmcb, next);
}

/// Moves the guest behind the instruction that exited, with all that its completion entails: the shadow of STI or MOV SS, which
/// lasts one instruction, and RFLAGS.RF end, and a single step is taken, unless it is branches that are stepped.
#[inline(always)]
pub fn advance_to(vmcb: &mut Vmcb, next: u64) {
    vmcb.set(RIP, next);
    let shadow = vmcb.get(INTERRUPT_SHADOW) & IN_SHADOW;
    if shadow | vmcb.get(RFLAGS) & (RFLAGS_TF | RFLAGS_RF) != 0 {
        complete(vmcb);
    }
}

/// What the completion of some elements of a repeated string instruction entails: it is executed again for the others, so RIP stays,
/// and RFLAGS.RF is 1: it has met its instruction breakpoint.
pub fn repeat(vmcb: &mut Vmcb) {
    complete(vmcb);
    set_resume_flag(vmcb);
}

/// Sets RFLAGS.RF: the instruction does not meet its breakpoint again when it is executed again.
pub fn set_resume_flag(vmcb: &mut Vmcb) {
    let rflags = vmcb.get(RFLAGS);
    vmcb.set(RFLAGS, rflags | RFLAGS_RF);
}

#[cold]
fn complete(vmcb: &mut Vmcb) {
    let rflags = vmcb.get(RFLAGS);
    let shadow = vmcb.get(INTERRUPT_SHADOW);
    vmcb.set(INTERRUPT_SHADOW, shadow & !IN_SHADOW);
    vmcb.set(RFLAGS, rflags & !RFLAGS_RF);
    if rflags & RFLAGS_TF != 0 && vmcb.get(DEBUGCTL) & DEBUGCTL_BTF == 0 && !is_injecting(vmcb) {
        // There is no field for what is pending: it is delivered now.
        let dr6 = vmcb.get(DR6);
        vmcb.set(DR6, dr6 | DR6_BS);
        Injection::of(Event::DEBUG).inject(vmcb);
    }
}

/// Raises this exception at the instruction that exited, in its place. A fault pushes RFLAGS with RF set, so that the instruction
/// does not meet its breakpoint again when it is executed again.
pub fn raise(vmcb: &mut Vmcb, event: Event) {
    // #DB can be a trap, #DF and #MC are aborts.
    if event.is_fault() {
        set_resume_flag(vmcb);
    }
    Injection::of(event).inject(vmcb);
}

/// Raises #PF for an access to `address`.
pub fn raise_page_fault(vmcb: &mut Vmcb, code: u16, address: u64) {
    vmcb.set(CR2, address);
    raise(vmcb, Event::page_fault(code));
}

#[cfg(test)]
mod tests {
    use super::super::exit::IoAccess;
    use super::super::fields::{ATTRIBUTES_OF_CS, CLEAN, CR0, EVENT_INJECTION};
    use super::super::neutral::IoSize;
    use super::super::reason::Reason;
    use super::*;
    use crate::register_bits::CR0_PE;

    fn at(rip: u64) -> Vmcb {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(RIP, rip);
        vmcb.set(RFLAGS, 2);
        vmcb.set(CR0, CR0_PE);
        vmcb.is_known_to_the_cpu();
        vmcb
    }

    #[test]
    fn the_common_case_changes_rip_alone() {
        let mut vmcb = at(0xffff_8000_0000_1000);
        let mut expected = vmcb.clone();
        expected.set(RIP, 0xffff_8000_0000_1003);
        advance_by(&mut vmcb, 3);
        assert!(vmcb.named().eq(expected.named()));
    }

    #[test]
    fn rip_wraps_at_32_bits_outside_64_bit_mode_only() {
        for (attributes, efer, rip, expected) in [
            (0xc9b, 0x500, 0xffff_fffe, 1),
            (0xa9b, 0x500, 0xffff_fffe, 0x1_0000_0001),
            (0xa9b, 0x500, u64::MAX - 1, 1),
            (0xa9b, 0x100, 0xffff_fffe, 1),
            (0x09b, 0, 0xfffe, 0x1_0001),
        ] {
            let mut vmcb = at(rip);
            vmcb.set(ATTRIBUTES_OF_CS, attributes);
            vmcb.set(EFER, efer);
            advance_by(&mut vmcb, 3);
            assert_eq!(vmcb.get(RIP), expected);
        }
    }

    #[test]
    fn shadow_and_resume_flag_last_one_instruction() {
        let mut vmcb = at(0x1000);
        vmcb.set(INTERRUPT_SHADOW, 3);
        vmcb.set(RFLAGS, 0x1_0202);
        advance_to(&mut vmcb, 0x1002);
        assert_eq!(vmcb.get(INTERRUPT_SHADOW), 2);
        assert_eq!((vmcb.get(RFLAGS), vmcb.get(RIP)), (0x202, 0x1002));
        assert_eq!(vmcb.get(EVENT_INJECTION), 0);
    }

    #[test]
    fn a_single_stepped_guest_gets_its_step() {
        let mut vmcb = at(0x1000);
        vmcb.set(RFLAGS, 0x102);
        vmcb.set(DR6, 0xffff_0ff1);
        advance_by(&mut vmcb, 2);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0x8000_0301);
        assert_eq!((vmcb.get(DR6), vmcb.get(RFLAGS)), (0xffff_4ff1, 0x102));
        // Not where branches are stepped, nor in the place of what is to be delivered.
        let mut vmcb = at(0x1000);
        vmcb.set(RFLAGS, 0x102);
        vmcb.set(DEBUGCTL, 2);
        advance_by(&mut vmcb, 2);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0);
        vmcb.set(DEBUGCTL, 0);
        Injection::NMI.inject(&mut vmcb);
        advance_by(&mut vmcb, 2);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0x8000_0202);
    }

    #[test]
    fn a_repetition_stays_where_it_is_and_is_stepped() {
        let mut vmcb = at(0x1000);
        vmcb.set(RFLAGS, 0x102);
        vmcb.set(INTERRUPT_SHADOW, 1);
        repeat(&mut vmcb);
        assert_eq!((vmcb.get(RFLAGS), vmcb.get(RIP)), (0x1_0102, 0x1000));
        assert_eq!(vmcb.get(INTERRUPT_SHADOW), 0);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0x8000_0301);
    }

    #[test]
    fn a_fault_sets_the_resume_flag_and_an_abort_does_not() {
        for (event, rflags) in [
            (Event::GENERAL_PROTECTION, 0x1_0002),
            (Event::INVALID_OPCODE, 0x1_0002),
            (Event::DOUBLE_FAULT, 2),
            (Event::DEBUG, 2),
        ] {
            let mut vmcb = at(0x1000);
            raise(&mut vmcb, event);
            assert_eq!((vmcb.get(RFLAGS), vmcb.get(RIP)), (rflags, 0x1000));
            assert_eq!(vmcb.get(EVENT_INJECTION), Injection::of(event).bits());
        }
    }

    #[test]
    fn a_page_fault_says_where() {
        let mut vmcb = at(0x1000);
        raise_page_fault(&mut vmcb, 2, 0xdead_b000);
        assert_eq!(vmcb.get(CR2), 0xdead_b000);
        assert_eq!(vmcb.get(EVENT_INJECTION), 0x2_8000_0b0e);
        // CR2 is to be loaded anew.
        assert_eq!(vmcb.get(CLEAN) & 1 << 9, 0);
    }

    #[test]
    fn the_next_rip_is_taken_from_whoever_tells_it() {
        let mut vmcb = at(0x1000);
        vmcb.set(NEXT_RIP, 0x1002);
        let cpuid = Exit::Other(Reason::Cpuid);
        let out = Exit::Io(IoAccess {
            port: 0x80,
            size: IoSize::Byte,
            input: false,
            string: false,
            rep: false,
            next_rip: 0x1001,
        });
        let saved = Features::EMPTY.with(Feature::NextRipSave);
        assert_eq!(next_rip(&vmcb, &cpuid, saved), Some(0x1002));
        assert_eq!(next_rip(&vmcb, &cpuid, Features::EMPTY), None);
        assert_eq!(next_rip(&vmcb, &out, Features::EMPTY), Some(0x1001));
    }
}
