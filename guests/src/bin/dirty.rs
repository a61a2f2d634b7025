//! Writes pages in phases and asks in between which it has written: what is told must be exactly that.
#![no_std]
#![no_main]

use core::arch::x86_64::_rdtsc;
use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::abi::{Error, HARVEST_MAX};
use offshoot_guest::{StartInfo, call, count, figure, println, trap};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
/// The pages that are looked at, from the start of the heap on.
const PAGES: u64 = 4000;
/// More of them behind those.
const RUNS: u64 = 200;
/// A prime: its multiples visit every page once, in an order without neighbours.
const STEP: u64 = 2_654_435_761;
/// More than the log of a CPU has room for.
const LOGS: u64 = 512 + 40;

/// One bit per page.
type Bitmap = [u8; ROOM];
const ROOM: usize = (PAGES + RUNS).div_ceil(8) as usize;

/// Asks for so many pages, in as many calls as that takes.
fn harvest(first: u64, pages: u64, told: &mut [u8]) -> Result<u64, Error> {
    let mut found = 0;
    for (number, part) in told[..pages.div_ceil(8) as usize]
        .chunks_mut(HARVEST_MAX as usize / 8)
        .enumerate()
    {
        let done = number as u64 * HARVEST_MAX;
        found += call::harvest_dirty(first + done * PAGE, HARVEST_MAX.min(pages - done), part)?;
    }
    Ok(found)
}

struct Heap {
    base: u64,
    /// What was written since the last time that the hypervisor was asked.
    written: Bitmap,
    told: Bitmap,
}

impl Heap {
    fn word(&self, page: u64) -> *mut u64 {
        (self.base + page * PAGE + page % 512 * 8) as *mut u64
    }

    fn write(&mut self, page: u64) {
        // SAFETY: the heap is nobody else's.
        unsafe { write_volatile(self.word(page), page) };
        self.written[page as usize / 8] |= 1 << (page % 8);
    }

    fn read(&self, page: u64) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(self.word(page)) }
    }

    /// Asks for `count` pages from `first` on, and compares.
    fn ask(&mut self, checks: &mut Checks, what: &str, first: u64, count: u64) -> u64 {
        let gpa = self.base + first * PAGE;
        self.told.fill(0xa5);
        let found = harvest(gpa, count, &mut self.told);
        let mut expected = 0;
        for page in 0..count {
            let bit = |bitmap: &Bitmap, page: u64| bitmap[page as usize / 8] >> (page % 8) & 1;
            let (written, told) = (bit(&self.written, first + page), bit(&self.told, page));
            expected += u64::from(written);
            checks.that(
                written == told,
                format_args!(
                    "{what}: page {} written {written} told {told}",
                    first + page
                ),
            );
            self.written[(first + page) as usize / 8] &= !(1 << ((first + page) % 8));
        }
        checks.that(
            found == Ok(expected),
            format_args!("{what}: {found:?} instead of {expected}"),
        );
        expected
    }
}

/// Writes pages that are there and clean, and files the most that one write cost more than the least: where the CPU logs,
/// that is the exit at which the log is full. Then files what asking cost.
fn measure(checks: &mut Checks, heap: &mut Heap) {
    (0..LOGS).for_each(|page| heap.write(page));
    heap.ask(checks, "before the measurement", 0, PAGES);
    let (mut least, mut most) = (u64::MAX, 0);
    for page in 0..LOGS {
        // SAFETY: every CPU with 64-bit mode has RDTSC.
        let start = unsafe { _rdtsc() };
        // SAFETY: the heap is nobody else's.
        unsafe { write_volatile(heap.word(page), 1) };
        // SAFETY: as above.
        let ticks = unsafe { _rdtsc() } - start;
        (least, most) = (least.min(ticks), most.max(ticks));
        heap.write(page);
    }
    // SAFETY: as above.
    let start = unsafe { _rdtsc() };
    let found = harvest(heap.base, PAGES, &mut heap.told);
    // SAFETY: as above.
    let ticks = unsafe { _rdtsc() } - start;
    checks.that(found == Ok(LOGS), format_args!("{found:?} measured"));
    heap.written.fill(0);
    // A report without the figures is no failure.
    if most - least > 1000 {
        let _ = figure("dirty.pml.full", most - least);
    }
    let _ = figure("dirty.harvest.per_page", ticks / LOGS);
    println!(
        "a write takes up to {} ticks more, asking {ticks}",
        most - least
    );
}

/// Whether the first write to untouched memory is given a large page, all of which is then told.
fn has_large_pages(info: &StartInfo) -> bool {
    let page = info.heap.next_multiple_of(2 << 20);
    // SAFETY: the heap, which is longer than that, is nobody else's.
    unsafe { write_volatile(page as *mut u64, 0) };
    call::harvest_dirty(page, 8, &mut [0]) != Ok(1)
}

fn refusals(checks: &mut Checks, info: &StartInfo, heap: &mut Heap) {
    let end = info.memory & !(PAGE - 1);
    for (first, pages) in [
        (heap.base + 8, 1),
        (end - PAGE, 2),
        (end, 1),
        (1 << 50, 1),
        (u64::MAX - PAGE + 1, 2),
    ] {
        let found = call::harvest_dirty(first, pages, &mut heap.told);
        checks.that(
            found == Err(Error::Invalid),
            format_args!("{pages} pages at {first:#x}: {found:?}"),
        );
    }
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    if info.heap_len < (PAGES + RUNS) * PAGE {
        println!("a heap of {} KiB is too small", info.heap_len >> 10);
        return 2;
    }
    let mut heap = Heap {
        base: info.heap,
        written: [0; ROOM],
        told: [0; ROOM],
    };
    let mut told = 0;
    // Before anybody has asked: one page after the other, but not all that a guest that does so is given.
    (PAGES..PAGES + RUNS)
        .filter(|page| page % 8 < 3)
        .for_each(|page| heap.write(page));
    if has_large_pages(info) {
        println!(
            "I am told more than I wrote: a large page is dirty as a whole; run me with pages=4k"
        );
        return 2;
    }
    told += heap.ask(&mut checks, "runs", PAGES, RUNS);
    // Some pages are only read.
    (0..1500).for_each(|n| heap.write(n * STEP % PAGES));
    (1500..2500).for_each(|n| checks.that(heap.read(n * STEP % PAGES) == 0, format_args!("{n}")));
    told += heap.ask(&mut checks, "first", 0, PAGES);
    told += heap.ask(&mut checks, "nothing", 0, PAGES);
    // Some of them again, others read, others for the first time, many twice.
    (0..1200).for_each(|n| heap.write((1400 + n) * STEP % PAGES));
    (0..700).for_each(|n| checks.that(heap.read(n * STEP % PAGES) != 1, format_args!("{n}")));
    (0..1200).for_each(|n| heap.write((1400 + n) * STEP % PAGES));
    told += heap.ask(&mut checks, "second", 0, PAGES);
    // All that is there, downwards, asked for in parts of which the middle one comes last.
    (0..PAGES).rev().for_each(|page| heap.write(page));
    told += heap.ask(&mut checks, "upper part", 3001, PAGES - 3001);
    told += heap.ask(&mut checks, "lower part", 0, 1000);
    heap.write(3);
    told += heap.ask(&mut checks, "middle part", 1000, 2001);
    told += heap.ask(&mut checks, "the rest", 0, PAGES);
    refusals(&mut checks, info, &mut heap);
    // What the hypervisor writes for the guest counts too.
    let buffer = heap.base + 7 * PAGE;
    // SAFETY: a page of the heap.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer as *mut u8, 8) };
    let found = call::harvest_dirty(heap.base, 0, buffer);
    checks.that(found == Ok(0), format_args!("no page: {found:?}"));
    let found = call::harvest_dirty(heap.base, 64, buffer);
    checks.that(
        found == Ok(1) && buffer == [0x80, 0, 0, 0, 0, 0, 0, 0],
        format_args!("the bitmap itself: {found:?} {buffer:x?}"),
    );
    heap.written[0] = 0x80;
    told += heap.ask(&mut checks, "the bitmap", 0, PAGES);
    measure(&mut checks, &mut heap);
    let _ = count("dirty.told", told);
    checks.finish()
}
