//! Instructions that the hypervisor carries out for a guest, seen at their edges: what a fault pushes, where a repetition
//! is interrupted. All of it must be as the processor does it without an exit. Wants the option `testdev`.
#![no_std]
#![no_main]

mod breakpoints;
mod compat;
mod fpu;
mod resume;
mod segments;

use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::space;

offshoot_guest::entry!(main);

/// A part of the check.
type Part = fn(&mut Checks, &StartInfo);

const PARTS: [(&str, Part); 4] = [
    ("the resume flag", resume::check),
    ("x87 selectors", fpu::check),
    ("segments of port strings", segments::check),
    ("breakpoints", breakpoints::check),
];

fn main(info: &StartInfo) -> u64 {
    if info.test_device == 0 {
        println!("there is no test device: give the option testdev");
        return 2;
    }
    trap::install();
    space::enter(info);
    let mut checks = Checks::default();
    for (name, part) in PARTS {
        let failed = checks.failed();
        part(&mut checks, info);
        println!("{name}: {} wrong", checks.failed() - failed);
    }
    checks.finish()
}
