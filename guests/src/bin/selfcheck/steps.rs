//! Single steps and exceptions around instructions that exit.

use crate::storm::Heap;
use core::arch::asm;
use offshoot_guest::trap::{BP, DB, DE, GP, UD};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

const DR6_RESET: u64 = 0xffff_0ff0;
const DR6_BS: u64 = 1 << 14;

fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value) };
    value
}

fn reset_dr6() {
    // SAFETY: clears the record of past debug exceptions.
    unsafe { asm!("mov dr6, {}", in(reg) DR6_RESET) };
}

/// Runs one instruction with RFLAGS.TF: the exception that came of it, and the addresses of the instruction and of
/// the next. Before it may stand one that holds #DB off.
macro_rules! stepped {
    ($before:literal, $instruction:literal, $rax:expr, $rcx:expr, $rdx:expr) => {{
        reset_dr6();
        let (start, behind): (u64, u64);
        // SAFETY: the instruction is harmless with its operands; the exception is caught.
        let trap = unsafe {
            probe!(
                "lea r8, [rip + 66f]",
                "lea r9, [rip + 67f]",
                "mov r10d, ss",
                "pushfq",
                "or qword ptr [rsp], 0x300", // TF, and IF for HLT
                "popfq",
                $before,
                "66:",
                $instruction,
                "67:",
                "nop",
                "nop";
                inout("rax") $rax => _, inout("rcx") $rcx => _, inout("rdx") $rdx => _,
                out("r8") start, out("r9") behind, out("r10") _)
        };
        (trap, start, behind)
    }};
}

/// Steps over one instruction: #DB must come right behind it.
macro_rules! step {
    ($checks:ident, $instruction:literal, $rax:expr, $rcx:expr, $rdx:expr) => {
        step!($checks, "", $instruction, $rax, $rcx, $rdx)
    };
    ($checks:ident, $before:literal, $instruction:literal, $rax:expr, $rcx:expr, $rdx:expr) => {{
        let (trap, _, behind) = stepped!($before, $instruction, $rax, $rcx, $rdx);
        let what = format_args!("step over {} {}", $before, $instruction);
        $checks.trapped(what, trap, DB, 0);
        $checks.equal(what, trap.map_or(0, |trap| trap.rip), behind);
        $checks.equal(what, dr6() & 0xe00f, DR6_BS);
    }};
}

/// Steps over an instruction that meets an EPT violation. Bochs 2.7 saves a single step as pending at that exit,
/// where nothing is pending yet, and so #DB may come in front of the instruction.
macro_rules! step_over_fill {
    ($checks:ident, $instruction:literal, $heap:expr) => {{
        let (trap, start, behind) = stepped!("", $instruction, 1_u64, $heap.page(), 0_u64);
        let what = format_args!("step over {}", $instruction);
        $checks.trapped(what, trap, DB, 0);
        let rip = trap.map_or(0, |trap| trap.rip);
        $checks.that(
            rip == behind || rip == start,
            format_args!("{what}: {rip:#x} instead of {behind:#x}"),
        );
        $checks.equal(what, dr6() & 0xe00f, DR6_BS);
    }};
}

pub fn check(checks: &mut Checks, _: &StartInfo, heap: &mut Heap) {
    stepping(checks, heap);
    exceptions(checks);
    interrupts_on(checks, heap);
}

macro_rules! control {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value) };
        value
    }};
}

fn stepping(checks: &mut Checks, heap: &mut Heap) {
    const PAT_AT_RESET: u64 = 0x0007_0406;
    let (cr0, cr3, cr4) = (control!("cr0"), control!("cr3"), control!("cr4"));
    step!(checks, "xchg rax, rax", 0_u64, 0_u64, 0_u64);
    step!(checks, "cpuid", 0_u64, 0_u64, 0_u64);
    step!(checks, "vmcall", 0_u64, 0_u64, 0_u64);
    step!(checks, "hlt", 0_u64, 0_u64, 0_u64);
    step!(checks, "rdmsr", 0_u64, 0x1b_u64, 0_u64);
    step!(checks, "wrmsr", PAT_AT_RESET, 0x277_u64, PAT_AT_RESET);
    step!(checks, "in al, dx", 0_u64, 0_u64, 0x80_u64);
    step!(checks, "out dx, al", 0_u64, 0_u64, 0x80_u64);
    step!(checks, "mov cr0, rax", cr0, 0_u64, 0_u64);
    step!(checks, "mov cr3, rax", cr3, 0_u64, 0_u64);
    step!(checks, "mov cr4, rax", cr4, 0_u64, 0_u64);
    step!(checks, "clts", 0_u64, 0_u64, 0_u64);
    step!(checks, "wbinvd", 0_u64, 0_u64, 0_u64);
    if cr4 & 1 << 18 != 0 {
        let xcr0 = u64::from(cpu::cpuid(0xd, 0).eax);
        step!(checks, "xsetbv", xcr0, 0_u64, 0_u64);
    }
    step_into_repetition(checks);
    step_over_fill!(checks, "mov rax, [rcx]", heap);
    step_over_fill!(checks, "mov [rcx], rax", heap);

    // A load of SS holds off #DB for one instruction, through its exit.
    step!(checks, "mov ss, r10d", "cpuid", 0_u64, 0_u64, 0_u64);
    step!(checks, "mov ss, r10d", "vmcall", 0_u64, 0_u64, 0_u64);
    step!(checks, "mov ss, r10d", "rdmsr", 0_u64, 0x1b_u64, 0_u64);
    step!(
        checks,
        "mov ss, r10d",
        "mov rax, [rcx]",
        0_u64,
        heap.page(),
        0_u64
    );
    step!(
        checks,
        "mov ss, r10d",
        "mov [rcx], rax",
        1_u64,
        heap.page(),
        0_u64
    );
    // INT1 in that shadow is a #DB that exits while a step is held off.
    let (trap, _, behind) = stepped!("mov ss, r10d", ".byte 0xf1", 0_u64, 0_u64, 0_u64);
    checks.trapped(format_args!("INT1 behind a load of SS"), trap, DB, 0);
    let rip = trap.map_or(0, |trap| trap.rip);
    checks.equal(format_args!("INT1 behind a load of SS"), rip, behind);
    reset_dr6();
}

/// A step over a repetition ends after its first element.
fn step_into_repetition(checks: &mut Checks) {
    reset_dr6();
    let (start, left): (u64, u64);
    // SAFETY: reads its own bytes, for a port that nothing listens at; the exception is caught.
    let trap = unsafe {
        probe!(
            "lea r8, [rip + 66f]",
            "mov rsi, r8",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "66:",
            "rep outsb",
            "nop",
            "nop";
            inout("rcx") 3_u64 => left, in("rdx") 0x80_u64, out("rsi") _, out("r8") start)
    };
    let what = format_args!("step into rep outsb");
    checks.trapped(what, trap, DB, 0);
    checks.equal(what, trap.map_or(0, |trap| trap.rip), start);
    checks.equal(what, left, 2);
}

/// The saved RIP of a fault is that of the instruction, of a trap that of the next.
fn exceptions(checks: &mut Checks) {
    macro_rules! raises {
        ($instruction:literal, $vector:expr, $error:expr, $offset:literal) => {{
            let start: u64;
            // SAFETY: an exception is expected.
            let trap = unsafe {
                probe!("lea r8, [rip + 66f]", "66:", $instruction;
                    out("r8") start, inout("rax") 0_u64 => _, inout("rdx") 0_u64 => _,
                    in("rcx") 0_u64)
            };
            checks.trapped(format_args!("{}", $instruction), trap, $vector, $error);
            let rip = trap.map_or(0, |trap| trap.rip);
            checks.equal(format_args!("RIP of {}", $instruction), rip, start + $offset);
        }};
    }
    raises!("ud2", UD, 0, 0);
    raises!("int3", BP, 0, 1);
    raises!(".byte 0xcd, 3", BP, 0, 2);
    raises!("div ecx", DE, 0, 0);
    raises!("int 0x50", GP, 0x50 * 8 + 2, 0);
}

/// An exit in the shadow of STI: entered again, with nothing to interrupt it.
fn interrupts_on(checks: &mut Checks, heap: &mut Heap) {
    macro_rules! after_sti {
        ($instruction:literal) => {{
            // SAFETY: harmless with these operands; no interrupt comes.
            let trap = unsafe {
                probe!("sti", $instruction, "pushfq", "cli", "pop r8";
                    inout("rax") 0_u64 => _, inout("rcx") heap.page() => _, out("rdx") _,
                    out("r8") _)
            };
            checks.quiet(format_args!("sti; {}", $instruction), trap);
        }};
    }
    after_sti!("cpuid");
    after_sti!("vmcall");
    after_sti!("hlt");
    after_sti!("mov rax, [rcx]");
    after_sti!("mov [rcx], rax");
}
