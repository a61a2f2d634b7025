//! Copying bytes in and out of a guest's memory.
//!
//! A range is checked as a whole, and a write gets every frame that it needs, before any byte moves: an access that reaches
//! from memory into a hole does nothing at all. No reference to guest bytes is ever lent.

use crate::addr::{AddrRange, Address, Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::error::Reason;
use crate::ept::hw::violation::{Access, Violation};
use crate::ept::regions::region::Region;
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::AttrOf;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::policy::PagePolicy;
use crate::frames::{FrameRef, PhysMem};
use crate::paging::Nested;
use crate::paging::{Content, MAX_LEVELS, Step, path, query};
use core::fmt;

/// Why bytes could not be copied, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError {
    /// The first address for which it holds.
    pub gpa: Gpa,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPA {:#x}: {}", self.gpa, self.reason)
    }
}

impl core::error::Error for AccessError {}

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ept) enum By {
    /// The host on the guest's behalf: the region must be writable.
    Guest,
    /// The host as loader: ROM can be written.
    Loader,
}

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Copies guest bytes from `gpa` on out. What is untouched reads as what it would hold, and stays untouched.
    ///
    /// # Errors
    /// The first address that is not memory; what stands before it has been copied.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), AccessError> {
        self.check(gpa, into.len(), |_| true)?;
        let mut rest = into;
        for (at, len) in pages(gpa, rest.len()) {
            let Some((now, later)) = rest.split_at_mut_checked(len as usize) else {
                break;
            };
            self.read_page(at, now)
                .map_err(|reason| AccessError { gpa: at, reason })?;
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes to `gpa` on, as if the guest had written them: its regions' permissions hold.
    ///
    /// # Errors
    /// The first address that may not be written, or for which there is no frame; what stands before it has been
    /// copied.
    pub fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), AccessError> {
        self.copy_in(gpa, from, By::Guest)
    }

    /// From now on, what the host writes first is given small pages: it is written at exits of a guest that runs, and zeroing a
    /// large page takes long.
    pub const fn write_small_pages(&mut self) {
        self.tree.policy.host_writes_small = true;
    }

    /// Copies bytes to `gpa` on, also where only the host may write.
    ///
    /// # Errors
    /// As of [`Space::write`], but for what the guest may not write.
    pub fn load(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), AccessError> {
        self.copy_in(gpa, from, By::Loader)
    }

    fn copy_in(&mut self, gpa: Gpa, from: &[u8], by: By) -> Result<(), AccessError> {
        self.make_writable(gpa, from.len(), by)?;
        let mut rest = from;
        for (at, len) in pages(gpa, from.len()) {
            let Some((now, later)) = rest.split_at_checked(len as usize) else {
                break;
            };
            self.write_page(at, now)
                .map_err(|reason| AccessError { gpa: at, reason })?;
            rest = later;
        }
        Ok(())
    }

    /// Gets every frame that a write of so many bytes needs, all of which are this space's own then and dirty.
    pub(in crate::ept) fn make_writable(
        &mut self,
        gpa: Gpa,
        len: usize,
        by: By,
    ) -> Result<(), AccessError> {
        self.check(gpa, len, |region| by == By::Loader || region.is_writable())?;
        for (at, _) in pages(gpa, len) {
            let pages = self.tree.policy.pages;
            if self.tree.policy.host_writes_small {
                self.tree.policy.pages = PagePolicy::Small;
            }
            let made = self.provide_for_writing(at);
            self.tree.policy.pages = pages;
            made.map_err(|reason| AccessError { gpa: at, reason })?;
            self.note_host_write(at);
        }
        Ok(())
    }

    fn provide_for_writing(&mut self, at: Gpa) -> Result<(), Reason> {
        self.regions.look_up(at).ok_or(Reason::NoRegion)?;
        while self.provide_to_host(Violation::new(at, Access::WRITE))? == Fill::Zeroing {}
        Ok(())
    }

    /// Whether all bytes are in memory regions that `allow` lets through.
    fn check(
        &self,
        gpa: Gpa,
        len: usize,
        allow: impl Fn(&Region) -> bool,
    ) -> Result<(), AccessError> {
        let nowhere = |gpa| AccessError {
            gpa,
            reason: Reason::NoRegion,
        };
        let range = AddrRange::new(gpa, len as u64).ok_or(nowhere(gpa))?;
        let fine = |region: &Region| region.kind.is_memory() && allow(region);
        let Some(gpa) = self.regions.first_hole(range, fine) else {
            return Ok(());
        };
        let region = self.regions.find(gpa).ok_or(nowhere(gpa))?;
        let tag = region.tag;
        let reason = if region.kind.is_memory() {
            let refusal = region.refusal(Access::WRITE);
            refusal.unwrap_or(Reason::Denied { tag })
        } else {
            Reason::NotMemory { tag }
        };
        Err(AccessError { gpa, reason })
    }

    /// Copies bytes of one page out.
    fn read_page(&self, at: Gpa, into: &mut [u8]) -> Result<(), Reason> {
        let frames = self.frames;
        let (host, len) = match self.mapped(at)? {
            Some((phys, _, attr)) if Origin::of(attr).is_counted() => {
                // SAFETY: the leaf stays where it is.
                let frame = unsafe { FrameRef::from_raw(phys.align_down(PAGE_SIZE)) };
                return Ok(frames.read(&frame, phys.page_offset(), into)?);
            }
            Some((phys, ..)) => (phys, into.len()),
            // Nothing there yet: host bytes as far as they go, then zeroes.
            None => {
                let region = self.regions.find(at).ok_or(Reason::NoRegion)?;
                let (host, offset) = (region.kind.host(), region.offset(at));
                let left = host.map_or(0, |bytes| bytes.len().saturating_sub(offset));
                let start = host.map_or(0, |bytes| bytes.start().as_u64());
                let len = left.min(into.len() as u64) as usize;
                (Hpa::new(start.wrapping_add(offset)), len)
            }
        };
        let (bytes, zeroes) = into.split_at_mut(len);
        zeroes.fill(0);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: regions that are not memory were refused, so these are bytes of a `HostBytes`.
        Ok(unsafe { frames.read_host(host, bytes) }?)
    }

    /// Copies bytes into one page, which has been made this space's own.
    fn write_page(&mut self, at: Gpa, from: &[u8]) -> Result<(), Reason> {
        let (phys, ..) = self.mapped(at)?.ok_or(Reason::NoRegion)?;
        // SAFETY: the page of a memory region was provided for writing: its leaf holds a frame of guest bytes.
        Ok(unsafe {
            let frame = FrameRef::from_raw(phys.align_down(PAGE_SIZE));
            self.frames.write(&frame, phys.page_offset(), from)
        }?)
    }

    /// The entries that translate `gpa`, as they are.
    pub fn path(&self, gpa: Gpa) -> impl Iterator<Item = Step<Hpa>> {
        let tables = self.tree.view(self.frames);
        let steps: [Option<Step<Hpa>>; MAX_LEVELS] = {
            let mut found = path(&tables, gpa);
            core::array::from_fn(|_| found.next())
        };
        steps.into_iter().flatten()
    }

    /// Where the page at `page` is now, for figures and dumps: its frame, its size and where that came from. `None`
    /// where nothing is mapped.
    ///
    /// # Errors
    /// The tables cannot be read: a bug.
    pub fn query(&self, gpa: Gpa) -> Result<Option<(Hpa, PageSize, Origin)>, Reason> {
        let mapped = self.mapped(gpa)?;
        Ok(mapped.map(|(phys, size, attr)| (phys, size, Origin::of(attr))))
    }

    /// The same with all that the leaf says.
    #[inline]
    pub(in crate::ept) fn mapped(
        &self,
        gpa: Gpa,
    ) -> Result<Option<(Hpa, PageSize, AttrOf<F>)>, Reason> {
        let mapping = query(&self.tree.view(self.frames), gpa)?;
        Ok(mapping.and_then(|mapping| match mapping.content {
            Content::Page { attr, .. } => Some((mapping.phys_of(gpa)?, mapping.size, attr)),
            _ => None,
        }))
    }
}

/// The parts of `len` bytes from `gpa` on that lie in one page each. They must not wrap.
fn pages(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, u64)> {
    let mut at = gpa;
    let mut left = len as u64;
    core::iter::from_fn(move || {
        let here = (PAGE_SIZE - at.page_offset()).min(left);
        if here == 0 {
            return None;
        }
        let part = (at, here);
        left -= here;
        at = Gpa::new(at.as_u64().wrapping_add(here));
        Some(part)
    })
}
