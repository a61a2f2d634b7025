//! References that entries of tables hold: taken where a table is copied, given up where one goes.
//!
//! What a fork costs beside its pages is this: a few tables are copied and go again, whose entries all have to be looked at.
//! So entries that are not in use are passed over eight at a time, and the references of the others are counted in place.

use crate::addr::Hpa;
use crate::ept::tables::entry::PteOf;
use crate::ept::tables::entry::{counted, lent, owned};
use crate::ept::tables::ops::Tables;
use crate::ept::tables::table::{Eight, each_used, is_empty};
use crate::ept::tables::teardown::Teardown;
use crate::ept::tables::tree::Tree;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem, QuickCounts};
use crate::paging::{Entry, TableOps, TableReadOps};
use crate::paging::{Layout, Nested, NestedLayout, Pte};
use core::sync::atomic::Ordering;

impl<M: PhysMem, F: Nested> Tables<'_, M, F> {
    /// Counts one more reference to what each entry of the top table of `from` refers to, from which write is withdrawn.
    ///
    /// # Errors
    /// Something has as many references as can be counted, and none was taken.
    #[inline(always)]
    pub fn reference_top(&self, from: &Tree<F>) -> Result<(), FrameError> {
        let entries = || from.top_entries(self.frames).map(|(_, entry)| entry);
        for (number, entry) in entries().enumerate() {
            // SAFETY: the entry stands in the table that is borrowed.
            let target = unsafe { lent(entry) };
            let done = target.map_or(Ok(()), |target| self.frames.share_many(&target, 1));
            if let Err(error) = done {
                // SAFETY: these references were taken just now, and are in no table.
                unsafe { give_back(self.frames, entries().take(number)) };
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
            let taken = to.as_flattened().iter();
            let taken = taken.map(|word| PteOf::<F>::from_bits(word.load(Ordering::Relaxed)));
            // SAFETY: the copy is lost with what was taken for it.
            unsafe { give_back(self.frames, taken) };
            return Err(error);
        }
        if open & (F::Layout::WRITE | F::Layout::DIRTY) != 0 {
            each_used(from, |_, word, bits| {
                if counted(PteOf::<F>::from_bits(bits)).is_some() {
                    // The CPU may be setting accessed and dirty in the old one.
                    word.fetch_and(!(F::Layout::WRITE | F::Layout::DIRTY), Ordering::AcqRel);
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
            let entry = PteOf::<F>::from_bits(from.load(Ordering::Acquire));
            // SAFETY: the entry stands in a table of this tree.
            let shared = match unsafe { lent(entry) } {
                None => entry,
                Some(target) => {
                    open |= entry.to_bits();
                    match counts.share(self.frames, &target) {
                        Ok(()) => closed(entry),
                        Err(error) => {
                            *failed = Some(error);
                            Pte::EMPTY
                        }
                    }
                }
            };
            copy.store(shared.to_bits(), Ordering::Release);
        }
        open
    }

    /// Withdraws write from all entries of the top table, so that everything below it is read-only.
    pub fn withdraw_write(&mut self) {
        self.note_replaced();
        each_used(self.usable(self.root(), F::LEVELS), |_, word, _| {
            word.fetch_and(!(F::Layout::WRITE | F::Layout::DIRTY), Ordering::AcqRel);
        });
    }

    /// Puts an entry, which brings its reference along, into the top table, and drops the reference that was there.
    #[inline]
    pub fn replace_top(&mut self, index: usize, entry: PteOf<F>) {
        let word = self.word(self.root(), index);
        if entry == Pte::EMPTY && word.load(Ordering::Relaxed) == 0 {
            return;
        }
        let old = word.swap(entry.to_bits(), Ordering::AcqRel);
        // SAFETY: it is not in the table any more.
        if let Some(table) = unsafe { owned(PteOf::<F>::from_bits(old)) } {
            self.drop_table(table, F::LEVELS - 1);
        }
    }

    /// Drops the reference to a table of `level`. If it was the last, everything below goes too.
    pub fn drop_table(&mut self, table: Frame, level: u8) {
        if let Some(last) = self.frames.release_unless_last(table) {
            // SAFETY: the last reference to a table of this tree.
            let mut all = unsafe { Teardown::<F>::of(last, level) };
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
unsafe fn give_back<M: PhysMem, L: NestedLayout>(
    frames: &FrameAllocator<M>,
    entries: impl Iterator<Item = Pte<L>>,
) {
    // SAFETY: the caller's.
    let owned = entries.filter_map(|entry| unsafe { owned(entry) });
    owned.for_each(|target| frames.release(target));
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
fn closed<L: NestedLayout>(entry: Pte<L>) -> Pte<L> {
    Pte::from_bits(entry.to_bits() & !(L::WRITE | L::DIRTY))
}
