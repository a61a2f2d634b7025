//! Reads every MSR of the two architectural ranges and writes wild values to it. It either works or raises #GP(0),
//! and everything is as before once the old value is back.
#![no_std]
#![no_main]

use offshoot_guest::trap::{GP, Trap};
use offshoot_guest::{StartInfo, call, println, probe, trap};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

const TSC: u32 = 0x10;
const BIOS_SIGN_ID: u32 = 0x8b;
const SYSENTER_CS: u32 = 0x174;
const EFER: u32 = 0xc000_0080;
const FMASK: u32 = 0xc000_0084;
const TSC_AUX: u32 = 0xc000_0103;
/// Registers that hold an address, so that a non-canonical value is #GP: SYSENTER_ESP and EIP, LSTAR, CSTAR, FS, GS
/// and kernel GS base.
const ADDRESSES: [u32; 7] = [
    0x175,
    0x176,
    0xc000_0082,
    0xc000_0083,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
];
/// None of them leaves EFER, the one register whose change could end this program, other than it was.
const VALUES: [u64; 9] = [
    u64::MAX,
    0,
    1,
    0x8000_0000_0000_0000,
    0x0000_8000_0000_0000,
    0xffff_7fff_ffff_ffff,
    0xffff_8000_0000_0000,
    0x0000_7fff_ffff_ffff,
    0x5a5a_5a5a_a5a5_a5a5,
];

fn read(msr: u32) -> Result<u64, Trap> {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing, and #GP is caught.
    let trap = unsafe { probe!("rdmsr"; in("ecx") msr, out("eax") low, out("edx") high) };
    trap.map_or(Ok(u64::from(high) << 32 | u64::from(low)), Err)
}

fn write(msr: u32, value: u64) -> Option<Trap> {
    // SAFETY: this program lives without any of these registers but EFER, see `VALUES`; #GP is caught.
    unsafe {
        probe!("wrmsr"; in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
    }
}

fn is_canonical(value: u64) -> bool {
    (value << 16) as i64 >> 16 == value as i64
}

fn main(_: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let mut readable = 0;
    for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
        let before = read(msr);
        match before {
            Ok(_) => readable += 1,
            Err(trap) => checks.trapped(format_args!("read {msr:#x}"), Some(trap), GP, 0),
        }
        for value in VALUES {
            let Some(trap) = write(msr, value) else {
                written(&mut checks, msr, value, before);
                continue;
            };
            checks.trapped(
                format_args!("write {value:#x} to {msr:#x}"),
                Some(trap),
                GP,
                0,
            );
        }
        if let Ok(value) = before
            && msr != TSC
        {
            checks.quiet(format_args!("restore {msr:#x}"), write(msr, value));
            let now = read(msr).unwrap_or(!value);
            checks.equal(format_args!("{msr:#x} afterwards"), now, value);
        }
    }
    // Outside both ranges.
    for msr in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, u32::MAX] {
        let trap = read(msr).err();
        checks.trapped(format_args!("read {msr:#x}"), trap, GP, 0);
        checks.trapped(format_args!("write {msr:#x}"), write(msr, 0), GP, 0);
    }
    println!("{readable} MSRs can be read");
    call::nop();
    checks.finish()
}

/// Checks what a write that raised nothing left behind.
fn written(checks: &mut Checks, msr: u32, value: u64, before: Result<u64, Trap>) {
    let Ok(before) = before else {
        checks.that(
            false,
            format_args!("{msr:#x} took {value:#x} but cannot be read"),
        );
        return;
    };
    if ADDRESSES.contains(&msr) {
        checks.that(
            is_canonical(value),
            format_args!("{msr:#x} took the non-canonical {value:#x}"),
        );
    }
    match msr {
        TSC | BIOS_SIGN_ID => {}
        // Of 32 bits; CPUs differ in whether they refuse or ignore others.
        SYSENTER_CS | FMASK | TSC_AUX => {
            let now = read(msr).unwrap_or(!value) as u32;
            let what = format_args!("{msr:#x} after {value:#x}");
            checks.equal(what, now.into(), (value as u32).into());
        }
        EFER => checks.equal(format_args!("EFER after {value:#x}"), value | 0x400, before),
        _ => {
            let now = read(msr).unwrap_or(!value);
            checks.equal(format_args!("{msr:#x} after {value:#x}"), now, value);
        }
    }
}
