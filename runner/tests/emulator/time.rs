//! Time and quotas: whatever a guest does, an exit takes a bounded time, and nobody else pays for it.

use crate::booted::{Booted, boot, boot_despite, run, sample};
use offshoot_runner::Guest;
use offshoot_runner::report::ForkRun;

/// The most instructions of one exit.
const EXIT_MAX: u64 = 100_000;
/// The same where a turn ends behind it, which zeroes frames, and a block of 2 MiB is cut into frames or put together of them.
const LARGE_MAX: u64 = 400_000;

/// Each kind of exit that a guest can make long, and how long it is at most. The figures are in docs/time.md.
#[test]
fn an_exit_is_bounded_in_time() {
    let times = sample("bad_times").with("mem=64M");
    let large = times.clone().with("name=large").with("pages=2m");
    let mut run = run("time-exits", vec![times, large]);
    run.cmdline = "".into();
    let booted = boot(&run);
    booted.all_well();
    let figures = &booted.report().figures;
    let exits: Vec<_> = figures
        .iter()
        .filter(|figure| figure.name.starts_with("exit."))
        .collect();
    assert!(
        exits.len() >= 24,
        "{}",
        booted.tell("not all were measured")
    );
    for figure in exits {
        println!("{} {} {}", figure.guest, figure.name, figure.value);
        // Behind a call that prints a turn ends.
        let large = figure.guest == "large" || figure.name.starts_with("exit.print.");
        let most = if large { LARGE_MAX } else { EXIT_MAX };
        assert!(figure.value <= most, "{}", booted.tell(&figure.name));
    }
}

fn neighbours(name: &str, mem: &str) -> Guest {
    let guest = sample("bad_neighbours").with(format!("name={name}"));
    guest
        .with(format!("mem={mem}"))
        .with("forks=16")
        .with("parallel=16")
        .with("budget=4M")
        .with("slice=100K")
}

/// The healthy forks: each second one.
fn healthy<'b>(booted: &'b Booted, guest: &str) -> Vec<&'b ForkRun> {
    let Some(forks) = &booted.guest(guest).forks else {
        panic!("{}", booted.tell("not forked"));
    };
    let healthy = forks.runs.iter().filter(|run| run.fork % 2 == 0);
    let mut healthy: Vec<_> = healthy.collect();
    healthy.sort_by_key(|run| run.fork);
    healthy
}

#[test]
fn a_healthy_fork_beside_hostile_ones_takes_as_long_as_without_them() {
    let guests = vec![
        sample("dense").with("name=before").with("mem=16M"),
        neighbours("peace", "24M"),
        neighbours("war", "16M"),
        sample("dense").with("name=after").with("mem=16M"),
    ];
    let mut run = run("time-neighbours", guests);
    run.cmdline = "".into();
    let booted = boot_despite(&run);
    booted.no_frame_lost();
    let (peace, war) = (healthy(&booted, "peace"), healthy(&booted, "war"));
    assert_eq!((peace.len(), war.len()), (8, 8), "{}", booted.tell("runs"));
    for (alone, beside) in peace.iter().zip(&war) {
        println!(
            "fork {}: {} {}",
            alone.fork, alone.instructions, beside.instructions
        );
        assert_eq!(
            beside.outcome,
            "exited",
            "{}",
            booted.tell("a healthy fork")
        );
        let most = alone.instructions + alone.instructions / 20;
        assert!(
            beside.instructions <= most,
            "{}",
            booted.tell("a healthy fork took longer")
        );
    }
    // Of those one after the other, too.
    let ticks = |name: &str| {
        let guest = booted.guest(name);
        guest.host_instructions + guest.guest_instructions
    };
    let (before, after) = (ticks("before"), ticks("after"));
    assert!(after <= before + before / 20, "{before} {after}");
    // No line of a healthy fork is lost, none is torn, and those that flood are told what they have lost.
    for fork in (0..16).step_by(2) {
        for round in 0..16 {
            booted.says(&[&format!("[war] fork {fork} is in round {round}")]);
        }
    }
    booted.says(&["[war] ...", "lines lost"]);
    booted.says(&["[after]"]);
    let lost = |name: &str| booted.guest(name).lost;
    assert!(lost("war").lines > 1000, "{}", booted.tell("lines"));
    for name in ["before", "peace", "after"] {
        assert_eq!(lost(name), Default::default(), "{name}");
    }
}

#[test]
fn nobody_takes_the_figures_of_another() {
    let guests = vec![
        sample("bad_figures"),
        sample("bad_figures").with("name=too"),
        sample("dirty"),
        sample("frozen").with("mem=16M").with("measure=fork"),
    ];
    let booted = boot(&run("time-figures", guests));
    booted.all_well();
    let figures = &booted.report().figures;
    let of = |guest: &str| {
        figures
            .iter()
            .filter(|figure| figure.guest == guest)
            .count()
    };
    assert_eq!((of("bad_figures"), of("too")), (256, 256));
    assert!(of("dirty") > 0 && of("frozen") > 0 && of("hypervisor") > 0);
    for (guest, lost) in [("bad_figures", 1), ("too", 1), ("dirty", 0)] {
        assert_eq!(booted.guest(guest).lost.figures, lost);
    }
}

/// Of many forks that end badly, some are explained; how many are not is told.
#[test]
fn explanations_are_limited_for_each_guest() {
    let bad = |name: &str| {
        let guest = sample("forks_hostile").with(format!("name={name}"));
        guest
            .with("mem=64M")
            .with("forks=60")
            .with("budget=1M")
            .with("slice=100K")
    };
    let mut run = run(
        "time-explanations",
        vec![bad("one"), sample("bad_triple"), bad("two")],
    );
    run.cmdline = "pool=64M".into();
    let booted = boot_despite(&run);
    booted.no_frame_lost();
    for name in ["one", "two"] {
        let explained = booted.count(&[&format!("guest {name}, fork"), "in generation 1"]);
        let left_out = booted.guest(name).lost.explanations;
        println!("{name}: {explained} explained, {left_out} left out");
        assert!((1..=8).contains(&explained), "{}", booted.tell(name));
        assert!(left_out > 0, "{}", booted.tell(name));
    }
    assert_eq!(booted.guest("bad_triple").lost.explanations, 0);
    booted.says(&["rax"]);
}
