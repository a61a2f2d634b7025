//! From a violation to a leaf.

pub mod around;
pub mod decide;
pub mod density;
pub mod fetch;
pub mod fill;
pub mod large;
pub mod open;
pub mod outcome;
