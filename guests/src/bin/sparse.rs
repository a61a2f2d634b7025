//! Touches pages spread over the whole heap, most of which no host frame could back at once, and checks that each
//! holds what was written to it and that all others read as zero.
#![no_std]
#![no_main]

use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::{StartInfo, count, println};

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const WORDS: usize = 512;
/// How many pages are written: 32 MiB, a fraction of the heap and half of a 64 MiB host pool.
const WRITTEN: u64 = 8192;
/// How many of the others are read.
const UNTOUCHED: u64 = 4096;
/// A prime above the number of pages: its multiples visit every page once, in an order without neighbours.
const STEP: u64 = 2_654_435_761;
/// The words of a page that are written: its ends and one inside.
const PLACES: [usize; 3] = [0, 301, WORDS - 1];

struct Heap {
    base: u64,
    pages: u64,
}

impl Heap {
    /// The `n`-th page of the walk through the heap.
    fn page(&self, n: u64) -> *mut u64 {
        (self.base + n * STEP % self.pages * PAGE) as *mut u64
    }
}

/// What belongs in word `place` of the page at `address`: another value for every word of memory.
fn pattern(address: u64, place: usize) -> u64 {
    (address + place as u64 * 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn main(info: &StartInfo) -> u64 {
    let heap = Heap {
        base: info.heap,
        pages: info.heap_len / PAGE,
    };
    if heap.pages < 2 || heap.pages >= STEP {
        println!("a heap of {} pages is no use to me", heap.pages);
        return 2;
    }
    let written = WRITTEN.min(heap.pages / 2);
    let untouched = UNTOUCHED.min(heap.pages - written);

    for n in 0..written {
        let page = heap.page(n);
        for place in PLACES {
            // SAFETY: the word lies in the heap, which is nobody else's.
            unsafe { write_volatile(page.add(place), pattern(page as u64, place)) };
        }
    }

    let mut wrong = 0_u64;
    let mut check = |page: *mut u64, place: usize, expected: u64| {
        // SAFETY: as above.
        let found = unsafe { read_volatile(page.add(place)) };
        if found != expected {
            wrong += 1;
            if wrong <= 10 {
                println!("{page:p} word {place}: {found:#x} instead of {expected:#x}");
            }
        }
    };
    for n in 0..written {
        let page = heap.page(n);
        for place in PLACES {
            check(page, place, pattern(page as u64, place));
        }
        for place in [1, 300, 302, WORDS - 2] {
            check(page, place, 0);
        }
    }
    for n in written..written + untouched {
        for place in PLACES {
            check(heap.page(n), place, 0);
        }
    }

    println!(
        "wrote {written} and only read {untouched} of {} pages: {wrong} words wrong",
        heap.pages
    );
    // A report without the figures is no failure of the memory.
    let _ = count("sparse.pages_written", written);
    let _ = count("sparse.words_wrong", wrong);
    u64::from(wrong != 0)
}
