//! Pages of all sizes, as each guest asks for them.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::{Emulator, Guest, report};

const WRITTEN: u64 = 8192;

/// A guest that writes 32 MiB in order, and is given one page at a time.
fn dense(name: &str, options: &[&str]) -> Guest {
    let named = sample("dense")
        .with(format!("name={name}"))
        .with("around=1");
    options
        .iter()
        .fold(named, |guest, option| guest.with(*option))
}

fn of(map: &std::collections::BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}

/// EPT violations, and pages that were mapped large in the end.
fn violations_and_large(guest: &report::Guest) -> (u64, u64) {
    (
        of(&guest.exits, "EPT violation"),
        of(&guest.memory, "large"),
    )
}

#[track_caller]
fn check(booted: &Booted, name: &str, right: impl FnOnce(u64, u64) -> bool) {
    let (violations, large) = violations_and_large(booted.guest(name));
    let found = format!("{name}: {violations} violations, {large} pages in large ones");
    assert!(right(violations, large), "{}", booted.tell(&found));
}

#[test]
fn each_guest_has_the_pages_that_it_asks_for() {
    let guests = vec![
        dense("small", &[]),
        dense("mib", &["pages=2m"]),
        dense("chosen", &["pages=auto"]),
        dense("gib", &["pages=1g", "mem=1G"]),
        // The last of its 9 MiB do not make 2.
        dense("odd", &["pages=1g", "mem=9M"]),
    ];
    let mut run = run("pages", guests);
    run.emulator = Emulator::bochs("tigerlake");
    // A block of 1 GiB must be free.
    run.memory = 2560;
    // Else the code of each guest is in small pages, where the CPU needs that.
    run.cmdline = "audit mitigations=off".into();
    let booted = boot(&run);
    booted.all_well();
    check(&booted, "small", |violations, large| {
        violations >= WRITTEN && large == 0
    });
    check(&booted, "mib", |violations, large| {
        violations < 160 && large >= WRITTEN
    });
    check(&booted, "chosen", |violations, large| {
        (400..1200).contains(&violations) && large >= WRITTEN - 1024
    });
    // The loader's first write took the one page that it has.
    check(&booted, "gib", |violations, large| {
        violations == 0 && large == 1 << 18
    });
    // Images begin at 2 MiB.
    check(&booted, "odd", |violations, large| {
        (200..280).contains(&violations) && large == 3 * 512
    });
    let own = of(&booted.guest("gib").memory, "own_bytes");
    assert!(own > 1 << 30, "{}", booted.tell("own bytes"));
}

#[test]
fn a_cpu_without_them_gives_the_next_smaller_and_says_so() {
    let guests = vec![dense("gib", &["pages=1g"])];
    let mut run = run("pages-lynnfield", guests);
    run.emulator = Emulator::bochs("corei5_lynnfield_750");
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["guest gib", "pages=1g", "pages=2m instead"]);
    check(&booted, "gib", |violations, large| {
        violations < 160 && large >= WRITTEN
    });
}
