//! Writes eight bytes, four of them behind its memory. To be stopped, with none of them written.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    // SAFETY: the last bytes of memory belong to tables that are no longer in use.
    unsafe { asm!("mov [{}], rax", in(reg) info.memory - 4, in("rax") -1_i64) };
    SURVIVED
}
