//! Taking tables apart to which nobody refers any more, in bounded steps.

use crate::ept::tables::entry::PteOf;
use crate::ept::tables::entry::{decode, owned};
use crate::ept::tables::reach::Reach;
use crate::ept::tables::table::{Eight, LEVELS, Table, each_used, is_empty};
use crate::frames::{Frame, FrameAllocator, PhysMem, Retired};
use crate::paging::Nested;
use crate::paging::{Decoded, Entry};
use arrayvec::ArrayVec;
use core::marker::PhantomData;

/// At most one eight of entries is open in each table on the way down.
const MOST: usize = 1 + 8 * (LEVELS as usize - 1);

/// Tables whose last reference is held here, each with its level and how many eights of its entries are done. The last is
/// worked on; what its entries refer to comes behind it.
#[must_use = "what is left of the tables is leaked unless `step` is called until it is done"]
pub(in crate::ept) struct Teardown<F>(ArrayVec<(Frame, u8, usize), MOST>, PhantomData<F>);

impl<F: Nested> Teardown<F> {
    /// Begins with a table of `level`.
    ///
    /// # Safety
    /// `table` must be the last reference to a table of a space, and the references of its entries go with it.
    #[inline(always)]
    pub unsafe fn of(table: Frame, level: u8) -> Self {
        let mut tables = ArrayVec::new();
        tables.push((table, level, 0));
        Self(tables, PhantomData)
    }

    /// Looks at up to `entries` entries, in whole eights, of tables as `reach` says they are used; giving back a table counts as
    /// an eight. Returns whether all is done. Frames that nobody refers to any more are retired.
    pub fn step<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        reach: Reach,
        retired: &mut Retired,
        entries: u64,
    ) -> bool {
        let mut left = entries.div_ceil(8) as usize;
        while left > 0 {
            let Some((table, level, done)) = self.0.last_mut() else {
                return true;
            };
            let level = *level;
            // SAFETY: the last reference to the table is here.
            let words = unsafe { Table::<_, F>::new(frames.mem(), table.address(), level) }.words();
            let words = words.get(*done..reach.eights(level)).unwrap_or(&[]);
            let words = words.get(..left).unwrap_or(words);
            let looked_at = match words {
                [] => {
                    let table = self.0.pop();
                    table
                        .into_iter()
                        .for_each(|(table, ..)| frames.retire(table, retired));
                    1
                }
                leaves if level == 1 => {
                    *done += leaves.len();
                    drop_leaves::<_, F>(frames, leaves, retired);
                    leaves.len()
                }
                [first, rest @ ..] => {
                    let empty = rest.iter().take_while(|eight| is_empty(eight)).count();
                    *done += 1 + empty;
                    each_used(core::slice::from_ref(first), |_, _, bits| {
                        let entry = PteOf::<F>::from_bits(bits);
                        // SAFETY: the table goes, and with it the entry.
                        let Some(target) = (unsafe { owned(entry) }) else {
                            return;
                        };
                        match decode::<F>(level, entry) {
                            Decoded::Table { .. } => {
                                let last = frames.release_unless_last(target);
                                self.0.extend(last.map(|table| (table, level - 1, 0)));
                            }
                            Decoded::Content(_) => frames.retire(target, retired),
                        }
                    });
                    1 + empty
                }
            };
            left -= looked_at;
        }
        self.0.is_empty()
    }
}

/// Drops the references of entries of a lowest table that goes.
#[inline(never)]
fn drop_leaves<M: PhysMem, F: Nested>(
    frames: &FrameAllocator<M>,
    leaves: &[Eight],
    retired: &mut Retired,
) {
    let counts = frames.quick_counts();
    each_used(leaves, |_, _, bits| {
        // SAFETY: the last reference to the table is the teardown's, which looks at each entry once.
        if let Some(page) = unsafe { owned(PteOf::<F>::from_bits(bits)) } {
            counts.retire(frames, page, retired);
        }
    });
}
