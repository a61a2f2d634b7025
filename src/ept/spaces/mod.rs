//! A guest's physical memory as a whole: its making, changes to ranges of it, and its end.

pub mod edit;
pub mod end;
pub mod merge;
pub mod space;
