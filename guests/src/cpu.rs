//! The instructions that a guest's tests are made of.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

pub use core::arch::x86_64::CpuidResult;

/// What CPUID says of `leaf` and `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Whether CPUID reports bit `bit` of ECX in leaf 1.
pub fn has_ecx1(bit: u32) -> bool {
    cpuid(1, 0).ecx & (1 << bit) != 0
}

/// Whether CPUID reports bit `bit` of EBX in leaf 7, on a CPU that has this leaf.
pub fn has_ebx7(bit: u32) -> bool {
    cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & (1 << bit) != 0
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter; CPL 0 may whatever CR4.TSD says.
    unsafe { _rdtsc() }
}

/// Reads a byte from `port`.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: no device of a guest reaches its memory.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack)) };
    value
}

/// Reads two bytes from `port`.
pub fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: as in `inb`.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack)) };
    value
}

/// Reads four bytes from `port`.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as in `inb`.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack)) };
    value
}

/// Writes a byte to `port`.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, al", in("al") value, in("dx") port, options(nomem, nostack)) };
}

/// Writes two bytes to `port`.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, ax", in("ax") value, in("dx") port, options(nomem, nostack)) };
}

/// Writes four bytes to `port`.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, eax", in("eax") value, in("dx") port, options(nomem, nostack)) };
}

/// Waits until all that was written can be executed, also where it was written through another linear address: IRET
/// serializes and, unlike CPUID, does not leave the guest.
pub fn serialize() {
    // SAFETY: goes on behind itself with the same stack and flags.
    unsafe {
        asm!(
            "mov {scratch}, rsp",
            "push {zero}",
            "mov {zero:e}, ss",
            "mov [rsp], {zero}",
            "push {scratch}",
            "pushfq",
            "mov {zero:e}, cs",
            "push {zero}",
            "lea {zero}, [rip + 2f]",
            "push {zero}",
            "iretq",
            "2:",
            scratch = out(reg) _,
            zero = inout(reg) 0_u64 => _,
        )
    }
}
