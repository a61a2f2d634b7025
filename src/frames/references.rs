//! References taken and given up, and blocks, whose frames share one count.

use super::counts::{Counts, MAX_COUNT, ORDER, TAIL};
use super::{FrameError, PhysMem};
use crate::addr::PAGE_SIZE;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

impl Counts {
    /// The frame that keeps the count for `number`: itself, or the first of its block. `None` where it is free.
    pub(super) fn holder(&self, mem: &impl PhysMem, number: u32) -> Option<u32> {
        match self.record(mem, number).count.load(Relaxed) {
            0 => None,
            count if count & TAIL == 0 => Some(number),
            _ => {
                // The mark of a tail may be left from a block that was freed and given out again in parts.
                let head = self.record(mem, number).link.load(Relaxed);
                let record = self.record(mem, head);
                let count = record.count.load(Relaxed);
                let live = count != 0 && count & TAIL == 0;
                (live && number - head < 1 << (record.link.load(Relaxed) & ORDER)).then_some(head)
            }
        }
    }

    /// How many refer to frame `number`, or to the block it is part of.
    #[inline]
    pub fn count(&self, mem: &impl PhysMem, number: u32) -> u32 {
        match self.record(mem, number).count.load(Relaxed) {
            TAIL => self.count_of_block(mem, number),
            count => count,
        }
    }

    #[cold]
    fn count_of_block(&self, mem: &impl PhysMem, number: u32) -> u32 {
        let holder = self.holder(mem, number);
        holder.map_or(0, |holder| self.record(mem, holder).count.load(Relaxed))
    }

    /// The first frame and log2 of the frames of the block that `number` is allocated in.
    pub fn block(&self, mem: &impl PhysMem, number: u32) -> Option<(u32, u32)> {
        let holder = self.holder(mem, number)?;
        Some((holder, self.record(mem, holder).link.load(Relaxed) & ORDER))
    }

    /// Adds `more` references.
    #[inline(always)]
    pub fn take(&self, mem: &impl PhysMem, number: u32, more: u32) -> Result<(), FrameError> {
        let own = &self.record(mem, number).count;
        let count = own.load(Relaxed);
        // A frame that keeps its own count, which nobody else is changing: nearly always.
        if count.wrapping_sub(1) < MAX_COUNT.saturating_sub(more)
            && own
                .compare_exchange(count, count + more, Relaxed, Relaxed)
                .is_ok()
        {
            return Ok(());
        }
        self.take_slow(mem, number, more)
    }

    #[cold]
    fn take_slow(&self, mem: &impl PhysMem, number: u32, more: u32) -> Result<(), FrameError> {
        let free = FrameError::NotAllocated(self.address(number));
        let holder = self.holder(mem, number).ok_or(free)?;
        let add = |count: u32| {
            count
                .checked_add(more)
                .filter(|sum| count != 0 && *sum <= MAX_COUNT)
        };
        match self
            .record(mem, holder)
            .count
            .fetch_update(Relaxed, Relaxed, add)
        {
            Ok(_) => Ok(()),
            Err(0) => Err(free),
            Err(_) => Err(FrameError::CountOverflow(self.address(number))),
        }
    }

    /// Takes a reference away. When it was the last, yields the block that is now free: first frame and log2.
    #[inline]
    pub fn give(&self, mem: &impl PhysMem, number: u32) -> Result<Option<(u32, u32)>, FrameError> {
        let own = self.record(mem, number);
        let count = own.count.load(Relaxed);
        // As in `take`.
        if count.wrapping_sub(1) < MAX_COUNT {
            let order = own.link.load(Relaxed) & ORDER;
            if own
                .count
                .compare_exchange(count, count - 1, AcqRel, Relaxed)
                .is_ok()
            {
                return Ok((count == 1).then_some((number, order)));
            }
        }
        self.give_slow(mem, number)
    }

    #[cold]
    fn give_slow(&self, mem: &impl PhysMem, number: u32) -> Result<Option<(u32, u32)>, FrameError> {
        let free = FrameError::NotAllocated(self.address(number));
        let holder = self.holder(mem, number).ok_or(free)?;
        let record = self.record(mem, holder);
        let order = record.link.load(Relaxed) & ORDER;
        // What the last holder did to the frame must be over before it is handed out again.
        match record
            .count
            .fetch_update(AcqRel, Relaxed, |count| count.checked_sub(1))
        {
            Ok(1) => Ok(Some((holder, order))),
            Ok(_) => Ok(None),
            Err(_) => Err(free),
        }
    }

    /// Takes a reference away unless it is the last. Yields whether it did.
    pub fn give_unless_last(&self, mem: &impl PhysMem, number: u32) -> Result<bool, FrameError> {
        let free = FrameError::NotAllocated(self.address(number));
        let holder = self.holder(mem, number).ok_or(free)?;
        let less = |count: u32| count.checked_sub(1).filter(|left| *left > 0);
        match self
            .record(mem, holder)
            .count
            .fetch_update(AcqRel, Relaxed, less)
        {
            Ok(_) => Ok(true),
            Err(0) => Err(free),
            Err(_) => Ok(false),
        }
    }

    /// Turns a block with one reference into blocks of `1 << part` frames with one reference each.
    pub fn break_up(&self, mem: &impl PhysMem, number: u32, part: u32) -> Result<(), FrameError> {
        let shared = FrameError::NotExclusive(self.address(number));
        match self.block(mem, number) {
            Some((head, order)) if head == number && self.count(mem, head) == 1 => {
                let parts = (number..number + (1 << order)).step_by(1 << part.min(order));
                parts.for_each(|first| self.start(mem, first, part.min(order)));
                Ok(())
            }
            _ => Err(shared),
        }
    }

    /// Turns `1 << order` frames, in blocks with one reference each, into one block with one reference.
    pub fn put_together(
        &self,
        mem: &impl PhysMem,
        number: u32,
        order: u32,
    ) -> Result<(), FrameError> {
        let end = number
            .checked_add(1 << order)
            .filter(|end| *end <= self.total());
        let last = end.map(|end| self.address(end - 1).as_u64());
        let first = self.address(number).as_u64();
        let contiguous = last == Some(first + ((1 << order) - 1) * PAGE_SIZE)
            && first.is_multiple_of(PAGE_SIZE << order);
        let mut next = number;
        while contiguous && next < number + (1 << order) {
            match self.block(mem, next) {
                Some((head, part))
                    if head == next && part <= order && self.count(mem, head) == 1 =>
                {
                    next += 1 << part;
                }
                _ => break,
            }
        }
        if !contiguous || next != number + (1 << order) {
            return Err(FrameError::NotExclusive(self.address(number)));
        }
        self.start(mem, number, order);
        Ok(())
    }
}
