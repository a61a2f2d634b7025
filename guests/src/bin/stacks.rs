//! Takes exceptions on stacks that nobody has touched, each across the end of a page: the hypervisor is asked for memory
//! twice while one exception is delivered.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offshoot_guest::trap::{self, BP, Gate, UD};
use offshoot_guest::{StartInfo, println};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const VECTORS: u8 = 32;
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Counts, and goes on behind UD2, of two bytes.
#[unsafe(naked)]
unsafe extern "C" fn invalid() {
    naked_asm!("lock inc qword ptr [rip + {0}]", "add qword ptr [rsp], 2", "iretq", sym TAKEN)
}

/// Counts, and goes on.
#[unsafe(naked)]
unsafe extern "C" fn breakpoint() {
    naked_asm!("lock inc qword ptr [rip + {0}]", "iretq", sym TAKEN)
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let gate = |handler: unsafe extern "C" fn()| Gate::new(handler as *const () as u64, 0, 0);
    let gates = info.heap as *mut Gate;
    for vector in 0..VECTORS {
        let gate = match vector {
            UD => gate(invalid),
            BP => gate(breakpoint),
            other => trap::gate(other),
        };
        // SAFETY: the first page of the heap is for these.
        unsafe { gates.add(vector.into()).write(gate) };
    }
    // SAFETY: the gates are complete, and stay.
    unsafe { trap::load_idt(info.heap, VECTORS.into()) };
    let mut checks = Checks::default();
    let mut expected = 0;
    let ends = (info.heap + 2 * PAGE..info.heap + info.heap_len).step_by(2 * PAGE as usize);
    for end in ends {
        let software = end / PAGE % 4 < 2;
        // SAFETY: the stack pointer is the same afterwards, and what is around `end` is nobody else's.
        unsafe {
            if software {
                asm!("mov {old}, rsp", "mov rsp, {end}", "int3", "mov rsp, {old}", old = out(reg) _, end = in(reg) end + 16);
            } else {
                asm!("mov {old}, rsp", "mov rsp, {end}", "ud2", "mov rsp, {old}", old = out(reg) _, end = in(reg) end + 16);
            }
        }
        expected += 1;
        checks.equal(format_args!("exceptions"), TAKEN.load(Relaxed), expected);
        // SAFETY: what the CPU has pushed: the interrupted stack pointer.
        let pushed = unsafe { (end as *const u64).read_volatile() };
        checks.equal(format_args!("stack pointer"), pushed, end + 16);
    }
    println!("{expected} exceptions");
    checks.finish()
}
