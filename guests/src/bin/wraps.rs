//! Leaves IA-32e mode for 32-bit paging, and executes CPUID at the last two bytes below 4 GiB in a code segment whose L is
//! set: there L means nothing, and RIP goes on at 0, where the guest ends with status 0.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guest::abi::Call;
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

/// 8: 32-bit code. 16: code with L and D. 24: data.
static GDT: [u64; 4] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00ef_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Present, writable, used, 4 MiB.
const LARGE: u32 = 0xe3;
/// CPUID, at the end of the 4 MiB that are mapped below 4 GiB.
const CPUID: u16 = 0xa20f;
const TOP: u64 = 16 << 20;
const AT: u64 = TOP + (4 << 20) - 2;

/// At 0: `mov eax, Exit; xor edi, edi; vmcall`.
const EXIT: [u8; 10] = [
    0xb8,
    Call::Exit as u8,
    0,
    0,
    0,
    0x31,
    0xff,
    0x0f,
    0x01,
    0xc1,
];

fn main(info: &StartInfo) -> u64 {
    if info.memory < TOP + (4 << 20) {
        return SURVIVED;
    }
    space::enter(info);
    let gdt = Pointer {
        limit: size_of_val(&GDT) as u16 - 1,
        base: &raw const GDT as u64,
    };
    let directory = info.heap.next_multiple_of(4096) as *mut u32;
    // SAFETY: the heap is ours; so is what is below the image, where the tables of `space` lead, and what is above its stack
    // need not stay: nothing comes back from here.
    unsafe {
        for entry in 0..16 {
            directory.add(entry).write((entry as u32) << 22 | LARGE);
        }
        directory.add(1023).write(TOP as u32 | LARGE);
        (AT as *mut u16).write_volatile(CPUID);
        for (at, byte) in (0_u64..).zip(EXIT) {
            asm!("mov [{}], {}", in(reg) at, in(reg_byte) byte, options(nostack));
        }
        asm!(
            "lgdt [{gdt}]",
            "push 8",
            "lea rax, [rip + 2f]",
            "push rax",
            "retfq",
            ".code32",
            "2:",
            "mov eax, 24",
            "mov ds, eax",
            "mov es, eax",
            "mov ss, eax",
            // Paging off, and with it IA-32e mode.
            "mov eax, cr0",
            "and eax, 0x7fffffff",
            "mov cr0, eax",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "and eax, ~0x100",
            "wrmsr",
            // PSE without PAE.
            "mov eax, cr4",
            "and eax, ~0x20",
            "or eax, 0x10",
            "mov cr4, eax",
            "mov cr3, esi",
            "mov eax, cr0",
            "or eax, 0x80000000",
            "mov cr0, eax",
            "push 16",
            "push 0xfffffffe",
            "retf",
            ".code64",
            gdt = in(reg) &raw const gdt,
            in("rsi") directory,
            options(noreturn),
        )
    }
}
