//! Runs for ever with interrupts off. To be stopped when its time is over.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::StartInfo;

offshoot_guest::entry!(main);

fn main(_: &StartInfo) -> u64 {
    // SAFETY: changes nothing.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) }
}
