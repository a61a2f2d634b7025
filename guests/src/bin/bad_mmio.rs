//! Accesses to device memory that cannot be carried out. Which one, its memory says: it has so many pages more than
//! 16 MiB. Wants the option `testdev`.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, exit, println, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let device = info.test_device;
    let which = (info.memory - (16 << 20)) / 4096;
    println!("case {which}");
    // SAFETY: the guest is stopped by every one of these.
    unsafe {
        match which {
            // 16 bytes.
            0 => asm!("movups xmm0, [{}]", in(reg) device, out("xmm0") _),
            // An exception with its stack there.
            1 => {
                trap::set_stack(device + 4096);
                asm!("ud2");
            }
            // Page tables there.
            2 => asm!("mov cr3, {}", in(reg) device),
            // Code there.
            3 => asm!("call {}", in(reg) device),
            // A stack there.
            4 => asm!("mov rsp, {}", "push rax", "call {}", in(reg) device + 64, sym gone),
            // On and on, until there is no device any more.
            5 => asm!("rep stosb", inout("rcx") u64::MAX => _, inout("rdi") device => _),
            // A read of the device that ends behind it.
            6 => asm!("mov rax, [{}]", in(reg) device + 3 * 4096 - 4, out("rax") _),
            // 8 bytes at once, but with two registers.
            7 => asm!("lock cmpxchg8b [{}]", in(reg) device, in("ecx") 0, inout("eax") 0 => _,
                inout("edx") 0 => _),
            // A jump through it.
            8 => asm!("jmp [{}]", in(reg) device),
            // An interrupt table there.
            9 => {
                trap::load_idt(device, 32);
                asm!("ud2");
            }
            // Segment descriptors there.
            10 => {
                asm!("sub rsp, 16", "mov word ptr [rsp], 0xfff", "mov [rsp + 2], {0}", "lgdt [rsp]",
                "mov {0:e}, 8", "mov ds, {0:e}", inout(reg) device => _)
            }
            _ => {}
        }
    }
    SURVIVED
}

extern "C" fn gone() -> ! {
    exit(SURVIVED)
}
