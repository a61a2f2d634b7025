//! Changes to leaves that are there: what is owed for them cannot be forgotten.

use crate::ept::hw::debt::Debt;
use crate::ept::tables::entry::owned;
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Entry, NestedLayout, Pte};
use core::sync::atomic::{AtomicU64, Ordering};

/// Leaves of one space while they are changed other than by adding. When it is over, however it ends, what CPUs owe for it is
/// noted, and what nobody can reach any more is freed.
pub(in crate::ept) struct LeafEdit<'a, M: PhysMem> {
    frames: &'a FrameAllocator<M>,
    debt: &'a mut Debt,
    /// A translation was removed or replaced: what CPUs have cached of it is stale.
    replaced: bool,
}

impl<'a, M: PhysMem> LeafEdit<'a, M> {
    /// Begins an edit of the space that owes `debt`.
    #[inline(always)]
    pub fn begin(frames: &'a FrameAllocator<M>, debt: &'a mut Debt) -> Self {
        let replaced = false;
        Self {
            frames,
            debt,
            replaced,
        }
    }

    /// Takes bits away from a leaf.
    #[inline(always)]
    pub fn withdraw(&mut self, leaf: &AtomicU64, bits: u64) {
        self.replaced = true;
        leaf.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Puts a leaf, which brings its reference along, in place of another, whose reference ends.
    pub fn replace<L: NestedLayout>(&mut self, leaf: &AtomicU64, new: Pte<L>) {
        self.replaced = true;
        let old = leaf.swap(new.to_bits(), Ordering::AcqRel);
        // SAFETY: it is not in the table any more.
        if let Some(old) = unsafe { owned(Pte::<L>::from_bits(old)) } {
            self.frames.retire(old, &mut self.debt.retired);
        }
    }

    /// Frames that wait until CPUs have forgotten them.
    pub const fn retired(&self) -> u64 {
        self.debt.retired.frames()
    }
}

impl<M: PhysMem> Drop for LeafEdit<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.replaced {
            self.debt.incur();
        }
        self.debt.free_unreachable(self.frames);
    }
}
