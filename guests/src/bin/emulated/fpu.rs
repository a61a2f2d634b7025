//! The selectors of the last x87 instruction and its operand, on a processor that has them, outlive an exit.

use crate::compat::{self, CODE32, in_32_bit};
use offshoot_guest::StartInfo;
use offshoot_guest::trap::KERNEL_DATA;
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

/// CPUID.7.EBX: FCS and FDS are no more.
const NO_SELECTORS: u32 = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    No,
    In32BitCode,
    In64BitCode,
}

pub fn check(checks: &mut Checks, info: &StartInfo) {
    compat::install(&[]);
    let without = pointers(info.heap, Exit::No);
    let expected = match cpu::has_ebx7(NO_SELECTORS) {
        true => [0, 0],
        false => [CODE32 as u16, KERNEL_DATA],
    };
    checks.that(
        [without[1] as u16, without[3] as u16] == expected,
        format_args!("FCS and FDS in {without:x?}, {expected:x?} expected"),
    );
    for exit in [Exit::In32BitCode, Exit::In64BitCode] {
        let with = pointers(info.heap, exit);
        checks.that(
            with == without,
            format_args!("x87 pointers {without:x?}, after {exit:?} {with:x?}"),
        );
    }
}

/// What FNSTENV stores in 32-bit code: FIP, FCS, FDP, FDS. The code is in one place, for FIP to be the same.
#[inline(never)]
fn pointers(environment: u64, exit: Exit) -> [u32; 4] {
    let in_32_bit = u64::from(exit == Exit::In32BitCode);
    // SAFETY: the environment is in the heap.
    let traps = unsafe {
        [
            in_32_bit!(
                "fninit", "fld1", "fadd dword ptr [edi]",
                "push ebx", "test ecx, ecx", "jz 65f", "xor eax, eax", "cpuid", "65:", "pop ebx";
                in("rdi") environment, inout("rcx") in_32_bit => _, inout("rax") 0_u64 => _, out("rdx") _),
            {
                if exit == Exit::In64BitCode {
                    cpu::outb(0x80, 0);
                }
                in_32_bit!("fnstenv [edi]"; in("rdi") environment)
            },
        ]
    };
    if traps != [None; 2] {
        return [u32::MAX; 4];
    }
    // SAFETY: FNSTENV has written 28 bytes there.
    [3, 4, 5, 6].map(|word| unsafe { (environment as *const u32).add(word).read_volatile() })
}
