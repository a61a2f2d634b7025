//! The CPU of the other maker: what [`vmx`](crate::vmx) is for Intel's, for AMD's SVM.
//!
//! All of this but [`cpu`] is without inline assembly and is tested on the host.
//!
//! - What the CPU can do: [`capabilities`], [`feature`]; what we want of it: [`choice`], [`intercept`], [`permission_map`].
//! - What it is given and gives back: [`vmcb`], [`fields`], [`segment`], [`start_state`].
//! - Under which number it caches what a guest uses: [`asid`].
//! - What an exit says: [`exit`], [`reason`], [`nested_fault`], [`exiting`]; going on: [`advance`], [`event`].
//! - A guest's processor for the layers above: [`loaded`], [`left`]; what of it is kept: [`guest_state`].
//! - What went wrong: [`entry_check`], [`dump`].

pub mod advance;
pub mod asid;
pub mod capabilities;
pub mod choice;
pub mod cpu;
pub mod dump;
pub mod entry_check;
pub mod event;
pub mod exit;
pub mod exiting;
pub mod feature;
pub mod field;
pub mod fields;
pub mod guest_state;
pub mod intercept;
pub mod left;
pub mod loaded;
pub mod nested_fault;
mod neutral;
pub mod permission_map;
pub mod reason;
#[cfg(test)]
mod scripted;
pub mod segment;
pub mod start_state;
pub mod vmcb;

pub use asid::{Asid, Asids, Tag, TlbControl};
pub use capabilities::{Capabilities, SvmSwitch, SvmUnavailable};
pub use choice::{Chosen, UnmetFeatures, choose};
pub use event::Injection;
pub use exit::Exit;
pub use feature::{Feature, Features};
pub use intercept::{Intercept, Intercepts};
pub use nested_fault::NestedFault;
pub use permission_map::{IoMap, MsrMap};
pub use reason::Reason;
pub use vmcb::Vmcb;

#[cfg(test)]
pub(crate) mod fake {
    pub(crate) use super::capabilities::tests::{epyc, qemu};
    pub(crate) use super::scripted::{ScriptedCpu, Step, left, refuse};
}
