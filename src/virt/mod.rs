//! What a CPU's virtualization offers, the same for both makers.
//!
//! [`vmx`](crate::vmx) says how Intel's CPUs do it.

mod regs;

pub use regs::{Gpr, GuestRegs};
