//! How a run of a fork ended.

use core::fmt;

use super::forks::Verdict;
use crate::frames::FrameError;
use crate::host::cmdline::GENERATIONS_MAX;
use crate::vm::{Difference, ForkError, FreezeError, Outcome, ResetError};

/// How a run of a fork ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkEnd {
    /// It ran.
    Ran(Outcome),
    /// It froze in the last generation that there may be.
    TooDeep,
    /// It froze where a run to the end was to be measured.
    FrozeAgain,
    /// It could not be made.
    NotMade(ForkError),
    /// There was no frame to keep it, or the template it became, in.
    NoFrame(FrameError),
    /// It could not be brought back to its template.
    NotReset(ResetError),
    /// It could not become a template.
    NotFrozen(FreezeError),
    /// A check found its processor not as its template's after it was reset: our bug.
    Differs(Difference),
    /// A check found its memory not as its template's after it was reset: our bug.
    MemoryDiffers,
}

impl ForkEnd {
    /// A word or two for tables and tools.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ran(outcome) => outcome.name(),
            Self::TooDeep => "too deep",
            Self::FrozeAgain => "froze again",
            Self::NotMade(_) | Self::NoFrame(_) => "not made",
            Self::NotReset(_) => "not reset",
            Self::NotFrozen(_) => "not frozen",
            Self::Differs(_) | Self::MemoryDiffers => "hypervisor error",
        }
    }
}

impl Verdict for ForkEnd {
    fn is_success(&self) -> bool {
        matches!(self, Self::Ran(outcome) if outcome.is_success())
    }
    fn is_out_of_frames(&self) -> bool {
        match self {
            Self::Ran(outcome) => outcome.is_out_of_frames(),
            Self::NotMade(error) => error.is_out_of_frames(),
            Self::NotReset(error) => error.is_out_of_frames(),
            Self::NoFrame(error) => *error == FrameError::OutOfFrames,
            _ => false,
        }
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
            Self::NotMade(error) => write!(f, "could not be made: {error}"),
            Self::NoFrame(error) => write!(f, "could not be made: {error}"),
            Self::NotReset(error) => write!(f, "could not be reset: {error}"),
            Self::NotFrozen(error) => write!(f, "could not be frozen: {error}"),
            Self::Differs(difference) => write!(f, "after the reset {difference}"),
            Self::MemoryDiffers => f.write_str("after the reset its memory is another"),
            Self::TooDeep => write!(f, "froze in generation {GENERATIONS_MAX}, the last one"),
            Self::FrozeAgain => f.write_str("froze again instead of running to its end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::report::GuestEnding;

    #[test]
    fn a_fork_that_froze_while_measured_is_not_said_to_be_too_deep() {
        let ending = GuestEnding::NotMeasured(ForkEnd::FrozeAgain);
        let told = "a fork that was measured froze again instead of running to its end";
        assert_eq!(ending.to_string(), told);
        assert_eq!(ForkEnd::FrozeAgain.name(), "froze again");
    }
}
