//! Physical memory for tests: a block of the host's own.

use super::{FrameAllocator, PhysMem};
use crate::addr::{AddrRange, Hpa, PAGE_SIZE};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// `frames` frames of physical memory from `base` on.
pub(crate) struct Arena {
    base: u64,
    len: u64,
    bytes: *mut u8,
    /// What `bytes` is the aligned part of.
    block: *mut u8,
    /// Of each frame, whether it was ever asked for.
    touched: Vec<AtomicBool>,
}

// SAFETY: the arena is a plain block of memory; who may touch which bytes is the business of its users.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Aligned no more than every block is: then the host need not touch the bytes to have them zero.
    fn layout(len: u64) -> Layout {
        Layout::from_size_align((len + PAGE_SIZE) as usize, 16).unwrap()
    }

    /// Memory from `base` on, which must be a multiple of the frame size.
    pub fn new(base: u64, frames: u64) -> Self {
        assert!(base.is_multiple_of(PAGE_SIZE) && frames > 0);
        let len = frames * PAGE_SIZE;
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(Self::layout(len)) };
        assert!(!block.is_null());
        // SAFETY: there is a page more than `len` bytes.
        let bytes = unsafe { block.add(block.align_offset(PAGE_SIZE as usize)) };
        Self {
            base,
            len,
            bytes,
            block,
            touched: (0..frames).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn offset(&self, address: Hpa) -> usize {
        let offset = address.as_u64().checked_sub(self.base);
        match offset.filter(|offset| *offset < self.len) {
            Some(offset) => offset as usize,
            None => panic!("{address:?} is outside the arena"),
        }
    }

    /// All of it.
    pub fn range(&self) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(self.base), self.len).unwrap()
    }

    /// An allocator over all of a new arena.
    pub fn allocator(base: u64, frames: u64) -> FrameAllocator<Self> {
        let arena = Self::new(base, frames);
        let range = arena.range();
        // SAFETY: the arena is new, so nothing else uses it.
        unsafe { FrameAllocator::new(arena, [range], []) }.unwrap()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.block, Self::layout(self.len)) }
    }
}

// SAFETY: the block is allocated as long as the arena lives, aligned to 4 KiB like its base, and an address outside it
// ends the test.
unsafe impl PhysMem for Arena {
    fn ptr(&self, address: Hpa) -> *mut u8 {
        let offset = self.offset(address);
        self.touched[offset / PAGE_SIZE as usize].store(true, Relaxed);
        // SAFETY: the offset is inside the block.
        unsafe { self.bytes.add(offset) }
    }

    fn is_fresh(&self, frame: Hpa) -> bool {
        !self.touched[self.offset(frame) / PAGE_SIZE as usize].load(Relaxed)
    }
}
