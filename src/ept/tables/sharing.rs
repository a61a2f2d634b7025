//! References that entries of tables hold: taken where a table is copied, given up where one goes.
//!
//! What a fork costs beside its pages is this: a few tables are copied and go again, whose entries all have to be looked at.
//! So entries that are not in use are passed over eight at a time, and the references of the others are counted in place.

use crate::addr::Hpa;
use crate::ept::tables::entry::{Origin, counted, decode};
use crate::ept::tables::ops::Tables;
use crate::ept::tables::word::{DIRTY, ENTRIES, Eight, WRITE, each_used, is_empty};
use crate::frames::{FrameAllocator, FrameError, PhysMem, QuickCounts, Retired};
use crate::paging::{Content, Decoded, Entry, Ept, EptEntry, Format, TableReadOps};
use core::sync::atomic::Ordering;

impl<M: PhysMem> Tables<'_, M> {
    /// Counts one more reference to whatever an entry refers to, and returns the entry as it may stand in two tables:
    /// without write, and clean.
    pub fn reference(&self, entry: EptEntry) -> Result<EptEntry, FrameError> {
        let Some(target) = counted(entry) else {
            return Ok(entry);
        };
        self.frames.share_entry(target)?.into_raw();
        Ok(closed(entry))
    }

    /// The same; where the reference cannot be counted, [`Tables::failed`] says so and the entry is empty.
    #[cold]
    fn share(&mut self, entry: EptEntry) -> EptEntry {
        self.reference(entry).unwrap_or_else(|error| {
            self.failed = Some(error);
            EptEntry::EMPTY
        })
    }

    /// Fills `to`, whatever it holds, with what `from`, a table of `level`, refers to; write is withdrawn in both, and
    /// nothing counts as dirty.
    pub fn copy_shared(&mut self, from: Hpa, level: u8, to: Hpa) {
        let counts = self.frames.quick_counts();
        let from = self.usable(from, level);
        let (to, rest) = self.split(to, level);
        rest.iter().for_each(clear);
        for (from, to) in from.iter().zip(to) {
            if is_empty(from) {
                clear(to);
            } else {
                self.copy_eight(&counts, from, to);
            }
        }
    }

    /// Of its own, so that looking at empty ones is a short loop.
    #[inline(never)]
    fn copy_eight(&mut self, counts: &QuickCounts<'_, M>, from: &Eight, to: &Eight) {
        let counts = *counts;
        for (from, to) in from.iter().zip(to) {
            let entry = EptEntry::from_bits(from.load(Ordering::Acquire));
            let shared = match counted(entry) {
                Some(target) if counts.take(target) => closed(entry),
                Some(_) => self.share(entry),
                None => entry,
            };
            to.store(shared.to_bits(), Ordering::Release);
            if shared != entry && shared != EptEntry::EMPTY {
                // The CPU may be setting accessed and dirty in the old one.
                from.fetch_and(!(WRITE | DIRTY), Ordering::AcqRel);
            }
        }
    }

    /// Makes an entry of `to`, whatever it is, refer to what the same one of `from` refers to, without write and clean.
    #[inline(always)]
    pub fn share_entry(&mut self, from: Hpa, to: Hpa, index: usize) {
        let shared = self.share(self.entry(from, index));
        self.word(to, index)
            .store(shared.to_bits(), Ordering::Release);
    }

    /// Withdraws write from all entries of the top table, so that everything below it is read-only. Yields which entries
    /// there are, a bit for each.
    pub fn withdraw_write(&mut self) -> [u64; ENTRIES / 64] {
        let mut used = [0; ENTRIES / 64];
        each_used(self.usable(self.root(), Ept::LEVELS), |index, word, _| {
            word.fetch_and(!(WRITE | DIRTY), Ordering::AcqRel);
            used[index / 64] |= 1 << (index % 64);
        });
        used
    }

    /// Puts an entry, which brings its reference along, into a table of `level`, and drops the reference that was there.
    pub fn replace_entry(&mut self, table: Hpa, level: u8, index: usize, entry: EptEntry) {
        let old = self
            .word(table, index)
            .swap(entry.to_bits(), Ordering::AcqRel);
        self.drop_entry(EptEntry::from_bits(old), level);
    }

    /// Drops the reference that an entry of a table of `level` held.
    pub fn drop_entry(&mut self, entry: EptEntry, level: u8) {
        match decode(level, entry) {
            Decoded::Table { table, .. } => self.drop_table(table, level - 1),
            Decoded::Content(Content::Page { phys, attr }) => {
                self.drop_leaf(phys, Origin::of(attr))
            }
            Decoded::Content(_) => {}
        }
    }

    /// Drops the reference to a table of `level` that an entry held. If it was the last, everything below goes too.
    pub fn drop_table(&mut self, table: Hpa, level: u8) {
        // A frame that an entry of ours refers to is managed and allocated: the errors do not happen.
        if !matches!(self.frames.release_unless_last(table), Ok(false)) {
            return;
        }
        let words = self.usable(table, level);
        if level == 1 {
            drop_leaves(self.frames, words, self.retired);
        } else {
            each_used(words, |_, _, bits| {
                self.drop_entry(EptEntry::from_bits(bits), level);
            });
        }
        self.retire(table);
    }

    /// Drops the reference that a leaf held.
    pub fn drop_leaf(&mut self, phys: Hpa, origin: Origin) {
        if origin.is_counted() {
            self.retire(phys);
        }
    }

    /// Drops a reference that an entry held.
    #[inline(never)]
    pub fn retire(&mut self, address: Hpa) {
        retire(self.frames, address, self.retired);
    }
}

/// Empties eight entries.
#[inline(always)]
fn clear(eight: &Eight) {
    eight
        .iter()
        .for_each(|word| word.store(0, Ordering::Release));
}

/// The entry as it may stand in two tables.
#[inline(always)]
fn closed(entry: EptEntry) -> EptEntry {
    EptEntry::from_bits(entry.to_bits() & !(WRITE | DIRTY))
}

/// Drops the references that these entries of a lowest table held. Frames that nobody refers to any more are retired.
#[inline(never)]
pub(in crate::ept) fn drop_leaves<M: PhysMem>(
    frames: &FrameAllocator<M>,
    leaves: &[Eight],
    retired: &mut Retired,
) {
    let counts = frames.quick_counts();
    each_used(leaves, |_, _, bits| {
        if let Some(page) = counted(EptEntry::from_bits(bits))
            && !counts.give(page)
        {
            retire(frames, page, retired);
        }
    });
}

/// Drops a reference that an entry held.
#[inline]
pub(in crate::ept) fn retire<M: PhysMem>(
    frames: &FrameAllocator<M>,
    address: Hpa,
    retired: &mut Retired,
) {
    let gone = frames.retire_entry(address, retired);
    debug_assert!(gone.is_ok(), "{gone:?}");
}
