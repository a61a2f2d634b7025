//! VM entry and exit: the one routine through which every guest runs.

use core::arch::naked_asm;

use super::super::fields::Field32;
use super::super::instruction_error::InstructionError;
use super::guard::before_entry;
use crate::counting::{counted_line, if_counting};
use crate::virt::cpu::{EntryArea, REGS, RSP, SELECTORS};

const HOST_MXCSR: u32 = 0x1f80;
static MXCSR: u32 = HOST_MXCSR;

/// Enters the guest of the current VMCS and returns the exit-reason field at its next exit, or [`FAILED_INVALID`](super::super::loaded::FAILED_INVALID) or
/// [`FAILED_VALID`](super::super::loaded::FAILED_VALID).
///
/// Nobody keeps note whether the VMCS is launched: VMRESUME says when it is not, which is once in a VMCS's life.
///
/// The host keeps its callee-saved registers on its stack and all other state in the VMCS. XMM registers are the
/// guest's until FXSAVE and again from FXRSTOR: compiled Rust uses them, but nothing wider.
///
/// # Safety
/// The current VMCS must be complete, its host RIP be [`guard::exit_point`](super::guard::exit_point), and `area` belong to its guest, whose state
/// above x87 and SSE must be in the CPU.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(area: *mut EntryArea) -> u64 {
    naked_asm!(
        "fxrstor64 [rdi]",
        // From `enter_with_selectors`, too. What comes before the guest uses none of the registers that are loaded now.
        ".global offshoot_x87_loaded",
        "offshoot_x87_loaded:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp [rdi + {rsp}], rsp",
        "je 2f",
        "call {before}",
        "2:",
        "mov rax, [rdi + {regs} + 0]",
        "mov rcx, [rdi + {regs} + 8]",
        "mov rdx, [rdi + {regs} + 16]",
        "mov rbx, [rdi + {regs} + 24]",
        "mov rbp, [rdi + {regs} + 40]",
        "mov rsi, [rdi + {regs} + 48]",
        "mov r8, [rdi + {regs} + 64]",
        "mov r9, [rdi + {regs} + 72]",
        "mov r10, [rdi + {regs} + 80]",
        "mov r11, [rdi + {regs} + 88]",
        "mov r12, [rdi + {regs} + 96]",
        "mov r13, [rdi + {regs} + 104]",
        "mov r14, [rdi + {regs} + 112]",
        "mov r15, [rdi + {regs} + 120]",
        "mov rdi, [rdi + {regs} + 56]",
        "vmresume",
        // No guest register was saved, none has changed.
        "jc 3f",
        "mov eax, {error_field}",
        counted_line!(0, "vmread rax, rax"),
        "cmp eax, {not_launched}",
        "jne 4f",
        "mov rdi, [rsp]",
        "mov rax, [rdi + {regs} + 0]",
        "mov rdi, [rdi + {regs} + 56]",
        "vmlaunch",
        "jc 3f",
        "4: mov eax, 1",
        "jmp 5f",
        "3: xor eax, eax",
        "5: bts rax, 32",
        "ldmxcsr [rip + {mxcsr}]",
        "pop rdi",
        "jmp 6f",
        // Every exit comes here, RSP as at the entry.
        ".balign 16",
        ".global offshoot_exit_point",
        "offshoot_exit_point:",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + {regs} + 0], rax",
        "mov [rdi + {regs} + 8], rcx",
        "mov [rdi + {regs} + 16], rdx",
        "mov [rdi + {regs} + 24], rbx",
        "mov [rdi + {regs} + 40], rbp",
        "mov [rdi + {regs} + 48], rsi",
        "mov [rdi + {regs} + 64], r8",
        "mov [rdi + {regs} + 72], r9",
        "mov [rdi + {regs} + 80], r10",
        "mov [rdi + {regs} + 88], r11",
        "mov [rdi + {regs} + 96], r12",
        "mov [rdi + {regs} + 104], r13",
        "mov [rdi + {regs} + 112], r14",
        "mov [rdi + {regs} + 120], r15",
        "pop qword ptr [rdi + {regs} + 56]",
        "fxsave64 [rdi]",
        "ldmxcsr [rip + {mxcsr}]",
        "pop rdi",
        "mov eax, {reason_field}",
        // Where this fails, RAX is no reason there is.
        counted_line!(0, "vmread rax, rax"),
        "6: pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rsp = const RSP,
        regs = const REGS,
        before = sym before_entry,
        reason_field = const Field32::ExitReason as u32,
        error_field = const Field32::VmInstructionError as u32,
        not_launched = const InstructionError::VmresumeNotLaunched as u32,
        mxcsr = sym MXCSR,
    )
}

/// As [`enter`], on a CPU whose x87 state has the selectors of the last instruction and its operand (SDM "x87 FPU Instruction
/// and Data (Operand) Pointers", vol. 1, 8.1.8). What FXRSTOR64 loads has none. The exit is the same; then comes
/// [`EntryArea::keep_selectors`].
///
/// # Safety
/// As for [`enter`].
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter_with_selectors(area: *mut EntryArea) -> u64 {
    naked_asm!(
        "cmp qword ptr [rdi + {selectors}], 0",
        "je {enter}",
        "fxrstor [rdi]",
        "jmp offshoot_x87_loaded",
        selectors = const SELECTORS,
        enter = sym enter,
    )
}
