//! Which controls this hypervisor wants, in one table, and how they meet what the CPU allows, in one place.

use core::fmt;

use super::capabilities::Capabilities;
use super::controls::{
    Control, ControlSet, ControlWord, EntryControl, ExitControl, Pin, Primary, Secondary,
};
use crate::ept::EptCapability;

use Need::{Must, Never, Nice, NiceIf, Switched};

/// How much a control is wanted.
#[derive(Clone, Copy)]
enum Need {
    /// 1. Without it, no guest can be run.
    Must,
    /// Sometimes 1 and sometimes 0, so both must be allowed. 0 at first.
    Switched,
    /// 1 where the CPU offers it.
    Nice,
    /// 1 where the CPU offers it and this holds.
    NiceIf(fn(&Capabilities) -> bool),
    /// 0. A CPU on which it cannot be 0 is no use.
    Never,
}

/// The table. What does not stand here is 0 unless the CPU insists on 1.
static WANTED: &[(Control, Need)] = &[
    // The host stays in charge of interrupts, NMIs and time.
    (Pin::ExternalInterruptExiting.control(), Must),
    (Pin::NmiExiting.control(), Must),
    (Pin::VirtualNmis.control(), Nice),
    (Pin::ActivatePreemptionTimer.control(), Must),
    (Pin::ProcessPostedInterrupts.control(), Never),
    (Primary::InterruptWindowExiting.control(), Switched),
    (Primary::UseTscOffsetting.control(), Must),
    (Primary::HltExiting.control(), Must),
    // MONITOR and MWAIT are not offered in CPUID; without exits they would run, and could idle the CPU.
    (Primary::MwaitExiting.control(), Must),
    (Primary::MonitorExiting.control(), Must),
    // The counters and the task priority are the host's. CR8 without an exit is the real one.
    (Primary::RdpmcExiting.control(), Must),
    (Primary::Cr8LoadExiting.control(), Must),
    (Primary::Cr8StoreExiting.control(), Must),
    (Primary::UseIoBitmaps.control(), Must),
    (Primary::UseMsrBitmaps.control(), Must),
    (Primary::ActivateSecondaryControls.control(), Must),
    // These would cost an exit for what EPT and TSC offsetting make harmless.
    (Primary::InvlpgExiting.control(), Never),
    (Primary::RdtscExiting.control(), Never),
    (Primary::Cr3LoadExiting.control(), Never),
    (Primary::Cr3StoreExiting.control(), Never),
    (Primary::PauseExiting.control(), Never),
    // These need pages that we do not give the CPU.
    (Primary::UseTprShadow.control(), Never),
    (Primary::ActivateTertiaryControls.control(), Never),
    (Secondary::VirtualizeApicAccesses.control(), Never),
    (Secondary::VirtualizeX2apicMode.control(), Never),
    (Secondary::EnableVmFunctions.control(), Never),
    (Secondary::VmcsShadowing.control(), Never),
    (Secondary::EptViolationVe.control(), Never),
    (Secondary::EnableEpt.control(), Must),
    (
        Secondary::EnableVpid.control(),
        NiceIf(|capabilities| capabilities.ept.can_flush_vpid()),
    ),
    // The CPU logs only where it marks.
    (
        Secondary::EnablePml.control(),
        NiceIf(|capabilities| capabilities.ept.accessed_dirty),
    ),
    (Secondary::UnrestrictedGuest.control(), Nice),
    // Each of these instructions is #UD in the guest unless its control is 1.
    (Secondary::EnableRdtscp.control(), Nice),
    (Secondary::EnableInvpcid.control(), Nice),
    (Secondary::EnableXsaves.control(), Never),
    (Secondary::EnableUserWaitAndPause.control(), Never),
    (Secondary::EnablePconfig.control(), Never),
    // A guest must not flush the host's caches or make enclaves.
    (Secondary::WbinvdExiting.control(), Nice),
    (Secondary::EnableEnclsExiting.control(), Nice),
    // A guest that locks the bus or holds back every interrupt pays for it with an exit each time.
    (Secondary::BusLockDetection.control(), Nice),
    (Secondary::InstructionTimeout.control(), Nice),
    (Secondary::EnableEnclvExiting.control(), Nice),
    (Secondary::RdrandExiting.control(), Never),
    (Secondary::RdseedExiting.control(), Never),
    (Secondary::ModeBasedExecuteControl.control(), Never),
    (ExitControl::SaveDebugControls.control(), Must),
    (ExitControl::HostAddressSpaceSize.control(), Must),
    (ExitControl::AcknowledgeInterruptOnExit.control(), Must),
    (ExitControl::SavePat.control(), Must),
    (ExitControl::LoadPat.control(), Must),
    (ExitControl::SaveEfer.control(), Must),
    (ExitControl::LoadEfer.control(), Must),
    (ExitControl::SavePreemptionTimer.control(), Nice),
    (EntryControl::LoadDebugControls.control(), Must),
    (EntryControl::Ia32eModeGuest.control(), Switched),
    (EntryControl::EntryToSmm.control(), Never),
    (EntryControl::DeactivateDualMonitor.control(), Never),
    (EntryControl::LoadPat.control(), Must),
    (EntryControl::LoadEfer.control(), Must),
    // What an exit does not load must not be loaded by an entry.
    (EntryControl::LoadPerfGlobalCtrl.control(), Never),
    (EntryControl::LoadBndcfgs.control(), Never),
    (EntryControl::LoadCetState.control(), Never),
    (EntryControl::LoadPkrs.control(), Never),
];

/// What a CPU with VMX lacks to run our guests. Its text names every single thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmetControls {
    /// Controls that must be 1 and cannot.
    pub missing: ControlSet,
    /// Controls that must be 0 and cannot.
    pub forced: ControlSet,
    /// Which of [`EptCapability::NEEDED`] EPT lacks, where it is there at all.
    pub ept: [bool; 3],
}

impl fmt::Display for UnmetControls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "this CPU lacks: ";
        for control in self.missing.iter() {
            write!(f, "{separator}{control}")?;
            separator = ", ";
        }
        for (missing, name) in self.ept.into_iter().zip(EptCapability::NEEDED) {
            if missing {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        for control in self.forced.iter() {
            write!(f, "{separator}the 0-setting of {control}")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl core::error::Error for UnmetControls {}

/// The controls that every guest of ours starts with on this CPU, or what it lacks for them.
///
/// "IA-32e mode guest" is left 0: it follows the mode of the guest.
///
/// # Errors
/// All that this CPU lacks.
pub fn choose_controls(capabilities: &Capabilities) -> Result<ControlSet, UnmetControls> {
    let mut chosen = ControlSet::EMPTY;
    let mut missing = ControlSet::EMPTY;
    let mut forced = ControlSet::EMPTY;
    for (control, need) in WANTED {
        let offered = capabilities.offers(*control);
        let must_offer = matches!(need, Need::Must | Need::Switched);
        let may_force = !matches!(need, Need::Never | Need::Switched);
        let wanted = match need {
            Need::Must | Need::Nice => true,
            Need::NiceIf(holds) => holds(capabilities),
            Need::Switched | Need::Never => false,
        };
        missing.set(*control, must_offer && !offered);
        forced.set(*control, !may_force && capabilities.forces(*control));
        chosen.set(*control, wanted && offered);
    }
    let mut ept = capabilities.ept.missing();
    if !capabilities.offers(Secondary::EnableEpt) {
        // The one thing that is missing is EPT, which is in the list already.
        ept = [false; 3];
    }
    if !missing.is_empty() || !forced.is_empty() || ept != [false; 3] {
        return Err(UnmetControls {
            missing,
            forced,
            ept,
        });
    }
    for word in ControlWord::ALL {
        chosen.add(word, capabilities.allowed(word).must_be_one);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Profile, haswell, lynnfield, penryn, tigerlake, westmere};
    use super::*;

    fn discover(profile: &Profile) -> Capabilities {
        Capabilities::discover(profile).unwrap()
    }

    fn is_allowed(set: &ControlSet, capabilities: &Capabilities) -> bool {
        ControlWord::ALL.into_iter().all(|word| {
            let allowed = capabilities.allowed(word);
            set.word(word) & !allowed.may_be_one == 0 && allowed.must_be_one & !set.word(word) == 0
        })
    }

    #[test]
    fn no_control_stands_in_the_table_twice_and_all_are_named() {
        for (index, (control, _)) in WANTED.iter().enumerate() {
            assert!(control.name().is_some(), "{control}");
            assert!(
                WANTED[..index].iter().all(|(c, _)| c != control),
                "{control}"
            );
        }
    }

    #[test]
    fn what_is_chosen_is_what_the_cpu_allows() {
        for profile in [westmere(), lynnfield(), haswell(), tigerlake()] {
            let capabilities = discover(&profile);
            let chosen = choose_controls(&capabilities).unwrap();
            assert!(is_allowed(&chosen, &capabilities));
            for (control, need) in WANTED {
                let expected = match need {
                    Need::Must => true,
                    Need::Never | Need::Switched => false,
                    Need::Nice | Need::NiceIf(_) => capabilities.offers(*control),
                };
                assert_eq!(chosen.has(*control), expected, "{control}");
            }
        }
    }

    #[test]
    fn the_exact_words_for_a_haswell() {
        let chosen = choose_controls(&discover(&haswell())).unwrap();
        // Reserved default-1 bits, which stay 1: pin 1, 2, 4; primary 1, 4-6, 8, 13, 14, 26; exit 0, 1, 3-8, 10, 11,
        // 13, 14, 16, 17; entry 0, 1, 3-8, 12.
        assert_eq!(
            chosen.word(ControlWord::Pin),
            0x16 | 1 | 1 << 3 | 1 << 5 | 1 << 6
        );
        let primary = 1 << 3 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 19 | 1 << 20;
        let primary = primary | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 31;
        assert_eq!(chosen.word(ControlWord::Primary), 0x0400_6172 | primary);
        let secondary = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 12;
        assert_eq!(chosen.word(ControlWord::Secondary), secondary);
        let exit = 1 << 2 | 1 << 9 | 1 << 15 | 0x1f << 18;
        assert_eq!(chosen.word(ControlWord::Exit), 0x0003_6dfb | exit);
        assert_eq!(chosen.word(ControlWord::Entry), 0x11fb | 1 << 2 | 3 << 14);
    }

    #[test]
    fn without_unrestricted_guest_the_rest_is_as_good() {
        let chosen = choose_controls(&discover(&lynnfield())).unwrap();
        assert!(!chosen.has(Secondary::UnrestrictedGuest) && chosen.has(Secondary::EnableEpt));
        assert!(chosen.has(Secondary::EnableVpid));
    }

    #[test]
    fn a_cpu_without_ept_is_told_exactly_what_it_lacks() {
        let error = choose_controls(&discover(&penryn())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this CPU lacks: activate VMX-preemption timer (pin-based control 6), \
             enable EPT (secondary processor-based control 1), \
             save IA32_PAT (VM-exit control 18), load IA32_PAT (VM-exit control 19), \
             save IA32_EFER (VM-exit control 20), load IA32_EFER (VM-exit control 21), \
             load IA32_PAT (VM-entry control 14), load IA32_EFER (VM-entry control 15)"
        );
    }

    #[test]
    fn without_secondary_and_true_controls_both_lists_are_complete() {
        let mut profile = penryn();
        profile
            .without_true_controls()
            .clear_msr_bit(0x482, 32 + 31);
        let text = choose_controls(&discover(&profile))
            .unwrap_err()
            .to_string();
        for part in [
            "activate secondary controls (primary processor-based control 31)",
            "enable EPT (secondary processor-based control 1)",
            "the 0-setting of CR3-load exiting (primary processor-based control 15)",
            "the 0-setting of CR3-store exiting (primary processor-based control 16)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn every_must_is_named_when_it_alone_is_missing() {
        for (control, need) in WANTED {
            if !matches!(need, Need::Must | Need::Switched) {
                continue;
            }
            let mut profile = haswell();
            profile.withhold(*control);
            let error = choose_controls(&discover(&profile)).unwrap_err();
            assert!(error.missing.has(*control), "{control}");
            assert!(
                error.to_string().contains(&control.to_string()),
                "{control}"
            );
        }
    }

    #[test]
    fn every_nice_to_have_can_be_done_without() {
        for (control, need) in WANTED {
            if matches!(need, Need::Nice | Need::NiceIf(_)) {
                let mut profile = tigerlake();
                profile.withhold(*control);
                let capabilities = discover(&profile);
                let chosen = choose_controls(&capabilities).unwrap();
                assert!(!chosen.has(*control) && is_allowed(&chosen, &capabilities));
            }
        }
    }

    #[test]
    fn a_forced_must_not_is_an_error() {
        let mut profile = haswell();
        profile.set_msr_bit(0x48b, 20).set_msr_bit(0x48b, 32 + 20);
        let error = choose_controls(&discover(&profile)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this CPU lacks: the 0-setting of enable XSAVES/XRSTORS (secondary processor-based control 20)"
        );
    }

    #[test]
    fn ept_that_cannot_be_flushed_or_walked_is_an_error() {
        let mut profile = haswell();
        profile.clear_msr_bit(0x48c, 25).clear_msr_bit(0x48c, 26);
        profile.clear_msr_bit(0x48c, 6).clear_msr_bit(0x48c, 14);
        let error = choose_controls(&discover(&profile)).unwrap_err();
        assert_eq!(error.ept, [true; 3]);
        assert!(error.to_string().contains("INVEPT"));
        assert!(error.missing.is_empty());
    }

    #[test]
    fn a_log_of_marks_that_the_cpu_does_not_set_is_not_used() {
        let mut profile = tigerlake();
        let log = |profile: &Profile| {
            let chosen = choose_controls(&discover(profile)).unwrap();
            chosen.has(Secondary::EnablePml)
        };
        assert!(log(&profile) && !log(&haswell()));
        profile.clear_msr_bit(0x48c, 21);
        assert!(!log(&profile));
    }

    #[test]
    fn bus_locks_and_stuck_instructions_exit_where_the_cpu_can() {
        let mut profile = tigerlake();
        for control in [Secondary::BusLockDetection, Secondary::InstructionTimeout] {
            let bit = control.control().bit();
            assert!(!choose_controls(&discover(&profile)).unwrap().has(control));
            profile.set_msr_bit(0x48b, 32 + usize::from(bit));
            assert!(choose_controls(&discover(&profile)).unwrap().has(control));
        }
    }

    #[test]
    fn a_vpid_that_cannot_be_flushed_is_not_used() {
        let mut profile = haswell();
        profile.clear_msr_bit(0x48c, 32);
        let chosen = choose_controls(&discover(&profile)).unwrap();
        assert!(!chosen.has(Secondary::EnableVpid));
    }
}
