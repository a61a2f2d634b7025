//! All general registers and RFLAGS around every instruction that exits.

use crate::storm::Heap;
use core::arch::naked_asm;
use offshoot_guest::StartInfo;
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const R9: usize = 9;
const FLAGS: usize = 16;
const NAMES: [&str; 17] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15", "RFLAGS",
];
/// Rounds of each instruction.
const ROUNDS: u64 = 150;

/// The general registers by their number in instructions, then RFLAGS. RSP is only ever read back.
type Registers = [u64; 17];

/// A function that loads all registers, runs `$instruction` and stores them again.
macro_rules! around {
    ($name:ident, $instruction:literal) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(registers: *mut Registers) {
            naked_asm!(
                "push rbx",
                "push rbp",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "push rdi",
                "push qword ptr [rdi + 16 * 8]",
                "mov [rdi + 4 * 8], rsp",
                "add qword ptr [rdi + 4 * 8], 8",
                "mov rax, [rdi]",
                "mov rcx, [rdi + 8]",
                "mov rdx, [rdi + 2 * 8]",
                "mov rbx, [rdi + 3 * 8]",
                "mov rbp, [rdi + 5 * 8]",
                "mov rsi, [rdi + 6 * 8]",
                "mov r8, [rdi + 8 * 8]",
                "mov r9, [rdi + 9 * 8]",
                "mov r10, [rdi + 10 * 8]",
                "mov r11, [rdi + 11 * 8]",
                "mov r12, [rdi + 12 * 8]",
                "mov r13, [rdi + 13 * 8]",
                "mov r14, [rdi + 14 * 8]",
                "mov r15, [rdi + 15 * 8]",
                "mov rdi, [rdi + 7 * 8]",
                "popfq",
                $instruction,
                // The pushes and moves leave the flags alone.
                "push rdi",
                "mov rdi, [rsp + 8]",
                "pop qword ptr [rdi + 7 * 8]",
                "mov [rdi], rax",
                "mov rax, [rdi + 4 * 8]", // RSP as it was
                "mov [rdi + 4 * 8], rsp",
                "pushfq",
                "pop qword ptr [rdi + 16 * 8]",
                "cld",
                "cli",
                "sub [rdi + 4 * 8], rax", // by how much it differs
                "mov [rdi + 8], rcx",
                "mov [rdi + 2 * 8], rdx",
                "mov [rdi + 3 * 8], rbx",
                "mov [rdi + 5 * 8], rbp",
                "mov [rdi + 6 * 8], rsi",
                "mov [rdi + 8 * 8], r8",
                "mov [rdi + 9 * 8], r9",
                "mov [rdi + 10 * 8], r10",
                "mov [rdi + 11 * 8], r11",
                "mov [rdi + 12 * 8], r12",
                "mov [rdi + 13 * 8], r13",
                "mov [rdi + 14 * 8], r14",
                "mov [rdi + 15 * 8], r15",
                "add rsp, 8",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbp",
                "pop rbx",
                "ret",
            )
        }
    };
}

around!(cpuid, "cpuid");
around!(vmcall, "vmcall");
around!(hlt, "hlt");
around!(rdmsr, "rdmsr");
around!(wrmsr, "wrmsr");
around!(in_byte, "in al, dx");
around!(in_word, "in ax, dx");
around!(in_long, "in eax, dx");
around!(out_byte, "out dx, al");
around!(write_cr0, "mov cr0, r9");
around!(write_cr3, "mov cr3, r9");
around!(write_cr4, "mov cr4, r9");
around!(clts, "clts");
around!(lmsw, "lmsw r9w");
around!(wbinvd, "wbinvd");
around!(invlpg, "invlpg [rbx]");
around!(xsetbv, "xsetbv");
around!(read_page, "mov rax, [rbx]");
around!(write_page, "mov [rbx + 64], rax");
around!(write_dr7, "mov dr7, r9");

struct Case {
    name: &'static str,
    run: unsafe extern "C" fn(*mut Registers),
    /// Registers that must have a certain value for the instruction.
    given: &'static [(usize, u64)],
    /// Registers that it changes, and to what.
    result: Result,
}

#[derive(Clone, Copy)]
enum Result {
    /// No register.
    None,
    /// RAX.
    Rax(u64),
    /// The lower half of RAX, with these bits of it.
    RaxBits(u64),
    /// RAX and RDX.
    RaxRdx(u64, u64),
    /// RAX, RBX, RCX and RDX as CPUID leaf 0 gives them.
    Cpuid,
}

fn read_msr(msr: u32) -> (u64, u64) {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that every guest has.
    unsafe { core::arch::asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high) };
    (low.into(), high.into())
}

macro_rules! control {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { core::arch::asm!(concat!("mov {}, ", $register), out(reg) value) };
        value
    }};
}

/// A number that tells registers and rounds apart.
fn pattern(register: usize, round: u64) -> u64 {
    (round * 17 + register as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub fn check(checks: &mut Checks, _: &StartInfo, heap: &mut Heap) {
    const HIGH: u64 = 0xdead_beef_0000_0000;
    let (apic_low, apic_high) = read_msr(0x1b);
    let (pat_low, pat_high) = read_msr(0x277);
    let ones = 0xffff_ffff;
    let cases = [
        case("CPUID", cpuid, &[(RAX, HIGH), (RCX, HIGH)], Result::Cpuid),
        case("VMCALL", vmcall, &[(RAX, 0)], Result::Rax(0)),
        case("HLT", hlt, &[], Result::None),
        case(
            "RDMSR",
            rdmsr,
            &[(RCX, HIGH | 0x1b)],
            Result::RaxRdx(apic_low, apic_high),
        ),
        case(
            "IN AL",
            in_byte,
            &[(RDX, HIGH | 0x80)],
            Result::RaxBits(0xff),
        ),
        case(
            "IN AX",
            in_word,
            &[(RDX, HIGH | 0x80)],
            Result::RaxBits(0xffff),
        ),
        case("IN EAX", in_long, &[(RDX, HIGH | 0x80)], Result::Rax(ones)),
        case("OUT", out_byte, &[(RDX, HIGH | 0x80)], Result::None),
        case("CLTS", clts, &[], Result::None),
        case("WBINVD", wbinvd, &[], Result::None),
    ];
    for case in cases {
        for round in 0..ROUNDS {
            one(checks, &case, &[], round);
        }
    }
    let (cr0, cr3, cr4) = (control!("cr0"), control!("cr3"), control!("cr4"));
    let same = |name, run| case(name, run, &[], Result::None);
    let xcr0 = u64::from(cpu::cpuid(0xd, 0).eax);
    for round in 0..ROUNDS {
        let pat = [(RCX, 0x277), (RAX, HIGH | pat_low), (RDX, HIGH | pat_high)];
        one(checks, &same("WRMSR", wrmsr), &pat, round);
        one(checks, &same("MOV to CR0", write_cr0), &[(R9, cr0)], round);
        one(checks, &same("MOV to CR3", write_cr3), &[(R9, cr3)], round);
        one(checks, &same("MOV to CR4", write_cr4), &[(R9, cr4)], round);
        one(checks, &same("LMSW", lmsw), &[(R9, HIGH | cr0)], round);
        one(
            checks,
            &same("MOV to DR7", write_dr7),
            &[(R9, 0x400)],
            round,
        );
        if cr4 & 1 << 18 != 0 {
            let all = [(RCX, 0), (RAX, HIGH | xcr0), (RDX, 0)];
            one(checks, &same("XSETBV", xsetbv), &all, round);
        }
        let page = heap.page();
        one(checks, &same("INVLPG", invlpg), &[(RBX, page)], round);
        let read = case("read fill", read_page, &[], Result::Rax(0));
        one(checks, &read, &[(RBX, page)], round);
        one(
            checks,
            &same("write after read", write_page),
            &[(RBX, page)],
            round,
        );
        let page = heap.page();
        one(
            checks,
            &same("write fill", write_page),
            &[(RBX, page)],
            round,
        );
        // SAFETY: a page of the heap.
        let written = unsafe { ((page + 64) as *const u64).read_volatile() };
        checks.equal(format_args!("written"), written, pattern(RAX, round));
    }
}

fn case(
    name: &'static str,
    run: unsafe extern "C" fn(*mut Registers),
    given: &'static [(usize, u64)],
    result: Result,
) -> Case {
    Case {
        name,
        run,
        given,
        result,
    }
}

/// Runs an instruction once, with `also` given beside what the case gives.
fn one(checks: &mut Checks, case: &Case, also: &[(usize, u64)], round: u64) {
    // IF for HLT. Of the rest CF, PF, AF, ZF, SF, DF, OF, AC and ID.
    const ALWAYS: u64 = 1 << 1 | 1 << 9;
    const SOME: u64 = 0b1100_1101_0101 | 1 << 18 | 1 << 21;
    let mut before: Registers = core::array::from_fn(|register| pattern(register, round));
    for &(register, value) in case.given.iter().chain(also) {
        before[register] = value;
    }
    before[FLAGS] = ALWAYS | pattern(FLAGS, round) & SOME;
    let mut after = before;
    // SAFETY: the instruction finds in its registers what it needs, and leaves the system as it is.
    unsafe { (case.run)(&mut after) };

    let mut expected = before;
    expected[RSP] = 0; // that of before and after differ by nothing
    match case.result {
        Result::None => {}
        Result::Rax(value) => expected[RAX] = value,
        Result::RaxBits(bits) => expected[RAX] |= bits,
        Result::RaxRdx(rax, rdx) => (expected[RAX], expected[RDX]) = (rax, rdx),
        Result::Cpuid => {
            let leaf = cpu::cpuid(0, 0);
            expected[RAX] = leaf.eax.into();
            expected[RBX] = leaf.ebx.into();
            expected[RCX] = leaf.ecx.into();
            expected[RDX] = leaf.edx.into();
        }
    }
    for (register, name) in NAMES.iter().enumerate() {
        checks.equal(
            format_args!("{name} after {}", case.name),
            after[register],
            expected[register],
        );
    }
}
