//! Exceptions of the hypervisor itself: each prints what is known and ends the run as failed.

use super::console::{self, say};

use super::power;
use super::segments::{TrapStack, on_a_stack};
use super::{apic, mtrr};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::structures::idt::InterruptDescriptorTable;

/// The first vector that is not an exception.
const EXCEPTIONS: usize = 32;

/// Whether an interrupt may come now.
static WINDOW: AtomicBool = AtomicBool::new(false);
/// The vector of the one that has come, which is none of an exception.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Lets the CPU take one interrupt, and returns its vector, if one was pending.
pub fn take_interrupt() -> Option<u8> {
    TAKEN.store(0, Ordering::SeqCst);
    WINDOW.store(true, Ordering::SeqCst);
    // SAFETY: what comes between is taken by the stubs, on a stack of their own, and they leave interrupts off.
    unsafe { core::arch::asm!("sti", "nop", "cli") };
    WINDOW.store(false, Ordering::SeqCst);
    match TAKEN.load(Ordering::SeqCst) {
        0 => None,
        vector => Some(vector as u8),
    }
}

/// What the stubs push, lowest address first.
#[repr(C)]
#[derive(Debug)]
struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// One stub of 16 bytes for each vector: where the CPU pushes no error code, a zero stands in for it.
global_asm!(
    ".balign 16",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if ((0x60227d00 >> vector) & 1) == 0 || vector > 31",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    // The one instruction that may fault: `try_rdmsr` goes on elsewhere.
    "cmp qword ptr [rsp], 13",
    "jne 5f",
    "push rax",
    "lea rax, [rip + offshoot_rdmsr]",
    "cmp rax, [rsp + 24]",
    "jne 4f",
    "lea rax, [rip + offshoot_rdmsr_faulted]",
    "mov [rsp + 24], rax",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "4:",
    "pop rax",
    "5:",
    // An interrupt that `take_interrupt` lets in: it is noted, and the window is shut behind it.
    "cmp byte ptr [rip + {window}], 0",
    "je 2f",
    "cmp qword ptr [rsp], {exceptions}",
    "jb 2f",
    "push rax",
    "mov rax, [rsp + 8]",
    "mov [rip + {taken}], eax",
    "and qword ptr [rsp + 40], {no_interrupts}",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "2:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handler}",
    "ud2",
    // EDI: the MSR, RSI: where its value goes. Returns 1, or 0 where it faults.
    "offshoot_try_rdmsr:",
    "mov ecx, edi",
    "offshoot_rdmsr:",
    "rdmsr",
    "mov [rsi], eax",
    "mov [rsi + 4], edx",
    "mov eax, 1",
    "ret",
    "offshoot_rdmsr_faulted:",
    "xor eax, eax",
    "ret",
    handler = sym handle,
    window = sym WINDOW,
    taken = sym TAKEN,
    exceptions = const EXCEPTIONS,
    no_interrupts = const !0x200i32,
);

unsafe extern "C" {
    #[link_name = "trap_stubs"]
    static STUBS: u8;
}

unsafe extern "sysv64" {
    fn offshoot_try_rdmsr(index: u32, value: *mut u64) -> u32;
}

/// The value of an MSR, where the CPU has it. Reading it must do nothing else.
pub fn try_rdmsr(index: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: it is read at CPL 0, and where that faults the handler goes on behind it.
    let there = unsafe { offshoot_try_rdmsr(index, &mut value) } != 0;
    there.then_some(value)
}

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// Loads the IDT and lets machine checks come, which would shut the machine down otherwise. Interrupts stay off: the
/// hypervisor has none of its own.
pub fn init() {
    IDT.call_once(|| {
        let mut idt = InterruptDescriptorTable::new();
        let stub = |vector: usize| VirtAddr::new((&raw const STUBS) as u64 + 16 * vector as u64);
        let here = TrapStack::Exception as u16;
        // SAFETY: every stub takes over the CPU's frame of just its vector and never returns, and the stack indices are
        // those that the TSS holds.
        unsafe {
            idt.divide_error
                .set_handler_addr(stub(0))
                .set_stack_index(here);
            idt.debug.set_handler_addr(stub(1)).set_stack_index(here);
            idt.non_maskable_interrupt
                .set_handler_addr(stub(2))
                .set_stack_index(TrapStack::Nmi as u16);
            idt.breakpoint
                .set_handler_addr(stub(3))
                .set_stack_index(here);
            idt.overflow.set_handler_addr(stub(4)).set_stack_index(here);
            idt.bound_range_exceeded
                .set_handler_addr(stub(5))
                .set_stack_index(here);
            idt.invalid_opcode
                .set_handler_addr(stub(6))
                .set_stack_index(here);
            idt.device_not_available
                .set_handler_addr(stub(7))
                .set_stack_index(here);
            idt.double_fault
                .set_handler_addr(stub(8))
                .set_stack_index(TrapStack::DoubleFault as u16);
            idt.invalid_tss
                .set_handler_addr(stub(10))
                .set_stack_index(here);
            idt.segment_not_present
                .set_handler_addr(stub(11))
                .set_stack_index(here);
            idt.stack_segment_fault
                .set_handler_addr(stub(12))
                .set_stack_index(here);
            idt.general_protection_fault
                .set_handler_addr(stub(13))
                .set_stack_index(here);
            idt.page_fault
                .set_handler_addr(stub(14))
                .set_stack_index(here);
            idt.x87_floating_point
                .set_handler_addr(stub(16))
                .set_stack_index(here);
            idt.alignment_check
                .set_handler_addr(stub(17))
                .set_stack_index(here);
            idt.machine_check
                .set_handler_addr(stub(18))
                .set_stack_index(TrapStack::MachineCheck as u16);
            idt.simd_floating_point
                .set_handler_addr(stub(19))
                .set_stack_index(here);
            idt.virtualization
                .set_handler_addr(stub(20))
                .set_stack_index(here);
            idt.cp_protection_exception
                .set_handler_addr(stub(21))
                .set_stack_index(here);
            idt.hv_injection_exception
                .set_handler_addr(stub(28))
                .set_stack_index(here);
            idt.vmm_communication_exception
                .set_handler_addr(stub(29))
                .set_stack_index(here);
            idt.security_exception
                .set_handler_addr(stub(30))
                .set_stack_index(here);
            for vector in EXCEPTIONS..256 {
                idt[vector as u8]
                    .set_handler_addr(stub(vector))
                    .set_stack_index(here);
            }
        }
        idt
    })
    .load();
    const MACHINE_CHECK: u32 = 1 << 7;
    if core::arch::x86_64::__cpuid(1).edx & MACHINE_CHECK != 0 {
        // SAFETY: the CPU has the bit, and the exception its handler and its stack.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
    }
}

/// What the manual calls an exception.
fn name(vector: u64) -> &'static str {
    const NAMES: [&str; EXCEPTIONS] = [
        "#DE divide error",
        "#DB debug",
        "NMI",
        "#BP breakpoint",
        "#OF overflow",
        "#BR bound range",
        "#UD invalid opcode",
        "#NM device not available",
        "#DF double fault",
        "coprocessor segment overrun",
        "#TS invalid TSS",
        "#NP segment not present",
        "#SS stack fault",
        "#GP general protection",
        "#PF page fault",
        "reserved",
        "#MF x87 floating point",
        "#AC alignment check",
        "#MC machine check",
        "#XM SIMD floating point",
        "#VE virtualization",
        "#CP control protection",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "#HV hypervisor injection",
        "#VC VMM communication",
        "#SX security",
        "reserved",
    ];
    NAMES
        .get(vector as usize)
        .copied()
        .unwrap_or("interrupt that nobody asked for")
}

extern "C" fn handle(frame: &TrapFrame) -> ! {
    static HANDLING: AtomicBool = AtomicBool::new(false);
    console::seize();
    if HANDLING.swap(true, Ordering::SeqCst) {
        power::end(Err(format_args!(
            "{} while another exception was reported",
            name(frame.vector)
        )));
    }
    let (cr2, cr3) = control_registers();
    say!(
        "hypervisor exception {} {}, error code {:#x}",
        frame.vector,
        name(frame.vector),
        frame.error_code
    );
    say!(
        "rip {:016x}  cs {:04x}  rflags {:08x}  rsp {:016x}  ss {:04x}",
        frame.rip,
        frame.cs,
        frame.rflags,
        frame.rsp,
        frame.ss
    );
    say!("cr2 {cr2:016x}  cr3 {cr3:016x}");
    say!(
        "rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}",
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx
    );
    say!(
        "rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}",
        frame.rsi,
        frame.rdi,
        frame.rbp,
        frame.r8
    );
    say!(
        "r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}",
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12
    );
    say!(
        "r13 {:016x}  r14 {:016x}  r15 {:016x}",
        frame.r13,
        frame.r14,
        frame.r15
    );
    backtrace(frame.rip, frame.rbp);
    power::end(Err(format_args!(
        "exception {} in the hypervisor",
        name(frame.vector)
    )));
}

fn control_registers() -> (u64, u64) {
    let (cr2, cr3);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!("mov {}, cr2", "mov {}, cr3", out(reg) cr2, out(reg) cr3, options(nomem, nostack, preserves_flags));
    }
    (cr2, cr3)
}

/// Prints the return addresses up from `rip`, as far as the chain of frame pointers stays on the kernel's stacks.
fn backtrace(rip: u64, mut rbp: u64) {
    say!("backtrace (addr2line -e target/x86_64-unknown-linux-gnu/release/offshoot):");
    say!("  {rip:016x}");
    for _ in 0..32 {
        if !on_a_stack(rbp) || !rbp.is_multiple_of(8) {
            break;
        }
        // SAFETY: the 16 bytes are on a stack of the kernel, which is always mapped.
        let [next, ret] = unsafe { *(rbp as *const [u64; 2]) };
        if ret == 0 {
            break;
        }
        say!("  {ret:016x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}

/// Ends the run on a panic, which is a bug of the hypervisor.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::seize();
    say!("hypervisor {info}");
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags))
    };
    backtrace(panic as *const () as u64, rbp);
    power::end(Err(format_args!("a panic of the hypervisor")));
}

/// Takes an NMI that made a guest exit, as if it had come here.
pub fn raise_nmi() {
    // SAFETY: the vector's handler reports and ends the run.
    unsafe { core::arch::asm!("int 2") };
}

/// Takes a machine check that made a guest exit, as if it had come here.
pub fn raise_machine_check() {
    // SAFETY: as above.
    unsafe { core::arch::asm!("int 18") };
}

/// Raises the exception that `which` names, to show that it is reported.
pub fn self_test(which: &str, others: &str) {
    // SAFETY: each of these faults, and the handler never returns: that is their purpose.
    unsafe {
        match which {
            "ud" => core::arch::asm!("ud2"),
            "de" => core::arch::asm!("xor edx, edx", "div edx", out("eax") _, out("edx") _),
            "gp" => {
                core::arch::asm!("rdmsr", in("ecx") 0xdead_0000_u32, out("eax") _, out("edx") _)
            }
            "null" => core::arch::asm!("mov rax, [0]", out("rax") _),
            "text" => core::arch::asm!("mov byte ptr [{}], 0x90", in(reg) self_test as *const ()),
            "stack" => core::arch::asm!("2: push rax", "jmp 2b"),
            "nx" => {
                core::arch::asm!("call {}", in(reg) super::segments::guard_pages().next().unwrap_or(0) + 4096)
            }
            "nmi" => raise_nmi(),
            "mc" => raise_machine_check(),
            "panic" => panic!("selftest=panic"),
            _ => log::error!(
                "selftest={which}: none of ud, de, gp, null, text, stack, nx, nmi, mc, panic, {others}, {}, {}",
                apic::SelfTest::NAMES,
                mtrr::SelfTest::NAMES
            ),
        }
    }
}
