//! RFLAGS.RF: 1 in the flags that a fault pushes, and while a repetition is interrupted, so that no instruction meets its
//! own breakpoint twice.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offshoot_guest::trap::{self, BP, DB, GP, Gate, PF, Trap, UD};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

const DR7_RESET: u64 = 0x400;
const RF: u64 = 1 << 16;
const VECTORS: u8 = 32;
/// No device of a guest has this port.
const PORT: u64 = 0x80;
/// An address that is none.
const NOWHERE: u64 = 1 << 60;
/// An address that the tables do not map.
const UNMAPPED: u64 = 1 << 40;

pub fn check(checks: &mut Checks, info: &StartInfo) {
    faults(checks, info);
    traps(checks, info);
    repetitions(checks, info);
    breakpoints(checks, info);
}

fn rf(trap: Option<Trap>) -> Option<(u8, bool)> {
    trap.map(|trap| (trap.vector, trap.rflags & RF != 0))
}

fn faults(checks: &mut Checks, info: &StartInfo) {
    macro_rules! fault {
        ($vector:expr, $instruction:literal, $rax:expr, $rcx:expr, $rdx:expr, $rsi:expr, $rdi:expr) => {{
            // SAFETY: an exception is expected.
            let trap = unsafe {
                probe!($instruction;
                    inout("rax") $rax => _, inout("rcx") $rcx => _, inout("rdx") $rdx => _,
                    inout("rsi") $rsi => _, inout("rdi") $rdi => _)
            };
            checks.that(
                rf(trap) == Some(($vector, true)),
                format_args!("(vector, RF) of {}: {:?}", $instruction, rf(trap)),
            );
        }};
    }
    let device = info.test_device;
    let heap = info.heap;
    // The processor's own, to compare.
    fault!(GP, "mov rax, [rcx]", 0_u64, NOWHERE, 0_u64, heap, heap);
    fault!(PF, "mov rax, [rcx]", 0_u64, UNMAPPED, 0_u64, heap, heap);
    fault!(UD, "ud2", 0_u64, 0_u64, 0_u64, heap, heap);
    fault!(GP, "rdmsr", 0_u64, 0x1234_u64, 0_u64, heap, heap);
    fault!(GP, "wrmsr", 0_u64, 0x1234_u64, 0_u64, heap, heap);
    fault!(GP, "wrmsr", 0_u64, 0x175_u64, 1_u64 << 31, heap, heap);
    fault!(GP, "rdpmc", 0_u64, 0_u64, 0_u64, heap, heap);
    fault!(GP, "mov cr0, rax", 1_u64 << 31, 0_u64, 0_u64, heap, heap);
    fault!(GP, "mov cr4, rax", 1_u64 << 63, 0_u64, 0_u64, heap, heap);
    fault!(GP, "mov cr8, rax", 16_u64, 0_u64, 0_u64, heap, heap);
    if cpu::has_ecx1(27) {
        fault!(GP, "xsetbv", 0_u64, 0_u64, 0_u64, heap, heap);
    }
    fault!(UD, "vmxoff", 0_u64, 0_u64, 0_u64, heap, heap);
    fault!(UD, "vmread rax, rcx", 0_u64, 0_u64, 0_u64, heap, heap);
    fault!(UD, "getsec", 0_u64, 0_u64, 0_u64, heap, heap);
    fault!(PF, "insb", 0_u64, 0_u64, PORT, heap, UNMAPPED);
    fault!(PF, "outsb", 0_u64, 0_u64, PORT, UNMAPPED, heap);
    fault!(GP, "outsb", 0_u64, 0_u64, PORT, NOWHERE, heap);
    fault!(PF, "movsb", 0_u64, 0_u64, 0_u64, device, UNMAPPED);
    fault!(GP, "movsb", 0_u64, 0_u64, 0_u64, NOWHERE, device);
    fault!(PF, "rep movsb", 0_u64, 9_u64, 0_u64, device, UNMAPPED - 3);
}

/// Behind an instruction that is done, nothing is left of it.
fn traps(checks: &mut Checks, info: &StartInfo) {
    macro_rules! trap {
        ($vector:expr, $before:literal, $instruction:literal) => {{
            // SAFETY: the exception is caught.
            let trap = unsafe {
                probe!("pushfq", $before, "popfq", $instruction, "nop", "nop";
                    inout("rax") 0_u64 => _, inout("rcx") info.test_device => _, inout("rdx") PORT => _)
            };
            checks.that(
                rf(trap) == Some(($vector, false)),
                format_args!("(vector, RF) behind {}: {:?}", $instruction, rf(trap)),
            );
        }};
    }
    trap!(BP, "nop", "int3");
    trap!(DB, "nop", ".byte 0xf1");
    trap!(DB, "or qword ptr [rsp], 0x100", "cpuid");
    trap!(DB, "or qword ptr [rsp], 0x100", "out dx, al");
    trap!(DB, "or qword ptr [rsp], 0x100", "mov rax, [rcx]");
    trap!(DB, "or qword ptr [rsp], 0x100", "mov [rcx], rax");
}

/// A step into a repetition is within the instruction, until its last element.
fn repetitions(checks: &mut Checks, info: &StartInfo) {
    macro_rules! step {
        ($instruction:literal, $count:expr, $from:expr) => {{
            // SAFETY: within the heap and the device; the exception is caught.
            let trap = unsafe {
                probe!("pushfq", "or qword ptr [rsp], 0x100", "popfq", $instruction, "nop", "nop";
                    in("rax") 0, inout("rcx") $count => _, in("rdx") PORT,
                    inout("rsi") $from => _, inout("rdi") info.heap => _)
            };
            let within = $count > 1_u64;
            checks.that(
                rf(trap) == Some((DB, within)),
                format_args!("(vector, RF) in {} times {}: {:?}", $count, $instruction, rf(trap)),
            );
        }};
    }
    // Bochs 2.7 pushes 0 at a step into a repetition that does not exit.
    for count in [1, 2, 3] {
        step!("rep outsb", count, info.test_device);
        step!("rep insb", count, info.heap);
        step!("rep movsb", count, info.test_device);
    }
}

/// How often a breakpoint was met.
static MET: AtomicU64 = AtomicU64::new(0);

/// Counts, and goes on with the instruction.
#[unsafe(naked)]
unsafe extern "C" fn met() {
    naked_asm!(
        "lock inc qword ptr [rip + {met}]",
        "or dword ptr [rsp + 16], {rf}",
        "iretq",
        met = sym MET,
        rf = const RF,
    )
}

/// An instruction with a breakpoint on itself meets it once, however often it exits.
fn breakpoints(checks: &mut Checks, info: &StartInfo) {
    let gates = info.heap as *mut Gate;
    for vector in 0..VECTORS {
        let gate = match vector {
            DB => Gate::new(met as *const () as u64, 0, 0),
            other => trap::gate(other),
        };
        // SAFETY: the first page of the heap is for these.
        unsafe { gates.add(vector.into()).write(gate) };
    }
    // SAFETY: the gates are complete, and stay.
    unsafe { trap::load_idt(info.heap, VECTORS.into()) };
    let memory = info.heap + 4096;
    macro_rules! once {
        ($instruction:literal, $count:expr, $from:expr, $to:expr) => {{
            MET.store(0, Relaxed);
            // SAFETY: the breakpoint is on the one instruction, whose handler goes on with it.
            let trap = unsafe {
                probe!(
                    "lea r8, [rip + 66f]",
                    "mov dr0, r8",
                    "mov r8d, 0x402",
                    "mov dr7, r8",
                    "66:",
                    $instruction,
                    "mov r8d, 0x400",
                    "mov dr7, r8";
                    inout("rax") 0_u64 => _, inout("rcx") $count => _, inout("rdx") PORT => _,
                    inout("rsi") $from => _, inout("rdi") $to => _, out("r8") _)
            };
            // SAFETY: no breakpoint is wanted any more.
            unsafe { asm!("mov dr7, {}", in(reg) DR7_RESET) };
            checks.quiet(format_args!("{} with a breakpoint", $instruction), trap);
            checks.equal(
                format_args!("breakpoints met by {} times {}", $count, $instruction),
                MET.load(Relaxed),
                1,
            );
        }};
    }
    let device = info.test_device;
    once!("nop", 0_u64, memory, memory);
    once!("cpuid", 0_u64, memory, memory);
    once!("out dx, al", 0_u64, memory, memory);
    once!("mov rax, [rsi]", 0_u64, device, memory);
    once!("rep outsb", 300_u64, memory, memory);
    once!("rep insb", 300_u64, memory, memory);
    once!("rep movsb", 300_u64, device, memory);
    once!("rep movsb", 300_u64, memory, device);
    // What an EPT violation alone interrupts is not tried: Bochs 2.7 stores RF as 0 at that exit, where the manual has 1.
    trap::install();
}
