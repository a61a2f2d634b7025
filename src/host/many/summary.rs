//! What the forks of a guest came to, small enough to be kept.

use arrayvec::ArrayVec;

use super::end::ForkEnd;
use super::statistics::{FIRST_FAILURES, Failure, ForkStatistics, Generation, RunRecord};
use crate::host::cmdline::GENERATIONS_MAX;

/// What the forks of a guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForksSummary {
    /// By generation.
    pub generations: ArrayVec<Generation, GENERATIONS_MAX>,
    /// What went wrong first.
    pub failures: ArrayVec<Failure<ForkEnd>, FIRST_FAILURES>,
    /// TSC ticks for all of them.
    pub ticks: u64,
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// Frames that a fork has before it runs.
    pub idle_frames: u64,
}

/// A run of a fork of one of the guests of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRun {
    /// The place of the guest in the report.
    pub guest: usize,
    /// The run.
    pub record: RunRecord<ForkEnd>,
}

impl ForksSummary {
    /// The sums of a statistics.
    pub fn new(statistics: &ForkStatistics<ForkEnd>, tsc_hz: u64, idle_frames: u64) -> Self {
        Self {
            generations: statistics.generations(),
            failures: statistics.failures().iter().cloned().collect(),
            ticks: statistics.ticks,
            tsc_hz,
            idle_frames,
        }
    }

    /// Runs that took place.
    pub fn runs(&self) -> u64 {
        let runs = |all: &Generation| all.ok + all.frozen + all.failed;
        self.generations.iter().map(runs).sum()
    }

    /// Runs that did not end well, or could not be.
    pub fn bad(&self) -> u64 {
        let bad = |all: &Generation| all.failed.saturating_add(all.lost);
        self.generations
            .iter()
            .map(bad)
            .fold(0, u64::saturating_add)
    }

    /// Runs per so many ticks.
    pub fn runs_per(&self, ticks: u64) -> u64 {
        let runs = u128::from(self.runs()) * u128::from(ticks);
        let rate = runs.checked_div(u128::from(self.ticks)).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}
