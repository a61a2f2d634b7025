//! Counting many references one after the other: where the counts are is looked up once.

use super::counts::{Largest, Record};
use super::{Frame, FrameAllocator, FrameError, PhysMem, Retired};

/// The way to the counts of nearly all frames: those of the largest span.
pub struct QuickCounts<'a, M>(Largest<'a, M>);

impl<M> Clone for QuickCounts<'_, M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for QuickCounts<'_, M> {}

impl<M: PhysMem> FrameAllocator<M> {
    /// The fast path to count references to frames, as many as there are to be counted.
    #[inline(always)]
    pub fn quick_counts(&self) -> QuickCounts<'_, M> {
        QuickCounts(self.counts.largest(&self.mem))
    }
}

impl<M: PhysMem> QuickCounts<'_, M> {
    /// Counts one more reference to a frame, for an entry about to refer to it: it comes back by [`Frame::from_raw`].
    ///
    /// # Errors
    /// As of [`FrameAllocator::share`].
    #[inline(always)]
    pub fn share(&self, frames: &FrameAllocator<M>, frame: &Frame) -> Result<(), FrameError> {
        match self.record(frame) {
            Some(record) if record.take(1) => Ok(()),
            _ => frames.counts.take_slow(&frames.mem, frame.address(), 1),
        }
    }

    /// As [`FrameAllocator::retire`].
    #[inline(always)]
    pub fn retire(&self, frames: &FrameAllocator<M>, frame: Frame, retired: &mut Retired) {
        let record = self.record(&frame);
        frames.retire_by(record, frame, retired);
    }

    #[inline(always)]
    fn record(&self, frame: &Frame) -> Option<&Record> {
        self.0.find(frame.address()).map(|(_, record)| record)
    }
}

/// A frame to which there was more than one reference when it was looked up: where its count is.
pub struct OneOfMany<'a>(&'a Record);

impl<M: PhysMem> FrameAllocator<M> {
    /// The frame, if there are more references to it. `None` also where that is not quickly known: of a part of a larger block,
    /// and of what is not in the largest span.
    #[inline(always)]
    pub fn one_of_many(&self, frame: &Frame) -> Option<OneOfMany<'_>> {
        let (_, record) = self.counts.near(&self.mem, frame.address())?;
        record.is_one_of_many().then_some(OneOfMany(record))
    }

    /// As [`FrameAllocator::retire`], of a frame of which [`FrameAllocator::one_of_many`] has told `many`.
    #[inline(always)]
    pub fn retire_found(&self, many: Option<OneOfMany<'_>>, frame: Frame, retired: &mut Retired) {
        self.retire_by(many.map(|OneOfMany(record)| record), frame, retired);
    }
}
