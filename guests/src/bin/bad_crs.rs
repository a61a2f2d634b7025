//! Writes wild values to CR0, CR3, CR4, CR8, XCR0 and the debug control registers. Each write either works or raises
//! #GP(0); the old value goes back at once.
//!
//! Values of CR3 with another root are left out: they are legal, and the guest is gone. Clearing CR0.PG or CR4.PAE
//! is #GP in 64-bit mode.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use offshoot_guest::trap::{GP, UD};
use offshoot_guest::{StartInfo, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::{cpu, probe_user, space};

offshoot_guest::entry!(main);

const RANDOM: usize = 1000;

/// Writes `$value` to a control register and the old value back: what came of it and what was read in between.
macro_rules! try_register {
    ($register:literal, $old:expr, $value:expr) => {{
        let between: u64;
        // SAFETY: no memory is accessed through a changed mapping or permission before the old value is back, but
        // for the instructions themselves.
        let trap = unsafe {
            probe!(
                concat!("mov ", $register, ", {value}"),
                concat!("mov r8, ", $register),
                concat!("mov ", $register, ", {old}");
                value = in(reg) $value, old = in(reg) $old, out("r8") between)
        };
        (trap, between)
    }};
}

macro_rules! read_register {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value) };
        value
    }};
}

/// Xorshift: the same wild values in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Every single bit of `old` changed, then `old` with a few bits changed at random below 2^32, then anything.
fn patterns(old: u64) -> impl Iterator<Item = u64> {
    let mut random = Random(0x0ff5_4007_0000_0001 ^ old);
    let few = core::iter::repeat_with(move || random.next() & random.next() & random.next());
    let mut random = Random(0x1234_5678_9abc_def1);
    let any = core::iter::repeat_with(move || random.next());
    (0..64)
        .map(move |bit| old ^ 1 << bit)
        .chain(few.take(RANDOM).map(move |bits| old ^ bits & 0xffff_ffff))
        .chain(any.take(RANDOM))
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    cr0(&mut checks);
    cr3(&mut checks);
    cr4(&mut checks);
    cr8(&mut checks);
    debug_registers(&mut checks);
    space::enter(info);
    xcr0(&mut checks);
    checks.finish()
}

fn cr0(checks: &mut Checks) {
    const PE: u64 = 1 << 0;
    const NW: u64 = 1 << 29;
    const CD: u64 = 1 << 30;
    const PG: u64 = 1 << 31;
    /// Bits that do what they say in any CPU: MP, EM, TS, NE, WP, AM, NW, CD. ET is fixed, others are reserved.
    const FREE: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 16 | 1 << 18 | NW | CD;
    let old = read_register!("cr0");
    for value in patterns(old) {
        let (trap, between) = try_register!("cr0", old, value);
        let illegal =
            value >> 32 != 0 || value & PE == 0 || value & PG == 0 || value & (CD | NW) == NW;
        let what = format_args!("CR0 {value:#x}");
        if illegal {
            checks.trapped(what, trap, GP, 0);
        } else if value & !(FREE | PE | PG | 1 << 4) == 0 {
            checks.quiet(what, trap);
            checks.equal(what, between & FREE, value & FREE);
        } else if trap.is_some() {
            checks.trapped(what, trap, GP, 0);
        }
        checks.equal(
            format_args!("CR0 after {value:#x}"),
            read_register!("cr0"),
            old,
        );
    }
    for value in 0..=u16::MAX {
        // SAFETY: LMSW changes MP, EM and TS only; the old value goes back.
        let trap = unsafe {
            probe!("lmsw {value:x}", "clts", "mov cr0, {old}";
                value = in(reg) value, old = in(reg) old)
        };
        checks.quiet(format_args!("LMSW {value:#x}"), trap);
    }
    checks.equal(format_args!("CR0 after LMSW"), read_register!("cr0"), old);
}

fn cr3(checks: &mut Checks) {
    let old = read_register!("cr3");
    let physical_bits = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    for bit in (0..12).chain(physical_bits..64) {
        let value = old ^ 1 << bit;
        let (trap, _) = try_register!("cr3", old, value);
        let what = format_args!("CR3 {value:#x}");
        if bit < 12 {
            checks.quiet(what, trap);
        } else {
            checks.trapped(what, trap, GP, 0);
        }
        checks.equal(
            format_args!("CR3 after {value:#x}"),
            read_register!("cr3"),
            old,
        );
    }
}

fn cr4(checks: &mut Checks) {
    const PAE: u64 = 1 << 5;
    /// LA57, VMXE, SMXE: never for a guest.
    const NEVER: u64 = 1 << 12 | 1 << 13 | 1 << 14;
    /// No CPU has these yet.
    const RESERVED: u64 = !0 << 33 | 1 << 15 | 1 << 19 | 1 << 26 | 1 << 30 | 1 << 31;
    /// PVI, VME, TSD, DE, PSE, PGE, OSFXSR, OSXMMEXCPT: in every CPU with VMX.
    const FREE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7 | 1 << 9 | 1 << 10;
    let old = read_register!("cr4");
    for value in patterns(old) {
        let (trap, between) = try_register!("cr4", old, value);
        let what = format_args!("CR4 {value:#x}");
        if value & PAE == 0 || value & (NEVER | RESERVED) != 0 {
            checks.trapped(what, trap, GP, 0);
        } else if (value ^ old) & !FREE == 0 || trap.is_none() {
            checks.quiet(what, trap);
            checks.equal(what, between, value);
        } else {
            checks.trapped(what, trap, GP, 0);
        }
        checks.equal(
            format_args!("CR4 after {value:#x}"),
            read_register!("cr4"),
            old,
        );
    }
}

fn cr8(checks: &mut Checks) {
    let old = read_register!("cr8");
    for value in (0..64).map(|bit| 1 << bit).chain(0..32) {
        let (trap, between) = try_register!("cr8", old, value);
        let what = format_args!("CR8 {value:#x}");
        if value < 16 {
            checks.quiet(what, trap);
            checks.equal(what, between, value);
        } else {
            checks.trapped(what, trap, GP, 0);
        }
    }
    checks.equal(format_args!("CR8 afterwards"), read_register!("cr8"), old);
}

fn debug_registers(checks: &mut Checks) {
    let (dr6, dr7) = (read_register!("dr6"), read_register!("dr7"));
    for bit in 32..64 {
        let (trap, _) = try_register!("dr6", dr6, dr6 | 1 << bit);
        checks.trapped(format_args!("DR6 bit {bit}"), trap, GP, 0);
        let (trap, _) = try_register!("dr7", dr7, dr7 | 1 << bit);
        checks.trapped(format_args!("DR7 bit {bit}"), trap, GP, 0);
    }
}

#[unsafe(naked)]
extern "C" fn user_xsetbv() {
    naked_asm!("xsetbv", "int3")
}

fn xsetbv(index: u32, value: u64) -> Option<trap::Trap> {
    // SAFETY: no code of this program uses the state components that come and go, and x87 and SSE, which it may
    // use, are on again before it does.
    unsafe {
        probe!("xsetbv"; in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
    }
}

fn xcr0(checks: &mut Checks) {
    const OSXSAVE: u64 = 1 << 18;
    if !cpu::has_ecx1(26) {
        checks.trapped(format_args!("XSETBV"), xsetbv(0, 1), UD, 0);
        return;
    }
    let cr4 = read_register!("cr4");
    // SAFETY: only permits XSETBV and its kin.
    unsafe { asm!("mov cr4, {}", in(reg) cr4 & !OSXSAVE) };
    checks.trapped(format_args!("XSETBV without OSXSAVE"), xsetbv(0, 1), UD, 0);
    // SAFETY: as above.
    unsafe { asm!("mov cr4, {}", in(reg) cr4 | OSXSAVE) };
    checks.that(
        cpu::has_ecx1(27),
        format_args!("CPUID does not show OSXSAVE"),
    );

    let leaf = cpu::cpuid(0xd, 0);
    let offered = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    let get = || -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: OSXSAVE is set.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
        u64::from(high) << 32 | u64::from(low)
    };
    let old = get();
    for value in patterns(old).chain(0..0x400) {
        let (low, high): (u32, u32);
        // SAFETY: as in `xsetbv`; the old value goes back at once.
        let trap = unsafe {
            probe!("xsetbv", "xgetbv", "mov r8d, eax", "mov r9d, edx",
                "mov eax, r10d", "mov edx, r11d", "xsetbv";
                in("ecx") 0,
                inout("eax") value as u32 => _, inout("edx") (value >> 32) as u32 => _,
                out("r8d") low, out("r9d") high,
                in("r10d") old as u32, in("r11d") (old >> 32) as u32)
        };
        let what = format_args!("XCR0 {value:#x}");
        let avx512 = value >> 5 & 7;
        let illegal = value & !offered != 0
            || value & 1 == 0
            || value & 6 == 4
            || (avx512 != 0 && (avx512 != 7 || value & 6 != 6));
        if illegal {
            checks.trapped(what, trap, GP, 0);
        } else {
            checks.quiet(what, trap);
            checks.equal(what, u64::from(high) << 32 | u64::from(low), value);
        }
        checks.equal(format_args!("XCR0 after {value:#x}"), get(), old);
    }
    for index in [1, 2, 0x8000_0000, u32::MAX] {
        checks.trapped(format_args!("XSETBV {index:#x}"), xsetbv(index, old), GP, 0);
    }
    // SAFETY: an exception is expected; otherwise INT3 ends it.
    let trap = unsafe { probe_user!(user_xsetbv; in("ecx") 0, in("eax") old as u32, in("edx") 0) };
    checks.trapped(format_args!("XSETBV at CPL 3"), trap, GP, 0);
}
