//! The sample guests on every kind of CPU that can run them, and what exits cost.

use crate::booted::{boot, image, run, sample};
use offshoot_runner::{Emulator, bench};

/// All samples on a CPU model, with 64 MiB of the host's memory for guests, interrupted a thousand times a second.
fn all_samples(model: &str) {
    let guests = vec![
        sample("hello"),
        sample("sparse").with("mem=1G"),
        sample("selfcheck"),
        sample("frozen").with("mem=16M"),
    ];
    let mut run = run(&format!("samples-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = "pool=64M audit tick=1ms".into();
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["selfcheck", "audited"]);
    let exits = &booted.guest("selfcheck").exits;
    let interrupts = exits.get("external interrupt").copied().unwrap_or(0);
    assert!(interrupts > 9, "{}", booted.tell("interrupts"));
    booted.says(&["hello", "Hello"]);
    booted.says(&["frozen", "generation 1, fork 0, told [0, 0"]);
    assert_eq!(booted.report().guests.len(), 4);
    assert_eq!(booted.figure("sparse.words_wrong"), 0);
    let written = booted.figure("sparse.pages_written");
    assert_eq!(written, 8192);
    // What was filled was counted, and it was less than the guest's memory.
    let frames = &booted.report().frames;
    assert!(
        (written..16384).contains(&frames.peak),
        "{}",
        booted.tell("peak")
    );
    assert!(
        booted.guest("sparse").exits.values().sum::<u64>() >= written,
        "{}",
        booted.tell("exits")
    );
}

#[test]
fn samples_pass_on_tiger_lake() {
    all_samples("tigerlake");
}

#[test]
fn samples_pass_on_haswell_without_page_modification_log() {
    all_samples("corei7_haswell_4770");
}

#[test]
fn samples_pass_on_arrandale_without_accessed_and_dirty_bits() {
    all_samples("corei5_arrandale_m520");
}

#[test]
fn samples_pass_on_lynnfield_without_unrestricted_guest() {
    all_samples("corei5_lynnfield_750");
}

/// The walker's tables under the emulated MMU. The whole check takes a few seconds.
fn the_mmu_agrees(model: &str, in_32_bit_mode: bool) {
    let mut run = run(
        &format!("mmu-{model}"),
        vec![sample("mmu").with("mem=256M").with("testdev")],
    );
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    booted.all_well();
    for part in [
        "permissions of every leaf size",
        "what upper levels deny",
        "bad entries",
        "changes to live tables",
        "tables from a buffer",
        "rebuilt spaces",
    ] {
        booted.says(&["mmu", part, "ok"]);
    }
    // The mark for global pages is where the CPU looks for it.
    booted.says(&["mmu", "a global page outlived 2 of 2"]);
    let verdict = if in_32_bit_mode { "ok" } else { "skipped" };
    booted.says(&["mmu", "32-bit paging", verdict]);
    if in_32_bit_mode {
        booted.says(&["mmu", "served behind 32-bit and PAE paging", "ok"]);
    }
    booted.says(&["mmu", "checks, 0 wrong"]);
}

#[test]
fn the_mmu_agrees_with_the_walker_on_tiger_lake() {
    the_mmu_agrees("tigerlake", true);
}

#[test]
fn the_mmu_agrees_with_the_walker_on_haswell() {
    the_mmu_agrees("corei7_haswell_4770", true);
}

#[test]
fn the_mmu_agrees_with_the_walker_on_arrandale_without_1_gib_pages() {
    the_mmu_agrees("corei5_arrandale_m520", true);
}

#[test]
fn the_mmu_agrees_with_the_walker_on_lynnfield_in_long_mode_only() {
    the_mmu_agrees("corei5_lynnfield_750", false);
}

#[test]
fn several_guests_from_one_file_run_one_after_the_other() {
    let guests = (1..=3)
        .map(|n| sample("hello").with(format!("name=hello-{n}")))
        .collect();
    let booted = boot(&run("one-file", guests));
    booted.all_well();
    let names: Vec<_> = booted.report().guests.iter().map(|g| &g.name).collect();
    assert_eq!(names, ["hello-1", "hello-2", "hello-3"]);
}

#[test]
fn exits_cost_no_more_than_promised() {
    let data = bench::data(&image().root.join("target/run/figures-data")).unwrap();
    let bench = sample("bench").with("map=bench-data").with("testdev");
    let guests = vec![bench.with("forks=2").with("parallel=1"), data];
    let mut run = run("figures", guests);
    // With an audit the template would stay, and nothing be taken over.
    run.cmdline = bench::cmdline("");
    let booted = boot(&run);
    booted.healthy("bench");
    for (name, most) in [
        ("exit.cpuid", 150),
        ("exit.vmcall", 150),
        ("exit.hlt", 150),
        ("exit.rdmsr", 150),
        ("exit.io", 200),
        ("exit.mmio.read", 1300),
        ("exit.mmio.write", 1750),
        ("fill.read", 200),
        ("fill.write", 250),
        // 512 of these zero or copy the page.
        ("fill.write.zeroing", 300 + 512),
        ("cow.zero", 350),
        ("cow.copy", 300 + 512),
        ("cow.copy.fork", 300 + 512),
        ("cow.takeover", 300),
        ("fill.around.per_page", 100),
        ("boot.to_first_guest", 20_000_000),
    ] {
        let value = booted.figure(name);
        assert!(
            (1..=most).contains(&value),
            "{}",
            booted.tell(&format!("{name} is {value}, more than {most}"))
        );
    }
}
