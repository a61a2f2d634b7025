//! The CPU of the other maker: what [`vmx`](crate::vmx) is for Intel's, for AMD's SVM.
//!
//! - What the CPU can do: [`capabilities`], [`feature`]; what we want of it: [`choice`], [`intercept`].

pub mod capabilities;
pub mod choice;
pub mod feature;
pub mod intercept;
mod neutral;

pub use capabilities::{Capabilities, SvmSwitch, SvmUnavailable};
pub use choice::{Chosen, UnmetFeatures, choose};
pub use feature::{Feature, Features};
pub use intercept::{Intercept, Intercepts};
