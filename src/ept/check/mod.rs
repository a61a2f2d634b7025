//! What must hold of spaces, checked by walking everything.

pub mod audit;
pub mod checksum;
