//! What the ways into the modes, written in assembly, share with the rest: what to load, and what an exception left.

use core::cell::UnsafeCell;
use core::mem::offset_of;

/// The registers at an instruction, by number as in its encoding.
pub type Registers = [u64; 16];

/// Limit and base of a descriptor table, placed so that LGDT and LIDT take it from the second word on.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TablePointer {
    _unused: [u16; 3],
    pub limit: u16,
    pub base: u64,
}

impl TablePointer {
    pub const fn new(base: u64, bytes: usize) -> Self {
        Self {
            _unused: [0; 3],
            limit: (bytes - 1) as u16,
            base,
        }
    }
}

/// What the processor is in before the instruction.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Before {
    pub registers: Registers,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub ss: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
    /// Of 64-bit code.
    pub fs_base: u64,
    pub gs_base: u64,
    /// Outside IA-32e mode.
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub idt: TablePointer,
    /// ESP and SS with which IRET is executed there.
    pub stack: u32,
    pub stack_segment: u32,
    /// Whether the mode is real mode.
    pub real: u64,
}

/// What it is in after it, as the handler of the exception that ended it finds it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct After {
    pub registers: Registers,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
    pub dr6: u64,
}

/// What the program itself runs with.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Own {
    /// RSP to come back with.
    rsp: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// A stack for 32-bit code.
    pub stack: u64,
    /// Not 0: an exception is expected.
    armed: u64,
}

#[repr(C)]
pub struct Block {
    pub before: Before,
    pub after: After,
    pub own: Own,
}

pub struct Shared<T>(pub UnsafeCell<T>);

// SAFETY: a guest has one CPU, and who uses what is in it waits for the others.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

impl After {
    pub const NONE: Self = Self {
        registers: [0; 16],
        vector: 0,
        error: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
        cr2: 0,
        dr6: 0,
    };
}

impl Before {
    pub const NONE: Self = Self {
        registers: [0; 16],
        rip: 0,
        cs: 0,
        rflags: 2,
        ss: 0,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
        fs_base: 0,
        gs_base: 0,
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        idt: TablePointer::new(0, 1),
        stack: 0,
        stack_segment: 0,
        real: 0,
    };
}

pub static BLOCK: Shared<Block> = Shared::new(Block {
    before: Before::NONE,
    after: After::NONE,
    own: Own {
        rsp: 0,
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        stack: 0,
        armed: 0,
    },
});

/// Offsets in [`BLOCK`], for assembly.
macro_rules! offsets {
    ($($name:ident = $part:ident: $type:ty, $field:ident;)*) => {
        $(pub const $name: usize = offset_of!(Block, $part) + offset_of!($type, $field);)*
    };
}

offsets! {
    IN_REGISTERS = before: Before, registers;
    IN_RIP = before: Before, rip;
    IN_CS = before: Before, cs;
    IN_RFLAGS = before: Before, rflags;
    IN_SS = before: Before, ss;
    IN_DS = before: Before, ds;
    IN_ES = before: Before, es;
    IN_FS = before: Before, fs;
    IN_GS = before: Before, gs;
    IN_FS_BASE = before: Before, fs_base;
    IN_GS_BASE = before: Before, gs_base;
    IN_CR0 = before: Before, cr0;
    IN_CR3 = before: Before, cr3;
    IN_CR4 = before: Before, cr4;
    IN_EFER = before: Before, efer;
    IN_IDT = before: Before, idt;
    IN_STACK = before: Before, stack;
    IN_REAL = before: Before, real;
    OUT_REGISTERS = after: After, registers;
    OUT_VECTOR = after: After, vector;
    OUT_ERROR = after: After, error;
    OUT_RIP = after: After, rip;
    OUT_CS = after: After, cs;
    OUT_RFLAGS = after: After, rflags;
    OUT_RSP = after: After, rsp;
    OUT_SS = after: After, ss;
    OUT_CR2 = after: After, cr2;
    OUT_DR6 = after: After, dr6;
    OWN_RSP = own: Own, rsp;
    OWN_CR0 = own: Own, cr0;
    OWN_CR3 = own: Own, cr3;
    OWN_CR4 = own: Own, cr4;
    OWN_EFER = own: Own, efer;
    OWN_STACK = own: Own, stack;
    OWN_ARMED = own: Own, armed;
}

/// Where LIDT finds limit and base in a [`TablePointer`].
pub const POINTER: usize = offset_of!(TablePointer, limit);
