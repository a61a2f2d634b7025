//! Out of long mode to 32-bit or PAE paging and back.
//!
//! Rust code runs in 64-bit mode only, so what is to be tried in 32-bit mode is written down as a list of [`Op`]s, which
//! a loop in assembly works off. It runs at addresses below 4 GiB that both kinds of tables and no tables at all
//! translate to themselves.

use crate::access::{Access, Attempt, PF_RESERVED};
use crate::{cr4, tables::Frames};
use core::arch::{global_asm, naked_asm};
use core::cell::UnsafeCell;
use core::fmt;
use offshoot::addr::PAGE_SIZE;
use offshoot_guest::abi::Call;
use offshoot_guest::trap;

/// Where user mode finds what the supervisor has at address 0.
pub const USER_BASE: u32 = 0x8000_0000;
/// Where there is no exception.
const NONE: u32 = u32::MAX;
const BREAKPOINT: u32 = 3;
const STACK: u64 = 4 * PAGE_SIZE;
const VECTORS: usize = 32;
const STUB_SIZE: u32 = 16;

const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE32: u16 = 0x18;
const USER_DATA: u16 = 0x20 | 3;
const USER_CODE: u16 = 0x28 | 3;
const TASK: u16 = 0x30;
/// Descriptors in that order, but the task's, which has an address in it.
const DESCRIPTORS: [u64; 6] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00cf_fb00_0000_ffff,
];
/// A 32-bit TSS that is not busy.
const TASK_DESCRIPTOR: u64 = 0x0000_8900_0000_0067;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FETCH: u32 = 2;
const SET_WP: u32 = 3;
const FLUSH: u32 = 4;
const OUTS: u32 = 5;
const INS: u32 = 6;
const FROM_DEVICE: u32 = 7;
const TO_DEVICE: u32 = 8;
const CALL: u32 = 9;
const ADD: u32 = 10;

/// In the upper half of a register that 32-bit code uses.
const STALE: u64 = 0xdead_beef << 32;
const CR0_WP: u32 = 1 << 16;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
const EFER_NXE: u32 = 1 << 11;

/// How 32-bit mode translates addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR4.PAE.
    pub pae: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// EFER.NXE.
    pub no_execute: bool,
    /// Where the test device is mapped for the supervisor.
    pub device: u32,
    /// And where for user mode.
    pub user_device: u32,
}

/// What the hypervisor does for a guest with a byte of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// OUTS reads it.
    Outs,
    /// INS writes it.
    Ins,
    /// MOVS copies it from the device.
    FromDevice,
    /// MOVS copies it to the device.
    ToDevice,
    /// A call refers to it; its result is what the call returns.
    Call,
}

/// Something to be done in 32-bit mode, and what came of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    kind: u32,
    address: u32,
    value: u32,
    user: u32,
    vector: u32,
    error: u32,
    cr2: u32,
    result: u32,
}

const OP_SIZE: usize = size_of::<Op>();
const _: () = assert!(OP_SIZE == 32);

impl Op {
    const fn new(kind: u32, address: u32, value: u32, user: bool) -> Self {
        Self {
            kind,
            address,
            value,
            user: user as u32,
            vector: NONE,
            error: 0,
            cr2: 0,
            result: 0,
        }
    }

    /// CR0.WP becomes `on`.
    pub const fn set_write_protect(on: bool) -> Self {
        Self::new(SET_WP, 0, if on { CR0_WP } else { 0 }, false)
    }

    /// The access of `attempt` to the page at `page`; CR0.WP is what it is.
    pub fn attempt(attempt: &Attempt, page: u32, value: u32) -> Self {
        let kind = match attempt.access {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::Fetch => FETCH,
        };
        let address = page + attempt.offset() as u32;
        Self::new(kind, address, value, attempt.user)
    }

    /// Drops what is cached of the tables; with PAE paging their top is loaded again.
    pub const fn flush() -> Self {
        Self::new(FLUSH, 0, 0, false)
    }

    /// The word at `address` becomes `value`.
    pub const fn write(address: u32, value: u32) -> Self {
        Self::new(WRITE, address, value, false)
    }

    /// The word at `address` is read or written, as whom.
    pub const fn plain(address: u32, write: bool, user: bool) -> Self {
        Self::new(if write { WRITE } else { READ }, address, 0, user)
    }

    /// The word at `address` is read.
    pub const fn read(address: u32) -> Self {
        Self::new(READ, address, 0, false)
    }

    /// Adds 5 to the byte at `address`, by the encoding of ADD that 64-bit mode does not have.
    pub const fn add_five(address: u32) -> Self {
        Self::new(ADD, address, 0, false)
    }

    /// The byte at `address` is served; a call is made by the supervisor only.
    pub const fn served(served: Served, address: u32, user: bool) -> Self {
        let kind = match served {
            Served::Outs => OUTS,
            Served::Ins => INS,
            Served::FromDevice => FROM_DEVICE,
            Served::ToDevice => TO_DEVICE,
            Served::Call => CALL,
        };
        Self::new(kind, address, 0, user && kind != CALL)
    }

    /// What a read found.
    pub fn result(&self) -> u32 {
        self.result
    }

    /// The exception that it raised. User code ends with INT3, which is none.
    pub fn fault(&self) -> Option<Fault> {
        let ended = self.user != 0 && self.vector == BREAKPOINT;
        (self.vector != NONE && !ended).then_some(Fault {
            vector: self.vector,
            error: self.error,
            cr2: self.cr2,
        })
    }
}

/// An exception in 32-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u32,
    pub error: u32,
    pub cr2: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { vector, error, cr2 } = self;
        let reserved = if u64::from(*error) & PF_RESERVED != 0 {
            " (reserved bit)"
        } else {
            ""
        };
        write!(
            f,
            "exception {vector} error {error:#x}{reserved} cr2 {cr2:#x}"
        )
    }
}

/// What the assembly finds through EDI. The offsets are written down there.
#[repr(C)]
struct Block {
    first: u32,
    end: u32,
    stack: u32,
    user_stack: u32,
    cr3: u32,
    cr4: u32,
    cr3_long: u32,
    cr4_long: u32,
    rsp_long: u64,
    gdt: [u16; 5],
    idt: [u16; 3],
    device: u32,
    user_device: u32,
    efer: u32,
    rest: u32,
}

const _: () = assert!(size_of::<Block>() == 72);

struct Shared<T>(UnsafeCell<T>);

// SAFETY: one CPU, and the assembly runs while Rust code waits for it.
unsafe impl<T> Sync for Shared<T> {}

static GDT: Shared<[u64; 7]> = Shared(UnsafeCell::new([0; 7]));
static IDT: Shared<[u64; VECTORS]> = Shared(UnsafeCell::new([0; VECTORS]));
static TSS: Shared<[u32; 26]> = Shared(UnsafeCell::new([0; 26]));

/// The way to 32-bit mode.
pub struct Crossing {
    stack: u32,
    user_stack: u32,
}

impl Crossing {
    /// With stacks from `frames`.
    pub fn new(frames: &Frames) -> Self {
        let stack = (frames.area(STACK) + STACK) as u32;
        let user_stack = USER_BASE + (frames.area(STACK) + STACK) as u32;
        Self { stack, user_stack }
    }

    /// Runs `ops` in 32-bit mode on the tables at `root`, and comes back.
    ///
    /// # Safety
    /// All of this guest's memory is below 2 GiB. The tables are of this kind of paging. The tables map it to itself, and for user mode at [`USER_BASE`]; no
    /// write of `ops` goes to what this program uses.
    pub unsafe fn run(&self, root: u64, paging: Paging, ops: &mut [Op]) {
        let cr3_long: u64;
        // SAFETY: reads a register.
        unsafe { core::arch::asm!("mov {}, cr3", out(reg) cr3_long) };
        let cr4_long = cr4();
        let range = ops.as_mut_ptr_range();
        let mut block = Block {
            first: range.start as u32,
            end: range.end as u32,
            stack: self.stack,
            user_stack: self.user_stack,
            cr3: root as u32,
            cr4: cr4_long as u32 & !(CR4_PAE | CR4_PSE)
                | if paging.pae { CR4_PAE } else { 0 }
                | if paging.pse { CR4_PSE } else { 0 },
            cr3_long: cr3_long as u32,
            cr4_long: cr4_long as u32,
            rsp_long: 0,
            gdt: pointer(GDT.0.get() as u32, size_of::<[u64; 7]>(), [0; 2]),
            idt: pointer(IDT.0.get() as u32, size_of::<[u64; VECTORS]>(), []),
            device: paging.device,
            user_device: paging.user_device,
            efer: if paging.no_execute { EFER_NXE } else { 0 },
            rest: 0,
        };
        // SAFETY: nothing uses these tables now.
        unsafe { self.describe() };
        // SAFETY: the block and the tables are complete, and the caller vouches for the rest.
        unsafe { cross(&raw mut block) };
        // The registers that the crossing has changed.
        trap::install();
    }

    /// Fills the tables of segments and interrupts.
    ///
    /// # Safety
    /// The CPU must not be using them.
    unsafe fn describe(&self) {
        // SAFETY: as the caller says.
        let (gdt, idt, tss) = unsafe { (&mut *GDT.0.get(), &mut *IDT.0.get(), &mut *TSS.0.get()) };
        let task = TSS.0.get() as u64;
        gdt[..6].copy_from_slice(&DESCRIPTORS);
        gdt[6] = TASK_DESCRIPTOR | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56;
        // ESP0 and SS0; the I/O map begins behind the end.
        (tss[1], tss[2]) = (self.stack, DATA.into());
        tss[25] = (size_of::<[u32; 26]>() as u32) << 16;
        let stubs = (&raw const offshoot_mmu_stubs) as u32;
        for (vector, gate) in (0..).zip(idt.iter_mut()) {
            let stub = u64::from(stubs + vector * STUB_SIZE);
            let kind = if vector == BREAKPOINT { 0xee00 } else { 0x8e00 };
            *gate = stub & 0xffff | u64::from(CODE32) << 16 | kind << 32 | (stub >> 16) << 48;
        }
    }
}

/// Limit and base, as LGDT and LIDT take them, and zeroes above where the base has 64 bits.
fn pointer<const N: usize, const ABOVE: usize>(
    base: u32,
    size: usize,
    _: [u16; ABOVE],
) -> [u16; N] {
    let words = [size as u16 - 1, base as u16, (base >> 16) as u16, 0, 0];
    core::array::from_fn(|at| words[at])
}

unsafe extern "C" {
    static offshoot_mmu_stubs: u8;
    fn offshoot_mmu_protected();
}

/// To 32-bit mode, and back when the work is done. Returns with the GDT and IDT of this module.
#[unsafe(naked)]
unsafe extern "C" fn cross(block: *mut Block) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + 32], rsp",
        "lgdt [rdi + 40]",
        // CR0 without paging. Outside 64-bit mode the upper half of the register must not matter.
        "mov rax, cr0",
        "and eax, 0x7fffffff",
        "mov rbp, {stale}",
        "or rbp, rax",
        "push {code32}",
        "lea rax, [rip + {protected}]",
        "push rax",
        "retfq",
        stale = const STALE,
        code32 = const CODE32,
        protected = sym offshoot_mmu_protected,
    )
}

global_asm!(
    ".text",
    ".code32",
    ".global offshoot_mmu_protected",
    "offshoot_mmu_protected:",
    "mov eax, {user_data}",
    "mov ds, eax",
    "mov es, eax",
    "mov eax, {data}",
    "mov ss, eax",
    "mov esp, [edi + 8]",
    // Out of long mode: paging off, LME off. NXE and PAE are as asked for.
    "mov cr0, ebp",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, ~0x900",
    "or eax, [edi + 64]",
    "wrmsr",
    "mov eax, [edi + 20]",
    "mov cr4, eax",
    "mov eax, [edi + 16]",
    "mov cr3, eax",
    "lidt [edi + 50]",
    "mov eax, {task}",
    "ltr ax",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    "jmp 2f",
    "2:",
    "mov [offshoot_mmu_block], edi",
    "mov ebp, [edi]",
    "sub ebp, {op_size}",
    // The next op is at EBP, the block at EDI.
    ".Loffshoot_next:",
    "mov edi, [offshoot_mmu_block]",
    "mov esp, [edi + 8]",
    "add ebp, {op_size}",
    "cmp ebp, [edi + 4]",
    "jae .Loffshoot_back",
    "mov ecx, [ebp]",
    "mov ebx, [ebp + 4]",
    "mov eax, [ebp + 8]",
    "cmp dword ptr [ebp + 12], 0",
    "jne .Loffshoot_user",
    "cmp ecx, {read}",
    "je 3f",
    "cmp ecx, {write}",
    "je 4f",
    "cmp ecx, {fetch}",
    "je 5f",
    "cmp ecx, {flush}",
    "je 6f",
    "cmp ecx, {call}",
    "je 7f",
    "cmp ecx, {add}",
    "je .Loffshoot_add",
    "cmp ecx, {set_wp}",
    "jne 8f",
    // CR0.WP.
    "mov ecx, cr0",
    "and ecx, ~{wp}",
    "or ecx, eax",
    "mov cr0, ecx",
    "jmp .Loffshoot_next",
    "3:",
    "mov eax, [ebx]",
    "mov [ebp + 28], eax",
    "jmp .Loffshoot_next",
    "4:",
    "mov [ebx], eax",
    "jmp .Loffshoot_next",
    "5:",
    "call ebx",
    "jmp .Loffshoot_next",
    "6:",
    "mov eax, cr3",
    "mov cr3, eax",
    "jmp .Loffshoot_next",
    // The name of a figure is there.
    "7:",
    "mov eax, {figure}",
    "mov edi, ebx",
    "mov esi, 1",
    "xor edx, edx",
    "vmcall",
    "mov [ebp + 28], eax",
    "jmp .Loffshoot_next",
    ".Loffshoot_add:",
    ".byte 0x82, 0x03, 0x05",
    "jmp .Loffshoot_next",
    // A string instruction: what it goes through is in ESI and EDI.
    "8:",
    "mov edx, 0x80",
    "mov edi, [edi + 56]",
    "mov esi, ebx",
    "cmp ecx, {outs}",
    "je .Loffshoot_outs",
    "cmp ecx, {to_device}",
    "je .Loffshoot_movs",
    "xchg esi, edi",
    "cmp ecx, {ins}",
    "jne .Loffshoot_movs",
    "insb",
    "jmp .Loffshoot_next",
    ".Loffshoot_outs:",
    "outsb",
    "jmp .Loffshoot_next",
    ".Loffshoot_movs:",
    "movsb",
    "jmp .Loffshoot_next",
    // The same at CPL 3, in the user's view of this code, until INT3. Ports are for user mode too.
    ".Loffshoot_user:",
    "push {user_data}",
    "push dword ptr [edi + 12]",
    "push 0x3002",
    "push {user_code}",
    "mov edx, offset .Loffshoot_user_read",
    "cmp ecx, {read}",
    "je 9f",
    "mov edx, offset .Loffshoot_user_write",
    "cmp ecx, {write}",
    "je 9f",
    "mov edx, offset .Loffshoot_user_fetch",
    "cmp ecx, {fetch}",
    "je 9f",
    "mov edi, [edi + 60]",
    "mov esi, ebx",
    "mov edx, offset .Loffshoot_user_outs",
    "cmp ecx, {outs}",
    "je 9f",
    "mov edx, offset .Loffshoot_user_movs",
    "cmp ecx, {to_device}",
    "je 9f",
    "xchg esi, edi",
    "cmp ecx, {ins}",
    "jne 9f",
    "mov edx, offset .Loffshoot_user_ins",
    "9:",
    "add edx, {user_base}",
    "push edx",
    "mov edx, 0x80",
    "iretd",
    ".Loffshoot_user_read:",
    "mov eax, [ebx]",
    "int3",
    ".Loffshoot_user_write:",
    "mov [ebx], eax",
    "int3",
    ".Loffshoot_user_fetch:",
    "call ebx",
    "int3",
    ".Loffshoot_user_outs:",
    "outsb",
    "int3",
    ".Loffshoot_user_ins:",
    "insb",
    "int3",
    ".Loffshoot_user_movs:",
    "movsb",
    "int3",
    // Back to long mode: PAE, LME and NXE, paging on. CR0.WP is left as the ops left it.
    ".Loffshoot_back:",
    "mov edi, [offshoot_mmu_block]",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov eax, [edi + 28]",
    "mov cr4, eax",
    "mov eax, [edi + 24]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    "push {code64}",
    "mov eax, offset offshoot_mmu_long",
    "push eax",
    "retf",
    // One stub for each vector; those without an error code push 0.
    ".balign {stub_size}",
    ".global offshoot_mmu_stubs",
    "offshoot_mmu_stubs:",
    ".set offshoot_mmu_vector, 0",
    ".rept {vectors}",
    ".balign {stub_size}",
    ".if (({with_error_code} >> offshoot_mmu_vector) & 1) == 0",
    "push 0",
    ".endif",
    ".byte 0x6a, offshoot_mmu_vector", // push imm8
    "jmp .Loffshoot_trapped",
    ".set offshoot_mmu_vector, offshoot_mmu_vector + 1",
    ".endr",
    // Notes the exception and goes on with the next op: nothing below needs what the stack holds.
    ".Loffshoot_trapped:",
    "mov [ebp + 28], eax",
    "pop dword ptr [ebp + 16]",
    "pop dword ptr [ebp + 20]",
    "mov eax, cr2",
    "mov [ebp + 24], eax",
    "jmp .Loffshoot_next",
    ".balign 4",
    "offshoot_mmu_block: .long 0",
    ".code64",
    "offshoot_mmu_long:",
    "mov edi, edi",
    "mov eax, {data}",
    "mov ss, eax",
    "mov rsp, [rdi + 32]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    data = const DATA,
    code64 = const CODE64,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    user_base = const USER_BASE,
    task = const TASK,
    op_size = const OP_SIZE,
    read = const READ,
    write = const WRITE,
    fetch = const FETCH,
    set_wp = const SET_WP,
    flush = const FLUSH,
    outs = const OUTS,
    ins = const INS,
    to_device = const TO_DEVICE,
    call = const CALL,
    add = const ADD,
    figure = const Call::Figure as u32,
    wp = const CR0_WP,
    stub_size = const STUB_SIZE,
    vectors = const VECTORS,
    with_error_code = const 0x6022_7d00_u32,
);
