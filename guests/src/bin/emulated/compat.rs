//! Code of 16 and 32 bits in IA-32e mode, with segments of one's own.

use core::arch::asm;
use core::cell::UnsafeCell;

/// The selector of 32-bit code, and of the first segment that is given to [`install`].
pub const CODE32: u64 = 0x38;
pub const FIRST: u64 = 0x40;
const OWN: usize = FIRST as usize / 8;
const ENTRIES: usize = OWN + 24;
const FLAT_CODE32: u64 = 0x00cf_9b00_0000_ffff;

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

struct Table(UnsafeCell<[u64; ENTRIES]>);

// SAFETY: a guest has one CPU.
unsafe impl Sync for Table {}

static GDT: Table = Table(UnsafeCell::new([0; ENTRIES]));

/// A descriptor: `limit` in bytes below 1 MiB, else in pages; `kind` has P, DPL, S and the type, `flags` G, D/B, L and AVL.
pub const fn descriptor(base: u64, limit: u64, kind: u64, flags: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | kind << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Loads a table with the segments in use, 32-bit code, and `more`.
pub fn install(more: &[u64]) {
    let mut old = Pointer { limit: 0, base: 0 };
    // SAFETY: the table in use is the library's, of seven entries; the new one has the same at its beginning.
    unsafe {
        asm!("sgdt [{}]", in(reg) &raw mut old);
        let base = old.base as *const u64;
        let table = &mut *GDT.0.get();
        for (index, slot) in table.iter_mut().enumerate() {
            *slot = match index {
                0..7 => base.add(index).read(),
                7 => FLAT_CODE32,
                _ => more.get(index - OWN).copied().unwrap_or(0),
            };
        }
        let new = Pointer {
            limit: size_of_val(table) as u16 - 1,
            base: GDT.0.get() as u64,
        };
        asm!("lgdt [{}]", in(reg) &raw const new);
    }
}

/// As [`probe!`](offshoot_guest::probe), of instructions that are 32-bit code. `r10` and `r11` are used; `rbx` points to what
/// leads back.
macro_rules! in_32_bit {
    ($($instruction:expr),+ ; $($operands:tt)*) => {{
        let far = [0_u64; 2];
        let trap = ::offshoot_guest::probe!(
            "lea r11, [rip + 67f]",
            "mov [r10], r11d",
            "mov dword ptr [r10 + 4], 8",
            "mov rbx, r10",
            "push 0x38",
            "lea r11, [rip + 66f]",
            "push r11",
            "retfq",
            ".code32",
            "66:",
            $($instruction,)+
            ".byte 0x2e, 0xff, 0x2b", // jmp far cs:[ebx]
            ".code64",
            "67:";
            inout("r10") far.as_ptr() => _, out("r11") _, $($operands)*);
        ::core::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) ::offshoot_guest::trap::KERNEL_DATA as u64);
        trap
    }};
}

pub(crate) use in_32_bit;
