//! The words of a table, as the CPU and the host access them.

use crate::addr::{Hpa, PAGE_SIZE};
use crate::frames::PhysMem;
use core::sync::atomic::{AtomicU64, Ordering};

/// Entries of a table.
pub(in crate::ept) const ENTRIES: usize = 512;
/// Eight of them, and how often a table has as many.
pub(in crate::ept) type Eight = [AtomicU64; 8];
pub(in crate::ept) const EIGHTS: usize = ENTRIES / 8;
/// The permission to write, in a leaf and in an entry that refers to a table.
pub(in crate::ept) const WRITE: u64 = 1 << 1;
/// The permissions to execute, in user mode too, where the CPU tells the modes apart.
pub(in crate::ept) const EXECUTE: u64 = 1 << 2 | 1 << 10;
/// The mark of a leaf that it was written, by the CPU or by whoever gave write.
pub(in crate::ept) const DIRTY: u64 = 1 << 9;
/// The mark of a leaf that it had lost [`DIRTY`] to a harvest since the last reset, to which that must not be lost.
pub(in crate::ept) const TOLD: u64 = 1 << 54;

/// The word of an entry.
///
/// # Safety
/// `table` must be a frame that `mem` reaches and that is used as a table as long as the reference lives.
#[inline(always)]
pub(in crate::ept) unsafe fn word<M: PhysMem>(mem: &M, table: Hpa, index: usize) -> &AtomicU64 {
    debug_assert!(index < (PAGE_SIZE / 8) as usize, "entry {index} of a table");
    let address = Hpa::new(table.as_u64() + (index as u64 * 8) % PAGE_SIZE);
    // SAFETY: the address is inside the frame and a multiple of 8; the caller vouches for the frame.
    unsafe { AtomicU64::from_ptr(mem.ptr(address).cast()) }
}

/// The words of a table.
///
/// # Safety
/// As for [`word`].
#[inline(always)]
pub(in crate::ept) unsafe fn words<M: PhysMem>(mem: &M, table: Hpa) -> &[Eight; EIGHTS] {
    // SAFETY: the caller vouches for the frame, which is aligned and as long as 512 words.
    unsafe { &*mem.ptr(table).cast() }
}

/// Shows each entry that is in use to `show`: its number among these, where it is, and what it says.
///
/// Most entries of most tables are not, so they are looked at eight at a time.
#[inline(always)]
pub(in crate::ept) fn each_used<'a>(
    eights: &'a [Eight],
    mut show: impl FnMut(usize, &'a AtomicU64, u64),
) {
    for (n, eight) in eights.iter().enumerate() {
        if is_empty(eight) {
            continue;
        }
        for (i, word) in eight.iter().enumerate() {
            let bits = word.load(Ordering::Acquire);
            if bits != 0 {
                show(8 * n + i, word, bits);
            }
        }
    }
}

/// Whether none of eight entries is in use.
#[inline(always)]
pub(in crate::ept) fn is_empty(eight: &Eight) -> bool {
    let all = |all, word: &AtomicU64| all | word.load(Ordering::Relaxed);
    eight.iter().fold(0, all) == 0
}
