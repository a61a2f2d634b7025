//! The allocator.

use super::counts::{Counts, Record};
use super::lists::{Lists, Retired};
use super::ranges::SpanSet;
use super::{Audit, Frame, FrameError, FrameStatistics, PhysMem, bytes};
use crate::addr::{AddrRange, Hpa};
use spin::{Mutex, MutexGuard};

/// The physical frames of the machine: who is free, and how many refer to each.
///
/// All methods take `&self`, so one can stand in a `static` (behind [`spin::Once`]). Allocation and release of a
/// frame take constant time; starting up writes 8 bytes for each frame and touches nothing else.
///
/// Large blocks ([`FrameAllocator::alloc_large`]) come from memory that was never given out in small frames, and from
/// large blocks that came back. Small frames that come back are not joined to large blocks again.
pub struct FrameAllocator<M> {
    pub(super) mem: M,
    pub(super) counts: Counts,
    pub(super) lists: Mutex<Lists>,
    /// How many allocations still succeed: tests make memory run out at any point.
    #[cfg(test)]
    pub(crate) allowance: core::sync::atomic::AtomicU64,
}

impl<M: PhysMem> FrameAllocator<M> {
    /// An allocator over the whole frames in `usable` that no range in `reserved` touches. The ranges may come in any
    /// order, unaligned and overlapping.
    ///
    /// # Safety
    /// The memory so described must be there, nothing else may use it, and `mem` must keep the contract of
    /// [`PhysMem`] for all of it. What comes from this allocator must not go to another one that has memory at the same
    /// addresses.
    ///
    /// # Errors
    /// [`FrameError::NoRoomForCounts`] where there is too little memory.
    pub unsafe fn new(
        mem: M,
        usable: impl IntoIterator<Item = AddrRange<Hpa>>,
        reserved: impl IntoIterator<Item = AddrRange<Hpa>>,
    ) -> Result<Self, FrameError> {
        let mut set = SpanSet::new();
        usable.into_iter().for_each(|range| set.add(range));
        reserved.into_iter().for_each(|range| set.remove(range));
        // SAFETY: what is left in the set is what the caller vouches for.
        let counts = unsafe { Counts::carve(&mem, set)? };
        let lists = Mutex::new(Lists::new(&counts));
        Ok(Self {
            mem,
            counts,
            lists,
            #[cfg(test)]
            allowance: u64::MAX.into(),
        })
    }

    /// The memory that this allocator manages parts of.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// Whether any of `range` is memory that is handed out, or holds the counts.
    pub fn overlaps(&self, range: AddrRange<Hpa>) -> bool {
        let counts = self.counts.records();
        self.ranges()
            .chain(counts)
            .any(|managed| managed.overlaps(range))
    }

    /// The managed ranges, the largest first.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange<Hpa>> {
        self.counts.ranges()
    }

    /// A frame whose content is unknown.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrames`] where none is free.
    #[inline(always)]
    pub fn alloc(&self) -> Result<Frame, FrameError> {
        self.allow()?;
        let mut lists = self.lists.lock();
        if let Some(number) = lists.pop_quick(&self.mem, &self.counts) {
            return Ok(self.hand_out(&mut lists, number));
        }
        self.alloc_rare(lists)
    }

    #[cold]
    fn alloc_rare(&self, mut lists: MutexGuard<'_, Lists>) -> Result<Frame, FrameError> {
        match lists.pop(&self.mem, &self.counts) {
            Some(number) => Ok(self.hand_out(&mut lists, number)),
            None => Err(FrameError::OutOfFrames),
        }
    }

    /// A frame full of zeroes, from the pool of zeroed ones while there are any.
    ///
    /// # Errors
    /// There is none left.
    #[inline(always)]
    pub fn alloc_zeroed(&self) -> Result<Frame, FrameError> {
        self.allow()?;
        let mut lists = self.lists.lock();
        if let Some(number) = lists.pop_zeroed(&self.mem, &self.counts) {
            return Ok(self.hand_out(&mut lists, number));
        }
        drop(lists);
        self.alloc_and_zero().ok_or(FrameError::OutOfFrames)
    }

    /// Returns what fits into registers.
    #[inline(never)]
    fn alloc_and_zero(&self) -> Option<Frame> {
        let mut lists = self.lists.lock();
        let number = lists.pop(&self.mem, &self.counts)?;
        let frame = self.hand_out(&mut lists, number);
        drop(lists);
        // SAFETY: the frame is managed, and nobody but the handle just made refers to it.
        unsafe { bytes::zero(&self.mem, frame.address()) };
        Some(frame)
    }

    /// One more reference to a frame.
    ///
    /// # Errors
    /// [`FrameError::CountOverflow`] where there are as many as can be counted.
    #[inline(always)]
    pub fn share(&self, frame: &Frame) -> Result<Frame, FrameError> {
        self.share_many(frame, 1)?;
        Ok(Frame::new(frame.address()))
    }

    /// `more` references at once to the block that `frame` is part of, for as many entries about to refer to it: they come
    /// back by [`Frame::from_raw`].
    ///
    /// # Errors
    /// As for [`FrameAllocator::share`], and then none is counted.
    #[inline(always)]
    pub fn share_many(&self, frame: &Frame, more: u32) -> Result<(), FrameError> {
        self.counts.take(&self.mem, frame.address(), more)
    }

    /// Ends a reference; the last one frees the frame.
    #[inline]
    pub fn release(&self, frame: Frame) {
        let address = frame.into_raw();
        if !self.counts.give_one_of_many(&self.mem, address) {
            self.release_last(address);
        }
    }

    #[inline(never)]
    fn release_last(&self, address: Hpa) {
        if let Some((head, order)) = self.counts.give(&self.mem, address) {
            let mut lists = self.lists.lock();
            lists.push(&self.mem, &self.counts, head, order);
            lists.used -= 1 << order;
        }
    }

    /// Gives back a frame that was only taken to see that there is one: the next allocation finds it, unless another CPU is
    /// faster.
    pub fn release_unused(&self, frame: Frame) {
        #[cfg(test)]
        {
            use core::sync::atomic::Ordering::SeqCst;
            let more = |left: u64| Some(left.saturating_add(1));
            let _ = self.allowance.fetch_update(SeqCst, SeqCst, more);
        }
        self.release(frame);
    }

    /// Ends a reference unless it is the last one, which comes back: what the frame refers to is to be ended first.
    #[inline]
    pub fn release_unless_last(&self, frame: Frame) -> Option<Frame> {
        let address = frame.into_raw();
        // Nobody else is left who could share it meanwhile.
        let last = self.count(address) == 1
            || !self.counts.give_one_of_many(&self.mem, address)
                && self.counts.give_unless_last(&self.mem, address).is_some();
        last.then(|| Frame::new(address))
    }

    /// Ends a reference. If it was the last, the frame goes to `retired`: it is not given out before
    /// [`FrameAllocator::free_retired`].
    #[inline(always)]
    pub fn retire(&self, frame: Frame, retired: &mut Retired) {
        let near = self.counts.near(&self.mem, frame.address());
        self.retire_by(near.map(|(_, record)| record), frame, retired);
    }

    /// The same, where the frame's own record is known.
    #[inline(always)]
    pub(super) fn retire_by(&self, record: Option<&Record>, frame: Frame, retired: &mut Retired) {
        let address = frame.into_raw();
        if !record.is_some_and(Record::give_one_of_many) {
            self.retire_last(address, retired);
        }
    }

    #[inline(never)]
    fn retire_last(&self, address: Hpa, retired: &mut Retired) {
        if let Some((head, order)) = self.counts.give(&self.mem, address) {
            retired.push(&self.mem, &self.counts, head, order);
        }
    }

    /// Frees what was retired, in constant time: no CPU has a translation to any of it any more.
    pub fn free_retired(&self, retired: &mut Retired) {
        if !retired.is_empty() {
            self.lists.lock().push_all(&self.mem, &self.counts, retired);
        }
    }

    /// Adds what `other` holds to `retired`, in constant time.
    pub fn join_retired(&self, retired: &mut Retired, other: Retired) {
        retired.join(&self.mem, &self.counts, other);
    }

    /// Starts to compare the counts with the references that there are. Nothing may allocate, share or release
    /// meanwhile.
    pub fn audit(&self) -> Audit<'_, M> {
        Audit::new(&self.mem, &self.counts)
    }

    /// How many refer to the frame at `address` (to its block, where it is part of one); 0 where it is free or not
    /// managed.
    #[inline(always)]
    pub fn count(&self, address: Hpa) -> u32 {
        self.counts.count(&self.mem, address)
    }

    /// Frames full of zeroes for what may turn out not to be needed: those that are zeroed already, but at least `goal`. `None`
    /// where less than an eighth of all frames is free. As long as the result lives, nobody else gets at free frames.
    pub fn zeroed_to_spare(&self, goal: u32) -> Option<ZeroedFrames<'_, M>> {
        let total = self.counts.total();
        if self.lists.lock().used > total - total / 8 {
            return None;
        }
        self.refill_to(goal, goal);
        Some(ZeroedFrames {
            frames: self,
            lists: self.lists.lock(),
        })
    }

    /// Zeroes free frames ahead of need until `goal` are, but at most `most` at once; returns how many.
    #[inline(always)]
    pub fn refill_to(&self, goal: u32, most: u32) -> u64 {
        // Without the lock, so that a pool that is full costs nothing: the number may be off by what others do meanwhile.
        match goal.saturating_sub(self.counts.zeroed()) {
            0 => 0,
            lacking => self.refill(u64::from(most.min(lacking))),
        }
    }

    /// Zeroes up to `frames` free frames ahead of need; returns how many.
    #[cold]
    pub fn refill(&self, frames: u64) -> u64 {
        for done in 0..frames {
            let Some(number) = self.lists.lock().pop_unzeroed(&self.mem, &self.counts) else {
                return done;
            };
            // SAFETY: the frame is managed, free, and in no list, so nobody else can come by it.
            unsafe { bytes::zero(&self.mem, self.counts.address(number)) };
            self.lists
                .lock()
                .push_zeroed(&self.mem, &self.counts, number);
        }
        frames
    }

    /// How many frames there are at this moment, and where they went.
    pub fn statistics(&self) -> FrameStatistics {
        let lists = self.lists.lock();
        let (total, used) = (u64::from(self.counts.total()), u64::from(lists.used));
        FrameStatistics {
            total,
            free: total - used,
            used,
            peak: u64::from(lists.peak),
            zeroed: u64::from(self.counts.zeroed()),
            counts: self.counts.record_frames(),
        }
    }

    /// The one reference to a frame that was taken from the lists.
    #[inline(always)]
    fn hand_out(&self, lists: &mut Lists, number: u32) -> Frame {
        lists.note_used(1);
        Frame::new(self.counts.start_one(&self.mem, number))
    }

    #[cfg(not(test))]
    #[inline]
    pub(super) fn allow(&self) -> Result<(), FrameError> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn allow(&self) -> Result<(), FrameError> {
        use core::sync::atomic::Ordering::SeqCst;
        let less = |left: u64| {
            if left == u64::MAX {
                Some(left)
            } else {
                left.checked_sub(1)
            }
        };
        let left = self.allowance.fetch_update(SeqCst, SeqCst, less);
        left.map(|_| ()).map_err(|_| FrameError::OutOfFrames)
    }

    /// Sets a count outright, so that tests reach the largest one.
    #[cfg(test)]
    pub(crate) fn force_count(&self, frame: &Frame, count: u32) {
        let number = self.counts.number(frame.address()).unwrap();
        self.counts.force(&self.mem, number, count);
    }
}

/// The frames that are zeroed ahead of need.
pub struct ZeroedFrames<'a, M> {
    frames: &'a FrameAllocator<M>,
    lists: MutexGuard<'a, Lists>,
}

impl<M: PhysMem> Iterator for ZeroedFrames<'_, M> {
    type Item = Frame;

    #[inline(always)]
    fn next(&mut self) -> Option<Frame> {
        self.frames.allow().ok()?;
        let FrameAllocator { mem, counts, .. } = self.frames;
        let number = self.lists.pop_zeroed(mem, counts)?;
        Some(self.frames.hand_out(&mut self.lists, number))
    }
}
