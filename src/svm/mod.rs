//! The CPU of the other maker: what [`vmx`](crate::vmx) is for Intel's, for AMD's SVM.
//!
//! - What the CPU can do: [`capabilities`], [`feature`]; what we want of it: [`choice`], [`intercept`].
//! - What it is given and gives back: [`vmcb`], [`fields`], [`segment`].
//! - What an exit says: [`exit`], [`reason`], [`nested_fault`].

pub mod capabilities;
pub mod choice;
pub mod exit;
pub mod feature;
pub mod fields;
pub mod intercept;
pub mod nested_fault;
mod neutral;
pub mod reason;
pub mod segment;
pub mod vmcb;

pub use capabilities::{Capabilities, SvmSwitch, SvmUnavailable};
pub use choice::{Chosen, UnmetFeatures, choose};
pub use exit::Exit;
pub use feature::{Feature, Features};
pub use intercept::{Intercept, Intercepts};
pub use nested_fault::NestedFault;
pub use reason::Reason;
pub use vmcb::Vmcb;
