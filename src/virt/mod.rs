//! What a CPU's virtualization offers, the same for both makers.
//!
//! [`vmx`](crate::vmx) says how Intel's CPUs do it.

mod breakpoints;
mod code_mode;
pub mod control_registers;
pub mod cpu;
pub mod cpuid;
pub mod event;
pub mod exit;
mod failed_checks;
pub mod io;
pub mod processor;
mod regs;
mod segment;

pub use breakpoints::{BreakpointHits, Breakpoints};
pub use code_mode::CodeMode;
pub use event::Event;
pub use failed_checks::{FailedChecks, Rule};
pub use processor::Processor;
pub use regs::{Gpr, GuestRegs};
pub use segment::{AccessRights, Segment, SegmentRegister};
