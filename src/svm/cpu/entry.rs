//! VMRUN and what it leaves to software: the one routine through which every guest runs.

use core::arch::naked_asm;

use super::super::vmcb::Vmcb;
use crate::addr::Hpa;
use crate::virt::cpu::{EntryArea, REGS, SELECTORS};

const HOST_MXCSR: u32 = 0x1f80;
static MXCSR: u32 = HOST_MXCSR;

/// Enters the guest whose VMCB is at `guest` and returns at its next exit, or where VMRUN refuses the VMCB.
///
/// The host keeps its callee-saved registers on its stack. VMRUN saves and an exit loads its control registers, RFLAGS, RSP, and
/// CS, SS, DS, ES, GDTR and IDTR; VMSAVE has saved the rest of its segments and the MSRs of system calls in `host`, once. XMM
/// registers are the guest's until FXSAVE and again from FXRSTOR.
///
/// From CLGI to STGI nothing interrupts, not even an NMI or a machine check, while segments are the guest's: TR above all, which
/// says on which stacks the host's handlers run. RFLAGS.IF of the host says whether a physical interrupt makes the guest exit; it
/// is taken later, by whoever handles that exit.
///
/// `_vmcb` is where the host sees the guest's VMCB: nothing is done with it here, but the compiler must know that it changes.
///
/// # Safety
/// The guest's VMCB must be one that may be run, `area` must be the guest's, and `host` name the VMCB into which VMSAVE has saved
/// the host's state; EFER.SVME must be 1 and VM_HSAVE_PA be a frame that is nobody else's.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(
    area: *mut EntryArea,
    guest: Hpa,
    host: Hpa,
    _vmcb: *mut Vmcb,
) {
    naked_asm!(
        // Where the x87 state has selectors, REX.W would take them for upper halves.
        "cmp qword ptr [rdi + {selectors}], 0",
        "jne 2f",
        "fxrstor64 [rdi]",
        "jmp 3f",
        "2: fxrstor [rdi]",
        "3:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rdi",
        "mov rax, rsi",
        "clgi",
        "sti",
        "vmload rax",
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
        "vmrun rax",
        // RSP, and RAX, are as before.
        "vmsave rax",
        "mov rax, [rsp]",
        "mov [rax + {regs} + 8], rcx",
        "mov [rax + {regs} + 16], rdx",
        "mov [rax + {regs} + 24], rbx",
        "mov [rax + {regs} + 40], rbp",
        "mov [rax + {regs} + 48], rsi",
        "mov [rax + {regs} + 56], rdi",
        "mov [rax + {regs} + 64], r8",
        "mov [rax + {regs} + 72], r9",
        "mov [rax + {regs} + 80], r10",
        "mov [rax + {regs} + 88], r11",
        "mov [rax + {regs} + 96], r12",
        "mov [rax + {regs} + 104], r13",
        "mov [rax + {regs} + 112], r14",
        "mov [rax + {regs} + 120], r15",
        "pop rdi",
        "pop rax",
        "vmload rax",
        "cli",
        "stgi",
        "fxsave64 [rdi]",
        "ldmxcsr [rip + {mxcsr}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        regs = const REGS,
        selectors = const SELECTORS,
        mxcsr = sym MXCSR,
    )
}

/// Saves the host's FS, GS, TR and LDTR and its MSRs of system calls in its VMCB, from where every exit loads them.
///
/// # Safety
/// EFER.SVME must be 1, and `vmcb` be a frame that is nobody else's.
pub(super) unsafe fn vmsave(vmcb: Hpa) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("vmsave rax", in("rax") vmcb.as_u64(), options(nostack, preserves_flags));
    }
}
