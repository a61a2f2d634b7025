//! Large blocks: allocated as one, cut into smaller ones and put together.

use super::lists::{LARGE, Retired};
use super::{Frame, FrameAllocator, FrameError, PhysMem, bytes};
use crate::addr::{Address, Hpa, PAGE_SIZE, PageSize};

impl<M: PhysMem> FrameAllocator<M> {
    /// A block of 2 MiB or 1 GiB, aligned to its size, whose content is unknown. It is one frame: it has one count, and
    /// the address of any 4 KiB in it stands for all of it.
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

    /// Goes on with filling a block of this size with zeroes, of which so many bytes are done: at most `most` bytes more. Yields
    /// how many are done then.
    pub fn zero_some(&self, block: &Frame, size: PageSize, done: u64, most: u64) -> u64 {
        let (mut done, mut left) = (done, most);
        while done < size.bytes() && left >= PAGE_SIZE {
            let at = Hpa::new(block.address().as_u64() + done);
            done += PAGE_SIZE;
            #[cfg(test)]
            if self.mem.is_fresh(at) {
                continue;
            }
            // SAFETY: the block is managed and the handle to it is the caller's, who says how large it is.
            unsafe { bytes::zero(&self.mem, at) };
            left -= PAGE_SIZE;
        }
        done
    }

    /// Turns a large block into blocks of the next smaller size, 512 of them. The reference to the block becomes one
    /// reference to each part, which the caller owns: the one returned is the first, and the others are got by
    /// [`FrameAllocator::from_entry`].
    pub fn break_up(&self, block: Frame) -> Result<Frame, (FrameError, Frame)> {
        let parts = |number| {
            let part = match self.counts.block(&self.mem, number) {
                Some((_, order)) if order > LARGE[0] => LARGE[0],
                _ => 0,
            };
            self.counts.break_up(&self.mem, number, part)
        };
        match self.counts.number(block.address()).and_then(parts) {
            Ok(()) => Ok(block),
            Err(error) => Err((error, block)),
        }
    }

    /// Of a block to which there is one reference left, and that for the `size` bytes at `address` alone, keeps these
    /// as a block of their own; the rest goes to `retired`. A block that is no larger stays as it is.
    pub fn trim(
        &self,
        address: Hpa,
        size: PageSize,
        retired: &mut Retired,
    ) -> Result<(), FrameError> {
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
            self.counts.break_up(&self.mem, head, part)?;
            for first in (head..head + (1 << whole)).step_by(1 << part) {
                let kept = (first..first + (1 << part)).contains(&number);
                if !kept && let Some((first, part)) = self.counts.give(&self.mem, first)? {
                    retired.push(&self.mem, &self.counts, first, part);
                }
            }
        }
    }

    /// The inverse of [`FrameAllocator::break_up`]: the caller gives up its references to all the frames of the
    /// aligned block that `first` starts, in frames or smaller blocks, each of which must be the only one.
    pub fn put_together(&self, first: Frame, size: PageSize) -> Result<Frame, (FrameError, Frame)> {
        let whole = |number| self.counts.put_together(&self.mem, number, order(size)?);
        match self.counts.number(first.address()).and_then(whole) {
            Ok(()) => Ok(first),
            Err(error) => Err((error, first)),
        }
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
