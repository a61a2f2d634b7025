//! The warm reset: what a fork wrote is copied back, page by page.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::regions::backing::{Backing, Source};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{Marks, PteOf};
use crate::ept::tables::entry::{Origin, own_frame};
use crate::ept::tables::leaf_edit::LeafEdit;
use crate::ept::tables::log::OwnPage;
use crate::paging::{Layout, Nested, Pte};

use crate::ept::templates::reset::Restored;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::{FrameAllocator, FrameError, FrameRef, PhysMem};
use crate::paging::{Entry, Format, Write};
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

/// In place of the address of what a template holds where a fork has a page of its own: nobody has looked yet, or it does not
/// fill the page.
const UNKNOWN: u64 = 0;

/// A reset under way.
struct Warm<'a, 's, M: PhysMem, F: Nested> {
    template: &'a FrozenSpace<'s, M, F>,
    frames: &'s FrameAllocator<M>,
    edit: LeafEdit<'a, M>,
    /// After how many resets a page that was not written goes.
    idle: u64,
    /// Pages that were copied back, those that were not written, and those of these that went.
    copied: u64,
    clean: u64,
    dropped: u64,
    /// The log was right about every page.
    sound: bool,
}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Copies back what was written since the last reset. Pages that were not written for `idle` resets go. `None`: the log
    /// is not what it should be.
    #[inline]
    pub(in crate::ept) fn reset_warm(
        &mut self,
        template: &FrozenSpace<'s, M, F>,
        idle: u64,
    ) -> Option<Restored> {
        if self.tree.dirty.is_set_by_cpu::<F>() {
            return self.copy_back::<true>(template, idle);
        }
        self.copy_back_all(template, idle)
    }

    /// The same on a CPU that does not mark pages.
    #[inline(never)]
    fn copy_back_all(&mut self, template: &FrozenSpace<'s, M, F>, idle: u64) -> Option<Restored> {
        let restored = self.copy_back::<false>(template, idle);
        if self.tree.dirty.every_write {
            self.withdraw_write();
        }
        restored
    }

    #[inline(always)]
    fn copy_back<const MARKS: bool>(
        &mut self,
        template: &FrozenSpace<'s, M, F>,
        idle: u64,
    ) -> Option<Restored> {
        let frames = self.frames;
        let mut warm = Warm {
            template,
            frames,
            edit: LeafEdit::begin(frames, &mut self.tree.debt),
            idle,
            copied: 0,
            clean: 0,
            dropped: 0,
            sound: true,
        };
        let before = warm.edit.retired();
        // SAFETY: it is this space's log, and on.
        unsafe {
            self.tree.log.retain(frames, |record, leaf| {
                let bits = leaf.load(Ordering::Relaxed);
                if bits & F::Layout::DIRTY == 0
                    && let Some(stays) = warm.not_dirty(record, leaf)
                {
                    return stays;
                }
                warm.copied += 1;
                match record.get().source {
                    UNKNOWN => warm.first_time(record, bits),
                    // When the source was found, the leaf led to a frame that nobody else refers to, and so it does as long as
                    // the log is not lost. The source is a page of the template's, of host bytes or of zeroes, and never
                    // changes.
                    from => {
                        let frame = FrameRef::from_raw(PteOf::<F>::from_bits(bits).frame());
                        frames.overwrite_page(&frame, Hpa::new(from));
                    }
                }
                if MARKS {
                    warm.edit
                        .withdraw(leaf, F::Layout::DIRTY | F::Layout::HARVESTED);
                    record.set(record.get().with_idle(0));
                }
                true
            });
        }
        let Warm {
            edit,
            copied,
            clean,
            dropped,
            sound,
            ..
        } = warm;
        let freed = edit.retired() - before;
        drop(edit);
        sound.then_some(Restored {
            cold: false,
            copied,
            dropped,
            kept: copied + clean - dropped,
            frames: freed,
        })
    }

    /// Has the next write to each page that was copied back be a violation, which tells that it was written, and notes it
    /// again; so it is forgotten here, unless only the host writes it.
    fn withdraw_write(&mut self) {
        let (frames, regions) = (self.frames, &self.regions);
        let mut edit = LeafEdit::begin(frames, &mut self.tree.debt);
        // SAFETY: as in `copy_back`.
        unsafe {
            self.tree.log.retain(frames, |record, leaf| {
                edit.withdraw(
                    leaf,
                    F::Layout::WRITE | F::Layout::DIRTY | F::Layout::HARVESTED,
                );
                let region = regions.find(record.get().page());
                region.is_some_and(|region| !region.is_writable())
            });
        }
    }
}

impl<M: PhysMem, F: Nested> Warm<'_, '_, M, F> {
    /// A page that is not dirty. Unless that was harvested, it was not written, and goes if that is so for long; returns whether
    /// it stays.
    #[inline(never)]
    fn not_dirty(&mut self, record: &Cell<OwnPage>, leaf: &AtomicU64) -> Option<bool> {
        if leaf.load(Ordering::Relaxed) & F::Layout::HARVESTED != 0 {
            return None;
        }
        self.clean += 1;
        let page = record.get().page();
        let age = record.get().idle() + 1;
        record.set(record.get().with_idle(age));
        if age < self.idle {
            return Some(true);
        }
        if own_frame::<F::Layout>(leaf.load(Ordering::Relaxed)).is_none() {
            self.sound = false;
            return Some(true);
        }
        // Where the template's frame cannot be shared, the page stays.
        let Ok(entry) = self.template.shared_leaf(page) else {
            return Some(true);
        };
        self.edit.replace(leaf, entry);
        self.dropped += 1;
        Some(false)
    }

    /// Finds out what the template holds, and copies it back.
    #[cold]
    fn first_time(&mut self, record: &Cell<OwnPage>, bits: u64) {
        let found = own_frame::<F::Layout>(bits).filter(|frame| self.frames.count(*frame) == 1);
        // SAFETY: the leaf stays where it is.
        let Some(frame) = found.map(|frame| unsafe { FrameRef::from_raw(frame) }) else {
            self.sound = false;
            return;
        };
        let page = record.get().page();
        let (from, len) = self.template.source_of(page);
        // SAFETY: the frame is a guest's page and, as was found just now, nobody else's. The source is the template's page or
        // bytes that `HostBytes::new` was promised to stay and to be reachable; neither ever changes.
        unsafe {
            if len == PAGE_SIZE {
                record.set(record.get().with_source(from.as_u64()));
                self.frames.overwrite_page(&frame, from);
            } else {
                self.sound &= self.frames.overwrite(&frame, from, len).is_ok();
            }
        }
    }
}

impl<M: PhysMem, F: Nested> FrozenSpace<'_, M, F> {
    /// Where the bytes are that it holds at `page`, and how many; zeroes are behind them.
    fn source_of(&self, page: Gpa) -> (Hpa, u64) {
        let space = &self.space;
        if let Ok(Some((phys, ..))) = space.mapped(page) {
            return (phys, PAGE_SIZE);
        }
        let region = space.regions.find(page);
        match region.map(|region| Backing::<F>::new(region, page, true).source_of(page)) {
            Some(Source::HostPage(from)) => (from, PAGE_SIZE),
            Some(Source::HostPart(from, len)) => (from, len),
            _ => (space.spaces.zero.address(), PAGE_SIZE),
        }
    }

    /// The leaf of a fork that shares what the template has at `page`.
    fn shared_leaf(&self, page: Gpa) -> Result<PteOf<F>, FrameError> {
        let Some((phys, _, attr)) = self.space.mapped(page).ok().flatten() else {
            return Ok(Pte::EMPTY);
        };
        if Origin::of(attr).is_counted() {
            // SAFETY: the template's leaf stays where it is.
            let frame = unsafe { FrameRef::from_raw(phys) };
            self.space.frames.share_many(&frame, 1)?;
        }
        let attr = attr.with_write(Write::Denied).with_dirty(false);
        let bits = F::leaf_bits(1, attr) | phys.as_u64();
        Ok(Pte::from_bits(bits))
    }
}
