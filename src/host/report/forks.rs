//! The part of the report that is about forks.

use core::fmt::{self, Display, Write};

use serde::{Serialize, Serializer};

use super::parts::{Each, Text};
use super::text::{Brief, Grouped, MARGIN, Wrapped};
use crate::host::many::{
    Distribution, Failure, ForkEnd, ForksSummary, Generation, GuestRun, RunRecord,
};

/// Writes what the forks of a guest came to, as part of the table.
pub(super) fn write_forks(forks: &ForksSummary, out: &mut impl Write) -> fmt::Result {
    writeln!(
        out,
        "{MARGIN}{:<26} {:>15} {:>15} {:>15} {:>15}",
        "ticks of", "count", "least", "median", "most"
    )?;
    for (number, generation) in forks.generations.iter().enumerate() {
        write_generation(number, generation, out)?;
    }
    let mut words = Wrapped::new(out);
    write!(
        words,
        "{} runs in all, {} per second, {} per billion ticks; an idle fork has {} frames",
        Grouped(forks.runs()),
        Grouped(forks.runs_per(forks.tsc_hz)),
        Grouped(forks.runs_per(1_000_000_000)),
        Grouped(forks.idle_frames),
    )?;
    words.end()?;
    write_advice(forks, out)?;
    for failure in &forks.failures {
        let mut words = Wrapped::new(out);
        write!(words, "{}", Told(failure))?;
        words.end()?;
    }
    let rest = forks.bad().saturating_sub(forks.failures.len() as u64);
    if rest != 0 && !forks.failures.is_empty() {
        writeln!(out, "{MARGIN}and {} more", Grouped(rest))?;
    }
    Ok(())
}

/// Says what helps where memory was short.
fn write_advice(forks: &ForksSummary, out: &mut impl Write) -> fmt::Result {
    let sum = |of: fn(&Generation) -> u64| {
        let each = forks.generations.iter().map(of);
        each.fold(0, u64::saturating_add)
    };
    let (starved, waited) = (sum(|all| all.starved), sum(|all| all.waited));
    let alive = forks.generations.iter().map(|all| all.alive_most).max();
    let mut words = Wrapped::new(out);
    match (starved, waited) {
        (0, 0) => return Ok(()),
        (0, waited) => write!(words, "{} runs were begun again", Grouped(waited))?,
        (starved, _) => write!(words, "{} runs found too little memory", Grouped(starved))?,
    }
    match alive.unwrap_or(0) {
        0 | 1 => write!(words, " for a single fork: raise")?,
        alive => write!(
            words,
            " with up to {} forks alive: lower parallel=, or raise",
            Grouped(alive)
        )?,
    }
    write!(words, " pool= or the memory of the machine (MEM=)")?;
    words.end()
}

fn write_generation(number: usize, all: &Generation, out: &mut impl Write) -> fmt::Result {
    for (what, spread) in [
        ("fork", &all.forks),
        ("run", &all.runs),
        ("reset", &all.resets),
        ("end", &all.ends),
    ] {
        if spread.count == 0 {
            continue;
        }
        writeln!(
            out,
            "{MARGIN}{:<8}generation {:<7} {:>15} {:>15} {:>15} {:>15}",
            what,
            number + 1,
            Fitting(spread.count),
            Fitting(spread.min),
            Fitting(spread.median),
            Fitting(spread.max),
        )?;
    }
    let mut words = Wrapped::new(out);
    write!(words, "generation {}: ", number + 1)?;
    let mut comma = "";
    for (count, what) in [
        (all.templates, "templates"),
        (all.alive_most, "alive at most"),
        (all.ok, "runs that ended well"),
        (all.failed, "failed"),
        (all.lost, "not possible"),
        (all.waited, "begun again for lack of memory"),
        (all.frozen, "frozen again"),
        (all.cost.exits, "exits"),
        (all.cost.pages, "pages made private"),
        (all.pages_reset, "pages reset"),
    ] {
        if count != 0 {
            write!(words, "{comma}{what} {}", Grouped(count))?;
            comma = ", ";
        }
    }
    words.end()
}

/// A number in at most 15 columns.
struct Fitting(u64);

impl Display for Fitting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1_000_000_000_000 {
            Grouped(self.0).fmt(f)
        } else {
            Brief(self.0).fmt(f)
        }
    }
}

/// A failure in a sentence.
struct Told<'a>(&'a Failure<ForkEnd>);

impl Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            generation,
            fork,
            run,
            end,
        } = self.0;
        write!(f, "fork {fork} run {run}")?;
        if *generation != 0 {
            write!(f, " of generation {}", generation + 1)?;
        }
        write!(f, ": {end}")
    }
}

#[derive(Serialize)]
pub(super) struct ForksJson<'a> {
    generations: Each<'a, Generation, GenerationJson<'a>>,
    instructions: u64,
    runs_per_second: u64,
    runs_per_billion: u64,
    idle_frames: u64,
    failures: Each<'a, Failure<ForkEnd>, FailureJson<'a>>,
    /// The first runs of all.
    runs: Runs<'a>,
}

impl<'a> ForksJson<'a> {
    pub(super) fn new(forks: &'a ForksSummary, guest: usize, runs: &'a [GuestRun]) -> Self {
        Self {
            generations: Each(&forks.generations, GenerationJson::new),
            instructions: forks.ticks,
            runs_per_second: forks.runs_per(forks.tsc_hz),
            runs_per_billion: forks.runs_per(1_000_000_000),
            idle_frames: forks.idle_frames,
            failures: Each(&forks.failures, FailureJson::new),
            runs: Runs { guest, runs },
        }
    }
}

#[derive(Serialize)]
pub(super) struct GenerationJson<'a> {
    templates: u64,
    alive_most: u64,
    ok: u64,
    failed: u64,
    lost: u64,
    waited: u64,
    starved: u64,
    frozen: u64,
    exits: u64,
    pages_private: u64,
    pages_reset: u64,
    fork: DistributionJson<'a>,
    run: DistributionJson<'a>,
    reset: DistributionJson<'a>,
    end: DistributionJson<'a>,
}

impl<'a> GenerationJson<'a> {
    fn new(all: &'a Generation) -> Self {
        Self {
            templates: all.templates,
            alive_most: all.alive_most,
            ok: all.ok,
            failed: all.failed,
            lost: all.lost,
            waited: all.waited,
            starved: all.starved,
            frozen: all.frozen,
            exits: all.cost.exits,
            pages_private: all.cost.pages,
            pages_reset: all.pages_reset,
            fork: DistributionJson(&all.forks),
            run: DistributionJson(&all.runs),
            reset: DistributionJson(&all.resets),
            end: DistributionJson(&all.ends),
        }
    }
}

/// Ticks.
struct DistributionJson<'a>(&'a Distribution);

impl Serialize for DistributionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let spread = self.0;
        serializer.collect_map([
            ("count", spread.count),
            ("total", spread.total),
            ("min", spread.min),
            ("median", spread.median),
            ("max", spread.max),
        ])
    }
}

#[derive(Serialize)]
pub(super) struct FailureJson<'a> {
    generation: usize,
    fork: u64,
    run: u64,
    outcome: &'a str,
    detail: Text<&'a dyn Display>,
}

impl<'a> FailureJson<'a> {
    fn new(failure: &'a Failure<ForkEnd>) -> Self {
        Self {
            generation: failure.generation + 1,
            fork: failure.fork,
            run: failure.run,
            outcome: failure.end.name(),
            detail: Text(&failure.end),
        }
    }
}

/// The runs of one guest's forks.
struct Runs<'a> {
    guest: usize,
    runs: &'a [GuestRun],
}

impl Serialize for Runs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mine = self.runs.iter().filter(|run| run.guest == self.guest);
        serializer.collect_seq(mine.map(|run| run_json(&run.record)))
    }
}

/// A run as a list: generation, fork, run, ticks, exits, pages, outcome. There are many, and a serial line is slow.
type RunJson<'a> = (usize, u64, u64, u64, u64, u64, &'a str);

fn run_json(record: &RunRecord<ForkEnd>) -> RunJson<'_> {
    (
        record.generation + 1,
        record.fork,
        record.run,
        record.ticks,
        record.cost.exits,
        record.cost.pages,
        record.end.as_ref().map_or("frozen", ForkEnd::name),
    )
}
