//! The tables of one space: what their entries say, who else refers to them, and what is noted beside them.

pub mod dirty_log;
pub mod dirty_tracking;
pub mod entry;
pub mod leaf_edit;
pub mod log;
pub mod ops;
pub mod policy;
pub mod reach;
pub mod sharing;
pub mod table;
pub mod teardown;
pub mod tree;
pub mod zeroing;
