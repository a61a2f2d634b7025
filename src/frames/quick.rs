//! Counting many references one after the other: where the counts are is looked up once.

use super::counts::{Counts, Record};
use super::{FrameAllocator, PhysMem};
use crate::addr::{Hpa, PAGE_SIZE};

/// The way to the counts of nearly all frames: those of the largest span.
pub struct QuickCounts<'a, M> {
    mem: &'a M,
    first: u64,
    frames: u64,
    records: Hpa,
}

impl<M> Clone for QuickCounts<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for QuickCounts<'_, M> {}

impl<M: PhysMem> FrameAllocator<M> {
    /// The quick way to count references to frames, as many as there are to be counted.
    #[inline(always)]
    pub fn quick_counts(&self) -> QuickCounts<'_, M> {
        self.counts.quick(&self.mem)
    }
}

impl Counts {
    #[inline(always)]
    fn quick<'a, M>(&self, mem: &'a M) -> QuickCounts<'a, M> {
        let (first, frames, records) = self.largest();
        QuickCounts {
            mem,
            first,
            frames,
            records,
        }
    }
}

impl<'a, M: PhysMem> QuickCounts<'a, M> {
    /// Counts one more reference to a page that a table entry refers to. `false`, and nothing is changed, where that is not
    /// quickly done.
    #[inline(always)]
    pub fn take(&self, page: Hpa) -> bool {
        self.record(page).is_some_and(Record::take_one)
    }

    /// Takes away a reference to a page that a table entry held. `false`, and nothing is changed, where it is the last one or
    /// that is not quickly done.
    #[inline(always)]
    pub fn give(&self, page: Hpa) -> bool {
        let record = self.record(page);
        record.is_some_and(|record| {
            let count = record.own_count_of_many();
            count.is_some_and(|count| record.give_one_of(count))
        })
    }

    /// The record of a frame.
    #[inline(always)]
    pub(super) fn record(&self, page: Hpa) -> Option<&'a Record> {
        let number = (page.as_u64() / PAGE_SIZE).wrapping_sub(self.first);
        // SAFETY: the number is that of a frame of the largest span.
        (number < self.frames).then(|| unsafe { Record::at(self.mem, self.records, number) })
    }
}
