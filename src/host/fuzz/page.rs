//! Memory for what a campaign keeps: pages, and bits in pages.

use core::ops::{Deref, DerefMut};

use arrayvec::ArrayVec;

use crate::addr::PAGE_SIZE;
use crate::frames::{FrameAllocator, FrameError, FrameGuard, PhysMem};

/// Bytes of a page.
pub(super) const PAGE: usize = PAGE_SIZE as usize;

/// A frame of the hypervisor's own bytes. No guest ever sees it, so it may be behind references.
pub(super) struct Page<'f, M: PhysMem> {
    frame: FrameGuard<'f, M>,
}

impl<'f, M: PhysMem> Page<'f, M> {
    /// A page of zeroes.
    pub fn new(frames: &'f FrameAllocator<M>) -> Result<Self, FrameError> {
        let frame = FrameGuard::new(frames, frames.alloc_zeroed()?);
        Ok(Self { frame })
    }

    /// Where its bytes are.
    fn bytes(&self) -> *mut [u8; PAGE] {
        let mem = self.frame.frames().mem();
        mem.ptr(self.frame.address()).cast()
    }
}

impl<M: PhysMem> Deref for Page<'_, M> {
    type Target = [u8; PAGE];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the frame was allocated here and its handle is neither lent nor given away, so nobody else reaches it; the
        // handle is there until the page is dropped; the pointer is valid for all of it by the contract of `PhysMem`.
        unsafe { &*self.bytes() }
    }
}

impl<M: PhysMem> DerefMut for Page<'_, M> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { &mut *self.bytes() }
    }
}

/// The most pages of [`Bits`].
const BIT_PAGES: usize = 64;
const BITS_PER_PAGE: usize = PAGE * 8;
/// The most bits there can be: so many bytes of an image's code are watched, the first.
pub const BITS_MAX: usize = BIT_PAGES * BITS_PER_PAGE;

/// One bit for each of a number of things, all 0 at first.
pub(super) struct Bits<'f, M: PhysMem> {
    pages: ArrayVec<Page<'f, M>, BIT_PAGES>,
    len: usize,
}

impl<'f, M: PhysMem> Bits<'f, M> {
    /// `len` bits, at most [`BITS_MAX`]; what is beyond reads as 0 and cannot be set.
    pub fn new(frames: &'f FrameAllocator<M>, len: usize) -> Result<Self, FrameError> {
        let len = len.min(BITS_MAX);
        let pages = (0..len.div_ceil(BITS_PER_PAGE))
            .map(|_| Page::new(frames))
            .collect::<Result<_, _>>()?;
        Ok(Self { pages, len })
    }

    /// The bit; 0 beyond the end.
    pub fn get(&self, index: usize) -> bool {
        let page = self.pages.get(index / BITS_PER_PAGE);
        let byte = page.and_then(|page| page.get(index % BITS_PER_PAGE / 8));
        index < self.len && byte.is_some_and(|byte| byte >> (index % 8) & 1 != 0)
    }

    /// Changes the bit, if there is one.
    pub fn set(&mut self, index: usize, on: bool) {
        if index >= self.len {
            return;
        }
        let page = self.pages.get_mut(index / BITS_PER_PAGE);
        if let Some(byte) = page.and_then(|page| page.get_mut(index % BITS_PER_PAGE / 8)) {
            let bit = 1 << (index % 8);
            *byte = if on { *byte | bit } else { *byte & !bit };
        }
    }

    /// Clears every bit that is 0 in `other`.
    pub fn intersect(&mut self, other: &Self) {
        for (page, other) in self.pages.iter_mut().zip(&other.pages) {
            for (byte, other) in page.iter_mut().zip(other.iter()) {
                *byte &= other;
            }
        }
    }

    /// Clears all bits.
    pub fn clear(&mut self) {
        self.pages.iter_mut().for_each(|page| page.fill(0));
    }

    /// The bits that are 1.
    pub fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        let bytes = self.pages.iter().flat_map(|page| page.iter()).enumerate();
        let set = bytes.filter(|(_, byte)| **byte != 0);
        set.flat_map(|(at, byte)| {
            let byte = *byte;
            (0..8)
                .filter(move |bit| byte >> bit & 1 != 0)
                .map(move |bit| at * 8 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;

    #[test]
    fn bits_are_kept_and_frames_come_back() {
        let frames = Arena::allocator(0x10_0000, 8);
        let mut bits = Bits::new(&frames, BITS_PER_PAGE + 10).unwrap();
        let set = [0, 7, 8, 4095, BITS_PER_PAGE - 1, BITS_PER_PAGE + 9];
        for index in set {
            bits.set(index, true);
        }
        bits.set(BITS_PER_PAGE + 10, true);
        assert!(!bits.get(BITS_PER_PAGE + 10) && !bits.get(usize::MAX));
        assert!(bits.ones().eq(set));
        bits.set(8, false);
        assert!(!bits.get(8) && bits.get(7));
        let mut other = Bits::new(&frames, BITS_PER_PAGE + 10).unwrap();
        other.set(7, true);
        other.set(8, true);
        bits.intersect(&other);
        assert!(bits.ones().eq([7]));
        other.clear();
        assert_eq!(other.ones().count(), 0);
        assert_eq!(frames.statistics().used, 4);
        drop((bits, other));
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn running_out_of_frames_gives_back_what_was_taken() {
        let frames = Arena::allocator(0x10_0000, 8);
        let all = frames.statistics().free as usize;
        assert_eq!(
            Bits::new(&frames, BITS_PER_PAGE * (all + 1)).err(),
            Some(FrameError::OutOfFrames)
        );
        assert_eq!(frames.statistics().used, 0);
    }
}
