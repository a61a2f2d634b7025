//! What can go wrong with templates and their forks.

use core::fmt;

use super::super::vcpu::VcpuError;
use crate::ept::{self, AccessError, EditError, Reason};
use crate::frames::FrameError;

/// Why a guest cannot be frozen. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeError {
    /// It has ended.
    Ended,
    /// An event is being delivered to it.
    EventPending,
    /// Its processor's state could not be taken.
    Vcpu(VcpuError),
    /// Its memory cannot be a template.
    Space(ept::FreezeError),
    /// The message that it has not had yet could not be written.
    Message(AccessError),
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the guest has ended"),
            Self::EventPending => f.write_str("an event is being delivered to the guest"),
            Self::Vcpu(error) => error.fmt(f),
            Self::Space(error) => error.fmt(f),
            Self::Message(error) => write!(f, "the message to the guest: {error}"),
        }
    }
}

impl core::error::Error for FreezeError {}

/// Why a guest could not be forked. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkError {
    /// Its space could not be made.
    Space(EditError),
    /// Its processor could not be made.
    Vcpu(VcpuError),
    /// The message could not be written into its memory.
    Message(AccessError),
}

impl ForkError {
    /// Whether it would have worked with more frames.
    pub const fn is_out_of_frames(&self) -> bool {
        match self {
            Self::Space(error) => matches!(error, EditError::Tables(Reason::OutOfFrames)),
            Self::Vcpu(error) => matches!(error, VcpuError::Frames(FrameError::OutOfFrames)),
            Self::Message(error) => matches!(error.reason, Reason::OutOfFrames),
        }
    }
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space(error) => error.fmt(f),
            Self::Vcpu(error) => error.fmt(f),
            Self::Message(error) => write!(f, "the message to the fork: {error}"),
        }
    }
}

impl core::error::Error for ForkError {}

/// Why a guest could not be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// Its memory cannot be brought back. The guest is as it was.
    Space(ept::ResetError),
    /// Its processor's state could not be written: the guest has ended.
    Vcpu(VcpuError),
    /// The message could not be written into its memory: the guest has ended.
    Message(AccessError),
}

impl ResetError {
    /// Whether it would have worked with more frames.
    pub const fn is_out_of_frames(&self) -> bool {
        match self {
            Self::Space(error) => {
                matches!(error, ept::ResetError::Frames(FrameError::OutOfFrames))
            }
            Self::Vcpu(error) => matches!(error, VcpuError::Frames(FrameError::OutOfFrames)),
            Self::Message(error) => matches!(error.reason, Reason::OutOfFrames),
        }
    }
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space(error) => error.fmt(f),
            Self::Vcpu(error) => error.fmt(f),
            Self::Message(error) => write!(f, "the message to the guest: {error}"),
        }
    }
}

impl core::error::Error for ResetError {}

/// Why a template could not be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// Its space could not be forked.
    Space(EditError),
    /// The bytes could not be written.
    Memory(AccessError),
    /// The fork could not become a template.
    Freeze(ept::FreezeError),
    /// There is no frame for the state of its processor.
    Frames(FrameError),
}

impl PatchError {
    /// Whether it would have worked with more frames.
    pub const fn is_out_of_frames(&self) -> bool {
        match self {
            Self::Space(error) => matches!(error, EditError::Tables(Reason::OutOfFrames)),
            Self::Memory(error) => matches!(error.reason, Reason::OutOfFrames),
            Self::Freeze(_) => false,
            Self::Frames(error) => matches!(error, FrameError::OutOfFrames),
        }
    }
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Freeze(error) => error.fmt(f),
            Self::Frames(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PatchError {}
