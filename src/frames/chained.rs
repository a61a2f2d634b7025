//! Lists of records in frames of their own, chained: for what is noted of a space, to be gone through later.

use super::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::addr::{Hpa, PAGE_SIZE};
use core::cell::Cell;
use core::marker::PhantomData;

/// Records in the order in which they were pushed, in as many frames as they take. An empty list has none. All calls take the
/// allocator that the first one took, or its memory.
#[must_use = "a list that is dropped without `clear` leaks its frames"]
#[derive(Debug)]
pub struct FrameList<T> {
    /// The last frame, whose first word is the address of the one before it; 0 where there is none.
    last: u64,
    /// Where the next record goes: where a frame begins, if there is no room. The last record of a frame ends with it.
    next: u64,
    /// Records in the frames before the last.
    before: usize,
    records: PhantomData<T>,
}

impl<T> Default for FrameList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FrameList<T> {
    const SIZE: u64 = size_of::<T>() as u64;
    /// How many records fit into a frame.
    pub const PER_FRAME: usize = (PAGE_SIZE as usize - 8) / size_of::<T>();
    /// Where the first record of a frame is.
    const FIRST: u64 = {
        assert!(align_of::<T>() <= 8 && size_of::<T>().is_multiple_of(8));
        PAGE_SIZE - Self::PER_FRAME as u64 * Self::SIZE
    };

    /// No records.
    pub const fn new() -> Self {
        Self {
            last: 0,
            next: 0,
            before: 0,
            records: PhantomData,
        }
    }

    /// How many records there are.
    pub const fn len(&self) -> usize {
        self.before + self.in_last()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// How many records are in the last frame.
    const fn in_last(&self) -> usize {
        match self.last {
            0 => 0,
            last => ((self.next - last - Self::FIRST) / Self::SIZE) as usize,
        }
    }
}

impl<T: Copy> FrameList<T> {
    /// Adds a record.
    ///
    /// # Errors
    /// There is no frame for it, and nothing has changed.
    #[inline(always)]
    pub fn push<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        record: T,
    ) -> Result<(), FrameError> {
        if self.next.is_multiple_of(PAGE_SIZE) {
            self.grow(frames)?;
        }
        let place = frames.mem().ptr(Hpa::new(self.next));
        // SAFETY: a place in the last frame of this list, which is borrowed for writing.
        unsafe { place.cast::<T>().write(record) };
        self.next += Self::SIZE;
        Ok(())
    }

    #[cold]
    fn grow<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> Result<(), FrameError> {
        let frame = frames.alloc()?.into_raw().as_u64();
        self.before = self.len();
        let before = core::mem::replace(&mut self.last, frame);
        self.next = frame + Self::FIRST;
        link(frames.mem(), frame).set(before);
        Ok(())
    }

    /// Shows each record to `keep`, the latest first, which may change it. Those for which it says `false` go.
    #[inline(always)]
    pub fn retain<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        mut keep: impl FnMut(&Cell<T>) -> bool,
    ) {
        let (mut at, mut end) = (self.last, self.next);
        while at != 0 {
            // Only frames behind this one, whose records have all been shown, may be gone.
            let before = link(frames.mem(), at).get();
            let first: *const Cell<T> = frames.mem().ptr(Hpa::new(at + Self::FIRST)).cast();
            let mut place = first.wrapping_byte_add((end - at - Self::FIRST) as usize);
            while place != first {
                place = place.wrapping_sub(1);
                // SAFETY: one of the records of a frame of this list, all of which have been written.
                let record = unsafe { &*place };
                if !keep(record) {
                    self.replace_by_last(frames, record);
                }
            }
            (at, end) = (before, before + PAGE_SIZE);
        }
    }

    /// Has the last record take the place of another that was shown, as all behind it were.
    #[cold]
    fn replace_by_last<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, place: &Cell<T>) {
        self.next -= Self::SIZE;
        let last = frames.mem().ptr(Hpa::new(self.next)).cast();
        // SAFETY: there is a record, so the last frame has one; it is this one or another that was shown.
        place.set(unsafe { *last });
        if self.next == self.last + Self::FIRST {
            self.drop_last(frames);
        }
    }

    /// Gives the last frame back.
    fn drop_last<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        let gone = self.last;
        self.last = link(frames.mem(), gone).get();
        (self.next, self.before) = match self.last {
            0 => (0, 0),
            full => (full + PAGE_SIZE, self.before - Self::PER_FRAME),
        };
        // SAFETY: `grow` has put it into the chain, which does not have it any more.
        frames.release(unsafe { Frame::from_raw(Hpa::new(gone)) });
    }

    /// The records, the latest first.
    pub fn iter<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = T> + 'a {
        self.slices(mem).flat_map(|part| {
            // SAFETY: the list is borrowed.
            unsafe { &*part }.iter().rev().copied()
        })
    }

    /// The records of each frame, those of the last first.
    pub fn parts<'a, M: PhysMem>(
        &'a mut self,
        mem: &'a M,
    ) -> impl Iterator<Item = &'a mut [T]> + 'a {
        // SAFETY: the list is borrowed for writing, and each frame comes once.
        self.slices(mem).map(|part| unsafe { &mut *part })
    }

    /// The same: each frame has so many records that were written.
    fn slices<'a, M: PhysMem>(&self, mem: &'a M) -> impl Iterator<Item = *mut [T]> + use<'a, M, T> {
        let mut left = self.in_last();
        self.chain(mem).map(move |at| {
            let len = core::mem::replace(&mut left, Self::PER_FRAME);
            let first = mem.ptr(Hpa::new(at + Self::FIRST)).cast();
            core::ptr::slice_from_raw_parts_mut(first, len)
        })
    }
}

impl<T> FrameList<T> {
    /// The frames, the last first.
    fn chain<'a, M: PhysMem>(&self, mem: &'a M) -> impl Iterator<Item = u64> + use<'a, M, T> {
        let frame = |at: u64| (at != 0).then_some(at);
        core::iter::successors(frame(self.last), move |at| frame(link(mem, *at).get()))
    }

    /// The frames that it is in.
    pub fn frames<'a, M: PhysMem>(&self, mem: &'a M) -> impl Iterator<Item = Hpa> + use<'a, M, T> {
        self.chain(mem).map(Hpa::new)
    }

    /// Forgets all records and gives the frames back.
    pub fn clear<M: PhysMem>(&mut self, frames: &FrameAllocator<M>)
    where
        T: Copy,
    {
        while self.last != 0 {
            self.drop_last(frames);
        }
    }
}

/// The first word of a frame of a list.
fn link<M: PhysMem>(mem: &M, frame: u64) -> &Cell<u64> {
    // SAFETY: whoever calls has the frame from the chain, or has just allocated it for that; only the list refers to it.
    unsafe { Cell::from_mut(&mut *mem.ptr(Hpa::new(frame)).cast()) }
}

#[cfg(test)]
impl<T> Drop for FrameList<T> {
    fn drop(&mut self) {
        if !self.is_empty() {
            crate::bomb::dropped("a list in frames");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering::SeqCst;

    /// 24 bytes, so that a frame does not end with the last record by itself.
    type Record = [u64; 3];
    const PER_FRAME: usize = FrameList::<Record>::PER_FRAME;

    fn filled(frames: &FrameAllocator<Arena>, count: u64) -> FrameList<Record> {
        let mut list = FrameList::new();
        for i in 0..count {
            list.push(frames, [i, i * 8, !i]).unwrap();
        }
        list
    }

    #[test]
    fn each_record_is_shown_once_whatever_goes() {
        let frames = Arena::allocator(0x10_0000, 16);
        let all = 3 * PER_FRAME as u64 + 5;
        assert_eq!(PER_FRAME, 170);
        for modulus in [1, 2, 3, 7, 200, 1000] {
            for goes in [false, true] {
                let mut list = filled(&frames, all);
                assert_eq!(
                    (list.len() as u64, frames.statistics().used, list.is_empty()),
                    (all, 4, false)
                );
                assert!(list.iter(frames.mem()).map(|r| r[0]).eq((0..all).rev()));
                let mut shown = BTreeSet::new();
                let stays = |number: u64| number.is_multiple_of(modulus) == goes;
                list.retain(&frames, |record| {
                    let [number, eight, not] = record.get();
                    assert!(shown.insert(number), "{number} twice");
                    assert_eq!((eight, not), (number * 8, !number));
                    record.set([number, eight, 7]);
                    stays(number)
                });
                assert_eq!(shown.len() as u64, all);
                let mut left: Vec<_> = list.iter(frames.mem()).collect();
                let parts = list.parts(frames.mem());
                let parts: Vec<_> = parts.flat_map(|part| part.iter().rev().copied()).collect();
                assert_eq!(parts, left);
                left.sort();
                let expected = (0..all).filter(|number| stays(*number));
                assert!(left.iter().copied().eq(expected.map(|n| [n, n * 8, 7])));
                assert_eq!(list.len(), left.len());
                let held = left.len().div_ceil(PER_FRAME) as u64;
                assert_eq!(
                    (
                        frames.statistics().used,
                        list.frames(frames.mem()).count() as u64
                    ),
                    (held, held)
                );
                list.push(&frames, [1, 2, 3]).unwrap();
                assert_eq!(list.iter(frames.mem()).next(), Some([1, 2, 3]));
                assert_eq!(list.len(), left.len() + 1);
                list.clear(&frames);
                assert_eq!((frames.statistics().used, list.len()), (0, 0));
            }
        }
    }

    #[test]
    fn without_a_frame_it_stays_as_it_is() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut list = filled(&frames, PER_FRAME as u64);
        frames.allowance.store(0, SeqCst);
        assert_eq!(list.push(&frames, [0; 3]), Err(FrameError::OutOfFrames));
        assert_eq!((list.len(), frames.statistics().used), (PER_FRAME, 1));
        frames.allowance.store(u64::MAX, SeqCst);
        assert_eq!(list.push(&frames, [9; 3]), Ok(()));
        assert_eq!(list.iter(frames.mem()).next(), Some([9; 3]));
        list.clear(&frames);
    }
}
