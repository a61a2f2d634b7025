//! Control, debug and model-specific registers.

use crate::case::Case;
use core::arch::asm;

pub const CR0_WP: u64 = 1 << 16;
pub const CR0_AM: u64 = 1 << 18;
pub const CR0_PG: u64 = 1 << 31;
pub const CR0_PE: u64 = 1;
pub const CR4_PSE: u64 = 1 << 4;
pub const CR4_PAE: u64 = 1 << 5;
pub const CR4_SMAP: u64 = 1 << 21;
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_NXE: u64 = 1 << 11;
const EFER: u32 = 0xc000_0080;
/// What CR2 is before: nothing that an access faults with.
pub const CR2: u64 = 0x1234_5678;
const DR6_NONE: u64 = 0xffff_0ff0;
/// Nothing but the bit that is always 1.
const DR7_NONE: u64 = 0x400;

/// CR0 for the case.
pub fn control0(own: u64, case: &Case) -> u64 {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    own & !CR0_WP | bit(case.write_protect, CR0_WP) | bit(case.alignment_mask, CR0_AM)
}

pub fn set_breakpoints(case: &Case, shift: impl Fn(bool) -> u64) {
    let at = case
        .breakpoints
        .map(|(address, first)| address.wrapping_add(shift(first)));
    // SAFETY: debug exceptions find a handler, and the page of CR2 is nobody's.
    unsafe {
        asm!("mov cr2, {}", in(reg) CR2, options(nomem, nostack));
        asm!("mov dr6, {}", in(reg) DR6_NONE, options(nomem, nostack));
        if case.dr7 != 0 {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}",
                in(reg) at[0], in(reg) at[1], in(reg) at[2], in(reg) at[3], in(reg) case.dr7 | DR7_NONE,
                options(nostack));
        }
    }
}

pub fn clear_breakpoints() {
    // SAFETY: breakpoints off.
    unsafe { asm!("mov dr7, {}", in(reg) DR7_NONE, options(nostack)) };
}

pub fn load_cr3(root: u64) {
    // SAFETY: all tables here map this program to itself.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

pub fn set_cr0(value: u64) {
    // SAFETY: only WP and AM are changed, and this program is at CPL 0 and writes to writable pages.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack)) };
}

pub fn set_cr4(value: u64) {
    // SAFETY: only SMAP is changed, and this program uses no page of user mode while it is on.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}

pub fn set_efer(value: u64) {
    // SAFETY: only NXE is changed, and no entry that this program uses has the bit.
    unsafe {
        asm!("wrmsr", in("ecx") EFER, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack));
    }
}
