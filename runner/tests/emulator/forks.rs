//! Guests that are forked: what one fork does no other sees, whatever becomes of it.

use crate::booted::{Booted, boot, boot_counting, boot_despite, run, sample};
use offshoot_runner::report::{Forks, Generation};
use offshoot_runner::{Emulator, Guest};

const TIGER_LAKE: &str = "tigerlake";
const HASWELL: &str = "corei7_haswell_4770";
const LYNNFIELD: &str = "corei5_lynnfield_750";

fn forked(name: &str, model: &str, guests: Vec<Guest>) -> Booted {
    let mut run = run(&format!("forks-{name}-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = "audit pool=64M".into();
    boot(&run)
}

/// The forks of a guest.
#[track_caller]
fn forks<'b>(booted: &'b Booted, guest: &str) -> &'b Forks {
    match &booted.guest(guest).forks {
        Some(forks) => forks,
        None => panic!("{}", booted.tell(&format!("{guest} was not forked"))),
    }
}

#[track_caller]
fn first<'b>(booted: &'b Booted, guest: &str) -> &'b Generation {
    &forks(booted, guest).generations[0]
}

/// Each fork writes the same pages, in an order of its own, and gives way in between; it looks at all of them.
/// The kernel walks all tables, checks the template's checksum, and compares reset forks with their template.
fn isolation(model: &str, count: u64, parallel: u64) {
    let options = |guest: Guest, reset: &str| {
        guest
            .with("mem=16M")
            .with(format!("forks={count}"))
            .with(format!("parallel={parallel}"))
            .with("runs=3")
            .with(format!("reset={reset}"))
    };
    let guests = vec![
        options(sample("forks_isolation"), "warm"),
        options(sample("forks_isolation").with("name=cold"), "cold").with("prefetch"),
    ];
    let booted = forked("isolation", model, guests);
    booted.all_well();
    for guest in ["forks_isolation", "cold"] {
        let all = first(&booted, guest);
        assert_eq!((all.ok, all.alive_most), (3 * count, parallel));
        assert_eq!((all.fork.count, all.end.count), (count, count));
        assert_eq!(all.reset.count, 2 * count);
        assert!(all.pages_reset >= 2 * count * 10, "{all:?}");
        booted.says(&[guest, "everything audited", "reset forks compared"]);
    }
    booted.says(&["guest cold: prefetch gave forks", "KiB in all"]);
    let idle = forks(&booted, "forks_isolation").idle_frames;
    assert!((1..=5).contains(&idle), "{}", booted.tell("idle frames"));
}

#[test]
fn a_thousand_forks_see_only_their_own_data_on_tiger_lake() {
    isolation(TIGER_LAKE, 1000, 100);
}

#[test]
fn forks_see_only_their_own_data_on_haswell_without_page_modification_log() {
    isolation(HASWELL, 100, 25);
}

#[test]
fn forks_see_only_their_own_data_on_lynnfield_without_accessed_and_dirty_bits() {
    isolation(LYNNFIELD, 100, 25);
}

/// A run changes every register there is; the next finds them as they were, and the kernel compares every field.
fn state(model: &str) {
    let reset = |name: &str, how: &str| {
        sample("forks_state")
            .with(format!("name={name}"))
            .with("mem=16M")
            .with("forks=6")
            .with("parallel=3")
            .with("runs=4")
            .with(format!("reset={how}"))
    };
    let guests = vec![reset("warm", "warm"), reset("cold", "cold")];
    let booted = forked("state", model, guests);
    booted.all_well();
    for guest in ["warm", "cold"] {
        assert_eq!(first(&booted, guest).ok, 24);
        let told = "processors of 18 reset forks compared and memory of 17";
        booted.says(&[guest, told]);
    }
}

#[test]
fn all_registers_are_reset_on_tiger_lake() {
    state(TIGER_LAKE);
}

#[test]
fn all_registers_are_reset_on_haswell() {
    state(HASWELL);
}

#[test]
fn all_registers_are_reset_on_lynnfield() {
    state(LYNNFIELD);
}

#[test]
fn forks_freeze_again_and_are_forked() {
    let nested = |name: &str, options: &[&str]| {
        let guest = sample("forks_nested").with(format!("name={name}"));
        let guest = guest.with("mem=16M");
        options
            .iter()
            .fold(guest, |guest, option| guest.with(*option))
    };
    let guests = vec![
        nested("once", &["parallel=1"]),
        nested("many", &["forks=5:7", "parallel=4", "runs=2"]),
        nested(
            "prefetch",
            &["forks=3:3", "runs=3", "prefetch", "reset=cold"],
        ),
    ];
    let deep = sample("forks_deep").with("mem=16M");
    let deep = deep.with("forks=2:1:1:2:1:1:1:3").with("parallel=2");
    let guests = [guests, vec![deep]].concat();
    let booted = forked("nested", TIGER_LAKE, guests);
    booted.all_well();
    // In as many generations as there may be.
    let deep = &forks(&booted, "forks_deep").generations;
    assert_eq!((deep.len(), deep[7].templates, deep[7].ok), (8, 4, 12));
    // Without a number each template has one fork.
    let once = &forks(&booted, "once").generations;
    assert_eq!((once[0].frozen, once[1].ok), (1, 1));
    let many = &forks(&booted, "many").generations;
    // A fork that freezes hands its runs on.
    assert_eq!((many[0].templates, many[0].frozen, many[0].ok), (1, 5, 0));
    assert_eq!((many[1].templates, many[1].ok), (5, 5 * 7 * 2));
    let prefetch = &forks(&booted, "prefetch").generations;
    assert_eq!((prefetch[0].frozen, prefetch[1].ok), (3, 3 * 3 * 3));
}

/// A guest that freezes in every fork has the runs and the time that its options say, and one without options for forks
/// has one run and its budget.
#[test]
fn freezing_without_end_multiplies_nothing() {
    let guests = vec![
        sample("bad_freeze")
            .with("mem=8M")
            .with("forks=1")
            .with("runs=20"),
        sample("bad_freeze").with("name=plain").with("mem=8M"),
        sample("hello"),
    ];
    let mut run = run("forks-freeze", guests);
    run.cmdline = "audit pool=64M".into();
    let booted = boot_despite(&run);
    booted.healthy("hello");
    booted.no_frame_lost();
    for (guest, runs) in [("bad_freeze", 20), ("plain", 1)] {
        let all = &forks(&booted, guest).generations;
        let frozen = all.iter().map(|all| all.frozen);
        assert!(
            frozen.eq([1, 1, 1, 1, 1, 1, 1, 0]),
            "{}",
            booted.tell(guest)
        );
        assert_eq!((all[7].failed, all[7].ok, all[7].lost), (runs, 0, 0));
        booted.says(&["fork 0 run 0 of generation 8: froze in generation 8, the last one"]);
    }
    // The run before it froze, and those of its forks.
    let plain = booted.guest("plain");
    let runs = &forks(&booted, "plain").runs;
    let ticks: u64 = runs.iter().map(|run| run.instructions).sum();
    assert!(ticks + plain.host_instructions + plain.guest_instructions < 10 * 50_000_000);
}

#[test]
fn hostile_forks_are_stopped_and_others_unharmed() {
    let mut run = run(
        "forks-hostile",
        vec![
            sample("forks_hostile")
                .with("mem=64M")
                .with("forks=24")
                .with("parallel=6")
                .with("runs=2")
                .with("slice=100K")
                .with("budget=3M"),
            sample("hello"),
        ],
    );
    run.cmdline = "audit pool=8M".into();
    let booted = boot_despite(&run);
    booted.failed_with(&["forks_hostile", "runs of its forks failed"]);
    booted.healthy("hello");
    booted.no_frame_lost();
    let forks = forks(&booted, "forks_hostile");
    for fork in forks.runs.iter().filter(|run| run.outcome != "exited") {
        let expected = match fork.fork % 6 {
            1 => "out of budget",
            2 => "triple fault",
            3 => "out of memory",
            _ => "exited",
        };
        assert_eq!(fork.outcome, expected, "{}", booted.tell("outcome"));
    }
    let all = &forks.generations[0];
    // Of six, two are harmless: where one hoards all memory, they wait.
    assert_eq!(
        (all.ok, all.failed, all.lost),
        (16, 32, 0),
        "{}",
        booted.tell("runs")
    );
    let outcomes = ["out of budget", "triple fault", "out of memory"];
    for outcome in outcomes {
        let found = forks.runs.iter().filter(|run| run.outcome == outcome);
        assert!(found.count() >= 8, "{}", booted.tell(outcome));
    }
    assert!(!forks.failures.is_empty() && forks.failures.len() <= 8);
    // One in six finds too little memory, in each of its two runs.
    assert_eq!(all.starved, 8, "{}", booted.tell("starved"));
    booted.says(&["8 runs found too little memory with up to 6 forks alive"]);
}

#[test]
fn the_shortest_turn_gets_somewhere() {
    let guest = sample("forks_isolation")
        .with("mem=16M")
        .with("forks=4")
        .with("slice=1");
    let booted = forked("slice", TIGER_LAKE, vec![guest]);
    booted.all_well();
    assert_eq!(first(&booted, "forks_isolation").ok, 4);
}

#[test]
fn forks_are_refused_where_the_guest_is_not_made_for_them() {
    let guests = vec![
        sample("hello").with("forks=3"),
        sample("forks_bad").with("mem=16M"),
        sample("hello").with("name=zero").with("forks=0"),
        sample("hello")
            .with("name=deep")
            .with("forks=1:1:1:1:1:1:1:1:1"),
        // The forks of these end well, and freeze at most once more.
        sample("frozen").with("mem=16M").with("forks=2"),
    ];
    let mut run = run("forks-refused", guests);
    run.cmdline = "audit pool=16M".into();
    let booted = boot_despite(&run);
    booted.failed_with(&["3 of 5"]);
    booted.says(&["hello", "never froze", "exited with status 0"]);
    booted.says(&["zero", "forks=0: must not be zero"]);
    booted.says(&["deep", "more than 8 generations"]);
    booted.healthy("forks_bad");
    booted.healthy("frozen");
    booted.no_frame_lost();
}

/// With few frames forks have to wait for one another, and none is harmed.
#[test]
fn where_memory_is_short_forks_wait() {
    let mut run = run(
        "forks-short",
        vec![
            sample("forks_isolation")
                .with("mem=16M")
                .with("forks=60")
                .with("parallel=60")
                .with("runs=2"),
        ],
    );
    run.cmdline = "audit pool=2M".into();
    let booted = boot(&run);
    booted.all_well();
    let all = first(&booted, "forks_isolation");
    assert_eq!(
        (all.ok, all.failed, all.lost),
        (120, 0, 0),
        "{}",
        booted.tell("runs")
    );
    assert!(all.waited > 0, "{}", booted.tell("none had to wait"));
}

/// As many idle forks as fit into a GiB.
#[test]
fn a_gib_holds_fifty_thousand_idle_forks() {
    let mut run = run(
        "forks-density",
        vec![sample("frozen").with("mem=16M").with("idle")],
    );
    run.memory = 1536;
    run.cmdline = "pool=1G".into();
    let booted = boot(&run);
    booted.all_well();
    let count = booted.figure("fork.per_gib");
    assert!(count >= 50_000, "{}", booted.tell("per GiB"));
    let all = first(&booted, "frozen");
    assert!(all.alive_most.abs_diff(count) < count / 100);
    assert_eq!(all.end.count, all.alive_most);
}

#[test]
fn forks_cost_no_more_than_promised() {
    let bench = |name: &str, mem: &str, what: &str| {
        sample("forks_bench")
            .with(format!("name={name}"))
            .with(format!("mem={mem}"))
            .with(format!("measure={what}"))
    };
    let guests = vec![
        bench("small", "16M", "all"),
        bench("middle", "1G", "fork"),
        bench("large", "16G", "fork"),
    ];
    let mut run = run("forks-figures", guests);
    run.cmdline = "pool=64M".into();
    let booted = boot(&run);
    booted.all_well();
    let fork = booted.figure("fork.16m");
    for name in ["fork.1g", "fork.16g"] {
        let other = booted.figure(name);
        assert!(other.abs_diff(fork) <= 10, "{}", booted.tell(name));
    }
    for (name, most) in [
        ("fork.16m", 3000),
        ("reset.warm.base", 500),
        // 512 of these copy the page.
        ("reset.warm.per_page", 30 + 512),
        // Walks over the tables that any fork copies.
        ("fork.first_run.16_pages", 40_000),
        ("reset.cold.base", 15_000),
        ("drop.base", 15_000),
        ("fork.idle_memory", 20 << 10),
    ] {
        let value = booted.figure(name);
        assert!(
            (1..=most).contains(&value),
            "{}",
            booted.tell(&format!("{name} is {value}, more than {most}"))
        );
    }
    // What is beside a figure has its unit.
    let figures = &booted.report().figures;
    let unit = |name: &str| {
        let found = figures.iter().find(|figure| figure.name == name);
        found.map(|figure| figure.unit.as_str())
    };
    assert_eq!(unit("fork.16m"), Some("instructions"));
    assert_eq!(unit("fork.idle_memory"), Some("bytes"));
}

/// Beside each figure of forks stands what it costs a processor, and what can be told without running it is so.
#[test]
fn what_forks_cost_a_processor_is_counted() {
    let bench = sample("forks_bench").with("mem=16M").with("measure=all");
    let idle = sample("frozen").with("mem=16M").with("idle");
    let mut run = run("forks-counts", vec![bench, idle]);
    run.cmdline = "pool=64M".into();
    let booted = boot_counting(&run);
    booted.all_well();
    // VMREADs, VMWRITEs, INVEPTs, INVVPIDs, frames, bytes.
    let counts = |name: &str| {
        let parts = [
            "vmreads", "vmwrites", "invepts", "invvpids", "frames", "bytes",
        ];
        parts.map(|part| booted.figure(&format!("{name}.{part}")))
    };
    const PAGE: u64 = 4096;
    // Its root is a frame that was zeroed ahead.
    assert_eq!(counts("fork.16m"), [0, 0, 0, 0, 1, 0]);
    assert_eq!(counts("reset.warm.per_page"), [0, 0, 0, 0, 0, PAGE]);
    assert_eq!(counts("reset.first.per_page"), [0, 0, 0, 0, 0, PAGE]);
    for dropped in ["reset.cold.per_page", "drop.per_page"] {
        assert_eq!(counts(dropped), [0, 0, 0, 0, 1, 0], "{dropped}");
    }
    // The violation has dropped most of what a copy makes stale.
    let [reads, _, invepts, invvpids, frames, bytes] = counts("fork.run.per_page");
    assert_eq!((reads, invepts, invvpids, frames), (5, 0, 1, 1));
    // A table now and then.
    assert!(bytes.abs_diff(PAGE) < 8, "{bytes}");
    // Most fields of the VMCS are the guest's state, which a reset writes again.
    let [_, setup, ..] = counts("fork.vmcs");
    for reset in ["reset.warm.base", "reset.first.base", "reset.cold.base"] {
        let [reads, writes, invepts, _, _, bytes] = counts(reset);
        assert_eq!((reads, invepts), (0, 1), "{reset}");
        assert!((setup / 2..setup).contains(&writes), "{reset} {writes}");
        assert!((512..1024).contains(&bytes), "{reset} {bytes}");
    }
    // What a fork has got by running it gives back when it ends, beside what it had.
    let [_, _, _, _, idle, _] = counts("fork.idle_memory");
    let [_, _, _, _, taken, _] = counts("fork.first_run.16_pages");
    let [_, _, _, _, given_back, _] = counts("drop.16_pages");
    let place = 1;
    assert_eq!(given_back, taken + idle - place);
    let [_, _, _, _, per_fork, _] = counts("fork.per_gib");
    assert_eq!(per_fork, idle);
    for name in ["fork.run.base", "drop.base"] {
        counts(name);
    }
}

/// The host freezes guests that know nothing of it, and each fork of them finds what it had: memory, and every register.
fn guests_are_frozen_by_the_host(model: &str) {
    let forked = |guest: &str| {
        sample(guest)
            .with("forks=3")
            .with("parallel=2")
            .with("runs=2")
    };
    let guests = vec![
        forked("sparse").with("mem=1G").with("freeze=20ms"),
        forked("selfcheck").with("freeze=3ms"),
    ];
    // Nearly always in the middle of the delivery of an exception.
    let in_delivery = ["400K", "500K", "600K", "700K"].map(|time| {
        let guest = forked("stacks").with("mem=8M");
        guest
            .with(format!("name=at-{time}"))
            .with(format!("freeze={time}"))
    });
    let guests = [guests, in_delivery.to_vec()].concat();
    let mut run = run(&format!("forks-by-host-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    run.cmdline = "pool=128M audit".into();
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["sparse", "froze, and 6 runs of forks ended well"]);
    booted.says(&["selfcheck", "froze, and 6 runs of forks ended well"]);
    assert_eq!(booted.figure("sparse.words_wrong"), 0);
}

/// A guest whose every exception meets an EPT violation while it is delivered is stopped just then: it freezes once the
/// exception is there, and each fork has it once.
#[test]
fn a_guest_is_not_frozen_while_an_event_is_delivered_to_it() {
    let names = ["a", "b", "c"];
    let guests = names.map(|name| {
        let after = match name {
            "a" => "freeze=1ms",
            "b" => "freeze=1500us",
            _ => "freeze=2ms",
        };
        let guest = sample("bad_event")
            .with(format!("name={name}"))
            .with("forks=2");
        guest.with("runs=2").with(after)
    });
    let booted = forked("event", TIGER_LAKE, guests.into());
    booted.all_well();
    booted.says(&["an event is delivered before it freezes"]);
}

#[test]
fn guests_are_frozen_by_the_host_on_tiger_lake() {
    guests_are_frozen_by_the_host("tigerlake");
}

#[test]
fn guests_are_frozen_by_the_host_on_lynnfield() {
    guests_are_frozen_by_the_host("corei5_lynnfield_750");
}
