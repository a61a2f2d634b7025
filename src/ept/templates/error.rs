//! Why a template cannot be made or used.

use crate::addr::{AddrRange, Gpa};
use crate::frames::FrameError;
use core::fmt;

/// Why a space cannot become a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeError {
    /// It has a device passed through, which cannot be in two spaces.
    PassThrough(AddrRange<Gpa>),
    /// It has as many templates above it as can be counted.
    TooDeep,
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PassThrough(range) => {
                write!(f, "the device at {range} cannot be shared by forks")
            }
            Self::TooDeep => write!(f, "there are {} templates above it already", u32::MAX),
        }
    }
}

impl core::error::Error for FreezeError {}

/// Why a space cannot be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// It is no fork of a template.
    NotAFork,
    /// It is a fork of another template.
    OtherTemplate,
    /// A frame of the template has as many references as can be counted, or none is free. Nothing has changed.
    Frames(FrameError),
    /// It is not known which pages it wrote.
    Unknown,
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAFork => f.write_str("it is no fork of a template"),
            Self::OtherTemplate => f.write_str("it is a fork of another template"),
            Self::Frames(error) => write!(f, "sharing the template: {error}"),
            Self::Unknown => f.write_str("it is not known which pages it wrote"),
        }
    }
}

impl core::error::Error for ResetError {}
