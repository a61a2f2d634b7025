//! The one way to the bytes of physical memory.

use crate::addr::{Hpa, PAGE_SIZE};

/// Physical memory as the hypervisor sees it: the kernel implements it with its direct map, the tests with an
/// arena.
///
/// # Safety
/// For every frame that the implementor's allocator manages, [`PhysMem::ptr`] must return a pointer that is valid
/// for reads and writes from there to the end of the 4 KiB frame, that stays so as long as the implementor lives, and
/// that is aligned as the address is. Distinct frames must not overlap.
pub unsafe trait PhysMem {
    /// Where the byte at `address` is.
    fn ptr(&self, address: Hpa) -> *mut u8;

    /// Copies a whole frame. An implementor may know a shorter way than this one.
    ///
    /// # Safety
    /// Both must be frames for which the promise above is kept, not the same; nobody may write `from` meanwhile, and the
    /// caller alone uses `to`.
    #[inline(always)]
    unsafe fn copy_frame(&self, from: Hpa, to: Hpa) {
        // SAFETY: both pointers are valid to the end of their frame, frames do not overlap, and the caller vouches for the
        // absence of other writers.
        unsafe {
            self.ptr(from)
                .copy_to_nonoverlapping(self.ptr(to), PAGE_SIZE as usize)
        }
    }

    /// Whether the frame is zero because nobody has ever asked for a pointer to it: tests need not touch 1 GiB then.
    #[cfg(test)]
    fn is_fresh(&self, frame: Hpa) -> bool {
        let _ = frame;
        false
    }
}

// SAFETY: the pointers are those of the implementor behind the reference, which outlives the reference.
unsafe impl<M: PhysMem + ?Sized> PhysMem for &M {
    fn ptr(&self, address: Hpa) -> *mut u8 {
        (**self).ptr(address)
    }
    unsafe fn copy_frame(&self, from: Hpa, to: Hpa) {
        // SAFETY: the caller's.
        unsafe { (**self).copy_frame(from, to) }
    }
}
