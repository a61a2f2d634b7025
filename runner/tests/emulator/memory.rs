//! Memory that is filled on touch and copied on write: guests that check every byte of it, on CPUs with and without
//! accessed and dirty bits, with 1 GiB pages and without.

use crate::booted::{Booted, boot, run, sample};
use crate::elf_file::file;
use crate::pattern;
use offshoot_runner::{Emulator, Guest};

const PAGE: u64 = 4096;

/// Data of `len` bytes as the guests know it.
fn data(test: &str, len: u64) -> Guest {
    let words = (0..len.div_ceil(8)).flat_map(|word| pattern::data(word * 8).to_le_bytes());
    let bytes: Vec<u8> = words.take(len as usize).collect();
    file(test, "corpus", &bytes).with("data")
}

#[track_caller]
fn pages(booted: &Booted, guest: &str, kind: &str) -> u64 {
    match booted.guest(guest).pages.get(kind) {
        Some(&pages) => pages,
        None => panic!("{}", booted.tell(&format!("no pages {kind} of {guest}"))),
    }
}

#[track_caller]
fn stopped(booted: &Booted, guest: &str, outcome: &str) {
    let found = &booted.guest(guest).outcome;
    assert_eq!(found, outcome, "{}", booted.tell(guest));
}

/// All guests in one boot, with 128 MiB of the host's memory.
fn memory_holds_what_was_written(model: &str) {
    let test = format!("memory-{model}");
    let mapping = |name: &str, map: &str| sample("shared").with(format!("name={name}")).with(map);
    // More than a table of the guest's maps, and not whole pages.
    let whole = 517;
    let guests = vec![
        sample("sparse").with("mem=64G"),
        mapping("writer", "map=corpus"),
        mapping("reader", "map=corpus:ro"),
        sample("bad_readonly").with("map=corpus:ro"),
        sample("smc").with("map=corpus"),
        sample("shadow").with("map=corpus"),
        mapping("last", "map=corpus"),
        data(&test, whole * PAGE + 1005),
    ];
    let mut run = run(&test, guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = "pool=128M audit".into();
    let booted = boot(&run);
    for guest in ["sparse", "writer", "reader", "smc", "shadow", "last"] {
        booted.healthy(guest);
    }
    booted.no_frame_lost();

    // 64 GiB of addresses, and the frames of what was touched.
    assert_eq!(booted.figure("sparse.pages_written"), 8192);
    let peak = booted.report().frames.peak;
    let least = booted.figure("sparse.pages_written");
    assert!((least..32768).contains(&peak), "{}", booted.tell("peak"));

    // Every page that is written is copied once. What is only read takes no frame but for the last page, in which
    // zeroes follow the data.
    for writer in ["writer", "shadow", "last"] {
        let copied = pages(&booted, writer, "copied");
        assert_eq!(copied, whole + 1, "{}", booted.tell(writer));
    }
    assert_eq!(pages(&booted, "smc", "copied"), whole);
    assert_eq!(pages(&booted, "reader", "copied"), 1);
    assert!(pages(&booted, "reader", "filled") < 16);

    stopped(&booted, "bad_readonly", "memory violation");
    booted.says(&[
        "bad_readonly",
        "write at GPA 0x4000000",
        "does not allow it",
    ]);
    booted.says(&["GPA 0x4000000", "only to be read"]);
}

#[test]
fn memory_holds_what_was_written_on_haswell() {
    memory_holds_what_was_written("corei7_haswell_4770");
}

#[test]
fn memory_holds_what_was_written_on_skylake() {
    memory_holds_what_was_written("corei7_skylake_x");
}

#[test]
fn memory_holds_what_was_written_on_lynnfield() {
    memory_holds_what_was_written("corei5_lynnfield_750");
}

/// Four times as much data as there is memory for guests: reading it takes none, writing it takes all.
#[test]
fn frames_that_run_out_in_a_copy_stop_only_the_guest_that_writes() {
    let test = "memory-exhausted";
    let mapping = |name: &str, map: &str| sample("shared").with(format!("name={name}")).with(map);
    let guests = vec![
        mapping("greedy", "map=corpus"),
        mapping("reader", "map=corpus:ro"),
        sample("bad_oom").with("map=corpus"),
        sample("hello"),
        data(test, 4 << 20),
    ];
    let mut run = run(test, guests);
    run.cmdline = "pool=1M audit".into();
    let booted = boot(&run);
    for (guest, access) in [("greedy", "GPA 0x4"), ("bad_oom", "GPA 0x")] {
        stopped(&booted, guest, "out of memory");
        booted.says(&[guest, "write at", access, "out of frames"]);
    }
    assert!(pages(&booted, "greedy", "copied") > 100);
    booted.says(&["in data that is copied when written"]);
    assert_eq!(pages(&booted, "reader", "copied"), 0);
    booted.healthy("reader");
    booted.healthy("hello");
    booted.no_frame_lost();
}
