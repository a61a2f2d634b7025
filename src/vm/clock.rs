//! The time-stamp counter.

use core::arch::x86_64::_rdtsc;

/// The time-stamp counter now.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    unsafe { _rdtsc() }
}
