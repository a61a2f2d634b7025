//! IRETs whose stack lies in pages that nothing has touched: each meets an EPT violation after it has unblocked NMIs, and
//! then a frame of zeroes, which is no good.
#![no_std]
#![no_main]

use offshoot_guest::trap::GP;
use offshoot_guest::{StartInfo, probe, trap};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const ROUNDS: u64 = 8;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    for round in 0..ROUNDS {
        let before = trap::count();
        // The frame of five words begins a page, or lies across two.
        let stack = info.heap + (4 * round + 2) * PAGE - if round % 2 == 0 { 0 } else { 16 };
        // SAFETY: the exception is caught, and the stack pointer is then what it was.
        let trap = unsafe { probe!("mov rsp, rcx", "iretq"; in("rcx") stack) };
        let what = format_args!("IRET with the stack at {stack:#x}");
        checks.trapped(what, trap, GP, 0);
        checks.equal(what, trap.map_or(0, |trap| trap.rsp), stack);
        checks.equal(what, trap::count() - before, 1);
    }
    checks.finish()
}
