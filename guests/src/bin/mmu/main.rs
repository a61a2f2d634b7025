//! A guest that puts the library's walker before the CPU: it builds tables in its own memory, loads them, and checks
//! that every access through them does what the walker's [`query`](offshoot::paging::query) says it may, with the exact
//! page fault where it says otherwise. First with 4-level tables, then in 32-bit mode with two-level ones, where guests
//! may change to it. There it is also tried what the hypervisor does for such code, which wants the option `testdev`.
#![no_std]
#![no_main]

mod access;
mod buffer;
mod crossing;
mod legacy;
mod live;
mod permissions;
mod served;
mod spaces;
mod tables;

use access::Spot;
use core::arch::asm;
use offshoot::addr::PageSize;
use offshoot::paging::{GuestAmd64, TableReadOps};
use offshoot_guest::abi::{CPUID_MAY_LEAVE_PAGING, CPUID_VERSION};
use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;
use tables::{Frames, Tables};

offshoot_guest::entry!(main);

const CR4_PGE: u64 = 1 << 7;

/// What every part works with.
pub struct Bench<'a> {
    checks: Checks,
    info: &'a StartInfo,
    frames: &'a Frames,
    /// The tables in use.
    tables: Tables<'a, GuestAmd64>,
    /// Two pages that mappings lead to, each within a large page of free memory.
    spots: [Spot; 2],
}

/// A part of the check.
type Part = fn(&mut Bench);

const PARTS: [(&str, Part); 6] = [
    ("permissions of every leaf size", permissions::leaves),
    ("what upper levels deny", permissions::upper_levels),
    ("bad entries and the ends of the space", permissions::edges),
    ("changes to live tables", live::changes),
    ("tables from a buffer", buffer::check),
    ("rebuilt spaces", spaces::check_rebuilt),
];
const IN_32_BIT_MODE: [(&str, Part); 2] = [
    ("32-bit paging", legacy::check),
    ("served behind 32-bit and PAE paging", served::check),
];

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let frames = Frames::new(info);
    let mut bench = Bench {
        checks: Checks::default(),
        info,
        frames: &frames,
        tables: tables::space(info, &frames),
        spots: [Spot::new(&frames), Spot::new(&frames)],
    };
    load_cr3(bench.tables.root().as_u64());
    if cpu::cpuid(1, 0).edx & 1 << 13 != 0 {
        set_cr4(cr4() | CR4_PGE);
    }
    let legacy = if may_leave_paging() {
        &IN_32_BIT_MODE[..]
    } else {
        &[]
    };
    if legacy.is_empty() {
        println!("32-bit paging: skipped, as guests may not leave long mode on this CPU");
    }
    for (name, part) in PARTS.iter().chain(legacy) {
        let failed = bench.checks.failed();
        part(&mut bench);
        let verdict = if bench.checks.failed() == failed {
            "ok"
        } else {
            "WRONG"
        };
        println!("{name}: {verdict}");
    }
    bench.checks.finish()
}

/// Whether the CPU has leaves of this size in 4-level tables.
fn has_leaf(size: PageSize) -> bool {
    size != PageSize::Size1G || cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
}

/// Whether the guest may change to 32-bit mode.
fn may_leave_paging() -> bool {
    cpu::cpuid(CPUID_VERSION, 0).ebx & CPUID_MAY_LEAVE_PAGING != 0
}

/// Makes the tables at `root` those in use, and drops what is cached of others, global pages excepted.
fn load_cr3(root: u64) {
    // SAFETY: every root here maps the image, the stack and the heap to the same addresses, with enough rights.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

/// Drops what is cached for one address.
fn invlpg(address: u64) {
    // SAFETY: translations are found in the tables again.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nostack)) };
    value
}

fn set_cr4(value: u64) {
    // SAFETY: only bits of paging are changed here, to what the CPU offers.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}
