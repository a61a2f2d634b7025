//! What the host does with a guest's memory: reading, writing, and asking what was written.

pub mod bytes;
pub mod dirty;
pub mod words;
