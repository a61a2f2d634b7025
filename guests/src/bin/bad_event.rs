//! Exceptions whose delivery meets an EPT violation: the handler's stack lies in pages that nothing has touched. Each
//! must be delivered once, with all that belongs to it.
#![no_std]
#![no_main]

use offshoot_guest::trap::{BP, DB, DE, GP, PF, PF_WRITE, UD};
use offshoot_guest::{StartInfo, probe, trap};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;

/// Raises an exception by `$instruction`, whose saved RIP is `$offset` bytes behind its start.
macro_rules! raise {
    ($checks:ident, $stack:expr, $vector:expr, $error:expr, $offset:literal, $instruction:literal) => {{
        let before = trap::count();
        let start: u64;
        // SAFETY: the stack is fresh heap; the exception is caught.
        let trap = unsafe {
            trap::set_stack($stack);
            let trap = probe!("lea r8, [rip + 66f]", "66:", $instruction;
                out("r8") start, inout("rax") 0_u64 => _, inout("rdx") 0_u64 => _,
                in("rcx") 0_u64);
            trap::set_stack(trap::own_stack());
            trap
        };
        let what = format_args!("{} with the stack at {:#x}", $instruction, $stack);
        $checks.trapped(what, trap, $vector, $error);
        $checks.equal(what, trap.map_or(0, |trap| trap.rip), start + $offset);
        $checks.equal(what, trap::count() - before, 1);
        trap
    }};
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    // The frame of six words ends on a page, or lies across two, both fresh. Five other pages lie between, so that
    // filling neighbours along does not touch the next.
    let fresh = |n: u64| info.heap + (64 * n + 8) * PAGE;
    for round in 0..16 {
        let stack = |n: u64| fresh(round * 8 + n) + if round % 2 == 0 { 0 } else { 16 };
        if stack(8) >= info.heap + info.heap_len {
            break;
        }
        raise!(checks, stack(0), UD, 0, 0, "ud2");
        raise!(checks, stack(1), BP, 0, 1, "int3");
        raise!(checks, stack(2), DB, 0, 2, "int 1");
        raise!(checks, stack(3), DE, 0, 0, "div ecx");
        let trap = raise!(checks, stack(4), PF, PF_WRITE, 0, "mov [rcx + 24], rax");
        checks.equal(format_args!("CR2"), trap.map_or(0, |trap| trap.cr2), 24);
        // A selector behind the end of the table: an error code that is not zero.
        raise!(
            checks,
            stack(5),
            GP,
            0xfff8,
            0,
            "mov ds, [rip + 67f]; jmp 68f; 67: .word 0xfff8; 68:"
        );
        raise!(checks, stack(6), GP, 0x40 * 8 + 2, 0, "int 0x40");
        raise!(checks, stack(7), DB, 0, 1, ".byte 0xf1");
    }
    checks.finish()
}
