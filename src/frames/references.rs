//! References taken and given up, and blocks, whose frames share one count.

use super::counts::{Counts, MAX_COUNT, ORDER, TAIL};
use super::{FrameError, PhysMem};
use crate::addr::{Address, Hpa, PAGE_SIZE};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

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

    /// How many refer to the frame at `address`, or to the block it is part of; 0 where nobody does.
    #[inline(always)]
    pub fn count(&self, mem: &impl PhysMem, address: Hpa) -> u32 {
        match self.near(mem, address) {
            Some((_, record)) if record.count.load(Relaxed) != TAIL => record.count.load(Relaxed),
            _ => self.count_anywhere(mem, address),
        }
    }

    #[inline(never)]
    fn count_anywhere(&self, mem: &impl PhysMem, address: Hpa) -> u32 {
        let number = self.number(address).ok();
        let holder = number.and_then(|number| self.holder(mem, number));
        holder.map_or(0, |holder| self.record(mem, holder).count.load(Relaxed))
    }

    /// The first frame and log2 of the frames of the block that `number` is allocated in.
    pub fn block(&self, mem: &impl PhysMem, number: u32) -> Option<(u32, u32)> {
        let holder = self.holder(mem, number)?;
        Some((holder, self.record(mem, holder).link.load(Relaxed) & ORDER))
    }

    /// Adds `more` references to the frame at `address`, or to the block it is part of.
    #[inline(always)]
    pub fn take(&self, mem: &impl PhysMem, address: Hpa, more: u32) -> Result<(), FrameError> {
        if let Some((_, record)) = self.near(mem, address)
            && record.take(more)
        {
            return Ok(());
        }
        self.take_slow(mem, address, more)
    }

    #[cold]
    pub fn take_slow(&self, mem: &impl PhysMem, address: Hpa, more: u32) -> Result<(), FrameError> {
        let free = FrameError::NotAllocated(address);
        let holder = self.holder(mem, self.number(address)?).ok_or(free)?;
        let add = |count: u32| {
            let sum = count.checked_add(more);
            sum.filter(|sum| count != 0 && *sum <= MAX_COUNT)
        };
        let count = &self.record(mem, holder).count;
        match count.fetch_update(Relaxed, Relaxed, add) {
            Ok(_) => Ok(()),
            Err(0) => Err(free),
            Err(_) => Err(FrameError::CountOverflow(address)),
        }
    }

    /// Takes away a reference, and returns whether it did: not where it is the last, or where that takes a longer look.
    #[inline(always)]
    pub fn give_one_of_many(&self, mem: &impl PhysMem, address: Hpa) -> bool {
        let near = self.near(mem, address);
        near.is_some_and(|(_, record)| record.give_one_of_many())
    }

    /// Takes away a reference unless it is the last: then nothing changes, and the block is returned, its first frame and
    /// log2.
    pub fn give_unless_last(&self, mem: &impl PhysMem, address: Hpa) -> Option<(u32, u32)> {
        let number = self.number(address).ok();
        let holder = number.and_then(|number| self.holder(mem, number));
        debug_assert!(holder.is_some(), "{address:?} is nobody's");
        let holder = holder?;
        let record = self.record(mem, holder);
        let less = |count: u32| (count > 1).then(|| count - 1);
        // What the other holders did to the frame must be over before it is handed out again.
        match record.count.fetch_update(AcqRel, Acquire, less) {
            Ok(_) => None,
            Err(_) => Some((holder, record.link.load(Relaxed) & ORDER)),
        }
    }

    /// Takes away a reference. If it was the last, returns the block that is free now.
    #[inline(always)]
    pub fn give(&self, mem: &impl PhysMem, address: Hpa) -> Option<(u32, u32)> {
        // The last of a frame that keeps its own count: nobody is left who could share it meanwhile.
        if let Some((number, record)) = self.near(mem, address)
            && record.count.load(Acquire) == 1
        {
            record.count.store(0, Relaxed);
            return Some((number, record.link.load(Relaxed) & ORDER));
        }
        self.give_anywhere(mem, address)
    }

    #[inline(never)]
    fn give_anywhere(&self, mem: &impl PhysMem, address: Hpa) -> Option<(u32, u32)> {
        let block = self.give_unless_last(mem, address)?;
        self.record(mem, block.0).count.store(0, Relaxed);
        Some(block)
    }

    /// Turns a block with one reference into blocks of `1 << part` frames with one reference each.
    pub fn split(&self, mem: &impl PhysMem, number: u32, part: u32) -> Result<(), FrameError> {
        match self.block(mem, number) {
            Some((head, order)) if head == number && self.is_held_once(mem, head) => {
                let parts = (number..number + (1 << order)).step_by(1 << part.min(order));
                parts.for_each(|first| self.start(mem, first, part.min(order)));
                Ok(())
            }
            _ => Err(FrameError::NotExclusive(self.address(number))),
        }
    }

    /// Turns `1 << order` frames, in blocks with one reference each, into one block with one reference.
    pub fn merge(&self, mem: &impl PhysMem, number: u32, order: u32) -> Result<(), FrameError> {
        let first = self.address(number);
        let fails = FrameError::NotExclusive(first);
        let end = number.checked_add(1 << order).ok_or(fails)?;
        // The frames behind each other by number are so in memory too.
        let bytes = PAGE_SIZE << order;
        let last = first.checked_add(bytes - PAGE_SIZE).ok_or(fails)?;
        if !first.is_aligned(bytes) || self.number(last) != Ok(end - 1) {
            return Err(fails);
        }
        let mut next = number;
        while next < end {
            match self.block(mem, next) {
                Some((head, part))
                    if head == next && part <= order && self.is_held_once(mem, head) =>
                {
                    next += 1 << part;
                }
                _ => return Err(fails),
            }
        }
        self.start(mem, number, order);
        Ok(())
    }

    fn is_held_once(&self, mem: &impl PhysMem, head: u32) -> bool {
        self.record(mem, head).count.load(Relaxed) == 1
    }
}
