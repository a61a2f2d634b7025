//! The end of a space: all that it alone held goes back, in bounded steps.

use crate::addr::Hpa;
use crate::ept::hw::capability::Eptp;
use crate::ept::hw::debt::{Debt, Invalidate};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{counted, decode};
use crate::ept::tables::reach::Reach;
use crate::ept::tables::sharing::{drop_leaves, retire};
use crate::ept::tables::word::{is_empty, words};
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Decoded, Entry, EptEntry};
use core::sync::atomic::Ordering;

/// The place of lowest tables in [`Ending::path`].
const LOWEST: usize = 3;

/// A space that is being taken apart.
#[must_use = "what is left of the space is leaked unless `step` is called until it is done"]
pub struct Ending<'s, M: PhysMem> {
    frames: &'s FrameAllocator<M>,
    eptp: Eptp,
    reach: Reach,
    debt: Debt,
    /// The tables on the way to the one being emptied, with the entry to look at next. The last is the deepest.
    path: [(Hpa, usize); 4],
    depth: usize,
}

impl<'s, M: PhysMem> Space<'s, M> {
    /// Ends the space. CPUs may still have translations cached, so nothing is given back before the first step on each
    /// CPU on which the guest ran.
    pub fn end(mut self) -> Ending<'s, M> {
        self.tree.debt.incur();
        self.tree.marks.release(self.spaces.frames);
        self.tree.log.clear(self.spaces.frames);
        self.tree.stop_zeroing(self.spaces.frames);
        Ending {
            frames: self.spaces.frames,
            eptp: self.eptp(),
            reach: self.tree.reach,
            path: [(self.tree.root(), 0); 4],
            debt: self.tree.debt,
            depth: 1,
        }
    }
}

impl<M: PhysMem> Ending<'_, M> {
    /// Pays what this CPU owes, then looks at up to `entries` entries. Yields whether all is given back; `false` also as
    /// long as another CPU has to pay first.
    pub fn step(&mut self, cpu: &mut impl Invalidate, entries: u64) -> bool {
        self.debt.pay(self.eptp, cpu, self.frames);
        if self.debt.is_owed() {
            return false;
        }
        let mut left = entries;
        while left > 0 {
            let Some(place) = self.depth.checked_sub(1) else {
                break;
            };
            let (table, index) = self.path[place];
            let rest = self.reach.entries(level_of(place)).saturating_sub(index);
            if rest == 0 {
                retire(self.frames, table, &mut self.debt.retired);
                self.depth = place;
                left -= 1;
                continue;
            }
            // SAFETY: the path holds tables of this space, whose last reference was found to be ours and which are given
            // back only after their last entry.
            let words = unsafe { words(self.frames.mem(), table) };
            let end = index + rest.min(left as usize);
            let eights = match index % 8 {
                0 => words.get(index / 8..end / 8).unwrap_or(&[]),
                _ => &[],
            };
            let many = if place == LOWEST {
                drop_leaves(self.frames, eights, &mut self.debt.retired);
                8 * eights.len()
            } else {
                8 * eights.iter().take_while(|eight| is_empty(eight)).count()
            };
            let looked_at = many.max(1);
            self.path[place].1 += looked_at;
            left -= looked_at as u64;
            if many == 0 {
                let word = &words[index / 8][index % 8];
                let entry = EptEntry::from_bits(word.load(Ordering::Acquire));
                self.drop_entry(level_of(place), entry);
            }
        }
        self.frames.free_retired(&mut self.debt.retired);
        self.depth == 0
    }

    /// Drops the reference of an entry of the deepest table on the path. A table to which it was the last becomes the
    /// deepest.
    fn drop_entry(&mut self, level: u8, entry: EptEntry) {
        let Some(target) = counted(entry) else {
            return;
        };
        let table = matches!(decode(level, entry), Decoded::Table { .. });
        if !table {
            retire(self.frames, target, &mut self.debt.retired);
        } else if let Ok(false) = self.frames.release_unless_last(target)
            && let Some(next) = self.path.get_mut(self.depth)
        {
            *next = (target, 0);
            self.depth += 1;
        }
    }
}

/// Of which level the table at a place of the path is.
const fn level_of(place: usize) -> u8 {
    4 - place as u8
}
