//! Guests that give memory back and take rights to it away from themselves.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::Emulator;

/// Pages that `protect` gives back: twice what the host has for guests.
const DISCARDED: u64 = 12_288;
const POOL: u64 = 24 << 20 >> 12;

fn changes_its_memory(model: &str) {
    let guest = |name: &str| {
        let guest = sample("protect").with(format!("name={name}"));
        guest.with("forks=2").with("runs=3")
    };
    let with = |name: &str, pool: &str, guests| {
        let mut run = run(&format!("protect-{name}-{model}"), guests);
        run.emulator = Emulator::bochs(model);
        // Code stays in large pages only where the CPU may have them executable.
        run.cmdline = format!("{pool} audit mitigations=off");
        let booted = boot(&run);
        booted.all_well();
        // One for each change and the next entry, however many pages it was about.
        for guest in &booted.report().guests {
            let invepts = guest.invepts;
            assert!((40..300).contains(&invepts), "{}", booted.tell(&guest.name));
        }
        booted
    };
    let little = with(
        "little",
        "pool=24M",
        vec![guest("small"), guest("warm").with("reset=warm")],
    );
    let frames = &little.report().frames;
    assert!(DISCARDED >= 2 * POOL && frames.total <= POOL);
    // A chunk of 4 MiB at a time is all that there ever is.
    assert!(frames.peak < 1200, "{}", little.tell("not given back"));
    for guest in &little.report().guests {
        assert!(guest.memory["filled"] < 100, "{}", little.tell(&guest.name));
    }
    let large = with("large", "", vec![guest("large").with("pages=2m")]);
    let memory = &large.guest("large").memory;
    // The code's, the stack's, the one of which parts were protected, which is whole again; and the one of which a page is
    // still protected when this is counted.
    let found = (memory["filled"], memory["large"]);
    assert_eq!(found, (4 * 512, 3 * 512), "{}", large.tell("large pages"));
}

#[test]
fn a_guest_changes_its_memory_on_tiger_lake() {
    changes_its_memory("tigerlake");
}

#[test]
fn a_guest_changes_its_memory_on_lynnfield() {
    changes_its_memory("corei5_lynnfield_750");
}

/// What `bad_protect` does when it has so many pages more than 16 MiB, and what is said of its end.
const BAD: [(&str, &[&str]); 4] = [
    ("write", &["write at GPA", "is protected against it"]),
    ("code", &["fetch at GPA", "is protected against it"]),
    ("host", &["write at GPA", "is protected against it"]),
    ("gone", &["triple fault"]),
];

/// And this, where the CPU takes the use of page tables for writes.
const TABLES: (&str, &[&str]) = ("tables", &["page walk", "is protected against it"]);

fn stopped(model: &str) -> Booted {
    let bad = |(which, (name, _)): (usize, &(&str, &[&str]))| {
        sample("bad_protect")
            .with(format!("name={name}"))
            .with(format!("mem={}K", 16 * 1024 + 4 * which))
            .with("pages=2m")
    };
    let mut guests: Vec<_> = BAD.iter().chain([&TABLES]).enumerate().map(bad).collect();
    guests.push(sample("hello"));
    let mut run = run(&format!("protect-bad-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = "audit mitigations=off".into();
    let booted = boot(&run);
    for (name, words) in BAD {
        let mut all = vec!["ERROR", name];
        all.extend(words);
        booted.says(&all);
        assert_eq!(booted.guest(name).status, None, "{}", booted.tell(name));
    }
    booted.says(&["in memory", "which the guest has protected: r-x"]);
    booted.says(&["in memory", "which the guest has protected: rw-"]);
    booted.says(&["in memory", "which the guest has protected: r--"]);
    booted.says(&["the dirty pages of what is still: -14"]);
    // The page is in parts as long as a part of it is protected.
    let memory = &booted.guest("write").memory;
    assert_eq!(
        memory["filled"] - memory["large"],
        512,
        "{}",
        booted.tell("whole")
    );
    booted.healthy("hello");
    booted.no_frame_lost();
    booted
}

#[test]
fn who_breaks_his_own_protection_is_stopped_on_tiger_lake() {
    let booted = stopped("tigerlake");
    booted.says(&[&["ERROR", TABLES.0], TABLES.1].concat());
    booted.says(&["page tables of the guest", "takes for a write"]);
}

#[test]
fn who_breaks_his_own_protection_is_stopped_on_lynnfield() {
    stopped("corei5_lynnfield_750");
}
