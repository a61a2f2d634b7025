//! Why a guest has left, in the words of the layers above: the exit codes as the one list of reasons for both makers has them.

use super::fields::{EXIT_CODE, EXIT_INFO_1};
use super::nested_fault::NestedFault;
use super::reason::{CR_READ, CR_WRITE, DR_READ, DR_WRITE, EXCEPTION, EXCEPTIONS_END, Reason};
use super::vmcb::Vmcb;
use crate::addr::Gpa;
use crate::virt::exit::ExitReason;

/// The reason of the last exit. `None`: an exit that nothing asks for, or one that is not known.
///
/// A physical interrupt may be the timer's, which is not known before it is taken.
#[inline(always)]
pub fn exit_reason(vmcb: &Vmcb) -> Option<ExitReason> {
    const CPUID: u64 = Reason::Cpuid as u64;
    const VMMCALL: u64 = Reason::Vmmcall as u64;
    const HLT: u64 = Reason::Hlt as u64;
    const IOIO: u64 = Reason::Ioio as u64;
    const MSR: u64 = Reason::Msr as u64;
    const NESTED_PAGE_FAULT: u64 = Reason::NestedPageFault as u64;
    // The frequent ones first.
    Some(match vmcb.get(EXIT_CODE) {
        CPUID => ExitReason::Cpuid,
        VMMCALL => ExitReason::Vmcall,
        NESTED_PAGE_FAULT => nested(vmcb),
        IOIO => ExitReason::IoInstruction,
        MSR if vmcb.get(EXIT_INFO_1) & 1 == 0 => ExitReason::Rdmsr,
        MSR => ExitReason::Wrmsr,
        HLT => ExitReason::Hlt,
        other => return infrequent(other),
    })
}

#[inline(always)]
fn nested(vmcb: &Vmcb) -> ExitReason {
    let fault = NestedFault::decode(vmcb.get(EXIT_INFO_1), Gpa::new(0));
    match fault.is_misconfiguration() {
        false => ExitReason::EptViolation,
        true => ExitReason::EptMisconfiguration,
    }
}

fn infrequent(code: u64) -> Option<ExitReason> {
    let number = u32::try_from(code).ok()?;
    Some(match number {
        CR_READ..DR_READ => {
            const { assert!(CR_WRITE + 16 == DR_READ) }
            ExitReason::CrAccess
        }
        DR_READ..EXCEPTION => {
            const { assert!(DR_WRITE + 16 == EXCEPTION) }
            ExitReason::MovDr
        }
        EXCEPTION..EXCEPTIONS_END => ExitReason::ExceptionOrNmi,
        _ => match Reason::from_number(number)? {
            Reason::Interrupt => ExitReason::ExternalInterrupt,
            Reason::Nmi => ExitReason::ExceptionOrNmi,
            // It is pending still, and the firmware has it before the host goes on.
            Reason::Smi => ExitReason::OtherSmi,
            Reason::Init => ExitReason::InitSignal,
            Reason::VirtualInterrupt => ExitReason::InterruptWindow,
            Reason::Rdpmc => ExitReason::Rdpmc,
            Reason::Rsm => ExitReason::Rsm,
            Reason::Invd => ExitReason::Invd,
            Reason::Wbinvd => ExitReason::Wbinvd,
            Reason::TaskSwitch => ExitReason::TaskSwitch,
            Reason::Shutdown => ExitReason::TripleFault,
            Reason::Monitor => ExitReason::Monitor,
            Reason::Mwait | Reason::MwaitArmed => ExitReason::Mwait,
            Reason::Xsetbv => ExitReason::Xsetbv,
            Reason::Vmrun => ExitReason::Vmrun,
            Reason::Vmload => ExitReason::Vmload,
            Reason::Vmsave => ExitReason::Vmsave,
            Reason::Stgi => ExitReason::Stgi,
            Reason::Clgi => ExitReason::Clgi,
            Reason::Skinit => ExitReason::Skinit,
            Reason::Invlpga => ExitReason::Invlpga,
            Reason::Invlpgb | Reason::InvlpgbIllegal => ExitReason::Invlpgb,
            Reason::Tlbsync => ExitReason::Tlbsync,
            Reason::Rdpru => ExitReason::Rdpru,
            Reason::Mcommit => ExitReason::Mcommit,
            // No intercept of ours asks for any other.
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::choice::choose;
    use super::super::intercept::{Intercept, Intercepts};
    use super::super::start_state::tests::set_up;
    use super::*;
    use std::collections::BTreeSet;

    fn reason(code: u64, information: u64) -> Option<ExitReason> {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(EXIT_CODE, code);
        vmcb.set(EXIT_INFO_1, information);
        exit_reason(&vmcb)
    }

    #[test]
    fn whatever_is_asked_for_has_a_reason() {
        let (_, mut capabilities) = set_up();
        capabilities.instructions.rdpru = true;
        capabilities.instructions.invlpgb = true;
        capabilities.instructions.mcommit = true;
        let chosen = choose(&capabilities).unwrap();
        let code = |intercept: Intercept| {
            let (vector, bit) = intercept.place();
            32 * vector as u64 + u64::from(bit)
        };
        let asked: BTreeSet<_> = chosen.intercepts.iter().map(code).collect();
        // What is switched on later, the second form of one that is asked for, and the list that has no intercepts.
        let others = [
            code(Intercept::VINTR),
            code(Intercept::MWAIT_ARMED),
            code(Intercept::INIT),
        ];
        for intercept in Intercepts::from_vectors([u32::MAX; 6]).iter() {
            let code = code(intercept);
            let known = reason(code, 0).is_some();
            let register = code < 0x60;
            assert!(known || !asked.contains(&code), "{intercept}");
            assert!(
                !known || register || asked.contains(&code) || others.contains(&code),
                "{intercept}"
            );
        }
    }

    #[test]
    fn reasons_are_those_of_the_other_maker_where_there_are_such() {
        use ExitReason as R;
        for (code, information, expected) in [
            (0x72, 0, Some(R::Cpuid)),
            (0x81, 0, Some(R::Vmcall)),
            (0x78, 0, Some(R::Hlt)),
            (0x7b, 0, Some(R::IoInstruction)),
            (0x7c, 0, Some(R::Rdmsr)),
            (0x7c, 1, Some(R::Wrmsr)),
            (0x400, 1 << 32 | 6, Some(R::EptViolation)),
            (0x400, 1 << 32 | 0xe, Some(R::EptMisconfiguration)),
            (0, 0, Some(R::CrAccess)),
            (0x1f, 0, Some(R::CrAccess)),
            (0x20, 0, Some(R::MovDr)),
            (0x40, 0, Some(R::ExceptionOrNmi)),
            (0x5f, 0, Some(R::ExceptionOrNmi)),
            (0x60, 0, Some(R::ExternalInterrupt)),
            (0x61, 0, Some(R::ExceptionOrNmi)),
            (0x7f, 0, Some(R::TripleFault)),
            (0x80, 0, Some(R::Vmrun)),
            (0x8d, 0, Some(R::Xsetbv)),
            (0x8f, 0, None),
            (0x90, 0, None),
            (0x404, 0, None),
            (1 << 32 | 0x72, 0, None),
            (u64::MAX, 0, None),
        ] {
            assert_eq!(reason(code, information), expected, "{code:#x}");
        }
    }
}
