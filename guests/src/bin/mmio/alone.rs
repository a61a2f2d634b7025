//! What the device sees of an access, and what only one instruction at a time shows: single steps, code that changes,
//! page faults, writes to ROM.

use crate::device::{Device, read, write};
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use offshoot_guest::abi::test_device::{
    ID, LAST_OFFSET, LAST_VALUE, MAGIC, READS, ROM_WRITES, WIDTHS, WRITES,
};
use offshoot_guest::trap::{DB, PF, PF_WRITE, UD};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;
use offshoot_guests::space;

const TF: u64 = 1 << 8;

pub fn check(checks: &mut Checks, info: &StartInfo, device: &Device) {
    checks.equal(format_args!("who it is"), device.read(ID), MAGIC);
    widths(checks, device);
    rom(checks, device);
    steps(checks, info, device);
    changed_code(checks, info, device);
    faults(checks, device);
    marks(checks, info, device);
}

/// Every access arrives once, in one piece, at its offset, with its value.
fn widths(checks: &mut Checks, device: &Device) {
    device.reset();
    let at = device.at(0x1000);
    // SAFETY: the device; two pages of it follow one another.
    unsafe {
        asm!(
            "mov [{at}], al", "mov [{at} + 1], ax", "mov [{at} + 3], eax", "mov [{at} - 3], rax",
            "mov cl, [{at} + 7]", "mov cx, [{at} - 1]", "mov ecx, [{at} - 2]", "lock xadd [{at}], rcx",
            at = in(reg) at, in("rax") 0x8877_6655_4433_2211_u64, out("rcx") _,
        );
    }
    checks.equal(format_args!("reads"), device.read(READS), 4);
    checks.equal(format_args!("writes"), device.read(WRITES), 5);
    checks.equal(
        format_args!("the last offset"),
        device.read(LAST_OFFSET),
        0x1000,
    );
    checks.equal(
        format_args!("widths"),
        device.read(WIDTHS),
        0x8284_8801_0204_0888,
    );
    write(device.at(0xfff), 0x0102_0304_0506_0708);
    checks.equal(
        format_args!("across pages, whole"),
        device.read(LAST_VALUE),
        0x0102_0304_0506_0708,
    );
    checks.equal(
        format_args!("across pages, where"),
        device.read(LAST_OFFSET),
        0xfff,
    );
}

/// ROM can be read, and the device learns what is written there.
fn rom(checks: &mut Checks, device: &Device) {
    device.reset();
    write(device.rom(0x18), 0x1234);
    checks.equal(format_args!("ROM"), read(device.rom(0x18)), 0);
    // SAFETY: the device's ROM.
    unsafe { asm!("lock add word ptr [{}], 3", in(reg) device.rom(0x20)) };
    checks.equal(format_args!("writes to ROM"), device.read(ROM_WRITES), 2);
    checks.equal(
        format_args!("what was written to ROM"),
        device.read(LAST_VALUE),
        3,
    );
    // Across the end of the registers: each part goes to its own.
    write(device.at(0x1ffc), u64::MAX);
    checks.equal(format_args!("the part in ROM"), device.read(ROM_WRITES), 3);
    checks.equal(
        format_args!("the part in registers"),
        device.read(0x78) >> 32,
        0xffff_ffff,
    );
}

/// A single step is due after the instruction, and after each element of a repetition.
fn steps(checks: &mut Checks, info: &StartInfo, device: &Device) {
    // SAFETY: the device and heap that nothing else uses; the trap is caught.
    unsafe {
        let (at, mut behind): (u64, u64);
        let trap = probe!(
            "lea r9, [rip + 66f]", "push r8", "popfq", "mov [rdi], eax", "66:", "nop", "nop";
            in("r8") 2 | TF, in("rdi") device.at(8), in("rax") 5_u64, out("r9") behind
        );
        checks.trapped(format_args!("a step over a write"), trap, DB, 0);
        checks.equal(
            format_args!("RIP of the step"),
            trap.map_or(0, |t| t.rip),
            behind,
        );
        let left: u64;
        let trap = probe!(
            "lea r9, [rip + 66f]", "push r8", "popfq", "66:", "rep movsb", "nop", "nop";
            in("r8") 2 | TF, inout("rdi") info.heap => _, inout("rsi") device.at(8) => at,
            inout("rcx") 5_u64 => left, out("r9") _
        );
        checks.trapped(format_args!("a step in a repetition"), trap, DB, 0);
        checks.equal(format_args!("elements left after a step"), left, 4);
        checks.equal(format_args!("RSI after a step"), at, device.at(9));
        // With MOV SS, which holds the step back for one instruction.
        let trap = probe!(
            "lea r9, [rip + 66f]", "mov edx, ss", "push r8", "popfq", "mov ss, edx", "mov [rdi], eax", "66:", "nop";
            in("r8") 2 | TF, in("rdi") device.at(8), in("rax") 5_u64, out("r9") behind, out("rdx") _
        );
        checks.trapped(format_args!("a step over MOV SS"), trap, DB, 0);
        let rip = trap.map_or(0, |trap| trap.rip);
        checks.equal(format_args!("RIP after MOV SS"), rip, behind);
    }
}

/// Code is looked at anew at every access.
fn changed_code(checks: &mut Checks, info: &StartInfo, device: &Device) {
    let code = info.heap + 0x3000 - 2;
    let run = |bytes: u64, rax: u64| -> u64 {
        write(code, bytes);
        let result;
        // SAFETY: heap is executable by the guest's own tables; the code is one instruction and RET.
        unsafe {
            asm!("call {}", in(reg) code, inout("rax") rax => result, in("rdi") device.at(0x40));
        }
        result
    };
    // Across two pages: mov [rdi + 0], rax; ret, then mov rax, [rdi + 0]; ret.
    run(0x00c3_0047_8948, 0x1122_3344_5566_7788);
    let read_back = run(0x00c3_0047_8b48, 0);
    checks.equal(
        format_args!("code that changed"),
        read_back,
        0x1122_3344_5566_7788,
    );
    // The device holds the code that is put in place of what comes next: mov eax, 42; ret.
    write(device.at(0x40), 0xc300_0000_2ab8);
    let result: u64;
    // SAFETY: as above.
    unsafe {
        write(code, 0xa548); // movsq, over itself and what follows
        asm!("call {}", in(reg) code, out("rax") result, inout("rsi") device.at(0x3e) => _,
            inout("rdi") code => _);
    }
    checks.equal(format_args!("code out of the device"), result, 42);
}

/// The other side of a copy may fault, and the device is not touched then.
fn faults(checks: &mut Checks, device: &Device) {
    device.reset();
    let unmapped = 1_u64 << 46;
    // SAFETY: the exceptions are caught.
    unsafe {
        let trap = probe!("movsb"; inout("rsi") device.at(0) => _, inout("rdi") unmapped => _);
        checks.trapped(format_args!("a copy to nowhere"), trap, PF, PF_WRITE);
        checks.equal(
            format_args!("CR2"),
            trap.map_or(0, |trap| trap.cr2),
            unmapped,
        );
        checks.equal(
            format_args!("reads of a copy to nowhere"),
            device.read(READS),
            0,
        );
        let trap = probe!("movsb"; inout("rsi") unmapped => _, inout("rdi") device.at(0) => _);
        checks.trapped(format_args!("a copy from nowhere"), trap, PF, 0);
        let trap = probe!(".byte 0xf0, 0x88, 0x07"; // lock mov [rdi], al
            in("rdi") device.at(0));
        checks.trapped(format_args!("LOCK MOV"), trap, UD, 0);
    }
}

/// What an access leaves in the tables: it is accessed, and dirty if it was written, be it the device or the memory that
/// a string instruction copies from or to.
fn marks(checks: &mut Checks, info: &StartInfo, device: &Device) {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    // Two views of their own, beyond all memory.
    const MEMORY: u64 = 0x8000_0000;
    const REGISTERS: u64 = 0x8020_0000;
    const OFFSET: u64 = (1 << 21) - 1;
    let memory = MEMORY | (info.heap + 0x4000) & OFFSET;
    let registers = REGISTERS | device.at(0x40) & OFFSET;
    let mut check = |name: &str, act: &dyn Fn(), expected: [u64; 2]| {
        let entries = [
            space::alias(memory, info.heap),
            space::alias(registers, device.at(0)),
        ];
        act();
        let found = entries.map(|entry| entry.load(Relaxed) & (ACCESSED | DIRTY));
        checks.equal(
            format_args!("marks of memory after {name}"),
            found[0],
            expected[0],
        );
        checks.equal(
            format_args!("marks of the device after {name}"),
            found[1],
            expected[1],
        );
    };
    let copy = |from: u64, to: u64| {
        // SAFETY: the device, and heap that nothing else uses.
        unsafe { asm!("movsb", inout("rsi") from => _, inout("rdi") to => _) };
    };
    // SAFETY: as above; nothing answers at this port.
    let input = || unsafe { asm!("insb", inout("rdi") memory => _, in("dx") 0x80_u16) };
    // SAFETY: as above.
    let output = || unsafe { asm!("outsb", inout("rsi") memory => _, in("dx") 0x80_u16) };
    let both = ACCESSED | DIRTY;
    check("a write", &|| write(registers, 1), [0, both]);
    check("a read", &|| assert_ne!(read(registers), 0), [0, ACCESSED]);
    check(
        "a copy from the device",
        &|| copy(registers, memory),
        [both, ACCESSED],
    );
    check(
        "a copy to the device",
        &|| copy(memory, registers),
        [ACCESSED, both],
    );
    check(
        "a copy in the device",
        &|| copy(registers, registers + 8),
        [0, both],
    );
    check("INS", &input, [both, 0]);
    check("OUTS", &output, [ACCESSED, 0]);
}
