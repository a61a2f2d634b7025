//! Each run changes every register that a guest can change, and finds all of them as they were when it was frozen.
#![no_std]
#![no_main]

mod frozen;
mod system;

use frozen::Around;
use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;
use system::System;

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let vectors = system::enable_vectors();
    let around = Around::at(info.heap);
    system::set_before_the_freeze(vectors);
    let before = System::read();
    let told = frozen::freeze(around, vectors);
    // Now in each run of each fork.
    let tsc = cpu::rdtsc();
    around.check(&mut checks, told);
    let after = System::read();
    before.check(&mut checks, &after);
    // Time goes on, from where it was.
    let passed = tsc.wrapping_sub(before.tsc);
    checks.that(
        (1..1 << 24).contains(&passed),
        format_args!("TSC {tsc:#x}, before {:#x}", before.tsc),
    );
    if checks.failed() != 0 {
        println!("fork {}: {} wrong", call::fork_number().1, checks.failed());
        return checks.failed();
    }
    system::change_everything(vectors)
}
