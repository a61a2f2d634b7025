//! From a violation to a leaf.

pub mod around;
pub mod cow;
pub mod decide;
pub mod density;
pub mod fetch;
pub mod fill;
pub mod large;
pub mod outcome;
pub mod provide;
pub mod put;
pub mod source;
