//! Debug registers, CR2, and the MSRs that no exit saves by itself, over a storm of exits.

use crate::storm::{self, Heap, Storm};
use core::arch::asm;
use offshoot_guest::trap::{DB, GP, NM};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

const ROUNDS: u64 = 40;

macro_rules! get {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value) };
        value
    }};
}

macro_rules! set {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: called for debug registers, with breakpoints nowhere in use, and CR2.
        unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value) };
    }};
}

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only for registers that the guest has.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only for registers that this program does not depend on, with legal values.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high) };
}

/// Each with a value that is legal in it: IA32_SYSENTER_CS, ESP and EIP, PAT (its first two entries as at reset),
/// STAR, LSTAR, CSTAR, FMASK, FS and GS base, kernel GS base.
const MSRS: [(u32, u64); 11] = [
    (0x174, 0x1234),
    (0x175, 0xffff_8000_1234_5670),
    (0x176, 0x0000_7fff_8765_4321),
    (0x277, 0x0105_0600_0007_0406),
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_ffff_8010_2030),
    (0xc000_0083, 0xffff_9abc_def0_1234),
    (0xc000_0084, 0x0004_7700),
    (0xc000_0100, 0x0000_1234_5678_9abc),
    (0xc000_0101, 0xffff_fedc_ba98_7654),
    (0xc000_0102, 0xffff_8800_0000_1000),
];
const TSC_AUX: u32 = 0xc000_0103;
const TSC_AUX_VALUE: u64 = 0xbeef_0123;
const EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1;

/// The bits of DR6 that hold what happened; the others are fixed.
const DR6_STATUS: u64 = 0xe00f;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

fn storm(checks: &mut Checks, heap: &mut Heap) {
    let mut storm = Storm::new(ROUNDS, heap);
    // SAFETY: CPL 0, and no interrupt comes.
    unsafe { storm::run(&mut storm) };
    checks.that(
        storm.found_zeros(),
        format_args!("fresh pages were not zero"),
    );
}

pub fn check(checks: &mut Checks, _: &StartInfo, heap: &mut Heap) {
    msrs(checks, heap);
    debug_registers(checks, heap);
    breakpoint(checks);
    cr2(checks, heap);
    task_switched(checks);
}

fn msrs(checks: &mut Checks, heap: &mut Heap) {
    let has_tsc_aux = cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0;
    let aux = has_tsc_aux.then_some((TSC_AUX, TSC_AUX_VALUE));
    let all = || MSRS.into_iter().chain(aux);
    let mut before = [0; MSRS.len() + 1];
    for (slot, (msr, value)) in before.iter_mut().zip(all()) {
        *slot = read_msr(msr);
        write_msr(msr, value);
    }
    storm(checks, heap);
    for (msr, value) in all() {
        checks.equal(format_args!("MSR {msr:#x}"), read_msr(msr), value);
    }
    if has_tsc_aux {
        let aux: u32;
        // SAFETY: CPUID offers it.
        unsafe { asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
        checks.equal(format_args!("RDTSCP"), aux.into(), TSC_AUX_VALUE);
    }
    // The bases are those of the segments: GS swaps with its twin.
    // SAFETY: nothing here uses FS or GS.
    unsafe { asm!("swapgs") };
    checks.equal(format_args!("GS base"), read_msr(0xc000_0101), MSRS[10].1);
    storm(checks, heap);
    checks.equal(
        format_args!("GS base twin"),
        read_msr(0xc000_0102),
        MSRS[9].1,
    );
    for (&value, (msr, _)) in before.iter().zip(all()) {
        write_msr(msr, value);
    }

    let efer = read_msr(EFER);
    write_msr(EFER, efer ^ EFER_SCE);
    storm(checks, heap);
    checks.equal(format_args!("EFER"), read_msr(EFER), efer ^ EFER_SCE);
    write_msr(EFER, efer);
    // Addresses that are none, and fields that are none.
    for msr in [
        0x175,
        0x176,
        0xc000_0082,
        0xc000_0083,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102_u32,
    ] {
        let kept = read_msr(msr);
        // SAFETY: an exception is expected.
        let trap = unsafe { probe!("wrmsr"; in("ecx") msr, in("eax") 0, in("edx") 1 << 31) };
        checks.trapped(format_args!("non-canonical {msr:#x}"), trap, GP, 0);
        checks.equal(format_args!("{msr:#x} after that"), read_msr(msr), kept);
    }
    for (msr, low) in [(0x277_u32, 2), (EFER, efer as u32 | 1 << 1 | 1 << 12)] {
        // SAFETY: an exception is expected.
        let trap = unsafe { probe!("wrmsr"; in("ecx") msr, in("eax") low, in("edx") 0) };
        checks.trapped(format_args!("{low:#x} to {msr:#x}"), trap, GP, 0);
    }
}

fn debug_registers(checks: &mut Checks, heap: &mut Heap) {
    // Two breakpoints are on: an execution and an eight-byte write where nothing ever happens.
    let dr7 = DR7_RESET | 0b1000_0010 | 0b1001 << 28;
    set!("dr0", 0x0000_7000_1111_1110);
    set!("dr1", 0xffff_8000_2222_2220);
    set!("dr2", 0x3333);
    set!("dr3", 0x0000_7000_4444_4440);
    set!("dr6", DR6_RESET | 0xa005);
    set!("dr7", dr7);
    storm(checks, heap);
    checks.equal(format_args!("DR0"), get!("dr0"), 0x0000_7000_1111_1110);
    checks.equal(format_args!("DR1"), get!("dr1"), 0xffff_8000_2222_2220);
    checks.equal(format_args!("DR2"), get!("dr2"), 0x3333);
    checks.equal(format_args!("DR3"), get!("dr3"), 0x0000_7000_4444_4440);
    checks.equal(format_args!("DR6"), get!("dr6") & DR6_STATUS, 0xa005);
    checks.equal(format_args!("DR7"), get!("dr7"), dr7);
    set!("dr7", DR7_RESET);
    set!("dr6", DR6_RESET);
}

/// A breakpoint on a write, set before a storm's worth of state was switched, still hits.
fn breakpoint(checks: &mut Checks) {
    let mut watched = 0_u64;
    let address = &raw mut watched as u64;
    set!("dr2", address);
    set!("dr7", DR7_RESET | 1 << 4 | 0b1101 << 24);
    // SAFETY: writes to our own variable, an exception is expected.
    let trap = unsafe {
        probe!("cpuid", "mov [{address}], eax", "nop";
            address = in(reg) address,
            inout("eax") 0 => _, out("ecx") _, out("edx") _, out("r8") _)
    };
    set!("dr7", DR7_RESET);
    checks.trapped(format_args!("breakpoint on a write"), trap, DB, 0);
    checks.equal(format_args!("DR6 of it"), get!("dr6") & DR6_STATUS, 1 << 2);
    set!("dr6", DR6_RESET);
}

fn cr2(checks: &mut Checks, heap: &mut Heap) {
    let value = 0x0000_1234_5678_9abc;
    set!("cr2", value);
    storm(checks, heap);
    checks.equal(format_args!("CR2"), get!("cr2"), value);
}

/// CR0.TS makes the first use of the FPU trap, whatever the host's own CR0 is.
fn task_switched(checks: &mut Checks) {
    let cr0 = get!("cr0");
    // SAFETY: no instruction before CLTS uses the FPU but the one that should trap.
    let trap = unsafe {
        asm!("mov cr0, {}", in(reg) cr0 | 1 << 3);
        let trap =
            probe!("xor eax, eax", "vmcall", "movaps xmm0, xmm1"; out("rax") _, out("xmm0") _);
        asm!("clts");
        trap
    };
    checks.trapped(format_args!("SSE with CR0.TS"), trap, NM, 0);
    checks.equal(format_args!("CR0"), get!("cr0"), cr0);
}
