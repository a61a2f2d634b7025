//! What a guest's physical addresses are.

pub mod backing;
pub mod map;
pub mod region;
