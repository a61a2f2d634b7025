//! A number that stands for all memory of a space: to see that a template never changes, and that a reset fork is as it.

use crate::addr::{Gpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::spaces::space::Space;
use crate::ept::tables::table::TableSlot;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::{Content, Decoded};

/// An odd number of which many bits are set: the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

fn add(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(FACTOR)
}

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// A number made from every byte that is mapped and not in a page of zeroes, and from where. The time it takes is in
    /// proportion to that. The space must have no device passed through.
    ///
    /// # Errors
    /// There is a device passed through, or a frame that cannot be read.
    pub fn checksum(&self) -> Result<u64, Reason> {
        let device = |region: &&Region| matches!(region.kind, RegionKind::PassThrough(_));
        if let Some(Region { tag, .. }) = self.regions().find(device) {
            return Err(Reason::NotMemory { tag: *tag });
        }
        let zero = self.spaces.zero.address();
        let (mut sum, mut bytes) = (0, [0; PAGE_SIZE as usize]);
        let (first, last) = (Gpa::new(0), Gpa::new((1 << 48) - 1));
        let mut leaf = |slot: TableSlot<'_, M, F>| {
            let pages = match slot.says {
                Decoded::Content(Content::Page { phys, .. }) if phys != zero => {
                    slot.table.size().bytes() / PAGE_SIZE
                }
                _ => 0,
            };
            for page in 0..pages {
                let gpa = Gpa::new(slot.gpa.as_u64() + page * PAGE_SIZE);
                self.read(gpa, &mut bytes).map_err(|error| error.reason)?;
                let words = || bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
                // A page that holds zeroes counts as one that is not mapped.
                if words().any(|word| word != 0) {
                    sum = words().fold(add(sum, gpa.as_u64()), add);
                }
            }
            Ok::<_, Reason>(true)
        };
        self.tree.view(self.frames).walk(first, last, &mut leaf)?;
        Ok(sum)
    }
}

impl<M: PhysMem, F: Nested> FrozenSpace<'_, M, F> {
    /// As [`Space::checksum`].
    ///
    /// # Errors
    /// There is a device passed through, or a frame that cannot be read.
    pub fn checksum(&self) -> Result<u64, Reason> {
        self.as_space().checksum()
    }
}
