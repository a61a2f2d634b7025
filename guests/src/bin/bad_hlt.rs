//! Waits for an interrupt with interrupts off. To be stopped: nothing could wake it.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guests::SURVIVED;

offshoot_guest::entry!(main);

fn main(_: &StartInfo) -> u64 {
    // SAFETY: changes nothing.
    unsafe { asm!("cli", "hlt") };
    SURVIVED
}
