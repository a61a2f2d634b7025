//! The one way to the bytes of physical memory.

use crate::addr::Hpa;

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
}
