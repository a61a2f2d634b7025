//! The entries that translate one address, as they are: for the report of an EPT misconfiguration.

use super::Space;
use super::entry::decode;
use super::tables::word;
use crate::addr::{Gpa, Hpa};
use crate::frames::PhysMem;
use crate::paging::{Decoded, Entry, EptEntry};
use core::sync::atomic::Ordering;

/// One step of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level of the table, 4 at the root.
    pub level: u8,
    /// Where the table is.
    pub table: Hpa,
    /// Which entry.
    pub index: usize,
    /// What stands there.
    pub bits: u64,
}

impl<M: PhysMem> Space<'_, M> {
    /// The entries on the way to `gpa`, from the root to the leaf or the last one that is there.
    pub fn path(&self, gpa: Gpa) -> impl Iterator<Item = Step> + '_ {
        let mut next = Some((4, self.tree.root()));
        core::iter::from_fn(move || {
            let (level, table) = next?;
            let index = (gpa.as_u64() >> (3 + 9 * u32::from(level))) as usize & 511;
            // SAFETY: the root is a table of this space, and so is what an entry of one refers to as a table.
            let bits =
                unsafe { word(self.spaces.frames.mem(), table, index) }.load(Ordering::Acquire);
            next = match decode(level, EptEntry::from_bits(bits)) {
                Decoded::Table { table, .. } if level > 1 => Some((level - 1, table)),
                _ => None,
            };
            Some(Step {
                level,
                table,
                index,
                bits,
            })
        })
    }
}
