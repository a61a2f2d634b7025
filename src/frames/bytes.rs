//! Moving bytes in and out of frames.
//!
//! A guest may run on another CPU and write the same bytes at the same time, so they are never behind a Rust
//! reference and are moved by volatile accesses: each byte is read or written once, in no promised order.

use super::PhysMem;
use crate::addr::{Address, Hpa, PAGE_SIZE};
use crate::counting::{Counted, add};
use core::sync::atomic::{AtomicU64, Ordering};

/// Fills the frame at `frame` with zeroes.
///
/// # Safety
/// The frame must be managed memory that the caller alone uses.
pub(super) unsafe fn zero(mem: &impl PhysMem, frame: Hpa) {
    add(Counted::Bytes, PAGE_SIZE);
    // SAFETY: the pointer is valid to the end of the frame by the contract of `PhysMem`; the caller alone uses it.
    unsafe { mem.ptr(frame).write_bytes(0, PAGE_SIZE as usize) }
}

/// Copies a whole frame.
///
/// # Safety
/// As for [`PhysMem::copy_frame`].
#[inline(always)]
pub(super) unsafe fn copy(mem: &impl PhysMem, from: Hpa, to: Hpa) {
    add(Counted::Bytes, PAGE_SIZE);
    // SAFETY: the caller's.
    unsafe { mem.copy_frame(from, to) }
}

/// Copies bytes out of memory, from `at` up to the end of its frame at most.
///
/// # Safety
/// `at` must lie in a managed frame and `into` must not pass its end.
pub(super) unsafe fn read(mem: &impl PhysMem, at: Hpa, into: &mut [u8]) {
    add(Counted::Bytes, into.len() as u64);
    let mut from: *const u8 = mem.ptr(at);
    let (head, rest) = into.split_at_mut(from.align_offset(8).min(into.len()));
    let (words, tail) = rest.as_chunks_mut::<8>();
    // SAFETY: `from` moves along with what has been filled, so it stays inside the frame; words are read where `from` is
    // aligned, behind the head.
    unsafe {
        for byte in head {
            *byte = from.read_volatile();
            from = from.add(1);
        }
        for word in words {
            *word = from.cast::<u64>().read_volatile().to_ne_bytes();
            from = from.add(8);
        }
        for byte in tail {
            *byte = from.read_volatile();
            from = from.add(1);
        }
    }
}

/// Copies bytes into memory, from `at` up to the end of its frame at most.
///
/// # Safety
/// `at` must lie in a managed frame and `bytes` must not pass its end; nothing but guest bytes may be there.
pub(super) unsafe fn write(mem: &impl PhysMem, at: Hpa, bytes: &[u8]) {
    add(Counted::Bytes, bytes.len() as u64);
    let mut to = mem.ptr(at);
    let (head, rest) = bytes.split_at(to.align_offset(8).min(bytes.len()));
    let (words, tail) = rest.as_chunks::<8>();
    // SAFETY: as in `read`.
    unsafe {
        for byte in head {
            to.write_volatile(*byte);
            to = to.add(1);
        }
        for word in words {
            to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
            to = to.add(8);
        }
        for byte in tail {
            to.write_volatile(*byte);
            to = to.add(1);
        }
    }
}

/// Reads the words from `at`, a multiple of 8, on. Those behind the frame are 0.
///
/// # Safety
/// `at` must lie in a managed frame.
#[inline(always)]
pub(super) unsafe fn words<const N: usize>(mem: &impl PhysMem, at: Hpa) -> [u64; N] {
    debug_assert!(at.is_aligned(8));
    let from: *const u64 = mem.ptr(at).cast();
    let in_frame = (PAGE_SIZE - at.page_offset()) as usize / 8;
    core::array::from_fn(|number| {
        if number >= in_frame {
            return 0;
        }
        // SAFETY: inside the frame, and aligned as `at` is.
        unsafe { from.add(number).read_volatile() }
    })
}

/// Puts `new` at `at`, a multiple of 8, if `old` stands there, in one step, also for CPUs. Returns whether it did.
///
/// # Safety
/// `at` must lie in a managed frame that holds nothing but guest bytes.
pub(super) unsafe fn exchange(mem: &impl PhysMem, at: Hpa, old: u64, new: u64) -> bool {
    debug_assert!(at.is_aligned(8));
    // SAFETY: inside the frame and aligned as `at` is; nobody has a reference to guest bytes that is not atomic.
    let word = unsafe { AtomicU64::from_ptr(mem.ptr(at).cast()) };
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}
