//! Freezes, and so do its forks, and theirs, for ever.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, call};

offshoot_guest::entry!(main);

#[repr(align(16))]
struct Message([u8; 16]);

fn main(_: &StartInfo) -> u64 {
    let mut buffer = Message([0; 16]);
    loop {
        let _ = call::freeze(&mut buffer.0);
    }
}
