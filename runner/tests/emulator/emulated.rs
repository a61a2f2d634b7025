//! Instructions that the hypervisor carries out, at their edges: the guest `emulated` compares them with what the CPU does.

use crate::booted::{boot, run, sample};
use offshoot_runner::Emulator;

fn as_the_cpu(model: &str) {
    let guests = vec![
        sample("emulated").with("mem=32M").with("testdev"),
        sample("hello"),
    ];
    let mut run = run(&format!("emulated-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    for part in [
        "the resume flag",
        "x87 selectors",
        "segments of port strings",
        "breakpoints",
    ] {
        booted.says(&["emulated", part, ": 0 wrong"]);
    }
    booted.all_well();
}

#[test]
fn emulated_instructions_are_the_cpus_on_tiger_lake() {
    as_the_cpu("tigerlake");
}

/// This one has x87 selectors.
#[test]
fn emulated_instructions_are_the_cpus_on_sandy_bridge() {
    as_the_cpu("corei7_sandy_bridge_2600k");
}

#[test]
fn emulated_instructions_are_the_cpus_on_lynnfield() {
    as_the_cpu("corei5_lynnfield_750");
}

/// Where a guest may leave paging.
#[test]
fn outside_ia_32e_mode_code_with_l_wraps_at_32_bits() {
    boot(&run("wraps", vec![sample("wraps").with("mem=32M")])).all_well();
}
