//! Comparing the counts with the references that there are.

use super::counts::{Counts, MAX_SEEN};
use super::{FrameError, PhysMem};
use crate::addr::Hpa;
use core::fmt;

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

impl<'a, M: PhysMem> Audit<'a, M> {
    pub(super) fn new(mem: &'a M, counts: &'a Counts) -> Self {
        counts.clear_seen(mem);
        Self { mem, counts }
    }

    /// Reports a reference to the frame at `address`. Yields whether it is the first to it, so that the references
    /// inside a shared table are reported once.
    pub fn reference(&mut self, address: Hpa) -> Result<bool, FrameError> {
        let before = self.counts.see(self.mem, self.counts.number(address)?);
        before
            .map(|before| before == 0)
            .ok_or(FrameError::NotAllocated(address))
    }

    /// Compares. Frames that are in use and to which no reference was reported are counted, not compared: the caller
    /// knows how many frames it holds by other means. Yields their number.
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
