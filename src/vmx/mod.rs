//! The CPU: capabilities, VMCS, entry and exit, exit decoding.

pub mod cpu;
pub mod fields;
pub mod instruction_error;
mod regs;
pub mod vmcs;

pub use fields::{Field, Field16, Field32, Field64, FieldNatural};
pub use instruction_error::{InstructionError, VmFail};
pub use regs::{Gpr, GuestRegs};
pub use vmcs::{Vmcs, VmcsError};
