//! What a guest's physical addresses are.

pub mod known;
pub mod map;
pub mod region;
