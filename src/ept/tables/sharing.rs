//! References that entries of tables hold: taken where a table is copied, given up where one goes.
//!
//! What a fork costs beside its pages is this: a few tables are copied and go again, whose entries all have to be looked at.
//! So entries that are not in use are passed over eight at a time, and the references of the others are counted in place.

use crate::addr::Hpa;
use crate::ept::tables::entry::{counted, lent, owned};
use crate::ept::tables::ops::Tables;
use crate::ept::tables::table::{DIRTY, ENTRIES, Eight, WRITE, each_used, is_empty};
use crate::ept::tables::teardown::Teardown;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem, QuickCounts};
use crate::paging::{Entry, Ept, EptEntry, Format, TableOps, TableReadOps};
use core::sync::atomic::Ordering;

impl<M: PhysMem> Tables<'_, M> {
    /// Counts one more reference to whatever an entry refers to, and returns the entry as it may stand in two tables:
    /// without write, and clean.
    #[inline(always)]
    fn reference(&self, entry: EptEntry) -> Result<EptEntry, FrameError> {
        // SAFETY: the entry stands in a table of this tree, or of the template that is borrowed.
        let Some(target) = (unsafe { lent(entry) }) else {
            return Ok(entry);
        };
        self.frames.share_many(&target, 1)?;
        Ok(closed(entry))
    }

    /// Counts one more reference to what each of the entries refers to, of a tree that is borrowed, from which write is
    /// withdrawn.
    ///
    /// # Errors
    /// Something has as many references as can be counted, and none was taken.
    #[inline(always)]
    pub fn reference_all<I: Iterator<Item = EptEntry>>(
        &self,
        entries: impl Fn() -> I,
    ) -> Result<(), FrameError> {
        for (number, entry) in entries().enumerate() {
            if let Err(error) = self.reference(entry) {
                // SAFETY: these references were taken just now, and are in no table.
                let taken = entries()
                    .take(number)
                    .filter_map(|entry| unsafe { owned(entry) });
                taken.for_each(|target| self.frames.release(target));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Fills `to`, whatever it holds, with what `from`, a table of `level`, refers to; write is withdrawn in both, and
    /// nothing counts as dirty.
    ///
    /// # Errors
    /// Something has as many references as can be counted: `from` is as it was, and no reference was taken.
    pub fn copy_shared(&self, from: Hpa, level: u8, to: Hpa) -> Result<(), FrameError> {
        let counts = self.frames.quick_counts();
        let from = self.usable(from, level);
        let (to, rest) = self.split(to, level);
        rest.iter().for_each(clear);
        let (mut open, mut failed) = (0, None);
        for (eight, copy) in from.iter().zip(to) {
            if is_empty(eight) {
                clear(copy);
            } else {
                open |= self.copy_eight(&counts, eight, copy, &mut failed);
            }
        }
        if let Some(error) = failed {
            // SAFETY: the copy is lost with what was taken for it.
            unsafe { give_back(self.frames, to) };
            return Err(error);
        }
        if open & (WRITE | DIRTY) != 0 {
            each_used(from, |_, word, bits| {
                if counted(EptEntry::from_bits(bits)).is_some() {
                    // The CPU may be setting accessed and dirty in the old one.
                    word.fetch_and(!(WRITE | DIRTY), Ordering::AcqRel);
                }
            });
        }
        Ok(())
    }

    /// Of its own, so that looking at empty ones is a short loop. Returns the bits of all entries that refer to something. What
    /// cannot be counted is left out, and `failed` says why.
    #[inline(never)]
    fn copy_eight(
        &self,
        counts: &QuickCounts<'_, M>,
        from: &Eight,
        to: &Eight,
        failed: &mut Option<FrameError>,
    ) -> u64 {
        let counts = *counts;
        let mut open = 0;
        for (from, copy) in from.iter().zip(to) {
            let entry = EptEntry::from_bits(from.load(Ordering::Acquire));
            // SAFETY: the entry stands in a table of this tree.
            let shared = match unsafe { lent(entry) } {
                None => entry,
                Some(target) => {
                    open |= entry.to_bits();
                    match counts.share(&target) {
                        true => closed(entry),
                        false => self.reference_slowly(entry, failed),
                    }
                }
            };
            copy.store(shared.to_bits(), Ordering::Release);
        }
        open
    }

    #[cold]
    fn reference_slowly(&self, entry: EptEntry, failed: &mut Option<FrameError>) -> EptEntry {
        self.reference(entry).unwrap_or_else(|error| {
            *failed = Some(error);
            EptEntry::EMPTY
        })
    }

    /// Withdraws write from all entries of the top table, so that everything below it is read-only. Returns which entries
    /// there are, a bit for each.
    pub fn withdraw_write(&mut self) -> [u64; ENTRIES / 64] {
        let mut used = [0; ENTRIES / 64];
        self.note_replaced();
        each_used(self.usable(self.root(), Ept::LEVELS), |index, word, _| {
            word.fetch_and(!(WRITE | DIRTY), Ordering::AcqRel);
            used[index / 64] |= 1 << (index % 64);
        });
        used
    }

    /// Puts an entry, which brings its reference along, into the top table, and drops the reference that was there.
    pub fn replace_top(&mut self, index: usize, entry: EptEntry) {
        let word = self.word(self.root(), index);
        let old = word.swap(entry.to_bits(), Ordering::AcqRel);
        // SAFETY: it is not in the table any more.
        if let Some(table) = unsafe { owned(EptEntry::from_bits(old)) } {
            self.drop_table(table, Ept::LEVELS - 1);
        }
    }

    /// Drops the reference to a table of `level`. If it was the last, everything below goes too.
    pub fn drop_table(&mut self, table: Frame, level: u8) {
        if let Some(last) = self.frames.release_unless_last(table) {
            // SAFETY: the last reference to a table of this tree.
            let mut all = unsafe { Teardown::of(last, level) };
            let (reach, retired) = (self.tree.reach, &mut self.tree.debt.retired);
            while !all.step(self.frames, reach, retired, u64::MAX) {}
        }
    }
}

/// Gives back the references of entries that were copied, of which others hold some too.
///
/// # Safety
/// As for [`owned`] of each.
#[cold]
unsafe fn give_back<M: PhysMem>(frames: &FrameAllocator<M>, entries: &[Eight]) {
    each_used(entries, |_, _, bits| {
        // SAFETY: the caller's.
        if let Some(target) = unsafe { owned(EptEntry::from_bits(bits)) } {
            frames.release(target);
        }
    });
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
