//! Code that changes: pages are executed, written and executed again, through two linear addresses of each, within a
//! page and across the border of two, whatever was first done to a page. What runs must be what was written last.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, count, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::pattern::{self, REWRITING, REWRITTEN};
use offshoot_guests::random::Random;
use offshoot_guests::{cpu, space};

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
/// Pairs of fresh pages.
const PAIRS: u64 = 512;
/// Changes to each pair.
const CHANGES: u64 = 8;
const RET: u8 = 0xc3;

/// What the zeroes of an untouched page add to when they run: `add [rax], al`.
static mut SUM: u8 = 0;

/// One of the two linear addresses of what is at `address`.
fn either(random: &mut Random, address: u64) -> u64 {
    match random.one_in(2) {
        true => space::user(address),
        false => address,
    }
}

fn write(address: u64, bytes: &[u8]) {
    for (at, &byte) in (address..).zip(bytes) {
        // SAFETY: only called for the fresh pages and the data, which nobody else uses.
        unsafe { (at as *mut u8).write_volatile(byte) };
    }
    // It may run through another linear address.
    cpu::serialize();
}

/// Calls the function at `address`, which changes no register but RAX, and returns that.
fn call(address: u64) -> u64 {
    let result;
    // SAFETY: only called for functions that were written there.
    unsafe { asm!("call {}", in(reg) address, out("rax") result) };
    result
}

/// Runs `count` zero words up to the end of the untouched page at `page`, behind which a RET stands.
fn run_zeroes(checks: &mut Checks, page: u64, address: u64, count: u64) {
    let sum = &raw mut SUM;
    // SAFETY: each instruction adds to `SUM`, which nobody else uses.
    let found = unsafe {
        sum.write_volatile(0);
        asm!("call {}", in(reg) address + PAGE - 2 * count, in("rax") sum);
        sum.read_volatile()
    };
    let expected = (sum as u64).wrapping_mul(count) as u8;
    let what = format_args!("the sum of {count} zero words at {page:#x}");
    checks.equal(what, found.into(), expected.into());
}

/// Touches the first of two pages for the first time, and puts a RET behind it.
fn touch(checks: &mut Checks, random: &mut Random, page: u64) {
    let address = either(random, page);
    match random.below(4) {
        0 => {}
        // SAFETY: only reads.
        1 => unsafe {
            let word = (address as *const u64).read_volatile();
            checks.equal(format_args!("untouched {page:#x}"), word, 0);
        },
        2 => write(address + random.below(PAGE), &[0]),
        _ => {
            write(either(random, page + PAGE), &[RET]);
            let count = 1 + random.below(PAGE / 2);
            run_zeroes(checks, page, address, count);
        }
    }
}

/// Writes a function into the two pages at `page`, runs it, changes it and runs it again.
fn change(checks: &mut Checks, random: &mut Random, page: u64) {
    let number = random.number();
    match random.below(3) {
        0 => {
            let at = page + random.below(2 * PAGE - 6);
            let [a, b, c, d, ..] = number.to_le_bytes();
            // mov eax, number
            write(either(random, at), &[0xb8, a, b, c, d, RET]);
            let found = call(either(random, at));
            checks.equal(format_args!("at {at:#x}"), found, number as u32 as u64);
        }
        1 => {
            // mov rax, number: at least its first byte in one page, at least its last in the other.
            let at = page + PAGE - 1 - random.below(9);
            write(either(random, at), &[0x48, 0xb8]);
            write(either(random, at + 2), &number.to_le_bytes());
            write(either(random, at + 10), &[RET]);
            let found = call(either(random, at));
            checks.equal(format_args!("across {at:#x}"), found, number);
            let [.., last] = number.to_le_bytes();
            write(either(random, at + 9), &[!last]);
            let found = call(either(random, at));
            let expected = number ^ 0xff << 56;
            checks.equal(format_args!("half of {at:#x}"), found, expected);
        }
        _ => {
            let at = page + random.below(2 * PAGE - REWRITING as u64);
            write(either(random, at), &pattern::rewriting(number as u32));
            let found = call(either(random, at));
            checks.equal(
                format_args!("itself at {at:#x}"),
                found,
                number as u32 as u64,
            );
        }
    }
}

/// Runs the function with which a page of data begins, which writes to that page, then changes and runs it again.
fn run_data(checks: &mut Checks, random: &mut Random, data: u64, page: u64) {
    let at = data + page * PAGE;
    let found = call(either(random, at));
    let expected = pattern::returned(page).into();
    checks.equal(format_args!("data page {page}"), found, expected);
    let number = random.number() as u32;
    write(either(random, at + REWRITTEN as u64), &number.to_le_bytes());
    let found = call(either(random, at));
    let what = format_args!("changed data page {page}");
    checks.equal(what, found, number.into());
}

fn main(info: &StartInfo) -> u64 {
    if info.heap_len < 2 * PAIRS * PAGE {
        println!("a heap of {} KiB is too small", info.heap_len / 1024);
        return 2;
    }
    trap::install();
    space::enter(info);
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let mut checks = Checks::default();
    // As far apart as the heap allows, so that a fill that takes neighbours along does not take them all.
    let stride = info.heap_len / PAGE / PAIRS * PAGE;
    for pair in 0..PAIRS {
        let page = info.heap + pair * stride;
        touch(&mut checks, &mut random, page);
        for _ in 0..CHANGES {
            change(&mut checks, &mut random, page);
        }
    }
    let pages = info.data_len / PAGE;
    for page in 0..pages {
        run_data(&mut checks, &mut random, info.data, page);
    }
    if checks.failed() != 0 {
        println!("SEED={seed}");
    }
    // A report without the figures is no failure of the memory.
    let _ = count("smc.changes", PAIRS * CHANGES);
    let _ = count("smc.data_pages", pages);
    checks.finish()
}
