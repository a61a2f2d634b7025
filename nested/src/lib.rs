//! A user space for KVM that boots the Offshoot image, and the cases that it is told to run.
//!
//! It is the first program of a Linux that is booted in Bochs, which emulates VMX on any machine: so KVM, which checks all that
//! a hypervisor within it does, is there on any machine, too.

pub mod cases;
pub mod console;
pub mod linux;
pub mod machine;
pub mod pvh;
