use super::*;
use crate::ept::{Census, Faults};
use crate::host::cmdline::GuestOptions;
use crate::host::many::{Cost, Distribution, Failure, ForkEnd, Generation, RunRecord};
use crate::virt::exit::ExitReason;
use crate::vm::Harvests;
use crate::vm::figure::{Figure, FigureName, Unit};
use crate::vm::loader::LoadError;

fn guest<'a>(name: &str, ending: GuestEnding<'a>) -> GuestSummary<'a> {
    GuestSummary {
        name: Name::new(name).unwrap(),
        ending,
        stats: RunStats::ZERO,
        faults: Faults::default(),
        invalidations: 0,
        linear_invalidations: 0,
        memory: Census::default(),
        forks: None,
        lost: Lost::NOTHING,
    }
}

fn busy() -> GuestSummary<'static> {
    let mut busy = guest("busy", GuestEnding::Ran(Outcome::Exited(0)));
    for &reason in ExitReason::ALL {
        busy.stats.count(reason);
    }
    (0..99).for_each(|_| busy.stats.count(ExitReason::Cpuid));
    busy.stats.host_ticks = 123_456_789_012;
    busy.stats.guest_ticks = 5;
    busy.faults = Faults {
        filled: 16384,
        copied: 7,
        zero_shared: 3,
        mmio: 8,
        spurious: 9,
        refused: 10,
        ..Faults::default()
    };
    busy.invalidations = 11;
    busy.linear_invalidations = 12;
    busy.stats.harvests = Harvests {
        count: 2,
        pages: 3,
        digest: u64::MAX,
    };
    busy.memory = Census {
        zero: 3,
        filled: 16000,
        copied: 7,
        host: 12,
        shared: 5,
        large: 1024,
        tables: 37,
        private: 16039,
    };
    busy
}

const FRAMES: FrameStatistics = FrameStatistics {
    total: 131_000,
    free: 130_988,
    used: 12,
    peak: 16_500,
    zeroed: 4,
    counts: 64,
};

fn json(report: &Report<'_>) -> serde_json::Value {
    let mut line = String::new();
    report.write_json(&mut line).unwrap();
    let text = line
        .strip_prefix("OFFSHOOT-REPORT ")
        .unwrap()
        .strip_suffix('\n')
        .unwrap();
    assert!(!text.contains('\n'), "one line");
    serde_json::from_str(text).unwrap()
}

fn report<'a>(guests: &'a [GuestSummary<'a>], figures: &'a Figures) -> Report<'a> {
    Report {
        guests,
        frames: FRAMES,
        leaked: 0,
        figures,
        fork_runs: &[],
    }
}

#[test]
fn the_json_has_the_agreed_form() {
    let mut figures = Figures::new();
    let name = FigureName::new(b"exit.cpuid").unwrap();
    assert!(figures.file(Figure {
        host: false,
        guest: Name::new("busy").unwrap(),
        name,
        value: u64::MAX,
        unit: Unit::Forks,
    }));
    let guests = [
        busy(),
        guest("bad", GuestEnding::Ran(Outcome::Exited(-3i64 as u64))),
    ];
    let json = json(&report(&guests, &figures));
    assert_eq!(json["ok"], false);
    let busy = &json["guests"][0];
    assert_eq!(
        (&busy["name"], &busy["outcome"]),
        (&"busy".into(), &"exited".into())
    );
    assert_eq!(busy["status"], 0);
    assert_eq!(busy["exits"]["CPUID"], 100);
    assert_eq!(
        busy["exits"].as_object().unwrap().len(),
        ExitReason::ALL.len()
    );
    assert_eq!(
        (&busy["pages"]["filled"], &busy["tables"]),
        (&16384.into(), &37.into())
    );
    assert_eq!(
        busy["memory"],
        serde_json::json!({"zero": 3, "filled": 16000, "copied": 7, "host": 12, "shared": 5, "large": 1024,
            "own_bytes": 16039 * 4096})
    );
    assert_eq!(
        busy["faults"],
        serde_json::json!({"mmio": 8, "spurious": 9, "refused": 10})
    );
    assert_eq!(busy["host_instructions"], 123_456_789_012u64);
    assert_eq!(busy["guest_instructions"], 5);
    assert_eq!(busy["invepts"], 11);
    assert_eq!(busy["invvpids"], 12);
    let dirty = serde_json::json!({"harvests": 2, "pages": 3, "digest": u64::MAX});
    assert_eq!(busy["dirty"], dirty);
    assert_eq!(json["guests"][1]["status"], -3);
    assert_eq!(
        json["frames"],
        serde_json::json!({"total": 131_000, "used": 12, "peak": 16_500, "leaked": 0})
    );
    let figure = serde_json::json!({"guest": "busy", "name": "exit.cpuid", "value": u64::MAX, "unit": "forks"});
    assert_eq!(json["figures"], serde_json::json!([figure]));
}

#[test]
fn whatever_a_user_wrote_is_escaped() {
    let line = "mem=\"\\\u{1}\u{7f}ä\u{2028}";
    let error = GuestOptions::parse(line, 0, 40).unwrap_err();
    let guests = [guest("g", GuestEnding::BadOptions(error))];
    let json = json(&report(&guests, &Figures::new()));
    assert_eq!(json["guests"][0]["detail"], error.to_string());
    assert_eq!(json["guests"][0]["outcome"], "not run");
    assert!(json["guests"][0]["status"].is_null());
}

#[test]
fn a_run_is_good_only_if_all_is() {
    let figures = Figures::new();
    let ended = |status| guest("g", GuestEnding::Ran(Outcome::Exited(status)));
    assert!(report(&[ended(0), ended(0)], &figures).is_success());
    assert!(!report(&[ended(0), ended(1)], &figures).is_success());
    assert!(!report(&[], &figures).is_success(), "nothing ran");
    assert!(
        !Report {
            leaked: 1,
            ..report(&[ended(0)], &figures)
        }
        .is_success()
    );
    for ending in [
        GuestEnding::DuplicateName,
        GuestEnding::NotMade(GuestError::Image(LoadError::NotElf)),
        GuestEnding::Ran(Outcome::TripleFault),
    ] {
        assert!(!report(&[guest("g", ending)], &figures).is_success());
    }
}

#[test]
fn the_table_fits_and_says_what_went_wrong() {
    let mut figures = Figures::new();
    let name = FigureName::new(&[b'x'; 32]).unwrap();
    assert!(figures.file(Figure {
        host: false,
        guest: Name::new(&"n".repeat(32)).unwrap(),
        name,
        value: u64::MAX,
        unit: Unit::Forks,
    }));
    let mut extreme = guest(
        &"long-name.".repeat(3),
        GuestEnding::Ran(Outcome::Exited(u64::MAX - 5)),
    );
    extreme.stats.host_ticks = u64::MAX;
    extreme.stats.guest_ticks = u64::MAX;
    extreme.faults.filled = u64::MAX;
    extreme.memory = Census {
        zero: u64::MAX / 8,
        filled: u64::MAX / 8,
        copied: u64::MAX / 8,
        host: u64::MAX / 8,
        shared: u64::MAX,
        large: u64::MAX,
        tables: 99_999,
        private: u64::MAX / 4096,
    };
    let guests = [
        busy(),
        extreme,
        guest("short", GuestEnding::Ran(Outcome::TripleFault)),
        guest(
            "not-elf",
            GuestEnding::NotMade(GuestError::Image(LoadError::NotElf)),
        ),
        guest("status", GuestEnding::Ran(Outcome::Exited(i64::MIN as u64))),
    ];
    let mut table = String::new();
    report(&guests, &figures).write_table(&mut table).unwrap();
    for line in table.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert!(!line.trim_end().is_empty());
    }
    for expected in [
        "busy",
        "CPUID 100,",
        "123.4G",
        "long-name.long-n..",
        "exited: -6",
        "triple fault",
        "not an ELF file",
        "leaked 0",
        "131,000 (511.7 MiB)",
        "    62.6 MiB of its own, 16,000 filled, 7 copied, 3 of zeroes, 12 of the host, 5 shared,",
    ] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }
}

/// Two generations, of the second of which one run failed, with the largest numbers there are.
fn forked() -> GuestSummary<'static> {
    let spread = |value| Distribution {
        count: value,
        total: value,
        min: value,
        median: value,
        max: value,
    };
    let first = Generation {
        templates: 1,
        ok: 990,
        frozen: 10,
        alive_most: 100,
        runs: spread(1000),
        forks: spread(2000),
        ..Generation::default()
    };
    let second = Generation {
        templates: 10,
        ok: u64::MAX >> 2,
        failed: 1,
        lost: 30,
        pages_reset: u64::MAX,
        cost: Cost {
            exits: u64::MAX,
            pages: u64::MAX,
        },
        runs: spread(u64::MAX),
        ends: spread(999_999_999_999),
        ..Generation::default()
    };
    let failure = Failure {
        generation: 1,
        fork: u64::MAX,
        run: u64::MAX,
        end: ForkEnd::Ran(Outcome::TripleFault),
    };
    let forks = ForksSummary {
        generations: [first, second].into_iter().collect(),
        failures: [failure].into_iter().collect(),
        ticks: 1_000_000,
        tsc_hz: 3_000_000_000,
        idle_frames: 4,
    };
    let mut guest = guest(
        "forked",
        GuestEnding::Forked {
            runs: 1000,
            bad: 31,
        },
    );
    guest.forks = Some(forks);
    guest
}

#[test]
fn forks_are_told_as_json() {
    let record = |fork| GuestRun {
        guest: 1,
        record: RunRecord {
            generation: 0,
            fork,
            run: 2,
            ticks: 77,
            cost: Cost { exits: 3, pages: 4 },
            end: Some(ForkEnd::Ran(Outcome::Exited(0))),
        },
    };
    let guests = [busy(), forked()];
    let figures = Figures::new();
    let report = Report {
        fork_runs: &[record(5), record(6)],
        ..report(&guests, &figures)
    };
    let json = json(&report);
    assert!(json["guests"][0]["forks"].is_null());
    assert_eq!(json["guests"][1]["outcome"], "forks failed");
    assert!(json["guests"][1]["status"].is_null());
    let forks = &json["guests"][1]["forks"];
    let first = &forks["generations"][0];
    assert_eq!((&first["ok"], &first["frozen"]), (&990.into(), &10.into()));
    assert_eq!(first["run"]["median"], 1000);
    assert_eq!(forks["generations"][1]["pages_private"], u64::MAX);
    assert_eq!(forks["idle_frames"], 4);
    assert_eq!(forks["failures"][0]["detail"], "triple fault");
    assert_eq!(forks["failures"][0]["generation"], 2);
    assert_eq!(forks["runs"].as_array().unwrap().len(), 2);
    assert_eq!(
        forks["runs"][1],
        serde_json::json!([1, 6, 2, 77, 3, 4, "exited"])
    );
}

#[test]
fn forks_are_told_in_the_table() {
    let mut table = String::new();
    let figures = Figures::new();
    report(&[forked()], &figures)
        .write_table(&mut table)
        .unwrap();
    for line in table.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for expected in [
        "forks failed",
        "31 runs of its forks failed, 1000 took place",
        "generation 1: templates 1, alive at most 100, runs that ended well 990, frozen again 10",
        "18.4E",
        "999,999,999,999",
        "an idle fork has 4 frames",
        "fork 18446744073709551615 run 18446744073709551615 of generation 2: triple fault",
        "and 30 more",
    ] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }
}

#[test]
fn forks_without_memory_are_given_advice() {
    let told = |alive_most, starved, waited| {
        let mut forked = forked();
        let all = &mut forked.forks.as_mut().unwrap().generations;
        all.truncate(1);
        (all[0].alive_most, all[0].starved, all[0].waited) = (alive_most, starved, waited);
        let (mut table, figures) = (String::new(), Figures::new());
        report(&[forked], &figures).write_table(&mut table).unwrap();
        table.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (alive, starved, waited, expected) in [
        (
            100,
            1234,
            5,
            "1,234 runs found too little memory with up to 100 forks alive: lower parallel=, or raise pool= or \
             the memory of the machine (MEM=)",
        ),
        (
            16,
            0,
            5,
            "5 runs were begun again with up to 16 forks alive: lower parallel=,",
        ),
        (
            1,
            3,
            0,
            "3 runs found too little memory for a single fork: raise pool=",
        ),
    ] {
        let table = told(alive, starved, waited);
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }
    assert!(!told(100, 0, 0).contains("pool="));
}

#[test]
fn runs_per_second_and_per_billion_ticks() {
    let mut forks = forked().forks.unwrap();
    forks.generations.truncate(1);
    assert_eq!((forks.runs(), forks.bad()), (1000, 0));
    assert_eq!(forks.runs_per(forks.tsc_hz), 3_000_000);
    assert_eq!(forks.runs_per(1_000_000_000), 1_000_000);
    forks.ticks = 0;
    assert_eq!(forks.runs_per(u64::MAX), 0);
}

#[test]
fn a_guest_that_never_froze_is_told_apart() {
    let ending = GuestEnding::NeverFroze(Outcome::Exited(0));
    assert!(!ending.is_success());
    assert_eq!(ending.status(), None);
    assert_eq!(
        ending.to_string(),
        "was to be forked but never froze: exited with status 0"
    );
    assert!(GuestEnding::Forked { runs: 3, bad: 0 }.is_success());
}
