//! What the CPU is told of a space and tells of it: nothing here knows of regions or tables of ours.

pub mod capability;
pub mod debt;
pub mod mtrr;
pub mod violation;
