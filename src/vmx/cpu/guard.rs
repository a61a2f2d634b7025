//! What stands at entries and exits against the side channels of the CPU. Which of it is needed is not decided here.
//!
//! Where nothing is needed, entries and exits are as if this did not exist. Where something is, the host RSP that
//! [`EntryArea`] remembers is never the one that the entry compares it with, which leads to [`before_entry`], and exits arrive at
//! [`guarded_exit`].

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use super::super::fields::FieldNatural;
use crate::counting::{counted_line, if_counting};
use crate::virt::cpu::guard::{
    CLEAR_BUFFERS, FLUSH_BY_COMMAND, FLUSH_BY_READING, Guard, IBRS_OFF, bits,
};
use crate::virt::cpu::{DUE, GUARDS, RSP};

const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_FLUSH_CMD: u32 = 0x10b;
const SPEC_CTRL_IBRS: u32 = 1 << 0;

/// Bits of [`AT_EXIT`].
const FILL_RETURNS: u32 = 1 << 0;
const ONE_CALL: u32 = 1 << 1;
const IBRS_ON: u32 = 1 << 2;
const CLEAR_HISTORY: u32 = 1 << 3;

/// What is done after every exit.
static AT_EXIT: AtomicU32 = AtomicU32::new(0);
/// IA32_SPEC_CTRL in the guest.
static SPEC_CTRL: AtomicU32 = AtomicU32::new(0);
/// IA32_SPEC_CTRL in the host, where that is another.
static SPEC_CTRL_IN_HOST: AtomicU32 = AtomicU32::new(0);
/// How often the branch history is gone over, and with how many branches.
static HISTORY_LOOPS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
/// What VERW asks about. It clears the buffers whatever the answer is, also for the null selector (Intel's
/// "Microarchitectural Data Sampling", "Software Sequences to Overwrite Buffers").
static SELECTOR: u16 = 0;

/// Twice as large as the largest L1 data cache of a CPU that has to be flushed so.
#[repr(C, align(4096))]
struct FlushedLines([u8; FLUSH_BYTES]);
const FLUSH_BYTES: usize = 64 << 10;
static LINES: FlushedLines = FlushedLines([0; FLUSH_BYTES]);

/// Has exits do their part from the next [`read_host_state`](super::read_host_state) on, and writes IA32_SPEC_CTRL where
/// that is used.
///
/// # Safety
/// In the kernel, at CPL 0. The CPU must have the MSRs that are asked for, with the bits of `spec_ctrl`.
pub unsafe fn arm(guard: &Guard) {
    let at_exit = [
        (guard.fill_returns, FILL_RETURNS),
        (guard.one_call, ONE_CALL),
        (guard.ibrs_at_exits, IBRS_ON),
        (guard.history_loops.is_some(), CLEAR_HISTORY),
    ];
    let (times, branches) = guard.history_loops.unwrap_or((1, 1));
    let [outer, inner] = &HISTORY_LOOPS;
    outer.store(times.max(1), Ordering::Relaxed);
    inner.store(branches.max(1), Ordering::Relaxed);
    SPEC_CTRL.store(guard.spec_ctrl, Ordering::Relaxed);
    let in_host = match guard.ibrs_at_exits {
        true => guard.spec_ctrl | SPEC_CTRL_IBRS,
        false => guard.spec_ctrl,
    };
    SPEC_CTRL_IN_HOST.store(in_host, Ordering::Relaxed);
    AT_EXIT.store(bits(&at_exit), Ordering::Relaxed);
    if in_host != 0 {
        // SAFETY: the caller's word.
        unsafe { x86::msr::wrmsr(IA32_SPEC_CTRL, in_host.into()) };
    }
}

unsafe extern "C" {
    /// Behind the entry, where exits go on.
    #[link_name = "offshoot_exit_point"]
    static EXIT_POINT: u8;
}

/// Where exits arrive: the host RIP of every VMCS.
pub(super) fn exit_point() -> u64 {
    match AT_EXIT.load(Ordering::Relaxed) {
        0 => (&raw const EXIT_POINT) as u64,
        _ => guarded_exit as *const () as u64,
    }
}

/// The way of an entry where the host RSP is not the one that the area at RDI remembers: writes it into the VMCS, and does
/// what is to be done before every entry. What follows it reads nothing but the registers of the guest itself.
///
/// Buffers come last, as reading for the flush fills them.
///
/// # Safety
/// To be called from the entry routines: RDI stays, the other registers are nobody's.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn before_entry() {
    naked_asm!(
        // RSP as the caller has it.
        "lea rax, [rsp + 8]",
        "mov r8d, [rdi + {guards}]",
        "test r8d, r8d",
        "jz 2f",
        // Odd, so that the next entry comes here too.
        "inc rax",
        "cmp [rdi + {rsp}], rax",
        "je 3f",
        "mov [rdi + {rsp}], rax",
        "dec rax",
        "mov edx, {host_rsp_field}",
        counted_line!(1, "vmwrite rdx, rax"),
        "jmp 3f",
        "2: mov [rdi + {rsp}], rax",
        "mov edx, {host_rsp_field}",
        counted_line!(1, "vmwrite rdx, rax"),
        "ret",
        "3: test r8b, {by_command} | {by_reading}",
        "jz 6f",
        "cmp dword ptr [rdi + {due}], 0",
        "je 6f",
        "mov dword ptr [rdi + {due}], 0",
        "test r8b, {by_command}",
        "jz 4f",
        "mov ecx, {flush_cmd}",
        "mov eax, 1",
        "xor edx, edx",
        "wrmsr",
        "jmp 6f",
        // The translations first, so that no walk of the tables comes between.
        "4: lea rax, [rip + {lines}]",
        "xor ecx, ecx",
        "5: movzx edx, byte ptr [rax + rcx]",
        "add ecx, 4096",
        "cmp ecx, {flush_bytes}",
        "jb 5b",
        "lfence",
        "xor ecx, ecx",
        "7: movzx edx, byte ptr [rax + rcx]",
        "add ecx, 64",
        "cmp ecx, {flush_bytes}",
        "jb 7b",
        "lfence",
        "6: test r8b, {ibrs_off}",
        "jz 8f",
        "mov ecx, {spec_ctrl_msr}",
        "mov eax, [rip + {spec_ctrl}]",
        "xor edx, edx",
        "wrmsr",
        "8: test r8b, {clear_buffers}",
        "jz 9f",
        "verw word ptr [rip + {selector}]",
        "9: ret",
        guards = const GUARDS,
        due = const DUE,
        rsp = const RSP,
        host_rsp_field = const FieldNatural::HostRsp as u32,
        by_command = const FLUSH_BY_COMMAND,
        by_reading = const FLUSH_BY_READING,
        ibrs_off = const IBRS_OFF,
        clear_buffers = const CLEAR_BUFFERS,
        flush_cmd = const IA32_FLUSH_CMD,
        spec_ctrl_msr = const IA32_SPEC_CTRL,
        spec_ctrl = sym SPEC_CTRL,
        selector = sym SELECTOR,
        lines = sym LINES,
        flush_bytes = const FLUSH_BYTES,
    )
}

/// Where exits arrive that something is done after: before any return or indirect branch, and with the guest's
/// registers as they are. The barrier at the end holds back what a mispredicted test would have left out.
#[unsafe(naked)]
unsafe extern "sysv64" fn guarded_exit() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "mov edx, [rip + {at_exit}]",
        "test dl, {fill_returns}",
        "jz 2f",
        // 32 calls, each followed by what traps a return that is predicted to go there.
        "mov ecx, 16",
        "3: call 4f",
        "int3",
        "4: call 5f",
        "int3",
        "5: add rsp, 16",
        "dec ecx",
        "jnz 3b",
        "2: test dl, {one_call}",
        "jz 6f",
        "call 7f",
        "int3",
        "7: add rsp, 8",
        "lfence",
        "6: test dl, {ibrs_on}",
        "jz 8f",
        "mov ecx, {spec_ctrl_msr}",
        "mov eax, [rip + {in_host}]",
        "xor edx, edx",
        "wrmsr",
        "mov edx, [rip + {at_exit}]",
        "8: test dl, {clear_history}",
        "jz 9f",
        // The loop of Intel's "Branch History Injection and Intra-mode Branch Target Injection", with its numbers.
        "mov ecx, [rip + {history}]",
        "call 22f",
        "jmp 9f",
        ".balign 64",
        "22: call 23f",
        "ret",
        ".balign 64",
        "23: mov eax, [rip + {history} + 4]",
        "24: jmp 25f",
        "nop",
        "25: sub eax, 1",
        "jnz 24b",
        "sub ecx, 1",
        "jnz 22b",
        "ret",
        "9: lfence",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "jmp offshoot_exit_point",
        at_exit = sym AT_EXIT,
        in_host = sym SPEC_CTRL_IN_HOST,
        history = sym HISTORY_LOOPS,
        fill_returns = const FILL_RETURNS,
        one_call = const ONE_CALL,
        ibrs_on = const IBRS_ON,
        clear_history = const CLEAR_HISTORY,
        spec_ctrl_msr = const IA32_SPEC_CTRL,
    )
}
