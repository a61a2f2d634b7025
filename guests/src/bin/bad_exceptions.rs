//! Exceptions without end. First many that are handled; then a data breakpoint on the stack to which the processor
//! writes when it delivers the exception for that very breakpoint. To be stopped when its time is over.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::{SURVIVED, probe_user, space};

offshoot_guest::entry!(main);

/// CR0.AM: alignment checks at CPL 3 where RFLAGS.AC is set.
const CR0_AM: u64 = 1 << 18;

#[unsafe(naked)]
extern "C" fn user_misaligned() {
    naked_asm!(
        "pushfq",
        "or dword ptr [rsp], 1 << 18",
        "popfq",
        "mov rax, [rsp - 17]",
        "int3",
    )
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let mut checks = Checks::default();
    // SAFETY: CPL 0 has no alignment checks.
    unsafe {
        asm!("mov {0}, cr0", "or {0}, {1}", "mov cr0, {0}", out(reg) _, const CR0_AM);
    }
    for _ in 0..1000 {
        // SAFETY: the exception, or else INT3, comes back.
        let trap = unsafe { probe_user!(user_misaligned; out("rax") _) };
        checks.trapped(format_args!("misaligned access"), trap, trap::AC, 0);
    }
    if checks.failed() != 0 {
        return checks.finish();
    }
    println!("now a breakpoint on its own handling");
    // The topmost word of the frame. DR7: breakpoint 0, on writes, of eight bytes.
    // SAFETY: this is the end of the guest, which is what it is for.
    unsafe {
        asm!(
            "mov dr0, {watched}",
            "mov dr7, {enable}",
            "mov [{watched}], {watched}",
            "nop",
            watched = in(reg) trap::own_stack() - 8,
            enable = in(reg) 1_u64 << 1 | 0b1001 << 16 | 1 << 10,
        );
    }
    SURVIVED
}
