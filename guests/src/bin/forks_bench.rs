//! Writes as many pages as its message says, and ends: what forks and resets cost is measured around it.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, call};

offshoot_guest::entry!(main);

/// The most pages it is told to write.
const MOST: u64 = 256;
const PAGE: u64 = 4096;

#[repr(align(16))]
struct Message([u8; 16]);

fn main(info: &StartInfo) -> u64 {
    let write = |pages: u64, value: u64| {
        for page in 0..pages {
            // SAFETY: the heap is ours.
            unsafe { ((info.heap + page * PAGE) as *mut u64).write_volatile(value) };
        }
    };
    write(MOST, 1);
    let mut message = Message([0; 16]);
    let Ok(told) = call::freeze(&mut message.0) else {
        return 2;
    };
    let Some((number, _)) = told.split_first_chunk() else {
        return 3;
    };
    write(u64::from_le_bytes(*number).min(MOST), 2);
    0
}
