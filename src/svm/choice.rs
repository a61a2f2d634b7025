//! Which features and intercepts this hypervisor wants, in two tables, and how they meet what the CPU has, in one place.

use core::fmt;

use super::capabilities::Capabilities;
use super::feature::{Feature, Features};
use super::intercept::{Intercept, Intercepts};

/// How much a feature is wanted.
#[derive(Clone, Copy)]
enum Need {
    /// Without it, no guest can be run.
    Must,
    /// It is used where it is there.
    Nice,
    /// It is not used: with what it is used for, a guest would be given what the host must keep, or a page of memory that
    /// is not made for it.
    Never,
}

/// The features. One that does not stand here is not used.
static FEATURES: &[(Feature, Need)] = &[
    (Feature::NestedPaging, Need::Must),
    // Without it, our own decoder says how long an instruction is.
    (Feature::NextRipSave, Need::Nice),
    // Without it, the same decoder says what was moved where.
    (Feature::DecodeAssists, Need::Nice),
    // Without it, a flush is a new ASID.
    (Feature::FlushByAsid, Need::Nice),
    (Feature::VmcbClean, Need::Nice),
    // These give guests a way past the intercepts of VMLOAD, VMSAVE, STGI and CLGI.
    (Feature::VirtualVmsaveVmload, Need::Never),
    (Feature::VirtualGif, Need::Never),
    // Guests have neither an APIC nor performance counters.
    (Feature::Avic, Need::Never),
    (Feature::LbrVirtualization, Need::Never),
    // A guest that waits for another is not told from one that computes: each has a CPU of its own.
    (Feature::PauseFilter, Need::Never),
    (Feature::PauseFilterThreshold, Need::Never),
    (Feature::TscRate, Need::Never),
    // Our nested tables use execute permission for both modes alike.
    (Feature::GuestModeExecuteTrap, Need::Never),
];

/// When an intercept is on.
#[derive(Clone, Copy)]
enum When {
    /// Always. Every CPU has it.
    Always,
    /// Where the CPU has the instruction.
    If(fn(&Capabilities) -> bool),
    /// Sometimes; off at first.
    Switched,
    /// Never.
    Off,
}

/// The intercepts. What does not stand here is off.
static INTERCEPTS: &[(Intercept, When)] = &[
    // The host stays in charge of interrupts, NMIs and time.
    (Intercept::INTR, When::Always),
    (Intercept::NMI, When::Always),
    (Intercept::SMI, When::Always),
    // An INIT resets the CPU in a guest as elsewhere; QEMU hangs when it is to exit.
    (Intercept::INIT, When::Off),
    // The windows in which an interrupt, and an NMI, can be injected.
    (Intercept::VINTR, When::Switched),
    (Intercept::IRET, When::Switched),
    // VMCALL is none of these CPUs' instructions, but a guest's call all the same.
    (Intercept::exception(6), When::Always),
    // Exceptions that can be made to follow one another without end inside the CPU, where no timer reaches.
    (Intercept::exception(1), When::Always),
    (Intercept::exception(17), When::Always),
    // #MC is the host's.
    (Intercept::exception(18), When::Always),
    // A guest sees what it has written, not what the host adds.
    (Intercept::cr_read(0), When::Always),
    (Intercept::cr_write(0), When::Always),
    (Intercept::cr_read(4), When::Always),
    (Intercept::cr_write(4), When::Always),
    (Intercept::cr_read(8), When::Always),
    (Intercept::cr_write(8), When::Always),
    (Intercept::CR0_SELECTIVE_WRITE, When::Off),
    // These would cost an exit for what nested paging and the TSC offset make harmless.
    (Intercept::cr_read(3), When::Off),
    (Intercept::cr_write(3), When::Off),
    (Intercept::INVLPG, When::Off),
    (Intercept::INVPCID, When::Off),
    (Intercept::RDTSC, When::Off),
    (Intercept::RDTSCP, When::Off),
    (Intercept::PAUSE, When::Off),
    (Intercept::CPUID, When::Always),
    (Intercept::HLT, When::Always),
    (Intercept::IOIO_PROT, When::Always),
    (Intercept::MSR_PROT, When::Always),
    (Intercept::VMMCALL, When::Always),
    (Intercept::SHUTDOWN, When::Always),
    (Intercept::TASK_SWITCH, When::Always),
    // A guest must not flush the host's caches, and the counters are the host's.
    (Intercept::INVD, When::Always),
    (Intercept::WBINVD, When::Always),
    (Intercept::RDPMC, When::Always),
    (
        Intercept::RDPRU,
        When::If(|capabilities| capabilities.instructions.rdpru),
    ),
    // MONITOR and MWAIT are not offered in CPUID; without exits they would run, and could idle the CPU.
    (Intercept::MONITOR, When::Always),
    (Intercept::MWAIT, When::Always),
    (Intercept::XSETBV, When::Always),
    (Intercept::RSM, When::Always),
    // The instructions of SVM itself, which would run in a guest whose EFER.SVME has to be 1. No CPU enters a guest without
    // the first.
    (Intercept::VMRUN, When::Always),
    (Intercept::VMLOAD, When::Always),
    (Intercept::VMSAVE, When::Always),
    (Intercept::STGI, When::Always),
    (Intercept::CLGI, When::Always),
    (Intercept::SKINIT, When::Always),
    (Intercept::INVLPGA, When::Always),
    // These flush translations of other guests, on all CPUs, and wait for that.
    (
        Intercept::INVLPGB,
        When::If(|capabilities| capabilities.instructions.invlpgb),
    ),
    (
        Intercept::INVLPGB_ILLEGAL,
        When::If(|capabilities| capabilities.instructions.invlpgb),
    ),
    (
        Intercept::TLBSYNC,
        When::If(|capabilities| capabilities.instructions.invlpgb),
    ),
    (
        Intercept::MCOMMIT,
        When::If(|capabilities| capabilities.instructions.mcommit),
    ),
];

/// What is used of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The features.
    pub features: Features,
    /// The intercepts that every guest starts with.
    pub intercepts: Intercepts,
}

/// What a CPU with SVM lacks to run our guests. Its text names every single thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmetFeatures {
    /// Features that it must have and has not.
    pub missing: Features,
    /// It has no ASID but the host's.
    pub asids: bool,
    /// It cannot make pages not executable.
    pub no_execute: bool,
}

impl fmt::Display for UnmetFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "this CPU lacks: ";
        for feature in self.missing.iter() {
            write!(f, "{separator}{feature}")?;
            separator = ", ";
        }
        for (missing, name) in [
            (
                self.asids,
                "an ASID for guests (CPUID.8000_000AH:EBX is below 2)",
            ),
            (
                self.no_execute,
                "pages that are not executable (CPUID.8000_0001H:EDX[bit 20])",
            ),
        ] {
            if missing {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

impl core::error::Error for UnmetFeatures {}

/// What is used of this CPU, or what it lacks for our guests.
///
/// # Errors
/// All that this CPU lacks.
pub fn choose(capabilities: &Capabilities) -> Result<Chosen, UnmetFeatures> {
    let mut unmet = UnmetFeatures {
        missing: Features::EMPTY,
        asids: capabilities.asids < 2,
        no_execute: !capabilities.no_execute,
    };
    let mut chosen = Chosen {
        features: Features::EMPTY,
        intercepts: Intercepts::EMPTY,
    };
    for (feature, need) in FEATURES {
        match (need, capabilities.features.has(*feature)) {
            (Need::Must | Need::Nice, true) => chosen.features = chosen.features.with(*feature),
            (Need::Must, false) => unmet.missing = unmet.missing.with(*feature),
            _ => {}
        }
    }
    for (intercept, when) in INTERCEPTS {
        let on = match when {
            When::Always => true,
            When::If(has) => has(capabilities),
            When::Switched | When::Off => false,
        };
        chosen.intercepts.set(*intercept, on);
    }
    if unmet.missing != Features::EMPTY || unmet.asids || unmet.no_execute {
        return Err(unmet);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::capabilities::tests::{Profile, epyc, qemu, ryzen};
    use super::*;

    fn chosen(profile: &Profile) -> Chosen {
        choose(&Capabilities::discover(profile).unwrap()).unwrap()
    }

    #[test]
    fn nothing_stands_in_the_tables_twice() {
        for (index, (feature, _)) in FEATURES.iter().enumerate() {
            assert!(FEATURES[..index].iter().all(|(f, _)| f != feature));
        }
        for (index, (intercept, _)) in INTERCEPTS.iter().enumerate() {
            let before = &INTERCEPTS[..index];
            assert!(before.iter().all(|(i, _)| i != intercept), "{intercept}");
        }
    }

    #[test]
    fn the_exact_words_for_qemu() {
        let Chosen {
            features,
            intercepts,
        } = chosen(&qemu());
        assert!(features.iter().eq([Feature::NestedPaging]));
        let crs = 1 << 0 | 1 << 4 | 1 << 8;
        let exceptions = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;
        let third = 7 | 1 << 15 | 1 << 18 | 1 << 19 | 1 << 22 | 1 << 24 | 3 << 26 | 3 << 28;
        let fourth = 0x7f | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13;
        assert_eq!(
            intercepts.vectors(),
            [crs | crs << 16, 0, exceptions, third | 1 << 31, fourth, 0]
        );
    }

    #[test]
    fn what_is_nice_is_used_where_it_is_there() {
        let used = |profile: &Profile, feature| chosen(profile).features.has(feature);
        for (feature, need) in FEATURES {
            if matches!(need, Need::Nice) {
                assert!(used(&epyc(), *feature), "{feature}");
                assert!(!used(epyc().withhold(*feature), *feature), "{feature}");
            }
        }
        assert!(used(&ryzen(), Feature::NextRipSave) && !used(&ryzen(), Feature::DecodeAssists));
    }

    #[test]
    fn what_is_not_wanted_is_not_used() {
        for (feature, need) in FEATURES {
            let never = matches!(need, Need::Never);
            assert_eq!(!chosen(&epyc()).features.has(*feature), never, "{feature}");
        }
        // No trap after a write is among what is wanted of the newest CPU either.
        assert!(!chosen(&epyc()).intercepts.has(Intercept::EFER_WRITTEN));
    }

    #[test]
    fn intercepts_of_new_instructions_come_with_them() {
        let new = [
            Intercept::RDPRU,
            Intercept::INVLPGB,
            Intercept::INVLPGB_ILLEGAL,
            Intercept::TLBSYNC,
            Intercept::MCOMMIT,
        ];
        let (old, recent) = (chosen(&qemu()).intercepts, chosen(&epyc()).intercepts);
        for intercept in new {
            assert!(!old.has(intercept) && recent.has(intercept), "{intercept}");
        }
        assert_eq!(old.iter().count() + new.len(), recent.iter().count());
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let mut profile = qemu();
        profile
            .withhold(Feature::NestedPaging)
            .change(0x8000_000a, |leaf| leaf.ebx = 1)
            .change(0x8000_0001, |leaf| leaf.edx &= !(1 << 20));
        let error = choose(&Capabilities::discover(&profile).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this CPU lacks: nested paging (CPUID.8000_000AH:EDX[bit 0]), an ASID for guests \
             (CPUID.8000_000AH:EBX is below 2), pages that are not executable (CPUID.8000_0001H:EDX[bit 20])"
        );
        let mut profile = qemu();
        profile.withhold(Feature::NestedPaging);
        let error = choose(&Capabilities::discover(&profile).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this CPU lacks: nested paging (CPUID.8000_000AH:EDX[bit 0])"
        );
    }
}
