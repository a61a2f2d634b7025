//! Writes one word to every page of the heap, in order, up to 32 MiB, and checks them all: a guest that uses what it has.
#![no_std]
#![no_main]

use core::arch::x86_64::_rdtsc;
use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::{StartInfo, count, figure, println};

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
/// How many pages are written at most.
const MOST: u64 = 8192;

/// What belongs in the page at `address`.
fn pattern(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn ticks() -> u64 {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    unsafe { _rdtsc() }
}

fn main(info: &StartInfo) -> u64 {
    let pages = (info.heap_len / PAGE).min(MOST);
    let addresses = || (0..pages).map(|page| info.heap + page * PAGE);
    let start = ticks();
    for address in addresses() {
        // SAFETY: the word lies in the heap, which is nobody else's.
        unsafe { write_volatile(address as *mut u64, pattern(address)) };
    }
    let taken = ticks() - start;
    let wrong = addresses().filter(|address| {
        // SAFETY: as above; the second word was not written.
        let found = unsafe {
            let at = *address as *const u64;
            [read_volatile(at), read_volatile(at.add(1))]
        };
        found != [pattern(*address), 0]
    });
    let wrong = wrong.count() as u64;
    println!("{pages} pages written, {wrong} wrong");
    let filed = count("dense.pages_written", pages).is_ok()
        && figure("dense.ticks_per_page", taken / pages.max(1)).is_ok();
    u64::from(wrong != 0 || !filed)
}
