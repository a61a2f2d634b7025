//! Comparing the counts with the references that there are.

use super::counts::{Counts, ORDER};
use super::{FrameError, PhysMem};
use crate::addr::Hpa;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

/// One reference found, counted in a frame's `link` above log2 of its block.
const SEEN_ONE: u32 = ORDER + 1;
/// How far an [`Audit`] counts.
const MAX_SEEN: u32 = u32::MAX / SEEN_ONE;

/// A comparison under way: whoever refers to frames reports each reference, then [`Audit::finish`] compares. It needs no
/// memory: what is found is counted in the frames' own records.
pub struct Audit<'a, M> {
    mem: &'a M,
    counts: &'a Counts,
}

/// A count that differs from the references that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// The frame, or the first of a block.
    pub frame: Hpa,
    /// What its count says.
    pub count: u32,
    /// How many references were found.
    pub found: u32,
}

impl fmt::Display for Miscount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frame,
            count,
            found,
        } = self;
        write!(
            f,
            "frame {frame:#x} has a count of {count}, but {found} references were found"
        )
    }
}

impl core::error::Error for Miscount {}

impl Counts {
    /// Forgets what [`Counts::see`] has counted.
    fn clear_seen(&self, mem: &impl PhysMem) {
        for number in (0..self.total()).filter(|number| self.holder(mem, *number) == Some(*number))
        {
            self.record(mem, number).link.fetch_and(ORDER, Relaxed);
        }
    }

    /// Counts a reference that was found to the block of `number`; returns how many were found before, or `None` where
    /// it is free. The count stops at [`MAX_SEEN`].
    fn see(&self, mem: &impl PhysMem, number: u32) -> Option<u32> {
        let holder = self.holder(mem, number)?;
        let add = |link: u32| Some(link.checked_add(SEEN_ONE).unwrap_or(link));
        let before = self
            .record(mem, holder)
            .link
            .fetch_update(Relaxed, Relaxed, add);
        Some(before.unwrap_or_else(|link| link) / SEEN_ONE)
    }

    /// For a frame that keeps a count (its own or its block's): the count, how many were found, and log2 of the block.
    fn audit(&self, mem: &impl PhysMem, number: u32) -> Option<(u32, u32, u32)> {
        let record = self.record(
            mem,
            self.holder(mem, number)
                .filter(|holder| *holder == number)?,
        );
        let link = record.link.load(Relaxed);
        Some((record.count.load(Relaxed), link / SEEN_ONE, link & ORDER))
    }
}

impl<'a, M: PhysMem> Audit<'a, M> {
    pub(super) fn new(mem: &'a M, counts: &'a Counts) -> Self {
        counts.clear_seen(mem);
        Self { mem, counts }
    }

    /// Reports a reference to the frame at `address`. Returns whether it is the first to it, so that the references
    /// inside a shared table are reported once.
    ///
    /// # Errors
    /// The address is not that of a frame that is in use.
    pub fn reference(&mut self, address: Hpa) -> Result<bool, FrameError> {
        let before = self.counts.see(self.mem, self.counts.number(address)?);
        before
            .map(|before| before == 0)
            .ok_or(FrameError::NotAllocated(address))
    }

    /// Compares. Frames that are in use and to which no reference was reported are counted, not compared: the caller
    /// knows how many frames it holds by other means. Returns their number.
    ///
    /// # Errors
    /// The first frame whose count is not the number of references.
    pub fn finish(self) -> Result<u64, Miscount> {
        let mut others = 0;
        for number in 0..self.counts.total() {
            match self.counts.audit(self.mem, number) {
                None => {}
                Some((_, 0, order)) => others += 1 << order,
                Some((count, found, _)) if count.min(MAX_SEEN) == found => {}
                Some((count, found, _)) => {
                    return Err(Miscount {
                        frame: self.counts.address(number),
                        count,
                        found,
                    });
                }
            }
        }
        Ok(others)
    }
}
