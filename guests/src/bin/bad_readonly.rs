//! Writes to data that it was given to read only, through tables of its own that let it. To be stopped.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    // SAFETY: the data is mapped, and nothing else is there that could be harmed.
    unsafe {
        let byte = info.data as *mut u8;
        println!("the data begins with {:#x}", byte.read_volatile());
        byte.write_volatile(1);
    }
    SURVIVED
}
