//! Large blocks: allocated as one, split into smaller ones and merged.

use super::lists::{LARGE, Retired};
use super::{Frame, FrameAllocator, FrameError, PhysMem, bytes};
use crate::addr::{Address, Hpa, PAGE_SIZE, PageSize};

impl<M: PhysMem> FrameAllocator<M> {
    /// A block of 2 MiB or 1 GiB, aligned to its size, whose content is unknown. It is one frame: it has one count, and
    /// the address of any 4 KiB in it stands for all of it.
    ///
    /// # Errors
    /// There is no such block left, or no block has this size.
    pub fn alloc_large(&self, size: PageSize) -> Result<Frame, FrameError> {
        self.allow()?;
        let order = order(size)?;
        let mut lists = self.lists.lock();
        let number = match order {
            0 => lists.pop(&self.mem, &self.counts),
            _ => lists.pop_large(&self.mem, &self.counts, order),
        };
        let number = number.ok_or(FrameError::OutOfFrames)?;
        lists.note_used(1 << order);
        drop(lists);
        self.counts.start(&self.mem, number, order);
        Ok(Frame::new(self.counts.address(number)))
    }

    /// Goes on with filling a block that nobody else refers to with zeroes, of which so many bytes are done: at most `most`
    /// bytes more. Returns how many are done then.
    ///
    /// # Errors
    /// [`FrameError::NotExclusive`] where others refer to it.
    pub fn zero_some(&self, block: &mut Frame, done: u64, most: u64) -> Result<u64, FrameError> {
        let (head, size) = self.exclusive(block)?;
        let (mut done, mut left) = (done, most);
        while done < size.bytes() && left >= PAGE_SIZE {
            let at = Hpa::new(head.as_u64() + done);
            done += PAGE_SIZE;
            #[cfg(test)]
            if self.mem.is_fresh(at) {
                continue;
            }
            // SAFETY: a page of the block, to which the caller has the only reference, borrowed for writing.
            unsafe { bytes::zero(&self.mem, at) };
            left -= PAGE_SIZE;
        }
        Ok(done)
    }

    /// Turns a large block into blocks of the next smaller size, 512 of them. The reference to the block becomes one
    /// reference to the first, and one to each of the others comes by [`Frame::from_raw`].
    ///
    /// # Errors
    /// [`FrameError::NotExclusive`] where others refer to it.
    pub fn split(&self, block: &mut Frame) -> Result<(), FrameError> {
        let (head, size) = self.exclusive(block)?;
        let part = if size > PageSize::Size2M { LARGE[0] } else { 0 };
        self.counts
            .split(&self.mem, self.counts.number(head)?, part)
    }

    /// Of a block to which there is one reference left, and that for the `size` bytes from the address of `block` on alone,
    /// keeps these as a block of their own; the rest goes to `retired`. A block that is no larger stays as it is.
    ///
    /// # Errors
    /// As for [`FrameAllocator::split`]; and [`FrameError::NotManaged`] where a block of this size cannot start there.
    pub fn trim(
        &self,
        block: &mut Frame,
        size: PageSize,
        retired: &mut Retired,
    ) -> Result<(), FrameError> {
        let address = block.address();
        let (number, wanted) = (self.counts.number(address)?, order(size)?);
        let free = FrameError::NotAllocated(address);
        if !address.is_aligned(size.bytes()) {
            return Err(FrameError::NotManaged(address));
        }
        loop {
            let (head, whole) = self.counts.block(&self.mem, number).ok_or(free)?;
            if whole <= wanted {
                return Ok(());
            }
            let part = if whole > LARGE[0] { LARGE[0] } else { 0 };
            self.counts.split(&self.mem, head, part)?;
            for first in (head..head + (1 << whole)).step_by(1 << part) {
                if !(first..first + (1 << part)).contains(&number) {
                    self.retire(Frame::new(self.counts.address(first)), retired);
                }
            }
        }
    }

    /// The inverse of [`FrameAllocator::split`], of frames or smaller blocks: the reference to the first becomes one to all.
    ///
    /// # Errors
    /// [`FrameError::NotExclusive`] where others refer to a part.
    ///
    /// # Safety
    /// As for [`Frame::from_raw`] of all other frames in the aligned block that `first` starts: the caller gives up its
    /// references to them.
    pub unsafe fn merge(&self, first: &mut Frame, size: PageSize) -> Result<(), FrameError> {
        let number = self.counts.number(first.address())?;
        self.counts.merge(&self.mem, number, order(size)?)
    }

    /// The block that `frame` is part of, if nobody else refers to it.
    pub(super) fn exclusive(&self, frame: &Frame) -> Result<(Hpa, PageSize), FrameError> {
        let at = frame.address();
        let block = self.block(at).filter(|_| self.count(at) == 1);
        block.ok_or(FrameError::NotExclusive(at))
    }

    /// Where the block starts that `address` is allocated in, and how large it is. `None` where it is free or not
    /// managed.
    pub fn block(&self, address: Hpa) -> Option<(Hpa, PageSize)> {
        let (head, order) = self
            .counts
            .block(&self.mem, self.counts.number(address).ok()?)?;
        let size = match order {
            0 => PageSize::Size4K,
            9 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        Some((self.counts.address(head), size))
    }
}

/// log2 of the frames in a block of this size.
fn order(size: PageSize) -> Result<u32, FrameError> {
    match size {
        PageSize::Size4K => Ok(0),
        PageSize::Size2M => Ok(LARGE[0]),
        PageSize::Size1G => Ok(LARGE[1]),
        // No table that counted frames are mapped by has such pages.
        PageSize::Size4M => Err(FrameError::OutOfFrames),
    }
}
