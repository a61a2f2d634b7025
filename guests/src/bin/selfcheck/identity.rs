//! What the CPU says it is: CPUID, MSRs, ports, the time.

use crate::storm::Heap;
use offshoot_guest::abi::{CPUID_BASE, CPUID_VENDOR, CPUID_VERSION, VERSION};
use offshoot_guest::{StartInfo, call, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

pub fn check(checks: &mut Checks, _: &StartInfo, _: &mut Heap) {
    hypervisor_leaves(checks);
    unknown_msrs(checks);
    unknown_ports(checks);
    time(checks);
}

fn hypervisor_leaves(checks: &mut Checks) {
    checks.that(
        cpu::has_ecx1(31),
        format_args!("no hypervisor bit in CPUID"),
    );
    checks.that(!cpu::has_ecx1(5), format_args!("CPUID offers VMX"));
    let base = cpu::cpuid(CPUID_BASE, 0);
    let words = [base.ebx, base.ecx, base.edx];
    for (word, bytes) in words.into_iter().zip(CPUID_VENDOR.as_chunks::<4>().0) {
        let expected = u32::from_le_bytes(*bytes);
        checks.equal(format_args!("vendor"), word.into(), expected.into());
    }
    checks.that(
        base.eax >= CPUID_VERSION && base.eax < CPUID_BASE + 0x100,
        format_args!("highest hypervisor leaf {:#x}", base.eax),
    );
    let version = cpu::cpuid(CPUID_VERSION, 0).eax;
    checks.equal(format_args!("version"), version.into(), VERSION.into());
    // OSXSAVE is the guest's own CR4 bit, not the host's.
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) cr4) };
    checks.equal(
        format_args!("OSXSAVE in CPUID"),
        cpu::has_ecx1(27).into(),
        cr4 >> 18 & 1,
    );
    checks.equal(format_args!("CR4.VMXE"), cr4 >> 13 & 1, 0);
}

fn unknown_msrs(checks: &mut Checks) {
    for msr in [
        0x1fff_u32,
        0x2000,
        0x4b56_4d00,
        0xc000_1fff,
        0xc000_2000,
        u32::MAX,
    ] {
        // SAFETY: an exception is expected.
        unsafe {
            let read = probe!("rdmsr"; in("ecx") msr, out("eax") _, out("edx") _);
            checks.trapped(format_args!("RDMSR {msr:#x}"), read, trap::GP, 0);
            let write = probe!("wrmsr"; in("ecx") msr, in("eax") 0, in("edx") 0);
            checks.trapped(format_args!("WRMSR {msr:#x}"), write, trap::GP, 0);
        }
    }
}

fn unknown_ports(checks: &mut Checks) {
    for port in [0x80, 0xcf8, 0x1234, 0xfffc] {
        checks.equal(format_args!("byte {port:#x}"), cpu::inb(port).into(), 0xff);
        checks.equal(
            format_args!("word {port:#x}"),
            cpu::inw(port).into(),
            0xffff,
        );
        let long = cpu::inl(port);
        checks.equal(format_args!("long {port:#x}"), long.into(), 0xffff_ffff);
    }
}

fn time(checks: &mut Checks) {
    let mut last = cpu::rdtsc();
    for _ in 0..500 {
        call::nop();
        let now = cpu::rdtsc();
        checks.that(
            now > last,
            format_args!("the TSC went from {last} to {now}"),
        );
        last = now;
    }
}
