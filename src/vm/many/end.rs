//! How a run of a fork ended.

use core::fmt;

use super::schedule::Verdict;
use crate::vm::cmdline::GENERATIONS_MAX;
use crate::vm::outcome::Outcome;

/// How a run of a fork ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkEnd {
    /// It ran.
    Ran(Outcome),
    /// It froze in the last generation that there may be.
    TooDeep,
}

impl ForkEnd {
    /// A word or two for tables and tools.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ran(outcome) => outcome.name(),
            Self::TooDeep => "too deep",
        }
    }
}

impl Verdict for ForkEnd {
    fn is_success(&self) -> bool {
        matches!(self, Self::Ran(outcome) if outcome.is_success())
    }
    fn is_out_of_frames(&self) -> bool {
        matches!(self, Self::Ran(outcome) if outcome.is_out_of_frames())
    }
    fn out_of_budget() -> Self {
        Self::Ran(Outcome::OutOfBudget)
    }
    fn too_deep() -> Self {
        Self::TooDeep
    }
}

impl fmt::Display for ForkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran(outcome) => outcome.fmt(f),
            Self::TooDeep => write!(f, "froze in generation {GENERATIONS_MAX}, the last one"),
        }
    }
}
