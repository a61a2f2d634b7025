//! Changes to a range of a space: what is mapped there goes, or gets other permissions.

use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::regions::region::RegionError;
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::Origin;
use crate::frames::{Frame, FrameError, PhysMem, Retired};
use crate::paging::Nested;
use crate::paging::{Content, Emptied, Write, protect, unmap};
use core::fmt;

/// Why a change was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The regions do not allow it.
    Region(RegionError),
    /// There is no frame for it, or the tables are not what they should be.
    Tables(Reason),
    /// The range reaches beyond memory regions.
    NotMemory(AddrRange<Gpa>),
    /// The space has a device passed through, which cannot be in two spaces.
    PassThrough(AddrRange<Gpa>),
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(error) => write!(f, "{error}"),
            Self::Tables(reason) => write!(f, "{reason}"),
            Self::NotMemory(range) => write!(f, "{range} is not all memory"),
            Self::PassThrough(range) => {
                write!(f, "the device at {range} cannot be shared by a fork")
            }
        }
    }
}

impl core::error::Error for EditError {}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Takes a range of whole pages, all of which must be in regions, from the space, and all that is mapped there. Regions
    /// that are partly in it are cut, except those of device models.
    ///
    /// # Errors
    /// The range is not made of whole pages or not all in regions, or there is no frame for a table. Nothing has
    /// changed.
    pub fn unmap(&mut self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        whole_pages(range)?;
        let regions = self.regions.without(range).map_err(EditError::Region)?;
        self.regions.change().map_err(out)?;
        self.clear(range)?;
        *self.regions.change().map_err(out)? = regions;
        Ok(())
    }

    /// Forgets what the guest wrote in a range of whole pages in memory regions: it holds again what it held before the
    /// first touch.
    ///
    /// # Errors
    /// The range is not made of whole pages of memory, or there is no frame for a table. Nothing has changed.
    pub fn discard(&mut self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        self.check_memory(range)?;
        whole_pages(range)?;
        self.clear(range)
    }

    /// Allows or forbids the guest to write, where the memory there can be written at all, and to execute in a range of whole
    /// pages in memory regions. Regions that are partly in the range are cut, large pages are split, and both are whole
    /// again when nothing tells their parts apart.
    ///
    /// # Errors
    /// The range is not made of whole pages of memory, there are too many regions, or no frame for a table. Nothing has
    /// changed.
    pub fn protect(
        &mut self,
        range: AddrRange<Gpa>,
        write: bool,
        execute: bool,
    ) -> Result<(), EditError> {
        self.check_memory(range)?;
        whole_pages(range)?;
        let regions = self
            .regions
            .protected(range, write, execute)
            .map_err(EditError::Region)?;
        self.regions.change().map_err(out)?;
        let frames = self.frames;
        let mut tables = self.tree.tables(frames);
        // Write is given back by the next violation, to what is not shared.
        let done = protect(&mut tables, range.start(), range.len(), |attr| {
            let attr = F::with_fetch(attr, execute);
            if write {
                attr
            } else {
                attr.with_write(Write::Denied)
            }
        });
        drop(tables);
        done.map_err(|error| EditError::Tables(error.into()))?;
        *self.regions.change().map_err(out)? = regions;
        self.merge_again(range)
    }

    /// Whether the range is all memory.
    pub(in crate::ept) fn check_memory(&self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        let hole = self
            .regions
            .first_hole(range, |region| region.kind.is_memory());
        hole.map_or(Ok(()), |_| Err(EditError::NotMemory(range)))
    }

    /// Unmaps a range.
    fn clear(&mut self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        let frames = self.frames;
        let mut leaves = Retired::new();
        let mut tables = self.tree.tables(frames);
        let done = unmap(
            &mut tables,
            range.start(),
            range.len(),
            Emptied::Retire,
            |leaf| {
                if let Content::Page { phys, attr } = leaf.content
                    && Origin::of(attr).is_counted()
                {
                    // SAFETY: the leaf is gone.
                    frames.retire(unsafe { Frame::from_raw(phys) }, &mut leaves);
                }
            },
        );
        // Sub-trees that are shared go without a word about their leaves.
        frames.join_retired(&mut tables.tree.debt.retired, leaves);
        done.map_err(|error| EditError::Tables(error.into()))
    }
}

/// There was no frame for a change, or its count is the largest.
pub(in crate::ept) fn out(error: FrameError) -> EditError {
    EditError::Tables(error.into())
}

/// Whether the range is made of whole pages.
pub(in crate::ept) fn whole_pages(range: AddrRange<Gpa>) -> Result<(), EditError> {
    if range.start().is_aligned(PAGE_SIZE) && range.len().is_multiple_of(PAGE_SIZE) {
        Ok(())
    } else {
        Err(EditError::Region(RegionError::Unaligned(range)))
    }
}
