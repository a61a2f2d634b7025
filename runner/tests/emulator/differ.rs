//! A guest that executes random instructions on memory and on a device, in every mode, and compares what comes of them.

use crate::booted::{boot, image, run, sample};
use offshoot_runner::Emulator;
use std::fs;

/// Modes of IA-32e mode, and those that a guest must leave it for.
const LONG: [&str; 6] = [
    "64-bit.cpl0",
    "64-bit.cpl3",
    "compat32.cpl0",
    "compat32.cpl3",
    "compat16.cpl0",
    "compat16.cpl3",
];
const LEGACY: [&str; 15] = [
    "32-bit.unpaged.cpl0",
    "32-bit.unpaged.cpl3",
    "16-bit.unpaged.cpl0",
    "16-bit.unpaged.cpl3",
    "32-bit.two-level.cpl0",
    "32-bit.two-level.cpl3",
    "16-bit.two-level.cpl0",
    "16-bit.two-level.cpl3",
    "32-bit.pae.cpl0",
    "32-bit.pae.cpl3",
    "16-bit.pae.cpl0",
    "16-bit.pae.cpl3",
    "real",
    "virtual-8086.two-level",
    "virtual-8086.pae",
];

/// So many cases in each mode, from this seed on.
fn differs_nowhere(model: &str, legacy: bool, seed: u64, count: u64) {
    let file = image().root.join(format!("target/run/differ-{model}.txt"));
    fs::write(&file, format!("seed={seed} count={count}")).unwrap();
    let options = offshoot_runner::Guest::new(file)
        .with("data")
        .with("name=options");
    let differ = sample("differ")
        .with("mem=16M")
        .with("testdev")
        .with("budget=240s");
    let guests = vec![differ.with("map=options"), options];
    let mut run = run(&format!("differ-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    let cases = format!("{count} cases");
    for mode in LONG {
        booted.says(&[mode, &cases, "; 0 different"]);
    }
    for mode in LEGACY {
        if legacy {
            booted.says(&[mode, &cases, "; 0 different"]);
        } else {
            booted.says(&[mode, "skipped"]);
        }
    }
    booted.all_well();
}

#[test]
fn random_instructions_do_to_a_device_what_they_do_to_memory_on_tiger_lake() {
    differs_nowhere("tigerlake", true, 1, 800);
}

#[test]
fn random_instructions_do_to_a_device_what_they_do_to_memory_on_sandy_bridge() {
    differs_nowhere("corei7_sandy_bridge_2600k", true, 2, 300);
}

#[test]
fn random_instructions_do_to_a_device_what_they_do_to_memory_on_lynnfield() {
    differs_nowhere("corei5_lynnfield_750", false, 3, 500);
}
