//! The end of a space: all that it alone held goes back, in bounded steps.

use super::debt::Invalidate;
use super::entry::{Origin, decode};
use super::tables::{ENTRIES, word};
use super::{Eptp, Space};
use crate::addr::Hpa;
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Content, Decoded, Entry, EptEntry};
use core::sync::atomic::Ordering;

/// A space that is being taken apart.
#[must_use = "what is left of the space is leaked unless `step` is called until it is done"]
pub struct Ending<'s, M: PhysMem> {
    frames: &'s FrameAllocator<M>,
    eptp: Eptp,
    debt: super::debt::Debt,
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
        Ending {
            frames: self.spaces.frames,
            eptp: self.eptp(),
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
            left -= 1;
            let Some(level) = self.depth.checked_sub(1) else {
                return true;
            };
            let (table, index) = self.path[level];
            if index == ENTRIES {
                self.release(table);
                self.depth = level;
                continue;
            }
            let mut index = index;
            let bits = loop {
                // SAFETY: the path holds tables of this space, whose last reference was found to be ours and which are
                // given back only after their last entry.
                let bits = unsafe { word(self.frames.mem(), table, index) }.load(Ordering::Acquire);
                index += 1;
                if bits != 0 || index == ENTRIES || left == 0 {
                    break bits;
                }
                left -= 1;
            };
            self.path[level].1 = index;
            match decode(4 - level as u8, EptEntry::from_bits(bits)) {
                Decoded::Table { table, .. } => {
                    if let Ok(false) = self.frames.release_unless_last(table)
                        && let Some(next) = self.path.get_mut(self.depth)
                    {
                        *next = (table, 0);
                        self.depth += 1;
                    }
                }
                Decoded::Content(Content::Page { phys, attr }) if Origin::of(attr).is_counted() => {
                    self.release(phys)
                }
                Decoded::Content(_) => {}
            }
        }
        self.depth == 0
    }

    fn release(&self, address: Hpa) {
        let gone = self
            .frames
            .from_entry(address)
            .and_then(|frame| self.frames.release(frame));
        debug_assert!(gone.is_ok(), "{gone:?}");
    }
}
