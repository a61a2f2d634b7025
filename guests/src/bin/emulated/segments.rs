//! INS and OUTS against STOS and LODS, which go through memory as they do: in 32-bit code with segments of all kinds, and at
//! CPL 3 with alignment checks. Whatever the processor raises for these, and how far it comes, must be the same.

use crate::compat::{self, FIRST, descriptor, in_32_bit};
use core::arch::{asm, naked_asm};
use offshoot_guest::trap::{AC, BP, GP, KERNEL_DATA};
use offshoot_guest::{StartInfo, probe};
use offshoot_guests::check::Checks;
use offshoot_guests::space;

const RF: u64 = 1 << 16;
/// No device of a guest has this port.
const PORT: u64 = 0x80;

/// The exception with its error code and RF, ECX, and the index.
type Left = (Option<(u8, u64, bool)>, u64, u64);

/// What STOS or LODS does, and what INS or OUTS: with a segment, an index, and a count.
struct Pair {
    text: &'static str,
    writes: bool,
    own: fn(u64, u64, u64) -> Left,
    port: fn(u64, u64, u64) -> Left,
}

macro_rules! run {
    ($load:literal, $index:tt, $code:literal) => {
        |selector, index, count| {
            let (rcx, at): (u64, u64);
            // SAFETY: the segments are in the heap, where nothing else is; the exception is caught.
            let trap = unsafe {
                let trap = in_32_bit!($load, "mov eax, 0xffffffff", $code;
                    inout("rax") selector => _, inout("rcx") count => rcx, inout($index) index => at,
                    in("rdx") PORT);
                asm!("mov ss, {0:e}", in(reg) u64::from(KERNEL_DATA));
                trap
            };
            let trap = trap.map(|trap| (trap.vector, trap.error, trap.rflags & RF != 0));
            (trap, rcx, at)
        }
    };
}

macro_rules! pairs {
    ($($load:literal $index:tt $own:literal $port:literal $writes:literal)+) => {
        &[$(Pair {
            text: $port,
            writes: $writes,
            own: run!($load, $index, $own),
            port: run!($load, $index, $port),
        },)+]
    };
}

static PAIRS: &[Pair] = pairs! {
    "mov es, eax" "rdi" ".byte 0xaa" ".byte 0x6c" true
    "mov es, eax" "rdi" ".byte 0x66, 0xab" ".byte 0x66, 0x6d" true
    "mov es, eax" "rdi" ".byte 0xab" ".byte 0x6d" true
    "mov es, eax" "rdi" ".byte 0xf3, 0xaa" ".byte 0xf3, 0x6c" true
    "mov es, eax" "rdi" ".byte 0xf3, 0xab" ".byte 0xf3, 0x6d" true
    "mov es, eax" "rdi" ".byte 0x67, 0xf3, 0x66, 0xab" ".byte 0x67, 0xf3, 0x66, 0x6d" true
    "mov ds, eax" "rsi" ".byte 0xac" ".byte 0x6e" false
    "mov ds, eax" "rsi" ".byte 0x66, 0xad" ".byte 0x66, 0x6f" false
    "mov ds, eax" "rsi" ".byte 0xf3, 0xad" ".byte 0xf3, 0x6f" false
    "mov ds, eax" "rsi" ".byte 0x67, 0xf3, 0xac" ".byte 0x67, 0xf3, 0x6e" false
    // Of the segments that a prefix may name.
    "mov es, eax" "rsi" ".byte 0x26, 0xf3, 0xad" ".byte 0x26, 0xf3, 0x6f" false
    "mov fs, eax" "rsi" ".byte 0x64, 0xf3, 0xad" ".byte 0x64, 0xf3, 0x6f" false
    "mov gs, eax" "rsi" ".byte 0x65, 0xad" ".byte 0x65, 0x6f" false
};
static ON_STACK: Pair = Pair {
    text: "ss outsd",
    writes: false,
    own: run!("mov ss, eax", "rsi", ".byte 0x36, 0xf3, 0xad"),
    port: run!("mov ss, eax", "rsi", ".byte 0x36, 0xf3, 0x6f"),
};

/// Kinds of segments: data, of 32 and 16 bits, read-only, expand-down; code.
const DATA: u64 = 0x93;
const READ_ONLY: u64 = 0x91;
const EXPAND_DOWN: u64 = 0x97;
const CODE: u64 = 0x9b;
const BIG: u64 = 4;
const PAGES: u64 = 8;

pub fn check(checks: &mut Checks, info: &StartInfo) {
    let memory = info.heap.next_multiple_of(1 << 16);
    // What the indices of each segment are counted from: behind its end, or across 4 GiB.
    let segments = [
        (descriptor(memory, 0xfff, DATA, BIG), 0x1000),
        (descriptor(memory, 0xffff, DATA, 0), 0x1_0000),
        (descriptor(memory, 0xfff, READ_ONLY, BIG), 0x100),
        (descriptor(memory - 0x1000, 0xfff, EXPAND_DOWN, BIG), 0x1000),
        (descriptor(memory - 0x1000, 0xfff, EXPAND_DOWN, 0), 0x1000),
        (descriptor(memory - 0x1000, 0xfff, EXPAND_DOWN, 0), 0x1_0000),
        (descriptor(memory, 0xfff, CODE, BIG), 0x1000),
        // From one page below 4 GiB into the heap, and a limit that is none.
        (
            descriptor(0xffff_f000, 0xf_ffff, DATA, BIG | PAGES),
            memory + 0x2000,
        ),
        (descriptor(0, 0xf_ffff, DATA, BIG | PAGES), memory + 0x2000),
        (descriptor(memory, 0xf_ffff, DATA, BIG | PAGES), 0xffff_fffe),
    ];
    compat::install(&segments.map(|(segment, _)| segment));
    for (number, (segment, end)) in segments.into_iter().enumerate() {
        let selector = FIRST + 8 * number as u64;
        for pair in PAIRS {
            for index in [end - 8, end - 4, end - 3, end - 1, end] {
                compare(checks, pair, (selector, segment), index);
                // The upper half of an address of 16 bits does not count.
                if pair.text.starts_with(".byte 0x67") {
                    compare(checks, pair, (selector, segment), index | 0x7fff_0000);
                }
            }
        }
    }
    for index in [0xff4, 0xff8, 0xffd, 0x1000] {
        compare(checks, &ON_STACK, (FIRST, segments[0].0), index);
    }
    for pair in PAIRS {
        compare(checks, pair, (0, 0), memory);
    }
    at_cpl_3(checks, memory);
}

fn compare(checks: &mut Checks, pair: &Pair, (selector, segment): (u64, u64), index: u64) {
    let (own, port) = (
        (pair.own)(selector, index, 3),
        (pair.port)(selector, index, 3),
    );
    checks.that(
        own == port,
        format_args!(
            "{}, segment {segment:#x}, index {index:#x}, writes {}: {port:x?} instead of {own:x?}",
            pair.text, pair.writes
        ),
    );
}

/// RFLAGS.AC, and IOPL 3.
const ALIGNMENT: u64 = 1 << 18;
const IOPL: u64 = 3 << 12;

macro_rules! at_user {
    ($code:literal, $flags:expr, $rsi:expr, $rdi:expr, $count:expr) => {{
        #[unsafe(naked)]
        unsafe extern "C" fn code() {
            naked_asm!($code, "int3")
        }
        let rcx: u64;
        // SAFETY: the user's view has what the kernel's has; the exception is caught.
        let trap = unsafe {
            probe!(
                "push {user_data}",
                "mov r8, 0x8000000000 - 256",
                "add r8, rsp",
                "push r8",
                "push r9",
                "push {user_code}",
                "push r10",
                "iretq";
                user_data = const ::offshoot_guest::trap::USER_DATA,
                user_code = const ::offshoot_guest::trap::USER_CODE,
                in("r10") space::user(code as *const () as u64), in("r9") 2 | $flags, out("r8") _,
                inout("rsi") $rsi => _, inout("rdi") $rdi => _, inout("rcx") $count => rcx,
                inout("rax") 0_u64 => _, in("rdx") PORT)
        };
        (trap.map(|trap| (trap.vector, trap.error, trap.rflags & RF != 0)), rcx)
    }};
}

/// What is not aligned is told at CPL 3; the right to a port comes before all else.
fn at_cpl_3(checks: &mut Checks, memory: u64) {
    // SAFETY: alignment is checked at CPL 3 only, with RFLAGS.AC.
    unsafe { asm!("mov {0}, cr0", "or {0}, 1 << 18", "mov cr0, {0}", out(reg) _) };
    let at = space::user(memory);
    let (done, fault) = (Some((BP, 0, false)), Some((AC, 0, true)));
    macro_rules! pair {
        ($own:literal, $port:literal, $offset:expr, $flags:expr, $expected:expr) => {{
            let own = at_user!($own, $flags | IOPL, at + $offset, at + $offset, 3_u64);
            let port = at_user!($port, $flags | IOPL, at + $offset, at + $offset, 3_u64);
            checks.that(
                own == port && own == $expected,
                format_args!("{} at {}: {port:x?}, {} {own:x?}", $port, $offset, $own),
            );
        }};
    }
    pair!("rep stosd", "rep insd", 0, ALIGNMENT, (done, 0));
    pair!("rep stosd", "rep insd", 2, ALIGNMENT, (fault, 3));
    pair!("rep stosd", "rep insd", 2, 0, (done, 0));
    pair!("stosw", "insw", 1, ALIGNMENT, (fault, 3));
    pair!("rep stosb", "rep insb", 1, ALIGNMENT, (done, 0));
    pair!("rep lodsd", "rep outsd", 2, ALIGNMENT, (fault, 3));
    pair!("lodsw", "outsw", 1, ALIGNMENT, (fault, 3));
    pair!("lodsw", "outsw", 1, 0, (done, 3));
    let denied = (Some((GP, 0, true)), 3);
    for offset in [0, 1] {
        let found = [
            at_user!("insw", ALIGNMENT, at, at + offset, 3_u64),
            at_user!("outsw", ALIGNMENT, at + offset, at, 3_u64),
            at_user!("rep insb", 0_u64, at, 1_u64 << 60, 3_u64),
        ];
        checks.that(
            found == [denied; 3],
            format_args!("ports without the right to them: {found:x?}"),
        );
    }
    // SAFETY: as it was.
    unsafe { asm!("mov {0}, cr0", "and {0}, ~(1 << 18)", "mov cr0, {0}", out(reg) _) };
}
