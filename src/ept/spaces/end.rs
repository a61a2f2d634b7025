//! The end of a space: all that it alone held goes back, in bounded steps.

use crate::addr::Hpa;
use crate::ept::hw::capability::Eptp;
use crate::ept::hw::debt::{Debt, Invalidate};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{decode, owned};
use crate::ept::tables::reach::Reach;
use crate::ept::tables::sharing::drop_leaves;
use crate::ept::tables::table::{Table, is_empty};
use crate::frames::{Frame, FrameAllocator, PhysMem};
use crate::paging::{Decoded, EptEntry};

/// The place of lowest tables in [`Ending::path`].
const LOWEST: usize = 3;

/// A space that is being taken apart.
#[must_use = "what is left of the space is leaked unless `step` is called until it is done"]
pub struct Ending<'s, M: PhysMem> {
    frames: &'s FrameAllocator<M>,
    eptp: Eptp,
    reach: Reach,
    debt: Debt,
    path: Path,
}

/// The tables on the way to the one being emptied, with the entry to look at next. The last is the deepest.
struct Path {
    tables: [(Hpa, usize); 4],
    depth: usize,
}

#[cfg(test)]
impl Drop for Path {
    fn drop(&mut self) {
        if self.depth != 0 {
            crate::bomb::dropped("the end of a space");
        }
    }
}

impl<'s, M: PhysMem> Space<'s, M> {
    /// Ends the space. CPUs may still have translations cached, so nothing is given back before the first step on each
    /// CPU on which the guest ran.
    pub fn end(mut self) -> Ending<'s, M> {
        self.tree.debt.incur();
        self.tree.marks.release(self.spaces.frames);
        self.tree.log.clear(self.spaces.frames);
        self.tree.stop_zeroing(self.spaces.frames);
        let (eptp, reach) = (self.eptp(), self.tree.reach);
        let (root, debt) = self.tree.into_root();
        Ending {
            frames: self.spaces.frames,
            eptp,
            reach,
            path: Path {
                tables: [(root.into_raw(), 0); 4],
                depth: 1,
            },
            debt,
        }
    }

    /// Ends a space that no CPU has run.
    pub(crate) fn end_unseen(self) {
        let mut ending = self.end();
        while !ending.take_apart(u64::MAX) {}
    }
}

impl<M: PhysMem> Ending<'_, M> {
    /// Pays what this CPU owes, then looks at up to `entries` entries. Returns whether all is given back; `false` also as
    /// long as another CPU has to pay first.
    pub fn step(&mut self, cpu: &mut impl Invalidate, entries: u64) -> bool {
        self.debt.pay(self.eptp, cpu, self.frames);
        if self.debt.is_owed() {
            return false;
        }
        self.take_apart(entries)
    }

    /// Looks at up to `entries` entries, of a space that no CPU has anything of. Returns whether all is given back.
    fn take_apart(&mut self, entries: u64) -> bool {
        let mut left = entries;
        while left > 0 {
            let Some(place) = self.path.depth.checked_sub(1) else {
                break;
            };
            let (table, index) = self.path.tables[place];
            let rest = self.reach.entries(level_of(place)).saturating_sub(index);
            if rest == 0 {
                // SAFETY: it leaves the path, to which its last reference was given.
                let table = unsafe { Frame::from_raw(table) };
                self.frames.retire(table, &mut self.debt.retired);
                self.path.depth = place;
                left -= 1;
                continue;
            }
            // SAFETY: the path holds tables of this space, whose last reference was found to be ours and which are given
            // back only after their last entry.
            let table = unsafe { Table::new(self.frames.mem(), table, level_of(place)) };
            let words = table.words();
            let end = index + rest.min(left as usize);
            let eights = match index % 8 {
                0 => words.get(index / 8..end / 8).unwrap_or(&[]),
                _ => &[],
            };
            let many = if place == LOWEST {
                // SAFETY: the last reference to the table was this space's, and it goes with its entries.
                unsafe { drop_leaves(self.frames, eights, &mut self.debt.retired) };
                8 * eights.len()
            } else {
                8 * eights.iter().take_while(|eight| is_empty(eight)).count()
            };
            let looked_at = many.max(1);
            self.path.tables[place].1 += looked_at;
            left -= looked_at as u64;
            if many == 0 {
                self.drop_entry(table.level(), table.entry(index));
            }
        }
        self.frames.free_retired(&mut self.debt.retired);
        self.path.depth == 0
    }

    /// Drops the reference of an entry of the deepest table on the path. A table to which it was the last becomes the
    /// deepest.
    fn drop_entry(&mut self, level: u8, entry: EptEntry) {
        // SAFETY: the last reference to the table was this space's, and it goes with its entries.
        let Some(target) = (unsafe { owned(entry) }) else {
            return;
        };
        let table = matches!(decode(level, entry), Decoded::Table { .. });
        if !table {
            self.frames.retire(target, &mut self.debt.retired);
        } else if let Some(last) = self.frames.release_unless_last(target) {
            // A table of level 1 has no tables below.
            if let Some(next) = self.path.tables.get_mut(self.path.depth) {
                *next = (last.into_raw(), 0);
                self.path.depth += 1;
            }
        }
    }
}

/// Of which level the table at a place of the path is.
const fn level_of(place: usize) -> u8 {
    4 - place as u8
}
