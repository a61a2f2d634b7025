//! The CPU: capabilities, VMCS, entry and exit, exit decoding.

mod regs;

pub use regs::{Gpr, GuestRegs};
