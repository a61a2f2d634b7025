//! A guest that checks its own state: all registers over thousands of exits of all kinds, page permissions, faults,
//! single steps, ports and CPUID. Runs on any CPU with 64-bit mode; what CPUID does not offer is left out.
#![no_std]
#![no_main]

mod identity;
mod pages;
mod registers;
mod steps;
mod storm;
mod system;
mod vectors;

use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use storm::Heap;

offshoot_guest::entry!(main);

/// A part of the check.
type Part = fn(&mut Checks, &StartInfo, &mut Heap);

const PARTS: [(&str, Part); 6] = [
    ("CPUID, MSRs and ports", identity::check),
    ("page permissions", pages::check),
    ("general registers", registers::check),
    ("FPU and vector registers", vectors::check),
    ("system registers", system::check),
    ("single steps", steps::check),
];

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let mut heap = Heap::new(info);
    for (name, part) in PARTS {
        let failed = checks.failed();
        part(&mut checks, info, &mut heap);
        let verdict = if checks.failed() == failed {
            "ok"
        } else {
            "WRONG"
        };
        println!("{name}: {verdict}");
    }
    checks.finish()
}
