//! What is done against side channels, on CPUs that need different things.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::{Emulator, Guest};

fn with(name: &str, model: &str, choice: &str, guests: Vec<Guest>) -> Booted {
    let mut run = run(name, guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = format!("audit {choice}");
    boot(&run)
}

/// Guests that execute what they have written, with large pages and forks.
fn guests() -> Vec<Guest> {
    let forks = sample("forks_isolation")
        .with("mem=16M")
        .with("forks=6")
        .with("parallel=3")
        .with("runs=2")
        .with("tenant=fork");
    vec![
        sample("selfcheck"),
        sample("smc").with("pages=2m"),
        sample("protect").with("pages=2m"),
        forks,
    ]
}

/// All that the CPU can do, whether it needs it or not.
#[test]
fn everything_at_once_changes_nothing_for_guests() {
    let all = "mitigations=l1tf,mds,ibpb,rsb,ibrs,bhi,multihit";
    let booted = with("mitigations-all", "tigerlake", all, guests());
    booted.all_well();
    booted.no_frame_lost();
    booted.says(&[
        "l1tf (",
        "mds (VERW)",
        "ibpb",
        "rsb (",
        "ibrs (",
        "bhi (",
        "multihit; this",
    ]);
}

/// A CPU before all microcode: the cache is flushed by reading.
#[test]
fn lynnfield_does_what_it_can() {
    let guests = vec![sample("hello"), sample("selfcheck")];
    let booted = with("mitigations-lynnfield", "corei5_lynnfield_750", "", guests);
    booted.all_well();
    booted.says(&[
        "mitigations=auto: l1tf (reading 64 KiB), mds (VERW), rsb (filled), bhi (cleared)",
    ]);
    booted.says(&["no IBPB between tenants without newer microcode"]);
}

#[test]
fn what_a_cpu_lacks_is_said() {
    let lacks = "mitigations=ibpb: this CPU has no IA32_PRED_CMD";
    let choice = "mitigations=rsb,ibpb";
    let booted = with(
        "mitigations-lacking",
        "corei5_lynnfield_750",
        choice,
        vec![sample("hello")],
    );
    booted.failed_with(&[lacks]);
    let wrong = with(
        "mitigations-wrong",
        "tigerlake",
        "mitigations=on",
        vec![sample("hello")],
    );
    wrong.failed_with(&["mitigations=on: not auto, off, or some of"]);
}
