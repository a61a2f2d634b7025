//! A triple fault: an exception without an interrupt table. To be stopped.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, trap};
use offshoot_guests::SURVIVED;

offshoot_guest::entry!(main);

fn main(_: &StartInfo) -> u64 {
    // SAFETY: this is the end of the guest, which is what it is for.
    unsafe {
        trap::load_idt(0, 0);
        asm!("ud2");
    }
    SURVIVED
}
