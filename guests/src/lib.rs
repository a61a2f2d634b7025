//! What the sample and hostile guests share beside the SDK: checks that are counted, patterns in memory, instructions to
//! try, tables of one's own.
#![no_std]

pub mod check;
pub mod cpu;
pub mod forks;
pub mod pattern;
pub mod random;
pub mod space;

/// The exit status of a hostile guest that got past the point where it should have been stopped.
pub const SURVIVED: u64 = 77;
