//! The end of a space: all that it alone held goes back, in bounded steps.

use crate::ept::hw::capability::Eptp;
use crate::ept::hw::debt::{Debt, Invalidate};
use crate::ept::spaces::space::Space;
use crate::ept::tables::reach::Reach;
use crate::ept::tables::teardown::Teardown;
use crate::frames::{FrameAllocator, PhysMem};

use crate::paging::{Ept, Nested};

/// A space that is being taken apart.
#[must_use = "what is left of the space is leaked unless `step` is called until it is done"]
pub struct Ending<'s, M: PhysMem, F: Nested = Ept> {
    frames: &'s FrameAllocator<M>,
    eptp: Eptp,
    reach: Reach,
    debt: Debt,
    tables: Teardown<F>,
}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Ends the space. CPUs may still have translations cached, so nothing is given back before the first step on each
    /// CPU on which the guest ran.
    pub fn end(mut self) -> Ending<'s, M, F> {
        let frames = self.frames;
        self.tree.debt.incur();
        self.tree.dirty.release(frames);
        self.tree.log.clear(frames);
        self.tree.stop_zeroing(frames);
        let (eptp, reach) = (self.eptp(), self.tree.reach);
        let (root, debt) = self.tree.into_root();
        Ending {
            frames,
            eptp,
            reach,
            debt,
            // SAFETY: nobody else refers to the top table of a space.
            tables: unsafe { Teardown::of(root, F::LEVELS) },
        }
    }

    /// Ends a space that no CPU has run.
    pub(crate) fn end_unseen(self) {
        let mut ending = self.end();
        while !ending.take_apart(u64::MAX) {}
    }
}

impl<M: PhysMem, F: Nested> Ending<'_, M, F> {
    /// Pays what this CPU owes, then looks at up to `entries` entries, in whole eights. Returns whether all is given back;
    /// `false` also as long as another CPU has to pay first.
    pub fn step(&mut self, cpu: &mut impl Invalidate, entries: u64) -> bool {
        self.debt.pay(self.eptp, cpu, self.frames);
        !self.debt.is_owed() && self.take_apart(entries)
    }

    /// The same, of a space that no CPU has anything of.
    fn take_apart(&mut self, entries: u64) -> bool {
        let retired = &mut self.debt.retired;
        let done = self.tables.step(self.frames, self.reach, retired, entries);
        self.frames.free_retired(retired);
        done
    }
}
