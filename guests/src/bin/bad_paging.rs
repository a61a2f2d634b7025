//! Switches paging off, whether guests may or not. To be stopped where they may not; else it ends well from 32-bit mode
//! without paging, by a call.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guest::abi::{CPUID_MAY_LEAVE_PAGING, CPUID_VERSION, Call};
use offshoot_guests::{SURVIVED, cpu};

offshoot_guest::entry!(main);

/// A code segment for 32-bit mode, at selector 8.
static GDT: [u64; 2] = [0, 0x00cf_9b00_0000_ffff];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn main(_: &StartInfo) -> u64 {
    let may = cpu::cpuid(CPUID_VERSION, 0).ebx & CPUID_MAY_LEAVE_PAGING != 0;
    let status = if may { 0 } else { SURVIVED };
    let gdt = Pointer {
        limit: size_of_val(&GDT) as u16 - 1,
        base: &raw const GDT as u64,
    };
    // SAFETY: the code has the same address with and without paging, and does not come back.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push 8",
            "lea rax, [rip + 2f]",
            "push rax",
            "retfq",
            ".code32",
            "2:",
            "mov eax, cr0",
            "and eax, 0x7fffffff",
            "mov cr0, eax",
            "mov eax, {exit}",
            "vmcall",
            "ud2",
            ".code64",
            gdt = in(reg) &raw const gdt,
            exit = const Call::Exit as u64,
            in("rdi") status,
            options(noreturn),
        )
    }
}
