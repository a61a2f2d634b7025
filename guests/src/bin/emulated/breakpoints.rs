//! Breakpoints on data and ports, met by what the hypervisor accesses: a trap behind the instruction, or behind the element
//! of a repetition.

use core::arch::asm;
use offshoot_guest::trap::{DB, Trap};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;

const DR7_RESET: u64 = 0x400;
const DR6_RESET: u64 = 0xffff_0ff0;
/// What DR6 says: B0 to B3, BS.
const B0: u64 = 1;
const B1: u64 = 2;
const BS: u64 = 1 << 14;
const RF: u64 = 1 << 16;
/// R/W0: writes, ports, any access.
const WRITES: u64 = 1 << 16;
const PORTS: u64 = 2 << 16;
const ACCESSES: u64 = 3 << 16;
/// L0, and L1 with R/W1 for any access.
const ON: u64 = 1;
const SECOND: u64 = 1 << 2 | 3 << 20;
/// LEN0: two and four bytes.
const TWO: u64 = 1 << 18;
const FOUR: u64 = 3 << 18;
/// CR4.DE.
const DE: u64 = 1 << 3;
/// No device of a guest has this port.
const PORT: u64 = 0x80;
const STEP: u64 = 0x100;

/// What came of an instruction: the exception, where it was relative to the instruction's beginning and end, DR6 and RCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    trap: Option<(u8, Place, bool)>,
    dr6: u64,
    rcx: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    At,
    Behind,
    Elsewhere,
}

/// Breakpoint 0 is at the first address, breakpoint 1 at the second.
struct Set {
    dr7: u64,
    dr0: u64,
    dr1: u64,
    flags: u64,
}

macro_rules! found {
    ($instruction:literal, $set:expr, $count:expr, $from:expr, $to:expr) => {{
        let set: Set = $set;
        let (start, behind): (u64, u64);
        let rcx: u64;
        // SAFETY: the instruction accesses the heap and the device; the exception is caught.
        let trap: Option<Trap> = unsafe {
            asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr6, {2}", in(reg) set.dr0, in(reg) set.dr1, in(reg) DR6_RESET);
            probe!(
                "lea r8, [rip + 66f]",
                "lea r9, [rip + 67f]",
                "mov dr7, r10",
                "push r11",
                "popfq",
                "66:",
                $instruction,
                "67:",
                "nop",
                "push 2",
                "popfq";
                inout("rax") 0x1234_u64 => _, inout("rcx") $count => rcx, in("rdx") PORT,
                inout("rsi") $from => _, inout("rdi") $to => _, out("r8") start, out("r9") behind,
                in("r10") DR7_RESET | set.dr7, in("r11") 2 | set.flags)
        };
        let dr6: u64;
        // SAFETY: no breakpoint is wanted any more.
        unsafe { asm!("mov dr7, {1}", "mov {0}, dr6", out(reg) dr6, in(reg) DR7_RESET) };
        let place = |rip| match rip {
            _ if rip == start => Place::At,
            _ if rip == behind => Place::Behind,
            _ => Place::Elsewhere,
        };
        Found {
            trap: trap.map(|trap| (trap.vector, place(trap.rip), trap.rflags & RF != 0)),
            dr6: dr6 & 0xe00f,
            rcx,
        }
    }};
}

pub fn check(checks: &mut Checks, info: &StartInfo) {
    let (device, memory) = (info.test_device, info.heap);
    let at = |dr7, dr0| Set {
        dr7,
        dr0,
        dr1: 0,
        flags: 0,
    };
    let quiet = |rcx| Found {
        trap: None,
        dr6: 0,
        rcx,
    };
    let behind = |dr6, rcx| Found {
        trap: Some((DB, Place::Behind, false)),
        dr6,
        rcx,
    };
    let within = |dr6, rcx| Found {
        trap: Some((DB, Place::At, true)),
        dr6,
        rcx,
    };
    let mut expect = |what: &str, found: Found, expected: Found| {
        checks.that(
            found == expected,
            format_args!("{what}: {found:x?} instead of {expected:x?}"),
        );
    };
    macro_rules! case {
        ($instruction:literal, $set:expr, $count:expr, $from:expr, $to:expr, $expected:expr) => {
            expect(
                $instruction,
                found!($instruction, $set, $count, $from, $to),
                $expected,
            )
        };
    }
    // The processor's own, to compare.
    case!(
        "mov [rdi], eax",
        at(ON | WRITES, memory),
        0_u64,
        memory,
        memory,
        behind(B0, 0)
    );
    case!(
        "mov eax, [rsi]",
        at(ON | WRITES, memory),
        0_u64,
        memory,
        memory,
        quiet(0)
    );

    case!(
        "mov [rdi], eax",
        at(ON | WRITES, device),
        0_u64,
        memory,
        device,
        behind(B0, 0)
    );
    case!(
        "mov [rdi], eax",
        at(ON | ACCESSES | FOUR, device + 4),
        0_u64,
        memory,
        device + 6,
        behind(B0, 0)
    );
    case!(
        "mov [rdi], eax",
        at(ON | WRITES, device + 4),
        0_u64,
        memory,
        device,
        quiet(0)
    );
    case!(
        "mov [rdi], eax",
        at(WRITES, device),
        0_u64,
        memory,
        device,
        quiet(0)
    );
    case!(
        "mov eax, [rsi]",
        at(ON | WRITES, device),
        0_u64,
        device,
        memory,
        quiet(0)
    );
    case!(
        "mov eax, [rsi]",
        at(ON | ACCESSES, device + 3),
        0_u64,
        device,
        memory,
        behind(B0, 0)
    );
    case!(
        "add [rdi], eax",
        at(ON | WRITES | TWO, device + 2),
        0_u64,
        memory,
        device,
        behind(B0, 0)
    );
    case!(
        "cmp [rdi], eax",
        at(ON | WRITES, device),
        0_u64,
        memory,
        device,
        quiet(0)
    );
    // Two at once, and with a step.
    let both = |flags, dr0, dr1| Set {
        dr7: ON | ACCESSES | SECOND,
        dr0,
        dr1,
        flags,
    };
    case!(
        "movsb",
        both(0, memory, device),
        0_u64,
        memory,
        device,
        behind(B0 | B1, 0)
    );
    case!(
        "mov eax, [rsi]",
        both(STEP, device, memory),
        0_u64,
        device,
        memory,
        behind(B0 | BS, 0)
    );
    case!(
        "mov [rdi], eax",
        both(STEP, memory, memory),
        0_u64,
        memory,
        device,
        behind(BS, 0)
    );

    // A repetition stops behind the element that meets one.
    case!(
        "rep movsb",
        at(ON | WRITES, device + 2),
        5_u64,
        memory,
        device,
        within(B0, 2)
    );
    case!(
        "rep movsb",
        at(ON | ACCESSES, memory + 1),
        5_u64,
        memory,
        device,
        within(B0, 3)
    );
    case!(
        "rep movsb",
        at(ON | ACCESSES, device + 4),
        5_u64,
        device,
        memory,
        behind(B0, 0)
    );
    case!(
        "rep movsb",
        at(ON | ACCESSES, device + 99),
        200_u64,
        device,
        memory,
        within(B0, 100)
    );
    case!(
        "rep movsb",
        at(ON | ACCESSES, device + 5),
        5_u64,
        device,
        memory,
        quiet(0)
    );
    case!(
        "rep insb",
        at(ON | WRITES, memory + 2),
        5_u64,
        memory,
        memory,
        within(B0, 2)
    );
    case!(
        "rep insb",
        at(ON | WRITES, memory + 4),
        5_u64,
        memory,
        memory,
        behind(B0, 0)
    );
    case!(
        "rep outsb",
        at(ON | WRITES, memory + 2),
        5_u64,
        memory,
        memory,
        quiet(0)
    );
    case!(
        "rep outsw",
        at(ON | ACCESSES, memory + 2),
        5_u64,
        memory,
        memory,
        within(B0, 3)
    );
    case!(
        "rep outsb",
        at(ON | ACCESSES, device + 1),
        5_u64,
        device,
        memory,
        within(B0, 3)
    );

    // Ports have breakpoints with CR4.DE only.
    for debugging in [false, true] {
        set_de(debugging);
        let expected = |met, rcx| if debugging { met } else { quiet(rcx) };
        case!(
            "out dx, al",
            at(ON | PORTS, PORT),
            0_u64,
            memory,
            memory,
            expected(behind(B0, 0), 0)
        );
        case!(
            "in al, dx",
            at(ON | PORTS, PORT),
            0_u64,
            memory,
            memory,
            expected(behind(B0, 0), 0)
        );
        case!(
            "in eax, 0x80",
            at(ON | PORTS, PORT + 3),
            0_u64,
            memory,
            memory,
            expected(behind(B0, 0), 0)
        );
        case!(
            "out dx, ax",
            at(ON | PORTS | FOUR, PORT + 2),
            0_u64,
            memory,
            memory,
            expected(behind(B0, 0), 0)
        );
        case!(
            "out dx, al",
            at(ON | PORTS, PORT + 1),
            0_u64,
            memory,
            memory,
            quiet(0)
        );
        case!(
            "out dx, al",
            at(PORTS, PORT),
            0_u64,
            memory,
            memory,
            quiet(0)
        );
        case!(
            "rep outsb",
            at(ON | PORTS, PORT),
            3_u64,
            memory,
            memory,
            expected(within(B0, 2), 0)
        );
        case!(
            "rep insd",
            at(ON | PORTS, PORT + 1),
            3_u64,
            memory,
            memory,
            expected(within(B0, 2), 0)
        );
        case!(
            "insb",
            at(ON | PORTS, PORT),
            3_u64,
            memory,
            memory,
            expected(behind(B0, 3), 3)
        );
        let stepped = Set {
            flags: STEP,
            ..at(ON | PORTS, PORT)
        };
        let dr6 = if debugging { B0 | BS } else { BS };
        case!("out dx, al", stepped, 0_u64, memory, memory, behind(dr6, 0));
        // A port is no address.
        case!(
            "mov eax, [rsi]",
            at(ON | PORTS, device),
            0_u64,
            device,
            memory,
            quiet(0)
        );
    }
    set_de(false);
    // SAFETY: says that nothing has happened.
    unsafe { asm!("mov dr6, {}", in(reg) DR6_RESET) };
}

fn set_de(on: bool) {
    let bit = if on { DE } else { 0 };
    // SAFETY: what the bit does is wanted.
    unsafe {
        asm!("mov {0}, cr4", "and {0}, ~8", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) bit);
    }
}
