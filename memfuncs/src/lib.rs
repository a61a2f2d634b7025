//! `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp` for programs that run without a C library.
//!
//! The compiler emits calls to these five whatever the program does. They are written in assembly so that the
//! compiler cannot recognise the loop in `memcpy` as a `memcpy`. Long runs go by eight bytes in a string
//! instruction: fast on any x86-64, and an eighth of the instructions where an emulator counts them.
//!
//! The C names exist only with feature `symbols`; without it a host test can call the functions by their Rust
//! names beside those of the C library.
#![no_std]

use core::arch::naked_asm;

/// Copies `len` bytes from `src` to `dest`, which do not overlap, and returns `dest`.
///
/// # Safety
/// `src` must be readable and `dest` writable for `len` bytes.
#[unsafe(naked)]
#[cfg_attr(feature = "symbols", unsafe(export_name = "memcpy"))]
pub unsafe extern "C" fn copy(dest: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "ret",
    )
}

/// Copies `len` bytes from `src` to `dest`, which may overlap, and returns `dest`.
///
/// # Safety
/// `src` must be readable and `dest` writable for `len` bytes.
#[unsafe(naked)]
#[cfg_attr(feature = "symbols", unsafe(export_name = "memmove"))]
pub unsafe extern "C" fn copy_overlapping(dest: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        // Forwards is right unless `dest` lies inside the source: dest - src as an unsigned number below len.
        "mov rcx, rdi",
        "sub rcx, rsi",
        "cmp rcx, rdx",
        "jb 2f",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "ret",
        // Backwards in a plain loop: the string instructions are slow with the direction flag set. Eight bytes
        // at a time are read before they are written, so that a distance below eight is right as well.
        "2:",
        "cmp rdx, 8",
        "jb 3f",
        "mov rcx, [rsi + rdx - 8]",
        "mov [rdi + rdx - 8], rcx",
        "sub rdx, 8",
        "jmp 2b",
        "3:",
        "test rdx, rdx",
        "jz 4f",
        "mov cl, [rsi + rdx - 1]",
        "mov [rdi + rdx - 1], cl",
        "dec rdx",
        "jmp 3b",
        "4:",
        "ret",
    )
}

/// Sets `len` bytes at `dest` to the low byte of `value` and returns `dest`.
///
/// # Safety
/// `dest` must be writable for `len` bytes.
#[unsafe(naked)]
#[cfg_attr(feature = "symbols", unsafe(export_name = "memset"))]
pub unsafe extern "C" fn fill(dest: *mut u8, value: i32, len: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "movzx eax, sil",
        "mov rcx, 0x0101010101010101",
        "imul rax, rcx",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep stosq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// Compares `len` bytes: negative, zero or positive as `a` is below, equal to or above `b`.
///
/// # Safety
/// Both must be readable for `len` bytes.
#[unsafe(naked)]
#[cfg_attr(feature = "symbols", unsafe(export_name = "memcmp"))]
pub unsafe extern "C" fn compare(a: *const u8, b: *const u8, len: usize) -> i32 {
    naked_asm!(
        "2:",
        "cmp rdx, 8",
        "jb 3f",
        "mov rax, [rdi]",
        "mov rcx, [rsi]",
        "cmp rax, rcx",
        "jne 4f",
        "add rdi, 8",
        "add rsi, 8",
        "sub rdx, 8",
        "jmp 2b",
        // The first byte in memory decides: bring it to the top.
        "4:",
        "bswap rax",
        "bswap rcx",
        "cmp rax, rcx",
        "sbb eax, eax",
        "or eax, 1",
        "ret",
        "3:",
        "test rdx, rdx",
        "jz 5f",
        "movzx eax, byte ptr [rdi]",
        "movzx ecx, byte ptr [rsi]",
        "sub eax, ecx",
        "jne 6f",
        "inc rdi",
        "inc rsi",
        "dec rdx",
        "jmp 3b",
        "5:",
        "xor eax, eax",
        "6:",
        "ret",
    )
}

/// Compares `len` bytes: zero if they are equal.
///
/// # Safety
/// Both must be readable for `len` bytes.
#[unsafe(naked)]
#[cfg_attr(feature = "symbols", unsafe(export_name = "bcmp"))]
pub unsafe extern "C" fn differ(a: *const u8, b: *const u8, len: usize) -> i32 {
    naked_asm!("jmp {compare}", compare = sym compare)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 37 + 11) as u8).collect()
    }

    #[test]
    fn copy_touches_exactly_its_bytes() {
        let src = bytes(80);
        for len in 0..=40 {
            for (from, to) in [(0, 0), (3, 5), (7, 1)] {
                let mut dest = std::vec![0xee; 80];
                // SAFETY: both ends lie in the 80 bytes, and the buffers are apart.
                let returned =
                    unsafe { copy(dest.as_mut_ptr().add(to), src.as_ptr().add(from), len) };
                assert_eq!(returned as usize, dest.as_ptr() as usize + to);
                assert!(dest[..to].iter().all(|&b| b == 0xee));
                assert_eq!(dest[to..to + len], src[from..from + len]);
                assert!(dest[to + len..].iter().all(|&b| b == 0xee));
            }
        }
    }

    #[test]
    fn overlapping_copy_agrees_with_copy_within() {
        for len in 0..=40 {
            for from in 0..30 {
                for to in 0..30 {
                    let mut ours = bytes(80);
                    let mut expected = bytes(80);
                    expected.copy_within(from..from + len, to);
                    let base = ours.as_mut_ptr();
                    // SAFETY: both ends lie in the 80 bytes.
                    unsafe { copy_overlapping(base.add(to), base.add(from), len) };
                    assert_eq!(ours, expected, "{len} bytes from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn fill_uses_the_low_byte_only() {
        for len in 0..=40 {
            let mut dest = bytes(64);
            // SAFETY: 5 + 40 bytes lie in the 64.
            unsafe { fill(dest.as_mut_ptr().add(5), 0x7ffe_12ab, len) };
            assert_eq!(dest[..5], bytes(64)[..5]);
            assert!(dest[5..5 + len].iter().all(|&b| b == 0xab));
            assert_eq!(dest[5 + len..], bytes(64)[5 + len..]);
        }
    }

    #[test]
    fn compare_orders_as_slices_do() {
        for len in 0..=24 {
            for at in 0..len {
                for (x, y) in [(0, 0xff), (0x7f, 0x80), (1, 1), (0xff, 0)] {
                    let (mut a, mut b) = (bytes(len), bytes(len));
                    (a[at], b[at]) = (x, y);
                    // A later difference the other way must not decide.
                    if at + 1 < len {
                        (a[len - 1], b[len - 1]) = (y, x);
                    }
                    // SAFETY: both are `len` bytes long.
                    let (order, differs) = unsafe {
                        (
                            compare(a.as_ptr(), b.as_ptr(), len),
                            differ(a.as_ptr(), b.as_ptr(), len),
                        )
                    };
                    assert_eq!(order.cmp(&0), a.cmp(&b));
                    assert_eq!(differs == 0, a == b);
                }
            }
        }
    }
}
