//! Into 64-bit and compatibility mode, and back by an exception.

use crate::block::{
    BLOCK, IN_CS, IN_DS, IN_ES, IN_FS, IN_FS_BASE, IN_GS, IN_GS_BASE, IN_REGISTERS, IN_RFLAGS,
    IN_RIP, IN_SS, OUT_CR2, OUT_CS, OUT_DR6, OUT_ERROR, OUT_REGISTERS, OUT_RFLAGS, OUT_RIP,
    OUT_RSP, OUT_SS, OUT_VECTOR, OWN_ARMED, OWN_RSP,
};
use crate::descriptors::DATA;
use core::arch::naked_asm;
use offshoot_guest::{UNEXPECTED_TRAP, exit, println};

/// Which vectors push an error code: 8, 10 to 14, 17, 21, 29, 30.
pub const WITH_ERROR_CODE: u32 = 0x6022_7d00;
pub const VECTORS: usize = 32;
pub const STUB_SIZE: usize = 16;

/// Goes to what the block says, and comes back with the exception that was raised there.
///
/// # Safety
/// The block must describe a state that IRETQ accepts, in which the next exception finds the handlers of this module on
/// a stack of their own.
#[unsafe(naked)]
pub unsafe extern "C" fn enter() {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {block} + {own_rsp}], rsp",
        "mov qword ptr [rip + {block} + {armed}], 1",
        "mov eax, [rip + {block} + {ds}]",
        "mov ds, eax",
        "mov eax, [rip + {block} + {es}]",
        "mov es, eax",
        "mov eax, [rip + {block} + {fs}]",
        "mov fs, eax",
        "mov eax, [rip + {block} + {gs}]",
        "mov gs, eax",
        // A base that is not the descriptor's.
        "mov rax, [rip + {block} + {fs_base}]",
        "test rax, rax",
        "jz 2f",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0xc0000100",
        "wrmsr",
        "2:",
        "mov rax, [rip + {block} + {gs_base}]",
        "test rax, rax",
        "jz 2f",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0xc0000101",
        "wrmsr",
        "2:",
        "push qword ptr [rip + {block} + {ss}]",
        "push qword ptr [rip + {block} + {regs} + 32]",
        "push qword ptr [rip + {block} + {rflags}]",
        "push qword ptr [rip + {block} + {cs}]",
        "push qword ptr [rip + {block} + {rip}]",
        "mov rax, [rip + {block} + {regs} + 0]",
        "mov rcx, [rip + {block} + {regs} + 8]",
        "mov rdx, [rip + {block} + {regs} + 16]",
        "mov rbx, [rip + {block} + {regs} + 24]",
        "mov rbp, [rip + {block} + {regs} + 40]",
        "mov rsi, [rip + {block} + {regs} + 48]",
        "mov rdi, [rip + {block} + {regs} + 56]",
        "mov r8, [rip + {block} + {regs} + 64]",
        "mov r9, [rip + {block} + {regs} + 72]",
        "mov r10, [rip + {block} + {regs} + 80]",
        "mov r11, [rip + {block} + {regs} + 88]",
        "mov r12, [rip + {block} + {regs} + 96]",
        "mov r13, [rip + {block} + {regs} + 104]",
        "mov r14, [rip + {block} + {regs} + 112]",
        "mov r15, [rip + {block} + {regs} + 120]",
        "iretq",
        block = sym BLOCK,
        own_rsp = const OWN_RSP,
        armed = const OWN_ARMED,
        ds = const IN_DS,
        es = const IN_ES,
        fs = const IN_FS,
        gs = const IN_GS,
        fs_base = const IN_FS_BASE,
        gs_base = const IN_GS_BASE,
        ss = const IN_SS,
        regs = const IN_REGISTERS,
        rflags = const IN_RFLAGS,
        cs = const IN_CS,
        rip = const IN_RIP,
    )
}

/// One stub for each vector: makes the frame the same for all.
#[unsafe(naked)]
pub extern "C" fn stubs() {
    naked_asm!(
        ".set differ_vector, 0",
        ".rept {vectors}",
        ".balign {stub_size}",
        ".if (({with_error_code} >> differ_vector) & 1) == 0",
        "push 0",
        ".endif",
        ".byte 0x6a, differ_vector", // push imm8
        "jmp {common}",
        ".set differ_vector, differ_vector + 1",
        ".endr",
        vectors = const VECTORS,
        stub_size = const STUB_SIZE,
        with_error_code = const WITH_ERROR_CODE,
        common = sym common,
    )
}

#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "mov [rip + {block} + {regs} + 0], rax",
        "mov [rip + {block} + {regs} + 8], rcx",
        "mov [rip + {block} + {regs} + 16], rdx",
        "mov [rip + {block} + {regs} + 24], rbx",
        "mov [rip + {block} + {regs} + 40], rbp",
        "mov [rip + {block} + {regs} + 48], rsi",
        "mov [rip + {block} + {regs} + 56], rdi",
        "mov [rip + {block} + {regs} + 64], r8",
        "mov [rip + {block} + {regs} + 72], r9",
        "mov [rip + {block} + {regs} + 80], r10",
        "mov [rip + {block} + {regs} + 88], r11",
        "mov [rip + {block} + {regs} + 96], r12",
        "mov [rip + {block} + {regs} + 104], r13",
        "mov [rip + {block} + {regs} + 112], r14",
        "mov [rip + {block} + {regs} + 120], r15",
        "pop qword ptr [rip + {block} + {vector}]",
        "pop qword ptr [rip + {block} + {error}]",
        "pop qword ptr [rip + {block} + {rip}]",
        "pop qword ptr [rip + {block} + {cs}]",
        "pop qword ptr [rip + {block} + {rflags}]",
        "pop qword ptr [rip + {block} + {rsp}]",
        "pop qword ptr [rip + {block} + {ss}]",
        "mov rax, cr2",
        "mov [rip + {block} + {cr2}], rax",
        "mov rax, dr6",
        "mov [rip + {block} + {dr6}], rax",
        "mov eax, {data}",
        "mov ds, eax",
        "mov es, eax",
        "mov ss, eax",
        "xor eax, eax",
        "mov fs, eax",
        "mov gs, eax",
        "cld",
        "cmp qword ptr [rip + {block} + {armed}], 0",
        "je 2f",
        "mov qword ptr [rip + {block} + {armed}], 0",
        "mov rsp, [rip + {block} + {own_rsp}]",
        "push 2",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        "2:",
        "and rsp, -16",
        "call {unexpected}",
        "ud2",
        block = sym BLOCK,
        regs = const OUT_REGISTERS,
        vector = const OUT_VECTOR,
        error = const OUT_ERROR,
        rip = const OUT_RIP,
        cs = const OUT_CS,
        rflags = const OUT_RFLAGS,
        rsp = const OUT_RSP,
        ss = const OUT_SS,
        cr2 = const OUT_CR2,
        dr6 = const OUT_DR6,
        data = const DATA,
        armed = const OWN_ARMED,
        own_rsp = const OWN_RSP,
        unexpected = sym unexpected,
    )
}

extern "C" fn unexpected() -> ! {
    // SAFETY: the handler has filled it, and nothing else runs.
    let after = unsafe { (*BLOCK.0.get()).after };
    println!(
        "unexpected exception {} error {:#x} cr2 {:#x} at {:#x}",
        after.vector, after.error, after.cr2, after.rip
    );
    exit(UNEXPECTED_TRAP)
}
