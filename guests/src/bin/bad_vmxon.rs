//! Tries every instruction of virtualization and others that its CPUID does not offer, at CPL 0 and 3. Each must
//! raise #UD.
#![no_std]
#![no_main]

use core::arch::naked_asm;
use offshoot_guest::{StartInfo, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::{cpu, probe_user, space};

offshoot_guest::entry!(main);

/// For memory operands.
static mut OPERAND: [u64; 64] = [0; 64];

/// Tries an instruction. The registers lead to harmless operands, should it be carried out.
macro_rules! undefined {
    ($checks:ident, $($instruction:literal),+ $(,)?) => {$(
        // SAFETY: an exception is expected, and `OPERAND` is used by nothing else.
        let trap = unsafe {
            probe!($instruction;
                inout("rax") 0_u64 => _, inout("rcx") 0_u64 => _, inout("rdx") 0_u64 => _,
                in("rdi") &raw mut OPERAND)
        };
        $checks.trapped(format_args!("{}", $instruction), trap, trap::UD, 0);
    )+};
}

#[unsafe(naked)]
extern "C" fn user_vmxoff() {
    naked_asm!("vmxoff", "int3")
}

#[unsafe(naked)]
extern "C" fn user_vmlaunch() {
    naked_asm!("vmlaunch", "int3")
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let mut checks = Checks::default();
    undefined!(
        checks,
        "vmxon [rdi]",
        "vmclear [rdi]",
        "vmptrld [rdi]",
        "vmptrst [rdi]",
        "vmread [rdi], rax",
        "vmread rdx, rax",
        "vmwrite rax, [rdi]",
        "vmwrite rax, rdx",
        "vmlaunch",
        "vmresume",
        "vmxoff",
        "invept rax, [rdi]",
        "invvpid rax, [rdi]",
        "vmfunc",
        ".byte 0x0f, 0x37", // GETSEC
        "rsm",
        "ud2",
    );
    // With VMXON refused above, CR4 must not show that VMX is on.
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) cr4) };
    checks.that(
        cr4 & 1 << 13 == 0,
        format_args!("CR4.VMXE is visible: {cr4:#x}"),
    );
    checks.that(!cpu::has_ecx1(5), format_args!("CPUID offers VMX"));

    if !cpu::has_ecx1(3) {
        undefined!(checks, "monitor", "mwait");
    }
    let has_xsaves = cpu::has_ecx1(26) && cpu::cpuid(0xd, 1).eax & (1 << 3) != 0;
    if !has_xsaves {
        undefined!(checks, "xsaves64 [rdi]", "xrstors64 [rdi]");
    }
    if !cpu::has_ebx7(10) {
        undefined!(checks, "invpcid rax, [rdi]");
    }

    // SAFETY: an exception is expected; otherwise INT3 ends it.
    unsafe {
        let trap = probe_user!(user_vmxoff);
        checks.trapped(format_args!("vmxoff at CPL 3"), trap, trap::UD, 0);
        let trap = probe_user!(user_vmlaunch);
        checks.trapped(format_args!("vmlaunch at CPL 3"), trap, trap::UD, 0);
    }
    checks.finish()
}
