//! Where the hypervisor is known not to do what the processor does, yet: cases are made so that they do not show it.

/// Breakpoints on data.
pub const BREAKPOINTS: bool = true;
/// INS and OUTS: alignment, segments.
pub const PORTS: bool = true;
/// String instructions with two sides: alignment of the other side, and which side faults first.
pub const TWO_SIDES: bool = true;
/// CLFLUSH in code that cannot be read.
pub const FLUSH_OF_CODE: bool = true;
