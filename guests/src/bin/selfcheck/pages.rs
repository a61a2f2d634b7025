//! Page permissions: every forbidden access raises the #PF that it should, and changes nothing.

use crate::storm::Heap;
use offshoot_guest::trap::{GP, PF, PF_FETCH, PF_PRESENT, PF_WRITE, SS, Trap};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;

static RODATA: [u64; 4] = [0x1111, 0x2222, 0x3333, 0x4444];
/// The machine code of RET, where it must not run.
static mut DATA: [u8; 16] = [0xc3; 16];

fn read(address: u64) -> Option<Trap> {
    // SAFETY: only reads, and an exception is caught.
    unsafe { probe!("mov {address}, [{address}]"; address = inout(reg) address => _) }
}

fn write(address: u64) -> Option<Trap> {
    // SAFETY: an exception is expected. The value is not that of any byte that is tried.
    unsafe { probe!("mov byte ptr [{address}], 0x5a"; address = in(reg) address) }
}

fn execute(address: u64) -> Option<Trap> {
    // SAFETY: an exception is expected; else there is a RET.
    unsafe { probe!("call {address}"; address = in(reg) address) }
}

/// A #PF with this error code, and CR2 at the very byte.
fn faults(checks: &mut Checks, what: &str, address: u64, trap: Option<Trap>, error: u64) {
    let what = format_args!("{what} {address:#x}");
    checks.trapped(what, trap, PF, error);
    checks.equal(what, trap.map_or(!address, |trap| trap.cr2), address);
}

fn byte(address: u64) -> u8 {
    // SAFETY: only called for addresses in the image.
    unsafe { (address as *const u8).read_volatile() }
}

pub fn check(checks: &mut Checks, info: &StartInfo, heap: &mut Heap) {
    let text = check as *const () as u64;
    let rodata = &raw const RODATA as u64 + 9;
    let start_info = &raw const *info as u64;
    for (what, address) in [
        ("text", text),
        ("rodata", rodata),
        ("start info", start_info),
    ] {
        let before = byte(address);
        faults(checks, what, address, write(address), PF_PRESENT | PF_WRITE);
        checks.equal(
            format_args!("{what} after a write"),
            byte(address).into(),
            before.into(),
        );
    }

    let data = &raw const DATA as u64;
    let stack = info.stack + info.stack_len - 64;
    let fresh = heap.page() + 0x123;
    for (what, address) in [
        ("run data", data),
        ("run rodata", rodata),
        ("run the stack", stack),
        ("run the heap", fresh),
        ("run start info", start_info),
    ] {
        let trap = execute(address);
        faults(checks, what, address, trap, PF_PRESENT | PF_FETCH);
        let rip = trap.map_or(0, |trap| trap.rip);
        checks.equal(format_args!("{what}: RIP"), rip, address);
    }

    let heap_end = info.heap + info.heap_len;
    for (what, address) in [
        ("null", 0),
        ("null page", 0xfff),
        ("guard below the stack", info.stack - 1),
        ("guard below the stack", info.stack - 4096),
        ("guard behind the heap", heap_end),
        ("guard below the heap", info.heap - 1),
        ("behind memory", info.memory + 0x1000),
    ] {
        faults(checks, what, address, write(address), PF_WRITE);
        faults(checks, what, address, execute(address), PF_FETCH);
        // Eight bytes at the end of a page would reach into the next one.
        let word = address & !7;
        faults(checks, what, word, read(word), 0);
    }
    straddle(checks, heap_end);
    // Canonical addresses only.
    let stray = 0x8000_0000_0000_0000;
    checks.trapped(format_args!("non-canonical read"), read(stray), GP, 0);
    checks.trapped(format_args!("non-canonical write"), write(stray), GP, 0);
    // SAFETY: an exception is expected.
    let trap = unsafe {
        probe!("mov {saved}, rsp", "mov rsp, {stray}", "push {saved}", "mov rsp, {saved}";
            stray = in(reg) stray, saved = out(reg) _)
    };
    checks.trapped(format_args!("non-canonical push"), trap, SS, 0);
}

/// A write across the end of the heap faults on the second page and leaves the first as it was.
fn straddle(checks: &mut Checks, heap_end: u64) {
    let address = heap_end - 4;
    // SAFETY: an exception is expected; the bytes before the end are ours.
    let trap = unsafe {
        probe!("mov [{address}], {ones}"; address = in(reg) address, ones = in(reg) u64::MAX)
    };
    checks.trapped(
        format_args!("write across the heap's end"),
        trap,
        PF,
        PF_WRITE,
    );
    checks.equal(
        format_args!("CR2 of it"),
        trap.map_or(0, |trap| trap.cr2),
        heap_end,
    );
    // SAFETY: within the heap.
    let left = unsafe { (address as *const u32).read_volatile() };
    checks.equal(format_args!("the bytes before the end"), left.into(), 0);
}
