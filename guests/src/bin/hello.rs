//! The smallest guest: says hello.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, println};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    println!(
        "Hello from a guest with {} KiB of memory",
        info.memory / 1024
    );
    0
}
