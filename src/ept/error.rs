//! Why an access to a space cannot be.

use crate::frames::FrameError;
use crate::paging::{Ept, Error, PagingError};
use core::fmt;

/// Why an access could not be made possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no region: the guest touched what it does not own.
    NoRegion,
    /// The region does not allow it.
    Denied {
        /// The region's tag.
        tag: u32,
    },
    /// The region would allow it, but was protected against it.
    Protected {
        /// The region's tag.
        tag: u32,
    },
    /// This is not memory whose bytes can be copied.
    NotMemory {
        /// The region's tag.
        tag: u32,
    },
    /// There is no frame for it.
    OutOfFrames,
    /// The frames' counts forbid it.
    Frames(FrameError),
    /// The tables are not what this code makes them: a bug.
    Tables(Error<Ept>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegion => f.write_str("nothing is there"),
            Self::Denied { tag } => write!(f, "region {tag} does not allow it"),
            Self::Protected { tag } => write!(f, "region {tag} is protected against it"),
            Self::NotMemory { tag } => write!(f, "region {tag} is a device, not memory"),
            Self::OutOfFrames => f.write_str("the host is out of frames"),
            Self::Frames(error) => write!(f, "{error}"),
            Self::Tables(error) => write!(f, "bug in the hypervisor: {error}"),
        }
    }
}

impl core::error::Error for Reason {}

impl From<FrameError> for Reason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::OutOfFrames => Self::OutOfFrames,
            other => Self::Frames(other),
        }
    }
}

impl From<Error<Ept>> for Reason {
    fn from(error: Error<Ept>) -> Self {
        match error {
            PagingError::OutOfTables => Self::OutOfFrames,
            PagingError::TooManyReferences { phys } => {
                Self::Frames(FrameError::CountOverflow(phys))
            }
            other => Self::Tables(other),
        }
    }
}
