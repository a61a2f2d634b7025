//! The call that freezes, with all general and vector registers looked at right before and right after it.

use core::arch::naked_asm;
use offshoot_guest::abi::Call;
use offshoot_guests::check::Checks;

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15",
];
const RAX: usize = 0;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;
const MESSAGE: u64 = 16;

/// The registers around the call.
#[repr(C, align(4096))]
pub struct Around {
    vectors_before: [u8; 1024],
    vectors_after: [u8; 1024],
    given: [u64; 16],
    found: [u64; 16],
    message: [u8; MESSAGE as usize],
}

impl Around {
    /// In the page at `heap`, which nobody else uses.
    pub fn at(heap: u64) -> &'static mut Self {
        // SAFETY: zeroed memory of our own, aligned to a page.
        unsafe { &mut *(heap as *mut Self) }
    }

    /// Checks that nothing but the result has changed over the call.
    pub fn check(&self, checks: &mut Checks, told: u64) {
        checks.equal(format_args!("length of the message"), told, MESSAGE);
        for (register, name) in NAMES.iter().enumerate() {
            if register != RAX && register != RSP {
                let (found, given) = (self.found[register], self.given[register]);
                checks.equal(format_args!("{name}"), found, given);
            }
        }
        let pairs = self.vectors_before.iter().zip(&self.vectors_after);
        let different = pairs.clone().filter(|(before, after)| before != after);
        let first = pairs.clone().position(|(before, after)| before != after);
        checks.equal(
            format_args!("bytes of vector state that differ, first {first:?}"),
            different.count() as u64,
            0,
        );
    }
}

/// Freezes. Returns in every fork, with the length of the message.
pub fn freeze(around: &mut Around, vectors: bool) -> u64 {
    for (register, slot) in around.given.iter_mut().enumerate() {
        *slot = (register as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    around.given[RAX] = Call::Freeze as u64;
    around.given[RDI] = around.message.as_mut_ptr() as u64;
    around.given[RSI] = MESSAGE;
    // SAFETY: all registers that a function must keep are kept, and the areas are large enough and aligned.
    unsafe {
        if vectors {
            with_xsave(around);
        } else {
            with_fxsave(around);
        }
    }
    around.found[RAX]
}

macro_rules! around {
    ($name:ident, $save:literal) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(around: *mut Around) {
            naked_asm!(
                "push rbx",
                "push rbp",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "push rdi",
                "mov eax, -1",
                "mov edx, -1",
                concat!($save, " [rdi]"),
                "add rdi, 2048",
                "mov rax, [rdi]",
                "mov rcx, [rdi + 8]",
                "mov rdx, [rdi + 2 * 8]",
                "mov rbx, [rdi + 3 * 8]",
                "mov rbp, [rdi + 5 * 8]",
                "mov rsi, [rdi + 6 * 8]",
                "mov r8, [rdi + 8 * 8]",
                "mov r9, [rdi + 9 * 8]",
                "mov r10, [rdi + 10 * 8]",
                "mov r11, [rdi + 11 * 8]",
                "mov r12, [rdi + 12 * 8]",
                "mov r13, [rdi + 13 * 8]",
                "mov r14, [rdi + 14 * 8]",
                "mov r15, [rdi + 15 * 8]",
                "mov rdi, [rdi + 7 * 8]",
                "vmcall",
                "push rdi",
                "mov rdi, [rsp + 8]",
                "add rdi, 2048 + 128",
                "pop qword ptr [rdi + 7 * 8]",
                "mov [rdi], rax",
                "mov [rdi + 8], rcx",
                "mov [rdi + 2 * 8], rdx",
                "mov [rdi + 3 * 8], rbx",
                "mov [rdi + 5 * 8], rbp",
                "mov [rdi + 6 * 8], rsi",
                "mov [rdi + 8 * 8], r8",
                "mov [rdi + 9 * 8], r9",
                "mov [rdi + 10 * 8], r10",
                "mov [rdi + 11 * 8], r11",
                "mov [rdi + 12 * 8], r12",
                "mov [rdi + 13 * 8], r13",
                "mov [rdi + 14 * 8], r14",
                "mov [rdi + 15 * 8], r15",
                "mov eax, -1",
                "mov edx, -1",
                "pop rdi",
                concat!($save, " [rdi + 1024]"),
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbp",
                "pop rbx",
                "ret",
            )
        }
    };
}

around!(with_xsave, "xsave64");
around!(with_fxsave, "fxsave64");
