//! What many forks came to.

use arrayvec::ArrayVec;

use super::forks::{Cost, ForkSlot, Verdict};
use super::histogram::{Distribution, Histogram};
use crate::host::cmdline::GENERATIONS_MAX;

/// So many failures are told one by one.
pub const FIRST_FAILURES: usize = 8;
/// So many runs are told one by one.
pub const RECORDS_MAX: usize = 128;

/// One run of one fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord<E> {
    /// How many forks it descends from: 0 for a fork of the first template.
    pub generation: usize,
    /// The number of the fork among those of its template.
    pub fork: u64,
    /// The number of the run.
    pub run: u64,
    /// TSC ticks it took, the host's and its own.
    pub ticks: u64,
    /// What else it took.
    pub cost: Cost,
    /// How it ended, or `None` if it became a template.
    pub end: Option<E>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<E> {
    /// Of which generation.
    pub generation: usize,
    /// The number of the fork.
    pub fork: u64,
    /// The number of the run.
    pub run: u64,
    /// What went wrong.
    pub end: E,
}

/// The sums of one generation.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub templates: u64,
    pub frozen: u64,
    pub ok: u64,
    pub failed: u64,
    pub lost: u64,
    pub waited: u64,
    pub starved: u64,
    pub alive_most: u64,
    pub cost: Cost,
    pub pages_reset: u64,
    pub runs: Histogram,
    pub forks: Histogram,
    pub resets: Histogram,
    pub ends: Histogram,
}

/// What one generation came to: all forks of its templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// How many templates were forked.
    pub templates: u64,
    /// Runs that ended well.
    pub ok: u64,
    /// Runs that ended by becoming a template.
    pub frozen: u64,
    /// Runs that did not end well.
    pub failed: u64,
    /// Runs that could not be: their fork was not made, or not reset.
    pub lost: u64,
    /// Runs that were begun again, because others had all frames.
    pub waited: u64,
    /// Runs that failed or were lost because there were no frames.
    pub starved: u64,
    /// The most forks that were alive at once.
    pub alive_most: u64,
    /// What all runs took, beside time.
    pub cost: Cost,
    /// Pages that resets copied back or dropped.
    pub pages_reset: u64,
    /// Ticks per run.
    pub runs: Distribution,
    /// Ticks to make a fork.
    pub forks: Distribution,
    /// Ticks per reset.
    pub resets: Distribution,
    /// Ticks to end a fork.
    pub ends: Distribution,
}

/// What all forks of a guest came to. It is too large for a stack.
#[derive(Debug)]
pub struct ForkStatistics<E> {
    sums: [Sums; GENERATIONS_MAX],
    failures: ArrayVec<Failure<E>, FIRST_FAILURES>,
    records: ArrayVec<RunRecord<E>, RECORDS_MAX>,
    /// TSC ticks from the first fork to the end of the last.
    pub ticks: u64,
}

impl<E: Verdict> ForkStatistics<E> {
    /// Of nothing.
    pub const fn new() -> Self {
        Self {
            sums: [const {
                Sums {
                    templates: 0,
                    frozen: 0,
                    ok: 0,
                    failed: 0,
                    lost: 0,
                    waited: 0,
                    starved: 0,
                    alive_most: 0,
                    cost: Cost::ZERO,
                    pages_reset: 0,
                    runs: Histogram::new(),
                    forks: Histogram::new(),
                    resets: Histogram::new(),
                    ends: Histogram::new(),
                }
            }; GENERATIONS_MAX],
            failures: ArrayVec::new_const(),
            records: ArrayVec::new_const(),
            ticks: 0,
        }
    }

    /// Forgets everything, for the next guest.
    pub fn clear(&mut self) {
        for sums in &mut self.sums {
            sums.templates = 0;
            (sums.frozen, sums.ok, sums.failed, sums.lost) = (0, 0, 0, 0);
            (sums.waited, sums.starved, sums.alive_most) = (0, 0, 0);
            sums.cost = Cost::ZERO;
            sums.pages_reset = 0;
            for histogram in [
                &mut sums.runs,
                &mut sums.forks,
                &mut sums.resets,
                &mut sums.ends,
            ] {
                histogram.clear();
            }
        }
        self.failures.clear();
        self.records.clear();
        self.ticks = 0;
    }

    /// Whether every run took place and ended well.
    pub fn is_success(&self) -> bool {
        self.sums
            .iter()
            .all(|sums| sums.failed == 0 && sums.lost == 0)
    }

    /// The generations of which there was a template.
    pub fn generations(&self) -> ArrayVec<Generation, GENERATIONS_MAX> {
        let templates = self.sums.iter().take_while(|sums| sums.templates != 0);
        templates.map(Sums::figures).collect()
    }

    /// The first things that went wrong.
    pub fn failures(&self) -> &[Failure<E>] {
        &self.failures
    }

    /// The first runs.
    pub fn records(&self) -> &[RunRecord<E>] {
        &self.records
    }

    pub(super) fn generation(&mut self, generation: usize) -> Option<&mut Sums> {
        self.sums.get_mut(generation)
    }

    /// Counts a run.
    pub(super) fn ran(&mut self, record: RunRecord<E>) {
        if let Some(sums) = self.sums.get_mut(record.generation) {
            sums.runs.add(record.ticks);
            sums.cost = sums.cost.plus(record.cost);
            match &record.end {
                None => sums.frozen += 1,
                Some(end) if end.is_success() => sums.ok += 1,
                Some(end) => {
                    sums.failed += 1;
                    sums.starved += u64::from(end.is_out_of_frames());
                }
            }
        }
        if let Some(end) = record.end.as_ref().filter(|end| !end.is_success()) {
            self.failed(record.generation, record.fork, record.run, end.clone());
        }
        // What there is no place for is in the sums.
        let _ = self.records.try_push(record);
    }

    /// Counts that there was not even a first run.
    pub fn none(&mut self, end: E) {
        if let Some(sums) = self.sums.first_mut() {
            sums.templates += 1;
        }
        self.lost(0, ForkSlot::default(), 1, end);
    }

    /// Counts `runs` runs that could not be, the first of which is `first`.
    pub(super) fn lost(&mut self, generation: usize, first: ForkSlot, runs: u64, end: E) {
        if let Some(sums) = self.sums.get_mut(generation) {
            sums.lost = sums.lost.saturating_add(runs);
            if end.is_out_of_frames() {
                sums.starved = sums.starved.saturating_add(runs);
            }
        }
        self.failed(generation, first.fork, first.run, end);
    }

    fn failed(&mut self, generation: usize, fork: u64, run: u64, end: E) {
        // What there is no place for is in the sums.
        let _ = self.failures.try_push(Failure {
            generation,
            fork,
            run,
            end,
        });
    }
}

impl<E: Verdict> Default for ForkStatistics<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl Sums {
    fn figures(&self) -> Generation {
        Generation {
            templates: self.templates,
            ok: self.ok,
            frozen: self.frozen,
            failed: self.failed,
            lost: self.lost,
            waited: self.waited,
            starved: self.starved,
            alive_most: self.alive_most,
            cost: self.cost,
            pages_reset: self.pages_reset,
            runs: self.runs.distribution(),
            forks: self.forks.distribution(),
            resets: self.resets.distribution(),
            ends: self.ends.distribution(),
        }
    }
}
