//! Dirty pages as three kinds of CPU tell them: by a log, by marks, and by write protection.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::Emulator;
use offshoot_runner::report::Dirty;

/// Forks that ask in each of their runs, between resets, and are given pages ahead of need: each looks whether it is told
/// what it wrote. Having asked makes no reset a cold one.
#[test]
fn forks_are_told_what_they_wrote_on_three_kinds_of_cpu() {
    for model in ["tigerlake", "corei7_haswell_4770", "corei5_lynnfield_750"] {
        let forks = |name: &str, reset: &str| {
            let guest = sample("forks_dirty").with(format!("name={name}"));
            let guest = guest.with("mem=16M").with("forks=6").with("parallel=2");
            guest.with("runs=7").with(format!("reset={reset}"))
        };
        let mut guests = vec![forks("warm", "warm"), forks("cold", "cold")];
        guests.push(forks("ahead", "auto").with("prefetch"));
        let mut run = run(&format!("forks-dirty-{model}"), guests);
        run.emulator = Emulator::bochs(model);
        run.cmdline = "audit".into();
        let booted = boot(&run);
        booted.all_well();
        let [warm, cold, ahead] = ["warm", "cold", "ahead"].map(|guest| {
            let Some(forks) = &booted.guest(guest).forks else {
                panic!("{}", booted.tell(&format!("{guest} was not forked")))
            };
            let all = &forks.generations[0];
            assert_eq!((all.ok, all.reset.count), (42, 36), "{model} {guest}");
            all.pages_private
        });
        // A fork that was not reset cold has most of its pages still. Without marks it is given write for each.
        let kept = warm * 3 < cold * 2 && ahead * 3 < cold * 2;
        let marks = model != "corei5_lynnfield_750";
        assert_eq!(kept, marks, "{model}: {warm}, {ahead}; cold {cold}");
    }
}

/// Runs the guest that asks for dirty pages, of which it has written some thousands, on a CPU of this model.
fn told_on(model: &str) -> (Booted, Dirty) {
    let mut run = run(&format!("dirty-{model}"), vec![sample("dirty")]);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    booted.all_well();
    let dirty = booted.guest("dirty").dirty;
    (booted, dirty)
}

fn exits(booted: &Booted, reason: &str) -> u64 {
    let exits = &booted.guest("dirty").exits;
    exits.get(reason).copied().unwrap_or(0)
}

const LOG_FULL: &str = "page-modification log full";

#[test]
fn three_kinds_of_cpu_tell_the_same_dirty_pages() {
    let (logs, told) = told_on("tigerlake");
    let (marks, by_marks) = told_on("corei7_haswell_4770");
    let (neither, by_protection) = told_on("corei5_lynnfield_750");
    assert_eq!(told, by_marks, "{}", marks.tell("log and marks differ"));
    assert_eq!(
        told,
        by_protection,
        "{}",
        neither.tell("log and write protection differ")
    );
    assert!(told.harvests > 9 && told.pages > 7500, "{told:?}");
    assert_eq!(logs.figure("dirty.told"), neither.figure("dirty.told"));
    // The log was full more than once, and only there is one.
    let full = exits(&logs, LOG_FULL);
    assert!(full >= 10, "{}", logs.tell(&format!("{full} times full")));
    assert_eq!(exits(&marks, LOG_FULL) + exits(&neither, LOG_FULL), 0);
    // Where the CPU does not mark pages, a write to one that was told is a violation.
    let violations = [&logs, &marks, &neither].map(|booted| exits(booted, "EPT violation"));
    assert!(violations[2] > violations[1] + 3000, "{violations:?}");
    // An INVEPT for each time that something was told, whoever notes it.
    let invepts = [&logs, &marks, &neither].map(|booted| booted.guest("dirty").invepts);
    assert!(invepts.iter().all(|invepts| *invepts > 5), "{invepts:?}");
    // What it costs that a log is full: KVM takes 36,600 instructions.
    let full = logs.figure("dirty.pml.full");
    assert!((1000..36_600).contains(&full), "{full}");
}
