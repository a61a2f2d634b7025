//! The local APIC: what firmware left on in it is silenced, and what comes through it is acknowledged.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::Emulator;

/// Interrupts that made the guest exit, which lets them come for a while.
fn interrupts(booted: &Booted) -> u64 {
    let exits = &booted.guest("selfcheck").exits;
    exits.get("external interrupt").copied().unwrap_or(0)
}

fn with(selftest: &str, model: &str) -> u64 {
    let mut run = run(
        &format!("apic-{selftest}-{model}"),
        vec![sample("selfcheck")],
    );
    run.emulator = Emulator::bochs(model);
    run.cmdline = format!("selftest={selftest}");
    let booted = boot(&run);
    booted.all_well();
    interrupts(&booted)
}

#[test]
fn interrupts_of_the_local_apic_are_acknowledged() {
    // One that is not would be the last.
    for (selftest, model) in [
        ("timer", "corei5_lynnfield_750"),
        ("timer", "tigerlake"),
        ("timer-x2apic", "tigerlake"),
    ] {
        let interrupts = with(selftest, model);
        assert!(interrupts > 50, "{interrupts} with {selftest} on {model}");
    }
}

#[test]
fn a_timer_that_firmware_left_on_is_silent() {
    for selftest in ["left-on", "left-on-x2apic"] {
        // One may have come before it was masked.
        let interrupts = with(selftest, "tigerlake");
        assert!(interrupts <= 1, "{interrupts} with {selftest}");
    }
}
