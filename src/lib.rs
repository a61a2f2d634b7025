//! Offshoot: a type-1 hypervisor whose guests fork.
//!
//! The library is the hypervisor without the machine under it: [`frames`], [`paging`], [`ept`], [`virt`],
//! [`vmx`], [`svm`], [`vm`] and [`host`], each of which imports only what stands before it in this list. What touches hardware is a thin edge; the
//! rest is tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod addr;
mod bomb;
pub mod counting;
#[cfg(feature = "ept")]
pub mod ept;
#[cfg(feature = "paging")]
pub mod frames;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "paging")]
pub mod paging;
#[cfg(feature = "virt")]
pub mod register_bits;
#[cfg(feature = "svm")]
pub mod svm;
#[cfg(test)]
mod testing;
#[cfg(feature = "virt")]
pub mod virt;
#[cfg(feature = "vm")]
pub mod vm;
#[cfg(feature = "vmx")]
pub mod vmx;
