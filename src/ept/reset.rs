//! Bringing a fork back to its template.
//!
//! The warm way keeps the fork's own pages mapped and copies back those that were written: the same work done again takes
//! no violation. It knows them by the [log](super::log) and by the dirty marks of their leaves, which it takes away; a CPU
//! without such marks has all of them copied back. Pages that were not written for a while are given back.
//!
//! The cold way drops all that the fork alone holds.

use super::entry::{Origin, decode};
use super::log::Record;
use super::provide::Source;
use super::tables::{DIRTY, ENTRIES, word};
use super::{FrozenSpace, Space};
use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::frames::{FrameError, PhysMem};
use crate::paging::{Content, Decoded, Entry, Ept, EptEntry, Format, Write, query};
use core::fmt;
use core::sync::atomic::Ordering;

/// How a fork is brought back to its template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// Its own pages stay mapped, and what it wrote is copied back.
    Warm,
    /// All that it alone holds goes.
    Cold,
    /// Warm, and pages go that were not written for [`IDLE`] resets.
    #[default]
    Auto,
}

/// After how many resets [`Reset::Auto`] gives back a page that was not written.
pub const IDLE: u64 = 16;

/// Why a space cannot be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// It is no fork of a template.
    NotAFork,
    /// It is a fork of another template.
    OtherTemplate,
    /// A frame of the template has as many references as can be counted, or none is free. Nothing has changed.
    Frames(FrameError),
    /// It is not known which pages it wrote.
    Unknown,
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAFork => f.write_str("it is no fork of a template"),
            Self::OtherTemplate => f.write_str("it is a fork of another template"),
            Self::Frames(error) => write!(f, "sharing the template: {error}"),
            Self::Unknown => f.write_str("it is not known which pages it wrote"),
        }
    }
}

impl core::error::Error for ResetError {}

/// What a reset did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Whether all that the fork held was dropped.
    pub cold: bool,
    /// Pages that were copied back.
    pub copied: u64,
    /// Pages that were given back.
    pub dropped: u64,
    /// Pages of its own that the fork still has.
    pub kept: u64,
    /// Frames, tables included, that go back to the allocator.
    pub frames: u64,
}

impl Restored {
    /// Bytes moved.
    pub const fn bytes(&self) -> u64 {
        self.copied * PAGE_SIZE
    }
}

/// What a template holds where a fork has a page of its own, in one word: the address of a page of bytes, or one of these.
mod source {
    /// Nobody has looked yet.
    pub const UNKNOWN: u64 = 0;
    /// Zeroes.
    pub const ZERO: u64 = 1;
    /// The last bytes of a host range, which do not fill the page.
    pub const PART: u64 = 2;
}

impl<'s, M: PhysMem> Space<'s, M> {
    /// Brings the space back to what `template`, of which it is a fork, holds. A warm reset that cannot be is a cold one.
    pub fn reset(
        &mut self,
        template: &FrozenSpace<'s, M>,
        how: Reset,
    ) -> Result<Restored, ResetError> {
        template.check(self)?;
        let warm = self.tree.log.is_on() && self.regions.is_same(&template.as_space().regions);
        let idle = match how {
            Reset::Warm if warm => u64::MAX,
            Reset::Auto if warm => IDLE,
            _ => return self.reset_cold(template),
        };
        match self.reset_warm(template, idle) {
            Some(restored) => Ok(restored),
            None => self.reset_cold(template),
        }
    }

    /// `None`: the log is not what it should be.
    fn reset_warm(&mut self, template: &FrozenSpace<'s, M>, idle: u64) -> Option<Restored> {
        let marks = self.eptp().accessed_dirty();
        let frames = self.spaces.frames;
        let mut restored = Restored::default();
        let (mut stale, mut sound) = (false, true);
        let (log, retired) = (&mut self.tree.log, &mut self.tree.debt.retired);
        let before = retired.frames();
        log.retain(frames, |record| {
            // SAFETY: the leaf of a page that became this space's own, in a table that is its own since: no edit has
            // moved it, or the log would be lost.
            let leaf = unsafe { word(frames.mem(), record.leaf, 0) };
            let bits = leaf.load(Ordering::Relaxed);
            let Some(frame) = own_frame(bits) else {
                sound = false;
                return true;
            };
            if marks && bits & DIRTY == 0 {
                let age = record.idle() + 1;
                *record = record.with_idle(age);
                if age < idle {
                    return true;
                }
                // Where the template's frame cannot be shared, the page stays.
                let Ok(entry) = template.shared_leaf(record.page()) else {
                    return true;
                };
                leaf.store(entry.to_bits(), Ordering::Release);
                let gone = frames.retire_entry(frame, retired);
                debug_assert!(gone.is_ok(), "{gone:?}");
                (stale, restored.dropped) = (true, restored.dropped + 1);
                return false;
            }
            if record.source == source::UNKNOWN {
                record.source = template.source_of(record.page());
            }
            match template.copy_back(record, frame) {
                Ok(()) => restored.copied += 1,
                Err(_) => sound = false,
            }
            if marks {
                leaf.fetch_and(!DIRTY, Ordering::AcqRel);
                stale = true;
                *record = record.with_idle(0);
            }
            true
        });
        restored.kept = log.len();
        restored.frames = retired.frames() - before;
        self.tree.close(frames, stale);
        sound.then_some(restored)
    }

    fn reset_cold(&mut self, template: &FrozenSpace<'s, M>) -> Result<Restored, ResetError> {
        let frames = self.spaces.frames;
        let regions = template
            .as_space()
            .regions
            .share()
            .map_err(ResetError::Frames)?;
        // Regions that were added since may have filled entries that the template does not use.
        let same = self.regions.is_same(&regions);
        let before = self.tree.debt.retired.frames();
        let dropped = self.tree.log.len();
        let root = self.tree.root();
        let mut tables = self.tree.tables(frames);
        // All references are taken before one is given up.
        for index in template.used_entries() {
            let entry = tables.entry(template.root(), index);
            if let Err(error) = tables.reference(4, entry) {
                for taken in template.used_entries().take_while(|taken| *taken != index) {
                    let entry = tables.entry(template.root(), taken);
                    tables.drop_entry(entry, 4);
                }
                self.tree.close(frames, false);
                return Err(ResetError::Frames(error));
            }
        }
        if !same {
            for index in 0..ENTRIES {
                tables.replace_entry(root, 4, index, EptEntry::EMPTY);
            }
        }
        for index in template.used_entries() {
            let entry = tables.entry(template.root(), index);
            tables.replace_entry(root, 4, index, entry);
        }
        self.tree.log.clear(frames);
        self.regions = regions;
        let freed = self.tree.debt.retired.frames() - before;
        self.tree.close(frames, true);
        Ok(Restored {
            cold: true,
            dropped,
            frames: freed,
            ..Restored::default()
        })
    }
}

/// The frame that a leaf refers to, if it is the space's own.
#[inline(always)]
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
    /// What it holds at `page`, as [`source`] says.
    fn source_of(&self, page: Gpa) -> u64 {
        let space = self.as_space();
        let frames = space.spaces.frames;
        if let Ok(Some(mapping)) = query(&space.tree.view(frames), page)
            && let (Content::Page { attr, .. }, Some(phys)) =
                (mapping.content, mapping.phys_of(page))
        {
            return match Origin::of(attr) {
                Origin::Zero => source::ZERO,
                _ => phys.as_u64(),
            };
        }
        match self.untouched(page) {
            Some(Source::Host(from, PAGE_SIZE)) => from.as_u64(),
            Some(Source::Host(..)) => source::PART,
            _ => source::ZERO,
        }
    }

    /// What a page holds that was never touched.
    fn untouched(&self, page: Gpa) -> Option<Source> {
        let region = self.as_space().regions.find(page)?;
        Source::of(region, page).ok()
    }

    /// Fills the fork's own frame with what the template holds.
    #[inline(always)]
    fn copy_back(&self, record: &Record, frame: Hpa) -> Result<(), FrameError> {
        let frames = self.as_space().spaces.frames;
        match record.source {
            // SAFETY: the page of a guest.
            source::ZERO => unsafe { frames.overwrite_with_zeroes(frame) },
            source::PART => match self.untouched(record.page()) {
                // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
                Some(Source::Host(from, len)) => unsafe { frames.overwrite(frame, from, len) },
                _ => Err(FrameError::NotManaged(frame)),
            },
            // SAFETY: a page of the template's, whose frames stay as long as it, or of host bytes, as above.
            from => unsafe { frames.overwrite(frame, Hpa::new(from), PAGE_SIZE) },
        }
    }

    /// The leaf of a fork that shares what the template has at `page`.
    fn shared_leaf(&self, page: Gpa) -> Result<EptEntry, FrameError> {
        let space = self.as_space();
        let frames = space.spaces.frames;
        let found = query(&space.tree.view(frames), page);
        let Ok(Some(mapping)) = found else {
            return Ok(EptEntry::EMPTY);
        };
        let (Content::Page { attr, .. }, Some(phys)) = (mapping.content, mapping.phys_of(page))
        else {
            return Ok(EptEntry::EMPTY);
        };
        let attr = attr.with_write(Write::Denied).with_dirty(false);
        let entry = EptEntry::from_bits(Ept::leaf_bits(1, attr) | phys.as_u64());
        if Origin::of(attr).is_counted() {
            frames.share_entry(phys)?.into_raw();
        }
        Ok(entry)
    }
}
