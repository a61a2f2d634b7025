//! Device memory: a guest that compares every instruction on the test device with the same on memory, and guests whose
//! accesses cannot be carried out.

use crate::booted::{boot, run, sample};
use offshoot_runner::Emulator;

/// Every instruction does to the device what it does to memory.
fn as_memory(model: &str) {
    let guests = vec![
        sample("mmio").with("mem=16M").with("testdev"),
        // Without the device, its addresses are nobody's.
        sample("mmio").with("name=without").with("mem=16M"),
        sample("hello"),
    ];
    let mut run = run(&format!("mmio-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    booted.healthy("mmio");
    booted.healthy("hello");
    for part in ["the device's own account", "instructions", "strings"] {
        booted.says(&["mmio", part, ": 0 wrong"]);
    }
    assert_eq!(booted.guest("without").status, Some(2));
    // The long copy takes more exits than one, but not one for each byte; all others take their own.
    let exits = booted.guest("mmio").exits["EPT violation"];
    assert!(exits > 10_000, "{}", booted.tell("exits"));
    booted.no_frame_lost();
}

#[test]
fn instructions_do_to_a_device_what_they_do_to_memory_on_tiger_lake() {
    as_memory("tigerlake");
}

#[test]
fn instructions_do_to_a_device_what_they_do_to_memory_on_skylake_x() {
    as_memory("corei7_skylake_x");
}

#[test]
fn instructions_do_to_a_device_what_they_do_to_memory_on_haswell() {
    as_memory("corei7_haswell_4770");
}

#[test]
fn instructions_do_to_a_device_what_they_do_to_memory_on_lynnfield() {
    as_memory("corei5_lynnfield_750");
}

/// The host's walks of a guest's tables, whatever these hold, beside the CPU's own.
fn walks_agree(model: &str) {
    let guest = sample("walks").with("mem=32M").with("testdev");
    let mut run = run(&format!("walks-{model}"), vec![guest]);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["walks", "for reserved bits"]);
    booted.says(&["walks", "checks, 0 wrong"]);
}

#[test]
fn the_host_walks_as_the_cpu_does_on_tiger_lake() {
    walks_agree("tigerlake");
}

#[test]
fn the_host_walks_as_the_cpu_does_on_sandy_bridge_without_1_gib_pages() {
    walks_agree("corei7_sandy_bridge_2600k");
}

/// What `bad_mmio` does when it has so many pages more than 16 MiB, how it ends, and what is said.
const BAD: [(&str, &str, &[&str]); 11] = [
    ("wide", "unsupported", &["not emulated: bytes 0f 10"]),
    ("delivery", "unsupported", &["delivery of an event"]),
    ("tables", "memory violation", &["page walk", "is a device"]),
    ("code", "memory violation", &["fetch", "is a device"]),
    ("stack", "unsupported", &["not emulated: bytes 50"]),
    ("endless", "memory violation", &["nothing is there"]),
    ("edge", "memory violation", &["nothing is there"]),
    ("pair", "unsupported", &["not emulated: bytes f0 0f c7"]),
    ("jump", "unsupported", &["not emulated: bytes ff"]),
    ("idt", "unsupported", &["delivery of an event"]),
    ("gdt", "unsupported", &["not emulated: bytes 8e d"]),
];

fn refused(model: &str) {
    let guests = BAD
        .iter()
        .enumerate()
        .flat_map(|(which, (name, ..))| {
            let bad = sample("bad_mmio")
                .with(format!("name={name}"))
                .with(format!("mem={}K", 16 * 1024 + 4 * which))
                .with("testdev");
            [bad, sample("hello").with(format!("name=after-{name}"))]
        })
        .collect();
    let mut run = run(&format!("mmio-bad-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    for (name, outcome, words) in BAD {
        let guest = booted.guest(name);
        assert_eq!(guest.status, None, "{}", booted.tell(name));
        assert_eq!(guest.outcome, outcome, "{}", booted.tell(name));
        let mut all = vec!["ERROR", name];
        all.extend(words);
        booted.says(&all);
        booted.healthy(&format!("after-{name}"));
    }
    // Without end, but not in one exit: two pages of the device and one of its ROM, 64 bytes at a time.
    let exits = booted.guest("endless").exits["EPT violation"];
    assert!(exits >= 3 * 4096 / 64, "{}", booted.tell("endless"));
    booted.no_frame_lost();
}

#[test]
fn accesses_that_cannot_be_carried_out_stop_the_guest_on_tiger_lake() {
    refused("tigerlake");
}

#[test]
fn accesses_that_cannot_be_carried_out_stop_the_guest_on_lynnfield() {
    refused("corei5_lynnfield_750");
}

#[test]
fn a_bad_option_is_refused() {
    let bad = sample("hello").with("name=bad").with("testdev=1");
    let twice = sample("hello").with("name=twice").with("testdev");
    let run = run("mmio-options", vec![bad, twice.with("testdev")]);
    let booted = boot(&run);
    booted.failed_with(&["2 of 2"]);
    booted.says(&["bad", "testdev=1", "takes no value"]);
    booted.says(&["twice", "testdev", "given twice"]);
    booted.no_frame_lost();
}
