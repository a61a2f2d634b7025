//! Writes to every page of its heap. To be stopped where the host has fewer frames than that.
#![no_std]
#![no_main]

use offshoot_guest::StartInfo;
use offshoot_guests::SURVIVED;

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    for page in (info.heap..info.heap + info.heap_len).step_by(4096) {
        // SAFETY: the heap is ours.
        unsafe { (page as *mut u64).write_volatile(page) };
    }
    SURVIVED
}
