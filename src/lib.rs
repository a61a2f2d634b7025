//! Offshoot: a type-1 hypervisor whose guests fork.
//!
//! The library is the hypervisor without the machine under it: [`frames`], [`paging`], [`ept`], [`vmx`], [`vm`]
//! and [`host`], each of which imports only what stands before it in this list. What touches hardware is a thin edge; the
//! rest is tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod counting;
pub mod ept;
pub mod frames;
pub mod host;
pub mod paging;
#[cfg(test)]
mod testing;
pub mod vm;
pub mod vmx;
