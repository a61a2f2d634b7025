//! Asks for as much work as one exit can be made to do, of each kind, and files how long the longest took.
#![no_std]
#![no_main]

use core::arch::asm;
use core::ptr::write_volatile;
use offshoot_guest::abi::{CHANGE_MAX, COM1, Call, HARVEST_MAX, MAY_EXECUTE, MAY_READ, MAY_WRITE};
use offshoot_guest::{StartInfo, call, figure, trap};
use offshoot_guests::cpu::rdtsc;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const ALL: u64 = MAY_READ | MAY_WRITE | MAY_EXECUTE;
/// So many elements of a string an exit moves at most.
const STRING: usize = 64;
/// No guest may file so many.
const FIGURES: u64 = 300;

static NEWLINES: [u8; 1024] = [b'\n'; 1024];
static CONTROLS: [u8; 1024] = [0x0b; 1024];
static mut BITMAP: [u8; HARVEST_MAX as usize / 8] = [0; HARVEST_MAX as usize / 8];

/// The longest that one of so many took.
fn longest(times: u64, mut work: impl FnMut(u64)) -> u64 {
    let mut most = 0;
    for number in 0..times {
        let begin = rdtsc();
        work(number);
        most = most.max(rdtsc() - begin);
    }
    most
}

fn tell(name: &str, ticks: u64) {
    let _ = figure(name, ticks);
}

fn print(text: &[u8]) {
    call::raw(
        Call::Print as u64,
        [text.as_ptr() as u64, text.len() as u64, 0],
    );
}

fn send(text: &[u8]) {
    // SAFETY: reads the text.
    unsafe {
        asm!(
            "rep outsb",
            inout("rcx") text.len() => _,
            inout("rsi") text.as_ptr() => _,
            in("dx") COM1,
            options(nostack),
        );
    }
}

fn harvest(first: u64, pages: u64) {
    let arguments = [&raw mut BITMAP as u64, pages, first];
    // SAFETY: nobody else uses the bitmap.
    unsafe { call::raw_unchecked(Call::HarvestDirty as u64, arguments) };
}

fn touch(first: u64, pages: u64) -> u64 {
    longest(pages, |page| {
        // SAFETY: the heap is nobody else's.
        unsafe { write_volatile((first + page * PAGE) as *mut u64, page) };
    })
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let heap = info.heap.next_multiple_of(2 << 20);
    let pages = (info.heap + info.heap_len - heap) / PAGE;
    tell("exit.write", touch(heap, pages));
    tell(
        "exit.harvest.first",
        longest(16, |part| {
            harvest(heap + part * HARVEST_MAX * PAGE, HARVEST_MAX)
        }),
    );
    touch(heap, pages);
    tell(
        "exit.harvest.one",
        longest(8, |page| harvest(heap + page * PAGE, 1)),
    );
    tell(
        "exit.harvest.all",
        longest(16, |part| {
            harvest(heap + part * HARVEST_MAX * PAGE, HARVEST_MAX)
        }),
    );
    // Each second page, until there are no more parts.
    let protect = |first, pages, may| {
        let _ = call::protect(first, pages, may);
    };
    let part = |number| protect(heap + 2 * number * PAGE, 1, MAY_READ);
    tell("exit.protect.parts", longest(100, part));
    tell(
        "exit.protect.all",
        longest(1, |_| protect(heap, CHANGE_MAX, MAY_READ)),
    );
    tell(
        "exit.protect.back",
        longest(1, |_| protect(heap, CHANGE_MAX, ALL)),
    );
    touch(heap, pages);
    // SAFETY: nobody relies on what is there.
    let discard = |_| unsafe {
        let _ = call::discard(heap, CHANGE_MAX);
    };
    tell("exit.discard", longest(1, discard));
    tell("exit.print.lines", longest(16, |_| print(&NEWLINES)));
    tell("exit.print.controls", longest(16, |_| print(&CONTROLS)));
    tell(
        "exit.print.string",
        longest(16, |_| send(&NEWLINES[..STRING])),
    );
    // What is filed again has its place.
    tell("exit.figure", 0);
    let many = longest(FIGURES, |number| {
        let mut name = *b"many.aaaa";
        for (place, letter) in name[5..].iter_mut().enumerate() {
            *letter += (number >> (4 * place) & 15) as u8;
        }
        let arguments = [name.as_ptr() as u64, name.len() as u64, number];
        call::raw(Call::Count as u64, arguments);
    });
    tell("exit.figure", many);
    0
}
