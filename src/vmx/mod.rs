//! Intel's virtualization: capabilities, VMCS, entry and exit, exit decoding.
//!
//! All of this but [`cpu`] is without inline assembly and is tested on the host: the CPU is reached through
//! [`CpuRead`](crate::virt::cpuid::CpuRead), the VMCS through [`Vmcs`].
//!
//! - What the CPU can do: [`capabilities`], [`capability_msrs`]; what we want of it: [`control_choice`], [`controls`].
//! - What a guest is set up with: [`start_state`], [`segments`]; what is kept of one that is frozen: [`guest_state`].
//! - What an exit says: [`exit`], [`qualification`], [`interruption`]; going on: [`advance`], [`event`].
//! - What went wrong: [`instruction_error`], [`entry_check`], [`dump`].

pub mod advance;
pub mod capabilities;
pub mod capability_msrs;
pub mod control_choice;
pub mod controls;
pub mod cpu;
pub mod dump;
pub mod entry_check;
pub mod event;
pub mod exit;
pub mod fields;
pub mod guest_state;
pub mod instruction_error;
pub mod interruption;
pub mod loaded;
pub mod pml;
pub mod qualification;
#[cfg(test)]
mod scripted;
pub mod segments;
pub mod start_state;
pub mod vmcs;
pub mod vpid;

pub use capabilities::Capabilities;
pub use control_choice::choose_controls;
pub use controls::ControlSet;
pub use exit::EntryFailure;
pub use fields::{Field, Field16, Field32, Field64, FieldNatural};
pub use guest_state::GuestState;
pub use instruction_error::{InstructionError, VmFail};
pub use start_state::Start64;
pub use vmcs::{Vmcs, VmcsError};

/// CPUs as recorded, and a VMCS, for the tests of this layer and of those above.
#[cfg(test)]
pub(crate) mod fake {
    pub(crate) use super::capabilities::tests::{
        Profile, haswell, lynnfield, penryn, tigerlake, westmere,
    };
    pub(crate) use super::scripted::{ScriptedVmcs, Step, left};
    pub(crate) use super::start_state::tests::host;
    pub(crate) use super::vmcs::FakeVmcs;
}
