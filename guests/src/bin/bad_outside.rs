//! Writes to the first byte behind its memory. To be stopped.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    // SAFETY: nothing is there that could be harmed.
    unsafe { (info.memory as *mut u8).write_volatile(1) };
    SURVIVED
}
