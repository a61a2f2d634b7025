//! What a run came to: for people a table, for tools a line of JSON.

mod forks;
mod json;
mod parts;
mod table;
mod text;

use core::fmt;

use crate::ept::{Census, Faults};
use crate::frames::FrameStatistics;
use crate::host::cmdline::CmdlineError;
use crate::host::figures::Figures;
use crate::host::fuzz::SnapshotError;
use crate::host::many::{ForkEnd, ForksSummary, GuestRun};
use crate::host::quota::Lost;
use crate::vm::create::GuestError;
use crate::vm::name::Name;
use crate::vm::outcome::Outcome;
use crate::vm::stats::RunStats;
use crate::vm::template::FreezeError;

pub use json::PREFIX;

/// How it went with one boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnding<'a> {
    /// The guest ran.
    Ran(Outcome),
    /// Its command line could not be understood.
    BadOptions(CmdlineError<'a>),
    /// An earlier guest, or earlier data where this is data, has its name.
    DuplicateName,
    /// It could not be made.
    NotMade(GuestError),
    /// It froze, and its forks ran.
    Forked {
        /// Runs that took place.
        runs: u64,
        /// Runs that did not end well, or could not be.
        bad: u64,
    },
    /// It asked to be frozen, and could not be.
    NotFrozen(FreezeError),
    /// It froze, and so many figures about its forks were taken.
    Measured(u64),
    /// It froze, and its forks were not as a guest's that is made for being measured.
    NotMeasured(ForkEnd),
    /// It was to be forked, but ended without having frozen.
    NeverFroze(Outcome),
    /// It was fuzzed.
    Fuzzed {
        /// Inputs that were run.
        executions: u64,
        /// Different crashes that were found.
        crashes: u32,
        /// Whether a crash was what was hoped for.
        expect_crash: bool,
    },
    /// It could not be fuzzed, or not to the end.
    NotFuzzed(SnapshotError),
}

impl GuestEnding<'_> {
    /// Whether the guest ended well.
    pub const fn is_success(&self) -> bool {
        match self {
            Self::Ran(outcome) => outcome.is_success(),
            Self::Forked { bad, .. } => *bad == 0,
            Self::Measured(_) => true,
            Self::Fuzzed {
                crashes,
                expect_crash,
                ..
            } => (*crashes != 0) == *expect_crash,
            _ => false,
        }
    }
    /// A word or two for tables and tools.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ran(outcome) => outcome.name(),
            Self::Forked { bad: 0, .. } => "forked",
            Self::Forked { .. } => "forks failed",
            Self::Measured(_) => "measured",
            Self::NotMeasured(_) => "not measured",
            Self::NotFrozen(_) => "not frozen",
            Self::NeverFroze(_) => "never froze",
            Self::Fuzzed { crashes: 0, .. } => "fuzzed, no crash",
            Self::Fuzzed { .. } => "fuzzed, crashed",
            Self::NotFuzzed(_) => "not fuzzed",
            Self::BadOptions(_) | Self::DuplicateName | Self::NotMade(_) => "not run",
        }
    }
    /// The exit status, if it came to one.
    pub const fn status(&self) -> Option<u64> {
        match self {
            Self::Ran(Outcome::Exited(status)) => Some(*status),
            // As every one of its forks.
            Self::Forked { bad: 0, .. } | Self::Measured(_) => Some(0),
            Self::Fuzzed { .. } if self.is_success() => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for GuestEnding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran(outcome) => outcome.fmt(f),
            Self::BadOptions(error) => error.fmt(f),
            Self::DuplicateName => f.write_str("an earlier module of its kind has the same name"),
            Self::NotMade(error) => error.fmt(f),
            Self::Forked { runs, bad: 0 } => {
                write!(f, "froze, and {runs} runs of forks ended well")
            }
            Self::Forked { runs, bad } => {
                write!(f, "{bad} runs of its forks failed, {runs} took place")
            }
            Self::Measured(figures) => write!(f, "froze, and {figures} figures were taken"),
            Self::NotMeasured(end) => write!(f, "a fork that was measured {end}"),
            Self::NotFrozen(error) => write!(f, "could not be frozen: {error}"),
            Self::NeverFroze(outcome) => {
                write!(f, "was to be forked but never froze: {outcome}")
            }
            Self::Fuzzed {
                executions,
                crashes,
                expect_crash,
            } => {
                match crashes {
                    0 => f.write_str("no crash found")?,
                    1 => f.write_str("1 crash found")?,
                    many => write!(f, "{many} different crashes found")?,
                }
                write!(f, " in {executions} executions")?;
                match (self.is_success(), expect_crash) {
                    (true, true) => f.write_str(", as expected"),
                    (false, true) => f.write_str(", though one was expected"),
                    _ => Ok(()),
                }
            }
            Self::NotFuzzed(error) => write!(f, "fuzzing: {error}"),
        }
    }
}

/// What became of one guest.
#[derive(Clone, Debug)]
pub struct GuestSummary<'a> {
    /// Its name.
    pub name: Name,
    /// How it ended.
    pub ending: GuestEnding<'a>,
    /// Exits and ticks.
    pub stats: RunStats,
    /// What its EPT violations came to.
    pub faults: Faults,
    /// INVEPTs executed for its space.
    pub invalidations: u64,
    /// INVVPIDs executed for it where they do.
    pub linear_invalidations: u64,
    /// What its space held in the end.
    pub memory: Census,
    /// What its forks came to, if it froze.
    pub forks: Option<ForksSummary>,
    /// What of it is not on the console and not here, as there was no room.
    pub lost: Lost,
}

impl<'a> GuestSummary<'a> {
    /// Of a module that came to no run.
    pub fn not_run(name: Name, ending: GuestEnding<'a>) -> Self {
        Self {
            name,
            ending,
            stats: RunStats::ZERO,
            faults: Faults::default(),
            memory: Census::default(),
            invalidations: 0,
            linear_invalidations: 0,
            forks: None,
            lost: Lost::NOTHING,
        }
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The guests, in the order of their modules.
    pub guests: &'a [GuestSummary<'a>],
    /// The host's frames at the end.
    pub frames: FrameStatistics,
    /// Frames that a guest had and nobody gave back.
    pub leaked: u64,
    /// What the guests filed.
    pub figures: &'a Figures,
    /// The first runs of forks.
    pub fork_runs: &'a [GuestRun],
}

impl Report<'_> {
    /// Whether there were guests, all ended well and no frame was lost.
    pub fn is_success(&self) -> bool {
        let all_well = self.guests.iter().all(|guest| guest.ending.is_success());
        !self.guests.is_empty() && all_well && self.leaked == 0
    }
}

#[cfg(test)]
mod tests;
