//! Exits of all kinds, one after the other, in assembly that touches no register but the general ones.

use core::arch::naked_asm;
use offshoot_guest::StartInfo;
use offshoot_guests::cpu;

const PAGE: u64 = 4096;
/// Exits in one round of the storm: CPUID, VMCALL, HLT, four MSR accesses, two of ports, three of control registers,
/// WBINVD, two EPT violations, and XSETBV where there is one.
pub const EXITS_PER_ROUND: u64 = 15;

/// Pages of the heap that nothing has touched, handed out one by one.
pub struct Heap {
    next: u64,
    end: u64,
    stride: u64,
}

impl Heap {
    /// Spreads the pages over the heap, so that a fill that takes neighbours along still leaves work.
    pub fn new(info: &StartInfo) -> Self {
        let pages = info.heap_len / PAGE;
        Self {
            next: info.heap,
            end: info.heap + info.heap_len,
            stride: (pages / 4096).clamp(1, 9) * PAGE,
        }
    }

    /// The next `count` pages, `stride` apart, or none if the heap is used up.
    pub fn take(&mut self, count: u64) -> Option<Fresh> {
        let first = self.next;
        let next = first.checked_add(count.checked_mul(self.stride)?)?;
        (next <= self.end).then(|| {
            self.next = next;
            Fresh {
                first,
                stride: self.stride,
            }
        })
    }

    /// One page.
    ///
    /// # Panics
    /// If the heap is used up.
    pub fn page(&mut self) -> u64 {
        match self.take(1) {
            Some(fresh) => fresh.first,
            None => panic!("the heap is too small for the checks"),
        }
    }
}

/// Pages that nothing has touched.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Fresh {
    first: u64,
    stride: u64,
}

/// What the storm is told.
#[repr(C)]
pub struct Storm {
    rounds: u64,
    pages: Fresh,
    /// Whether CR4.OSXSAVE is set.
    xsetbv: u64,
    /// Added up over the rounds: what the fresh pages held.
    found: u64,
}

impl Storm {
    /// A storm of `rounds`, with as many fresh pages.
    ///
    /// # Panics
    /// If the heap is used up.
    pub fn new(rounds: u64, heap: &mut Heap) -> Self {
        let Some(pages) = heap.take(rounds) else {
            panic!("the heap is too small for the checks")
        };
        Self {
            rounds,
            pages,
            xsetbv: cpu::has_ecx1(27).into(),
            found: 0,
        }
    }

    /// How many exits it makes.
    pub fn exits(&self) -> u64 {
        self.rounds * (EXITS_PER_ROUND + self.xsetbv)
    }

    /// Whether all fresh pages were zero.
    pub fn found_zeros(&self) -> bool {
        self.found == 0
    }
}

/// Runs the storm. Keeps every register but the ones that a C function may change, and of the FPU and vector
/// registers all.
///
/// # Safety
/// Needs CPL 0 and interrupts that may be on for a moment.
#[unsafe(naked)]
pub unsafe extern "C" fn run(storm: *mut Storm) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov r12, rdi",
        "mov r13, [r12]",      // rounds
        "mov r14, [r12 + 8]",  // page
        "mov r15, [r12 + 16]", // stride
        "2:",
        "xor eax, eax",
        "xor ecx, ecx",
        "cpuid",
        "xor eax, eax",
        "vmcall",
        "sti",
        "hlt",
        "cli",
        "mov ecx, 0x1b", // IA32_APIC_BASE
        "rdmsr",
        "mov ecx, 0xc0000080", // IA32_EFER
        "rdmsr",
        "mov ecx, 0x277", // IA32_PAT
        "rdmsr",
        "wrmsr",
        "mov edx, 0x80",
        "in al, dx",
        "out dx, al",
        "mov rax, cr0",
        "mov cr0, rax",
        "mov rax, cr4",
        "mov cr4, rax",
        "mov rax, cr3",
        "mov cr3, rax",
        "wbinvd",
        "cmp qword ptr [r12 + 24], 0",
        "je 3f",
        "xor ecx, ecx",
        "xgetbv",
        "xsetbv",
        "3:",
        "mov rax, [r14]", // a read fill
        "add [r12 + 32], rax",
        "mov [r14 + 8], r13", // a write fill
        "mov rax, [r14 + 8]",
        "sub rax, r13",
        "add [r12 + 32], rax",
        "add r14, r15",
        "dec r13",
        "jnz 2b",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
