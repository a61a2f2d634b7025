//! Jumps behind its memory. To be stopped.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    // SAFETY: there is nothing to run, and nothing comes back.
    unsafe { asm!("call {}", in(reg) info.memory + 0x1230, clobber_abi("C")) };
    SURVIVED
}
