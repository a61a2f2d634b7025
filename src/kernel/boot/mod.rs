//! The machine under the hypervisor: from the boot loader to a running kernel, and the end.

pub mod apic;
pub mod clock;
pub mod console;
pub mod firmware;
pub mod info;
pub mod layout;
pub mod memory;
pub mod mtrr;
pub mod power;
pub mod segments;
pub mod traps;

use core::arch::global_asm;

global_asm!(
    include_str!("entry.S"),
    stack = sym segments::STACK,
    stack_size = const segments::STACK_BYTES,
    start = sym crate::start,
);
