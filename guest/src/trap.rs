//! Exceptions: run an instruction and learn which exception it raised.
//!
//! [`install`] gives the guest a GDT, a TSS and an IDT. [`probe!`](crate::probe) then runs instructions with a
//! place to go on at: an exception among them is recorded and execution continues behind the last. An
//! exception outside a probe is printed and ends the guest.
//!
//! Every handler runs on a stack of its own, so that an exception with a bad stack pointer can be caught, and so
//! that the red zone of the interrupted code is left alone.

use crate::{UNEXPECTED_TRAP, exit, println};
use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Vector of a divide error.
pub const DE: u8 = 0;
/// Vector of a debug exception.
pub const DB: u8 = 1;
/// Vector of a breakpoint (INT3).
pub const BP: u8 = 3;
/// Vector of an invalid opcode.
pub const UD: u8 = 6;
/// Vector of a device-not-available exception.
pub const NM: u8 = 7;
/// Vector of a stack-segment fault.
pub const SS: u8 = 12;
/// Vector of a general-protection exception.
pub const GP: u8 = 13;
/// Vector of a page fault.
pub const PF: u8 = 14;
/// Vector of an alignment check.
pub const AC: u8 = 17;

/// Page-fault error code: the page was present, so the access broke a permission.
pub const PF_PRESENT: u64 = 1;
/// Page-fault error code: the access was a write.
pub const PF_WRITE: u64 = 1 << 1;
/// Page-fault error code: the access came from CPL 3.
pub const PF_USER: u64 = 1 << 2;
/// Page-fault error code: the access was an instruction fetch.
pub const PF_FETCH: u64 = 1 << 4;

/// Selector of the kernel's code segment.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of the kernel's data segment.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of the user's data segment.
pub const USER_DATA: u16 = 0x18 | 3;
/// Selector of the user's code segment.
pub const USER_CODE: u16 = 0x20 | 3;
const TSS: u16 = 0x28;

/// Which vectors push an error code: 8, 10 to 14, 17, 21, 29, 30.
const WITH_ERROR_CODE: u32 = 0x6022_7d00;
const VECTORS: usize = 32;
const STUB_SIZE: usize = 16;
const STACK_SIZE: usize = 8192;

/// An exception as its handler found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 where it has none.
    pub error: u64,
    /// CR2 in the handler.
    pub cr2: u64,
    /// The saved RIP.
    pub rip: u64,
    /// The saved CS.
    pub cs: u64,
    /// The saved RFLAGS.
    pub rflags: u64,
    /// The saved RSP.
    pub rsp: u64,
}

impl Trap {
    /// Whether this is exactly exception `vector` with error code `error`.
    pub fn is(&self, vector: u8, error: u64) -> bool {
        self.vector == vector && self.error == error
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "exception {} error {:#x} cr2 {:#x} at {:#x}",
            self.vector, self.error, self.cr2, self.rip
        )
    }
}

/// What the processor reads or runs on: shared with it, so never behind a reference.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: a guest has one CPU, and no handler of ours touches these.
unsafe impl<T> Sync for Shared<T> {}

static GDT: Shared<[u64; 7]> = Shared(UnsafeCell::new([
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
]));
static TASK: Shared<[u32; 26]> = Shared(UnsafeCell::new([0; 26]));
static IDT: Shared<[Gate; VECTORS]> = Shared(UnsafeCell::new([Gate([0; 2]); VECTORS]));
static STACK: Shared<[u8; STACK_SIZE]> = Shared(UnsafeCell::new([0; STACK_SIZE]));

/// Where to go on after an exception, and with which RSP. RIP 0: no exception is expected.
#[doc(hidden)]
pub static FIXUP: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// The last exception: vector, error, CR2, RIP, CS, RFLAGS, RSP; and how many there were.
static RECORD: [AtomicU64; 8] = [const { AtomicU64::new(NONE) }; 8];
const NONE: u64 = u64::MAX;

/// An interrupt gate.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Gate([u64; 2]);

impl Gate {
    /// A gate to `handler` on stack `ist` (0: the stack in use), which INT may use up to `dpl`.
    pub const fn new(handler: u64, ist: u8, dpl: u8) -> Self {
        let low = (handler & 0xffff)
            | (KERNEL_CODE as u64) << 16
            | (ist as u64) << 32
            | 0x8e << 40
            | (dpl as u64) << 45
            | (handler >> 16 & 0xffff) << 48;
        Self([low, handler >> 32])
    }
}

/// Address and length of a descriptor table, as LGDT and LIDT take them.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// The gate that records exception `vector` (below 32) and ends a probe.
pub fn gate(vector: u8) -> Gate {
    let stub = stubs as *const () as u64 + u64::from(vector) * STUB_SIZE as u64;
    // INT3 is there for every program.
    Gate::new(stub, 1, if vector == BP { 3 } else { 0 })
}

/// Loads a GDT, a TSS and an IDT of the guest's own. Exceptions are caught from here on.
pub fn install() {
    RECORD[7].store(0, Relaxed);
    let stack_top = own_stack();
    let task = TASK.0.get() as u64;
    let gdt_pointer = TablePointer {
        limit: size_of::<[u64; 7]>() as u16 - 1,
        base: GDT.0.get() as u64,
    };
    // SAFETY: one CPU, and until LTR and LIDT below it does not look at these tables.
    unsafe {
        let tss = &mut *TASK.0.get();
        // RSP0 and IST1, then the offset of the I/O map: behind the end.
        for at in [1, 9] {
            tss[at] = stack_top as u32;
            tss[at + 1] = (stack_top >> 32) as u32;
        }
        tss[25] = (size_of::<[u32; 26]>() as u32) << 16;
        let gdt = &mut *GDT.0.get();
        gdt[5] = 0x0000_8900_0000_0067 | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56;
        gdt[6] = task >> 32;
        for (vector, slot) in (0..).zip((*IDT.0.get()).iter_mut()) {
            *slot = gate(vector);
        }
    }
    // SAFETY: the tables are complete, and the selectors are those of the new GDT.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov {scratch:e}, {data}",
            "mov ss, {scratch:x}",
            "mov ds, {scratch:x}",
            "mov es, {scratch:x}",
            "mov {scratch:e}, {tss}",
            "ltr {scratch:x}",
            gdt = in(reg) &raw const gdt_pointer,
            scratch = out(reg) _,
            code = const KERNEL_CODE,
            data = const KERNEL_DATA,
            tss = const TSS,
        );
        load_idt(IDT.0.get() as u64, VECTORS);
    }
}

/// Makes the `len` gates at `base` the interrupt table.
///
/// # Safety
/// Exceptions that occur from here on must find a gate that can handle them there.
pub unsafe fn load_idt(base: u64, len: usize) {
    let pointer = TablePointer {
        limit: (len * size_of::<Gate>()).wrapping_sub(1) as u16,
        base,
    };
    // SAFETY: the caller vouches for the table.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack)) };
}

/// Makes `top` the upper end of the stack on which exceptions are handled.
///
/// # Safety
/// There must be room for their frames below it.
pub unsafe fn set_stack(top: u64) {
    // SAFETY: one CPU, which reads the field only when an exception is delivered.
    unsafe {
        let ist1 = TASK.0.get().cast::<u32>().add(9);
        ist1.write_volatile(top as u32);
        ist1.add(1).write_volatile((top >> 32) as u32);
    }
}

/// The upper end of the stack that [`install`] set up.
pub fn own_stack() -> u64 {
    STACK.0.get() as u64 + STACK_SIZE as u64
}

/// How many exceptions the probes have met since [`install`].
pub fn count() -> u64 {
    RECORD[7].load(Relaxed)
}

#[doc(hidden)]
pub fn clear() {
    RECORD[0].store(NONE, Relaxed);
}

#[doc(hidden)]
pub fn take() -> Option<Trap> {
    let [vector, error, cr2, rip, cs, rflags, rsp, _] =
        core::array::from_fn(|i| RECORD[i].load(Relaxed));
    (vector != NONE).then_some(Trap {
        vector: vector as u8,
        error,
        cr2,
        rip,
        cs,
        rflags,
        rsp,
    })
}

/// Runs instructions, given as for [`asm!`] with their operands after a semicolon, and returns the exception that
/// one of them raised, if any. All registers are then as they were at the exception, but for RBX, RIP and RSP, which
/// are those of the end of the probe, and interrupts are off. Name the registers of outputs: one that the compiler
/// chooses may be RBX. To be used in `unsafe`; needs [`install`](crate::trap::install).
#[macro_export]
macro_rules! probe {
    ($($instruction:expr),+ $(; $($operands:tt)*)?) => {{
        $crate::trap::clear();
        ::core::arch::asm!(
            // RBX is the compiler's own: it cannot be named as an operand, but CPUID, for one, changes it.
            "push rbx",
            "lea {probe_scratch}, [rip + 77f]",
            "mov [rip + {probe_fixup}], {probe_scratch}",
            "mov [rip + {probe_fixup} + 8], rsp",
            $($instruction,)+
            "77:",
            "mov qword ptr [rip + {probe_fixup}], 0",
            "pop rbx",
            probe_scratch = out(reg) _,
            probe_fixup = sym $crate::trap::FIXUP,
            $($($operands)*)?
        );
        $crate::trap::take()
    }};
}

/// One stub per vector: makes the frame the same for all, then goes to `common`.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
        ".set offshoot_vector, 0",
        ".rept {vectors}",
        ".balign {stub_size}",
        ".if (({with_error_code} >> offshoot_vector) & 1) == 0",
        "push 0",
        ".endif",
        ".byte 0x6a, offshoot_vector", // push imm8
        "jmp {common}",
        ".set offshoot_vector, offshoot_vector + 1",
        ".endr",
        vectors = const VECTORS,
        stub_size = const STUB_SIZE,
        with_error_code = const WITH_ERROR_CODE,
        common = sym common,
    )
}

/// Records the exception and returns to the fixup, or gives up if there is none.
#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "push rax",
        // RSP + 0: RAX, 8: vector, 16: error code, 24: RIP, 32: CS, 40: RFLAGS, 48: RSP, 56: SS.
        "mov rax, [rsp + 8]",
        "mov [rip + {record}], rax",
        "mov rax, [rsp + 16]",
        "mov [rip + {record} + 8], rax",
        "mov rax, cr2",
        "mov [rip + {record} + 16], rax",
        "mov rax, [rsp + 24]",
        "mov [rip + {record} + 24], rax",
        "mov rax, [rsp + 32]",
        "mov [rip + {record} + 32], rax",
        "mov rax, [rsp + 40]",
        "mov [rip + {record} + 40], rax",
        "mov rax, [rsp + 48]",
        "mov [rip + {record} + 48], rax",
        "inc qword ptr [rip + {record} + 56]",
        "mov rax, [rip + {fixup}]",
        "test rax, rax",
        "jz 2f",
        "mov qword ptr [rip + {fixup}], 0",
        "mov [rsp + 24], rax",
        "mov qword ptr [rsp + 32], {code}",
        // No single step, resume flag or interrupts behind the probe.
        "and dword ptr [rsp + 40], ~0x10300",
        "mov rax, [rip + {fixup} + 8]",
        "mov [rsp + 48], rax",
        "mov qword ptr [rsp + 56], {data}",
        "pop rax",
        "add rsp, 16",
        "iretq",
        "2:",
        "cld",
        "and rsp, -16",
        "call {unexpected}",
        "ud2",
        record = sym RECORD,
        fixup = sym FIXUP,
        code = const KERNEL_CODE,
        data = const KERNEL_DATA,
        unexpected = sym unexpected,
    )
}

extern "C" fn unexpected() -> ! {
    match take() {
        Some(trap) => println!(
            "unexpected {trap}, rsp {:#x}, rflags {:#x}",
            trap.rsp, trap.rflags
        ),
        None => println!("unexpected exception"),
    }
    exit(UNEXPECTED_TRAP)
}
