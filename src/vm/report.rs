//! What a run came to: for people a table, for tools a line of JSON.

mod json;
mod table;

use core::fmt;

use super::cmdline::{CmdlineError, Name};
use super::figures::Figures;
use super::guest::GuestError;
use super::outcome::Outcome;
use super::stats::RunStats;
use crate::ept::{Census, Faults};
use crate::frames::FrameFigures;

pub use json::PREFIX;

/// How it went with one boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// The guest ran.
    Ran(Outcome),
    /// Its command line could not be understood.
    BadOptions(CmdlineError<'a>),
    /// An earlier guest, or earlier data where this is data, has its name.
    DuplicateName,
    /// It could not be made.
    NotMade(GuestError),
}

impl Ending<'_> {
    /// Whether the guest ended well.
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Ran(outcome) if outcome.is_success())
    }
    /// A word or two for tables and tools.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ran(outcome) => outcome.name(),
            Self::BadOptions(_) | Self::DuplicateName | Self::NotMade(_) => "not run",
        }
    }
    /// The exit status, if it came to one.
    pub const fn status(&self) -> Option<u64> {
        match self {
            Self::Ran(Outcome::Exited(status)) => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran(outcome) => outcome.fmt(f),
            Self::BadOptions(error) => error.fmt(f),
            Self::DuplicateName => f.write_str("an earlier module of its kind has the same name"),
            Self::NotMade(error) => error.fmt(f),
        }
    }
}

/// What became of one guest.
#[derive(Clone, Debug)]
pub struct GuestSummary<'a> {
    /// Its name.
    pub name: Name,
    /// How it ended.
    pub ending: Ending<'a>,
    /// Exits and ticks.
    pub stats: RunStats,
    /// What its EPT violations came to.
    pub faults: Faults,
    /// INVEPTs executed for its space.
    pub invalidations: u64,
    /// What its space held in the end.
    pub memory: Census,
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The guests, in the order of their modules.
    pub guests: &'a [GuestSummary<'a>],
    /// The host's frames at the end.
    pub frames: FrameFigures,
    /// Frames that a guest had and nobody gave back.
    pub leaked: u64,
    /// What the guests filed.
    pub figures: &'a Figures,
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
