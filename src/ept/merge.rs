//! Large pages that were split become whole again.

use super::edit::whole_pages;
use super::{EditError, PagePolicy, Space};
use crate::addr::{AddrRange, Address, Gpa, PageSize};
use crate::frames::PhysMem;
use crate::paging::merge;

impl<M: PhysMem> Space<'_, M> {
    /// Makes large pages, as large as the CPU has them, of small ones in a range of whole pages: of those that lie one behind
    /// the other in one region and in host memory, whose frames nobody else refers to, and that say the same. Pages that
    /// may be written are joined with such as may not be at the moment; the next write gives it to all. What was written
    /// stays marked: a large page is dirty where a part of it was.
    ///
    /// Yields how many tables are gone. It takes time in proportion to what is mapped in the range.
    pub fn merge(&mut self, range: AddrRange<Gpa>) -> Result<u64, EditError> {
        whole_pages(range)?;
        let largest = PagePolicy::Large1G.on(self.spaces.capability).largest();
        self.merge_up_to(range, largest)
    }

    /// Makes the large pages again that the policy would have given, of which a part is in the range.
    pub(super) fn merge_again(&mut self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        let largest = self.tree.pages.largest();
        let size = largest.bytes();
        let start = range.start().align_down(size);
        let end = range
            .last()
            .map(|last| (last.as_u64() | (size - 1)) - start.as_u64());
        let around = end.and_then(|end| AddrRange::new(start, end + 1));
        match around {
            Some(around) if largest != PageSize::Size4K => {
                self.merge_up_to(around, largest).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn merge_up_to(&mut self, range: AddrRange<Gpa>, largest: PageSize) -> Result<u64, EditError> {
        if largest == PageSize::Size4K {
            return Ok(0);
        }
        let frames = self.spaces.frames;
        let mut tables = self.tree.tables(frames);
        let mut gone = Ok(0);
        // A leaf lies in one region.
        let parts = self.regions.iter();
        for part in parts.filter_map(|region| region.range.intersection(range)) {
            match merge(&mut tables, part.start(), part.len(), largest) {
                Ok(more) => gone = gone.map(|gone| gone + more),
                Err(error) => gone = Err(EditError::Tables(error.into())),
            }
            if gone.is_err() {
                break;
            }
        }
        self.tree.close(frames, gone != Ok(0));
        gone
    }
}
