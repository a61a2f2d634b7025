//! The warm reset: what a fork wrote is copied back, page by page.

use super::entry::{Origin, decode};
use super::log::Record;
use super::provide::Source;
use super::reset::Restored;
use super::tables::{DIRTY, word};
use super::{FrozenSpace, Space};
use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::frames::{FrameAllocator, FrameError, PhysMem, Retired};
use crate::paging::{Content, Decoded, Entry, Ept, EptAttr, EptEntry, Format, Write, query};
use core::sync::atomic::{AtomicU64, Ordering};

/// What a template holds where a fork has a page of its own, in one word: the address of a page of bytes, or one of these.
mod source {
    /// Nobody has looked yet.
    pub const UNKNOWN: u64 = 0;
    /// Zeroes.
    pub const ZERO: u64 = 1;
    /// The last bytes of a host range, which do not fill the page.
    pub const PART: u64 = 2;
}

/// A reset under way.
struct Warm<'a, 's, M: PhysMem> {
    template: &'a FrozenSpace<'s, M>,
    frames: &'s FrameAllocator<M>,
    retired: &'a mut Retired,
    /// After how many resets a page that was not written goes.
    idle: u64,
    restored: Restored,
    /// What CPUs have cached of some leaf is not what it says now.
    stale: bool,
    /// The log was right about every page.
    sound: bool,
}

impl<'s, M: PhysMem> Space<'s, M> {
    /// Copies back what was written since the last reset. Pages that were not written for `idle` resets go. `None`: the log
    /// is not what it should be.
    #[inline]
    pub(super) fn reset_warm(
        &mut self,
        template: &FrozenSpace<'s, M>,
        idle: u64,
    ) -> Option<Restored> {
        let marks = self.eptp().accessed_dirty();
        let frames = self.spaces.frames;
        let before = self.tree.debt.retired.frames();
        let mut warm = Warm {
            template,
            frames,
            retired: &mut self.tree.debt.retired,
            idle,
            restored: Restored::default(),
            stale: false,
            sound: true,
        };
        self.tree.log.retain(frames, |record| {
            // SAFETY: the leaf of a page that became this space's own, in a table that is its own since: no edit has
            // moved it, or the log would be lost.
            let leaf = unsafe { word(frames.mem(), record.leaf, 0) };
            let bits = leaf.load(Ordering::Relaxed);
            if marks && bits & DIRTY == 0 {
                return warm.is_idle(record, leaf);
            }
            let frame = EptEntry::from_bits(bits).frame();
            match record.source {
                // SAFETY: when the source was found, the leaf led to a frame that nobody else refers to, and so it does as
                // long as the log is not lost. The source is a page of the template's or of host bytes, which never change.
                from if from > source::PART => unsafe {
                    frames.overwrite_page(frame, Hpa::new(from))
                },
                // SAFETY: likewise.
                source::ZERO => unsafe { frames.overwrite_page_with_zeroes(frame) },
                _ => warm.first_time(record, bits),
            }
            warm.restored.copied += 1;
            if marks {
                leaf.fetch_and(!DIRTY, Ordering::AcqRel);
                warm.stale = true;
                *record = record.with_idle(0);
            }
            true
        });
        let Warm {
            mut restored,
            stale,
            sound,
            retired,
            ..
        } = warm;
        restored.frames = retired.frames() - before;
        restored.kept = self.tree.log.len();
        self.tree.close(frames, stale);
        sound.then_some(restored)
    }
}

impl<M: PhysMem> Warm<'_, '_, M> {
    /// A page that was not written: it goes if that is so for long. Yields whether it stays.
    #[inline(never)]
    fn is_idle(&mut self, record: &mut Record, leaf: &AtomicU64) -> bool {
        let age = record.idle() + 1;
        *record = record.with_idle(age);
        if age < self.idle {
            return true;
        }
        let Some(frame) = own_frame(leaf.load(Ordering::Relaxed)) else {
            self.sound = false;
            return true;
        };
        // Where the template's frame cannot be shared, the page stays.
        let Ok(entry) = self.template.shared_leaf(record.page()) else {
            return true;
        };
        leaf.store(entry.to_bits(), Ordering::Release);
        let gone = self.frames.retire_entry(frame, self.retired);
        debug_assert!(gone.is_ok(), "{gone:?}");
        self.restored.dropped += 1;
        self.stale = true;
        false
    }

    /// Finds out what the template holds, and copies it back.
    #[cold]
    fn first_time(&mut self, record: &mut Record, bits: u64) {
        let found = own_frame(bits).filter(|frame| self.frames.count(*frame) == 1);
        let Some(frame) = found else {
            self.sound = false;
            return;
        };
        record.source = self.template.source_of(record.page());
        let done = match record.source {
            // SAFETY: the frame is a guest's page and, as was found just now, nobody else's.
            source::ZERO => unsafe {
                self.frames.overwrite_page_with_zeroes(frame);
                Ok(())
            },
            source::PART => {
                // It is found anew each time.
                record.source = source::UNKNOWN;
                self.template.copy_part(record.page(), frame)
            }
            // SAFETY: likewise, and the template's bytes never change.
            from => unsafe {
                self.frames.overwrite_page(frame, Hpa::new(from));
                Ok(())
            },
        };
        self.sound &= done.is_ok();
    }
}

/// The frame that a leaf refers to, if it is one that can be a space's own.
#[inline]
fn own_frame(bits: u64) -> Option<Hpa> {
    match decode(1, EptEntry::from_bits(bits)) {
        Decoded::Content(Content::Page { phys, attr }) => match Origin::of(attr) {
            Origin::Filled | Origin::Copied => Some(phys),
            Origin::Zero | Origin::Host => None,
        },
        _ => None,
    }
}

impl<M: PhysMem> FrozenSpace<'_, M> {
    /// The page that is mapped at `page`.
    fn mapped(&self, page: Gpa) -> Option<(Hpa, EptAttr)> {
        let tables = self.space.tree.view(self.space.spaces.frames);
        let mapping = query(&tables, page).ok()??;
        match mapping.content {
            Content::Page { attr, .. } => Some((mapping.phys_of(page)?, attr)),
            _ => None,
        }
    }

    /// What a page holds that was never touched.
    fn untouched(&self, page: Gpa) -> Option<Source> {
        let region = self.space.regions.find(page)?;
        Source::of(region, page).ok()
    }

    /// What it holds at `page`, as [`source`] says.
    fn source_of(&self, page: Gpa) -> u64 {
        match self.mapped(page) {
            Some((_, attr)) if Origin::of(attr) == Origin::Zero => source::ZERO,
            Some((phys, _)) => phys.as_u64(),
            None => match self.untouched(page) {
                Some(Source::Host(from, PAGE_SIZE)) => from.as_u64(),
                Some(Source::Host(..)) => source::PART,
                _ => source::ZERO,
            },
        }
    }

    /// Fills a fork's frame with host bytes that do not fill the page.
    fn copy_part(&self, page: Gpa, frame: Hpa) -> Result<(), FrameError> {
        match self.untouched(page) {
            // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
            Some(Source::Host(from, len)) => unsafe {
                self.space.spaces.frames.overwrite(frame, from, len)
            },
            _ => Err(FrameError::NotManaged(frame)),
        }
    }

    /// The leaf of a fork that shares what the template has at `page`.
    fn shared_leaf(&self, page: Gpa) -> Result<EptEntry, FrameError> {
        let Some((phys, attr)) = self.mapped(page) else {
            return Ok(EptEntry::EMPTY);
        };
        if Origin::of(attr).is_counted() {
            self.space.spaces.frames.share_entry(phys)?.into_raw();
        }
        let attr = attr.with_write(Write::Denied).with_dirty(false);
        let bits = Ept::leaf_bits(1, attr) | phys.as_u64();
        Ok(EptEntry::from_bits(bits))
    }
}
