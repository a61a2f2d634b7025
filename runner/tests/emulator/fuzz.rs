//! Fuzzing a guest on the real image.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::{Emulator, Run};

/// A run of `guest`, fuzzed with these options.
fn fuzzed(name: &str, guest: &str, options: &[&str]) -> Run {
    let guest = options
        .iter()
        .fold(sample(guest).with("mem=16M"), |guest, option| {
            guest.with(*option)
        });
    let mut run = run(name, vec![guest]);
    run.cmdline = "pool=64M audit".into();
    run
}

/// The crash was found, and what led to it was told.
#[track_caller]
fn found_the_crash(booted: &Booted) {
    booted.all_well();
    booted.says(&["parser", "new crash", "page fault: write to", "not mapped"]);
    // The input, which is a file of that format, and the registers.
    booted.says(&["0000  4f 46 49 4d", "|OFIM"]);
    booted.says(&["rax", "rbx"]);
    booted.says(&["an execution takes", "reset", "making the input"]);
    booted.says(&["parser", "audited"]);
    assert_eq!(booted.figure("fuzz.crashes"), 1);
    let executions = booted.figure("fuzz.first_crash");
    assert_eq!(booted.figure("fuzz.executions"), executions);
    assert!(executions < 400_000, "{}", booted.tell("late"));
    // The example alone reaches some; what is hidden needs more.
    let reached = booted.figure("fuzz.blocks.reached");
    assert!(reached > 70, "{}", booted.tell("coverage"));
    assert!(reached < booted.figure("fuzz.blocks.known"));
    assert!(booted.figure("fuzz.corpus") > 5);
}

const DEMO: [&str; 3] = ["fuzz=400000", "seed=1", "expect=crash"];

#[test]
fn the_planted_crash_is_found() {
    found_the_crash(&boot(&fuzzed("fuzz-demo-test", "parser", &DEMO)));
}

#[test]
fn the_planted_crash_is_found_without_accessed_and_dirty_bits() {
    let mut run = fuzzed("fuzz-lynnfield", "parser", &DEMO);
    run.emulator = Emulator::bochs("corei5_lynnfield_750");
    found_the_crash(&boot(&run));
}

#[test]
fn a_sound_parser_survives() {
    let options = ["fuzz=15000", "seed=1"];
    let booted = boot(&fuzzed("fuzz-sound", "parser_sound", &options));
    booted.all_well();
    booted.says(&["parser_sound", "no crash found in 15000 executions"]);
    assert_eq!(booted.figure("fuzz.executions"), 15_000);
    assert_eq!(booted.figure("fuzz.crashes"), 0);
    assert!(booted.figure("fuzz.blocks.reached") > 70);
}

#[test]
fn a_crash_that_was_not_expected_fails_the_run() {
    let booted = boot(&fuzzed("fuzz-failure", "parser", &["fuzz=400000"]));
    booted.failed_with(&["parser", "1 crash found in"]);
    booted.no_frame_lost();
}

#[test]
fn too_little_memory_is_no_crash() {
    // One has too little for a fresh fork, the other for inputs that are to be kept.
    for pool in [200, 220] {
        let name = format!("fuzz-pool-{pool}");
        let mut run = fuzzed(&name, "parser", &["fuzz=400000", "expect=crash"]);
        run.cmdline = format!("pool={pool}K audit");
        let booted = boot(&run);
        booted.failed_with(&[
            "parser",
            "out of memory, with",
            "KiB for guests in all: raise pool=",
        ]);
        booted.no_frame_lost();
        assert_eq!(booted.figure("fuzz.crashes"), 0);
    }
}

#[test]
fn what_cannot_be_fuzzed_is_named() {
    let mut run = fuzzed("fuzz-refused", "hello", &["fuzz=10"]);
    run.guests
        .push(sample("parser").with("fuzz=10").with("inputs=nothing"));
    let booted = boot(&run);
    booted.says(&["hello", "never asked to be frozen"]);
    booted.says(&[
        "parser",
        "inputs=nothing: no boot module is data of that name",
    ]);
    booted.no_frame_lost();
}
