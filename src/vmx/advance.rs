//! Going on behind an instruction that the host has carried out for the guest.

use super::fields::{Field32, Field64, FieldNatural};
use super::guest_state::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, PENDING_BS, PENDING_ENABLED_BREAKPOINT,
};
use super::segments::code_mode;
use super::vmcs::{Vmcs, VmcsError};
use crate::register_bits::{DEBUGCTL_BTF, RFLAGS_RF, RFLAGS_TF};
use crate::virt::BreakpointHits;

/// Moves the guest behind the instruction that exited, with all that its completion entails.
///
/// - Blocking by STI or MOV SS, which lasts one instruction, ends.
/// - A single step (RFLAGS.TF) is due, unless it is branches that are stepped.
/// - RFLAGS.RF, which lasts one instruction, is cleared.
/// - Outside 64-bit mode, RIP wraps at 32 bits.
///
/// The common case, in which none of that applies, is four VMREADs, a VMWRITE and as many branches.
///
/// # Errors
/// What VMREAD or VMWRITE says.
#[inline(always)]
pub fn advance_rip(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    let [rip, length, interruptibility, rflags] = vmcs.read_four([
        FieldNatural::GuestRip.into(),
        Field32::ExitInstructionLength.into(),
        Field32::GuestInterruptibilityState.into(),
        FieldNatural::GuestRflags.into(),
    ])?;
    advance_rip_from(vmcs, rip, length, interruptibility, rflags)
}

/// The same for an instruction of `length` bytes, at an exit that does not tell it.
///
/// # Errors
/// What VMREAD or VMWRITE says.
#[inline(always)]
pub fn advance_rip_by(vmcs: &mut impl Vmcs, length: u8) -> Result<(), VmcsError> {
    let rip = vmcs.read_natural(FieldNatural::GuestRip)?;
    let interruptibility = vmcs.read32(Field32::GuestInterruptibilityState)?;
    let rflags = vmcs.read_natural(FieldNatural::GuestRflags)?;
    advance_rip_from(vmcs, rip, length.into(), interruptibility.into(), rflags)
}

/// What the completion of some elements of a repeated string instruction entails: it is executed again for the others,
/// so RIP stays, and RFLAGS.RF is 1: it has met its instruction breakpoint, and what comes in between, a trap or an
/// interrupt, has that in the flags that it pushes (SDM "Instruction-Breakpoint Exception Condition", 19.3.1.1).
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn repeat(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    let interruptibility = vmcs.read32(Field32::GuestInterruptibilityState)?;
    let rflags = vmcs.read_natural(FieldNatural::GuestRflags)?;
    complete(vmcs, interruptibility, rflags, rflags | RFLAGS_RF)
}

/// As [`advance_rip`], for those who have read what it takes: RIP, the length of the instruction in bytes, the interruptibility
/// state and RFLAGS.
///
/// # Errors
/// What VMREAD or VMWRITE says.
#[inline(always)]
pub fn advance_rip_from(
    vmcs: &mut impl Vmcs,
    rip: u64,
    length: u64,
    interruptibility: u64,
    rflags: u64,
) -> Result<(), VmcsError> {
    let next = rip.wrapping_add(length);
    let next = if (rip ^ next) >> 32 == 0 {
        next
    } else {
        past_4_gib(vmcs, next)?
    };
    vmcs.write_natural(FieldNatural::GuestRip, next)?;
    let interruptibility = interruptibility as u32;
    let blocking = u64::from(interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS));
    if blocking | rflags & (RFLAGS_TF | RFLAGS_RF) == 0 {
        return Ok(());
    }
    complete(vmcs, interruptibility, rflags, rflags & !RFLAGS_RF)
}

/// Has the next VM entry deliver #DB for breakpoints that were met, together with a single step that is due. To be called where
/// the instruction, or the element, is completed.
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn pend_breakpoints(vmcs: &mut impl Vmcs, met: BreakpointHits) -> Result<(), VmcsError> {
    let pending = vmcs.read_natural(FieldNatural::GuestPendingDebugExceptions)?;
    let met = met.dr6() | PENDING_ENABLED_BREAKPOINT;
    vmcs.write_natural(FieldNatural::GuestPendingDebugExceptions, pending | met)
}

/// Takes back what the CPU noted as pending at an exit for which the instruction was not completed, a single step or the
/// breakpoints that its first accesses met: it is executed again, or an exception takes its place, and all that is due once it
/// is done.
///
/// Where MOV SS blocks it, what is pending is of the instruction before. With STI or MOV SS, an entry wants the step of a guest
/// with RFLAGS.TF noted (SDM "Checks on Guest Non-Register State", 28.3.1.5).
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn undo_step(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    if vmcs.read_natural(FieldNatural::GuestPendingDebugExceptions)? != 0 {
        let state = vmcs.read32(Field32::GuestInterruptibilityState)?;
        if state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0 {
            vmcs.write_natural(FieldNatural::GuestPendingDebugExceptions, 0)?;
        }
    }
    Ok(())
}

/// Has an instruction executed again from its beginning that has exited because the host wanted it to. It must not meet its
/// own breakpoint again: RFLAGS.RF is 1.
///
/// An EPT violation or a full page-modification log needs only [`undo_step`]: such an exit stores RF as it is to be, 1, or
/// what the event pushes whose delivery it has interrupted (SDM "Saving RIP, RSP, RFLAGS, and SSP", 29.3.3). An exit by an
/// instruction stores 0.
///
/// # Errors
/// What VMREAD or VMWRITE says.
pub fn restart(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    undo_step(vmcs)?;
    set_resume_flag(vmcs)
}

/// Sets RFLAGS.RF.
pub(super) fn set_resume_flag(vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
    let rflags = vmcs.read_natural(FieldNatural::GuestRflags)?;
    vmcs.write_natural(FieldNatural::GuestRflags, rflags | RFLAGS_RF)
}

/// Only 64-bit code may cross a multiple of 4 GiB.
#[cold]
fn past_4_gib(vmcs: &impl Vmcs, next: u64) -> Result<u64, VmcsError> {
    Ok(next & code_mode(vmcs)?.linear_mask())
}

#[cold]
fn complete(
    vmcs: &mut impl Vmcs,
    interruptibility: u32,
    rflags: u64,
    rflags_after: u64,
) -> Result<(), VmcsError> {
    vmcs.write32(
        Field32::GuestInterruptibilityState,
        interruptibility & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS),
    )?;
    vmcs.write_natural(FieldNatural::GuestRflags, rflags_after)?;
    if rflags & RFLAGS_TF != 0 && vmcs.read64(Field64::GuestDebugctl)? & DEBUGCTL_BTF == 0 {
        let pending = vmcs.read_natural(FieldNatural::GuestPendingDebugExceptions)?;
        vmcs.write_natural(
            FieldNatural::GuestPendingDebugExceptions,
            pending | PENDING_BS,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::super::fields::Field;
    use super::*;
    use crate::virt::Breakpoints;

    fn vmcs(rip: u64, length: u64) -> FakeVmcs {
        let mut vmcs = FakeVmcs::new();
        vmcs.set(FieldNatural::GuestRip, rip)
            .set(Field32::ExitInstructionLength, length)
            .set(FieldNatural::GuestRflags, 2);
        vmcs
    }

    #[test]
    fn the_common_case_writes_nothing_but_rip() {
        let mut vmcs = vmcs(0xffff_8000_0000_1000, 3);
        vmcs.set(Field32::GuestInterruptibilityState, 8);
        advance_rip(&mut vmcs).unwrap();
        assert_eq!(vmcs.get(FieldNatural::GuestRip), 0xffff_8000_0000_1003);
        assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), 8);
        assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
        assert_eq!(vmcs.writes(), 1);
    }

    #[test]
    fn rip_wraps_at_32_bits_outside_64_bit_mode_only() {
        // L counts in IA-32e mode only.
        for (access_rights, efer, rip, expected) in [
            (0xc09b, 0x500, 0xffff_fffe, 1),
            (0xa09b, 0x500, 0xffff_fffe, 0x1_0000_0001),
            (0xa09b, 0x500, u64::MAX - 1, 1),
            (0xa09b, 0x100, 0xffff_fffe, 1),
            (0xe09b, 0, 0xffff_fffe, 1),
            (0x009b, 0, 0xfffe, 0x1_0001),
        ] {
            let mut vmcs = vmcs(rip, 3);
            vmcs.set(Field32::GuestCsAccessRights, access_rights)
                .set(Field64::GuestEfer, efer);
            advance_rip(&mut vmcs).unwrap();
            assert_eq!(vmcs.get(FieldNatural::GuestRip), expected);
        }
    }

    #[test]
    fn blocking_by_sti_and_mov_ss_ends() {
        for (before, after) in [(1, 0), (2, 0), (9, 8), (10, 8), (4, 4)] {
            let mut vmcs = vmcs(0x1000, 2);
            vmcs.set(Field32::GuestInterruptibilityState, before);
            advance_rip(&mut vmcs).unwrap();
            assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), after);
            assert_eq!(vmcs.get(FieldNatural::GuestRflags), 2);
            assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
        }
    }

    #[test]
    fn a_single_stepped_guest_gets_its_step() {
        let mut vmcs = vmcs(0x1000, 2);
        vmcs.set(FieldNatural::GuestRflags, 0x102)
            .set(FieldNatural::GuestPendingDebugExceptions, 0x1001);
        advance_rip(&mut vmcs).unwrap();
        let pending = vmcs.get(FieldNatural::GuestPendingDebugExceptions);
        assert_eq!(pending, 0x5001);
        assert_eq!(vmcs.get(FieldNatural::GuestRflags), 0x102);
    }

    #[test]
    fn stepping_branches_is_not_stepping_instructions() {
        let mut vmcs = vmcs(0x1000, 2);
        vmcs.set(FieldNatural::GuestRflags, 0x102)
            .set(Field64::GuestDebugctl, 2);
        advance_rip(&mut vmcs).unwrap();
        assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
    }

    #[test]
    fn an_instruction_that_is_executed_again_has_no_step_pending() {
        for (blocking, before, after) in [
            (0, 0x5001, 0),
            (8, 0x4000, 0),
            (0, 0x1001, 0),
            (0, 0, 0),
            (1, 0x4000, 0x4000),
            (2, 0x4001, 0x4001),
        ] {
            let mut vmcs = vmcs(0x1000, 2);
            vmcs.set(FieldNatural::GuestRflags, 0x102)
                .set(Field32::GuestInterruptibilityState, blocking)
                .set(FieldNatural::GuestPendingDebugExceptions, before);
            undo_step(&mut vmcs).unwrap();
            let pending = vmcs.get(FieldNatural::GuestPendingDebugExceptions);
            assert_eq!(pending, after, "blocking {blocking}");
            assert_eq!(vmcs.writes(), usize::from(before != after));
            assert_eq!(vmcs.get(FieldNatural::GuestRip), 0x1000);
        }
    }

    #[test]
    fn the_resume_flag_lasts_one_instruction() {
        let mut vmcs = vmcs(0x1000, 2);
        vmcs.set(FieldNatural::GuestRflags, 0x1_0202);
        advance_rip(&mut vmcs).unwrap();
        assert_eq!(vmcs.get(FieldNatural::GuestRflags), 0x202);
        assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
    }

    #[test]
    fn an_instruction_of_known_length_needs_no_length_field() {
        let mut vmcs = vmcs(0x1000, 99);
        vmcs.remove(Field::from(Field32::ExitInstructionLength));
        vmcs.set(Field32::GuestInterruptibilityState, 1)
            .set(FieldNatural::GuestRflags, 0x1_0102);
        advance_rip_by(&mut vmcs, 7).unwrap();
        assert_eq!(vmcs.get(FieldNatural::GuestRip), 0x1007);
        assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), 0);
        assert_eq!(vmcs.get(FieldNatural::GuestRflags), 0x102);
        assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0x4000);
    }

    #[test]
    fn a_repetition_stays_and_is_stepped() {
        // Whether the exit stored RFLAGS.RF as 0, one by an instruction, or as 1, an EPT violation.
        for rflags in [0x102, 0x1_0102] {
            let mut vmcs = vmcs(0x1000, 2);
            vmcs.set(Field32::GuestInterruptibilityState, 2)
                .set(FieldNatural::GuestRflags, rflags);
            repeat(&mut vmcs).unwrap();
            assert_eq!(vmcs.get(FieldNatural::GuestRip), 0x1000);
            assert_eq!(vmcs.get(Field32::GuestInterruptibilityState), 0);
            assert_eq!(vmcs.get(FieldNatural::GuestRflags), 0x1_0102);
            assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0x4000);
        }
    }

    #[test]
    fn what_is_executed_again_does_not_meet_its_breakpoint_again() {
        let mut vmcs = vmcs(0x1000, 2);
        vmcs.set(FieldNatural::GuestRflags, 0x102)
            .set(FieldNatural::GuestPendingDebugExceptions, 0x4000);
        restart(&mut vmcs).unwrap();
        assert_eq!(vmcs.get(FieldNatural::GuestRip), 0x1000);
        assert_eq!(vmcs.get(FieldNatural::GuestRflags), 0x1_0102);
        assert_eq!(vmcs.get(FieldNatural::GuestPendingDebugExceptions), 0);
    }

    #[test]
    fn breakpoints_that_were_met_are_pending_beside_a_step() {
        let breakpoints = Breakpoints {
            addresses: [0x80, 0, 0, 0x80],
            dr7: 0x2002_0081,
            on_ports: true,
        };
        let mut vmcs = FakeVmcs::new();
        vmcs.set(FieldNatural::GuestPendingDebugExceptions, 0x4000);
        pend_breakpoints(&mut vmcs, breakpoints.on_port(0x80, 1)).unwrap();
        let pending = vmcs.get(FieldNatural::GuestPendingDebugExceptions);
        assert_eq!(pending, 0x5009);
    }

    #[test]
    fn a_vmcs_that_fails_is_an_error() {
        let fields: [Field; 4] = [
            FieldNatural::GuestRip.into(),
            Field32::ExitInstructionLength.into(),
            Field32::GuestInterruptibilityState.into(),
            FieldNatural::GuestRflags.into(),
        ];
        for field in fields {
            let mut vmcs = vmcs(0x1000, 2);
            vmcs.remove(field);
            assert_eq!(advance_rip(&mut vmcs).unwrap_err().field, field);
        }
    }
}
