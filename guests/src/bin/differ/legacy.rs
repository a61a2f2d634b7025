//! Out of IA-32e mode, into protected, virtual-8086 and real mode, and back by an exception.
//!
//! The code here runs at addresses below 4 GiB that all tables, and none, translate to themselves.

use crate::block::{
    BLOCK, IN_CR0, IN_CR3, IN_CR4, IN_DS, IN_EFER, IN_ES, IN_FS, IN_GS, IN_IDT, IN_REAL,
    IN_REGISTERS, IN_STACK, OUT_CR2, OUT_CS, OUT_DR6, OUT_ERROR, OUT_REGISTERS, OUT_RFLAGS,
    OUT_RIP, OUT_RSP, OUT_SS, OUT_VECTOR, OWN_CR0, OWN_CR3, OWN_CR4, OWN_EFER, OWN_RSP, OWN_STACK,
    POINTER,
};
use crate::descriptors::{CODE16, CODE32, CODE64, DATA, TASK32};
use crate::layout::{REAL, REAL_REGISTERS};
use crate::long::{STUB_SIZE, VECTORS, WITH_ERROR_CODE};
use core::arch::{global_asm, naked_asm};

unsafe extern "C" {
    fn differ_protected();
    /// Handlers for 32-bit gates, [`STUB_SIZE`] bytes each.
    static differ_stubs32: u8;
    /// What goes to [`REAL`].
    static differ_real: [u8; 0];
    static differ_real_end: [u8; 0];
}

/// The address of the handler of `vector` in protected mode.
pub fn stub(vector: usize) -> u64 {
    (&raw const differ_stubs32) as u64 + (vector * STUB_SIZE) as u64
}

/// The code of real mode. The handlers stand at its start, [`REAL_STUB_SIZE`] bytes each.
pub fn real_code() -> (*const u8, usize) {
    let start = (&raw const differ_real).cast::<u8>();
    let end = &raw const differ_real_end;
    (start, end as usize - start as usize)
}

pub const REAL_STUB_SIZE: usize = 8;
/// RFLAGS.VM.
const VM: u32 = 1 << 17;

/// Goes to what the block says, and comes back with the exception that was raised there. GDT, IDT and TR are those of
/// 32-bit code then.
///
/// # Safety
/// As for [`crate::long::enter`], with IRETD, whose frame must be at the stack that the block names. The 32-bit TSS must
/// not be busy.
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
        "push {code32}",
        "lea rax, [rip + {protected}]",
        "push rax",
        "retfq",
        block = sym BLOCK,
        own_rsp = const OWN_RSP,
        code32 = const CODE32,
        protected = sym differ_protected,
    )
}

global_asm!(
    ".text",
    ".code32",
    ".global differ_protected",
    "differ_protected:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov esp, [{block} + {own_stack}]",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "xor edx, edx",
    "mov eax, [{block} + {efer}]",
    "wrmsr",
    "mov eax, [{block} + {cr4}]",
    "mov cr4, eax",
    "mov eax, [{block} + {cr3}]",
    "mov cr3, eax",
    "lidt [{block} + {idt} + {pointer}]",
    "mov eax, {task32}",
    "ltr ax",
    "mov eax, [{block} + {cr0}]",
    "mov cr0, eax",
    "jmp 2f",
    "2:",
    "mov eax, [{block} + {es}]",
    "mov es, eax",
    "mov eax, [{block} + {fs}]",
    "mov fs, eax",
    "mov eax, [{block} + {gs}]",
    "mov gs, eax",
    "cmp dword ptr [{block} + {real}], 0",
    "jne 3f",
    "lss esp, [{block} + {stack}]",
    "mov eax, [{block} + {ds}]",
    "mov ds, eax",
    // This code can be read.
    "mov eax, cs:[{block} + {regs} + 0]",
    "mov ecx, cs:[{block} + {regs} + 8]",
    "mov edx, cs:[{block} + {regs} + 16]",
    "mov ebx, cs:[{block} + {regs} + 24]",
    "mov ebp, cs:[{block} + {regs} + 40]",
    "mov esi, cs:[{block} + {regs} + 48]",
    "mov edi, cs:[{block} + {regs} + 56]",
    "iretd",
    "3:",
    "lss esp, [{block} + {stack}]",
    "mov eax, [{block} + {ds}]",
    "mov ds, eax",
    ".byte 0xea",
    ".long differ_real_entry - differ_real",
    ".word {code16}",

    // One stub for each vector.
    ".balign {stub_size}",
    ".global differ_stubs32",
    "differ_stubs32:",
    ".set differ_vector32, 0",
    ".rept {vectors}",
    ".balign {stub_size}",
    ".if (({with_error_code} >> differ_vector32) & 1) == 0",
    "push 0",
    ".endif",
    ".byte 0x6a, differ_vector32", // push imm8
    "jmp differ_common32",
    ".set differ_vector32, differ_vector32 + 1",
    ".endr",
    "differ_common32:",
    "pushad",
    "mov eax, {data}",
    "mov ds, eax",
    "call differ_pop_registers",
    "pop dword ptr [{block} + {vector}]",
    "pop dword ptr [{block} + {error}]",
    "pop dword ptr [{block} + {rip}]",
    "pop dword ptr [{block} + {out_cs}]",
    "pop dword ptr [{block} + {rflags}]",
    "test dword ptr [{block} + {rflags}], {vm}",
    "jnz 4f",
    "test dword ptr [{block} + {out_cs}], 3",
    "jz differ_back",
    "4:",
    "pop dword ptr [{block} + {rsp}]",
    "pop dword ptr [{block} + {ss}]",

    "differ_back:",
    "mov eax, cr2",
    "mov [{block} + {cr2}], eax",
    "mov eax, dr6",
    "mov [{block} + {dr6}], eax",
    "mov eax, {data}",
    "mov es, eax",
    "mov ss, eax",
    "mov esp, [{block} + {own_stack}]",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov eax, [{block} + {own_cr4}]",
    "mov cr4, eax",
    "mov eax, [{block} + {own_cr3}]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "xor edx, edx",
    "mov eax, [{block} + {own_efer}]",
    "wrmsr",
    "mov eax, [{block} + {own_cr0}]",
    "mov cr0, eax",
    "push {code64}",
    "mov eax, offset differ_long",
    "push eax",
    "retf",

    // What PUSHAD left, below the return address.
    "differ_pop_registers:",
    "pop eax",
    "pop dword ptr [{block} + {out_regs} + 56]",
    "pop dword ptr [{block} + {out_regs} + 48]",
    "pop dword ptr [{block} + {out_regs} + 40]",
    "pop dword ptr [{block} + {rsp}]",
    "pop dword ptr [{block} + {out_regs} + 24]",
    "pop dword ptr [{block} + {out_regs} + 16]",
    "pop dword ptr [{block} + {out_regs} + 8]",
    "pop dword ptr [{block} + {out_regs} + 0]",
    "jmp eax",

    ".code64",
    "differ_long:",
    "mov eax, {data}",
    "mov ss, eax",
    "mov rsp, [rip + {block} + {own_rsp}]",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "push 2",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",

    // Real mode. This is copied to where its segment begins.
    ".code16",
    ".balign 16",
    "differ_real:",
    ".global differ_real",
    ".set differ_vector16, 0",
    ".rept {vectors}",
    ".balign {real_stub_size}",
    ".byte 0x6a, differ_vector16", // push imm8
    ".byte 0xe9", // jmp rel16
    ".word differ_common16 - . - 2",
    ".set differ_vector16, differ_vector16 + 1",
    ".endr",
    // From 16-bit protected mode.
    "differ_real_entry:",
    "mov eax, cr0",
    "and al, 0xfe",
    "mov cr0, eax",
    ".byte 0xea",
    ".word 5f - differ_real, {real_base} >> 4",
    "5:",
    "mov eax, dword ptr cs:[{real_regs} + 0]",
    "mov ecx, dword ptr cs:[{real_regs} + 8]",
    "mov edx, dword ptr cs:[{real_regs} + 16]",
    "mov ebx, dword ptr cs:[{real_regs} + 24]",
    "mov ebp, dword ptr cs:[{real_regs} + 40]",
    "mov esi, dword ptr cs:[{real_regs} + 48]",
    "mov edi, dword ptr cs:[{real_regs} + 56]",
    ".byte 0x66, 0xcf", // iretd
    "differ_common16:",
    ".byte 0x66, 0x60", // pushad
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long differ_common_real",
    ".word {code32}",
    ".global differ_real_end",
    "differ_real_end:",
    ".code32",
    "differ_common_real:",
    "mov eax, {data}",
    "mov ds, eax",
    "call differ_pop_registers",
    "pop word ptr [{block} + {vector}]",
    "pop word ptr [{block} + {rip}]",
    "pop word ptr [{block} + {out_cs}]",
    "pop word ptr [{block} + {rflags}]",
    "jmp differ_back",
    ".code64",
    block = sym BLOCK,
    data = const DATA,
    code16 = const CODE16,
    code32 = const CODE32,
    code64 = const CODE64,
    task32 = const TASK32,
    own_rsp = const OWN_RSP,
    own_stack = const OWN_STACK,
    own_cr0 = const OWN_CR0,
    own_cr3 = const OWN_CR3,
    own_cr4 = const OWN_CR4,
    own_efer = const OWN_EFER,
    efer = const IN_EFER,
    cr0 = const IN_CR0,
    cr3 = const IN_CR3,
    cr4 = const IN_CR4,
    idt = const IN_IDT,
    pointer = const POINTER,
    ds = const IN_DS,
    es = const IN_ES,
    fs = const IN_FS,
    gs = const IN_GS,
    stack = const IN_STACK,
    real = const IN_REAL,
    regs = const IN_REGISTERS,
    real_regs = const REAL_REGISTERS,
    real_base = const REAL,
    out_regs = const OUT_REGISTERS,
    vector = const OUT_VECTOR,
    error = const OUT_ERROR,
    rip = const OUT_RIP,
    out_cs = const OUT_CS,
    rflags = const OUT_RFLAGS,
    rsp = const OUT_RSP,
    ss = const OUT_SS,
    cr2 = const OUT_CR2,
    dr6 = const OUT_DR6,
    vm = const VM,
    stub_size = const STUB_SIZE,
    vectors = const VECTORS,
    with_error_code = const WITH_ERROR_CODE,
    real_stub_size = const REAL_STUB_SIZE,
);
