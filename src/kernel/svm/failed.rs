//! Why the self-test of SVM failed.

use super::memory::MemoryError;
use core::fmt;
use offshoot::svm::cpu::StillOff;
use offshoot::svm::loaded::Refused;
use offshoot::svm::{Exit, SvmUnavailable, UnmetFeatures};

/// Why the test failed.
pub enum Failed {
    Unavailable(SvmUnavailable),
    Unmet(UnmetFeatures),
    StillOff(StillOff),
    Memory(MemoryError),
    /// VMRUN refused what it should take.
    Refused,
    /// VMRUN took what it should refuse.
    NotRefused(&'static str),
    /// Another exit than the one expected.
    Exit {
        expected: &'static str,
        exit: Exit,
    },
    /// The guest or the host found something else than expected.
    Wrong(&'static str),
}

impl From<MemoryError> for Failed {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}
impl From<Refused> for Failed {
    fn from(Refused: Refused) -> Self {
        Self::Refused
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => error.fmt(f),
            Self::Unmet(error) => error.fmt(f),
            Self::StillOff(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Refused => f.write_str("VMRUN refused the guest of the self-test"),
            Self::NotRefused(what) => write!(f, "VMRUN took a VMCB with {what}"),
            Self::Exit { expected, exit } => write!(f, "instead of {expected}: {exit}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}
