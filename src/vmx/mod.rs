//! The CPU: capabilities, VMCS, entry and exit, exit decoding.

pub mod capabilities;
pub mod capability_msrs;
pub mod control_choice;
pub mod controls;
pub mod cpu;
pub mod exit;
pub mod fields;
pub mod instruction_error;
pub mod qualification;
mod regs;
pub mod vmcs;

pub use capabilities::{Capabilities, CpuRead, FeatureControl, VmxUnavailable};
pub use control_choice::{UnmetControls, choose_controls};
pub use controls::ControlSet;
pub use fields::{Field, Field16, Field32, Field64, FieldNatural};
pub use instruction_error::{InstructionError, VmFail};
pub use regs::{Gpr, GuestRegs};
pub use vmcs::{Vmcs, VmcsError};
