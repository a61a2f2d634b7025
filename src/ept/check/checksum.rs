//! A number that stands for all memory of a space: to see that a template never changes, and that a reset fork is as it.

use crate::addr::{Hpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{Origin, decode};
use crate::ept::tables::word::{ENTRIES, word};
use crate::ept::templates::template::FrozenSpace;
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Content, Decoded, Entry, EptEntry};
use core::sync::atomic::Ordering;

/// Bytes that are read at once.
const PIECE: usize = 512;
/// An odd number of which many bits are set: the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

struct Sum<'a, M> {
    frames: &'a FrameAllocator<M>,
    zero: Hpa,
    state: u64,
}

impl<M: PhysMem> Sum<'_, M> {
    fn add(&mut self, word: u64) {
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }

    fn table(&mut self, table: Hpa, level: u8, start: u64) -> Result<(), Reason> {
        for index in 0..ENTRIES {
            // SAFETY: a table of the template, which is borrowed and never changes.
            let bits = unsafe { word(self.frames.mem(), table, index) }.load(Ordering::Acquire);
            let start = start | (index as u64) << (12 + 9 * u32::from(level - 1));
            match decode(level, EptEntry::from_bits(bits)) {
                Decoded::Table { table, .. } => self.table(table, level - 1, start)?,
                Decoded::Content(Content::Page { phys, attr }) if phys != self.zero => {
                    for page in 0..1u64 << (9 * u32::from(level - 1)) {
                        let frame = Hpa::new(phys.as_u64() + page * PAGE_SIZE);
                        self.page(start + page * PAGE_SIZE, frame, Origin::of(attr))?;
                    }
                }
                Decoded::Content(_) => {}
            }
        }
        Ok(())
    }

    /// A page that holds zeroes counts as one that is not mapped.
    fn page(&mut self, gpa: u64, frame: Hpa, origin: Origin) -> Result<(), Reason> {
        let before = self.state;
        let mut any = 0;
        self.add(gpa);
        let mut bytes = [0; PIECE];
        for offset in (0..PAGE_SIZE).step_by(PIECE) {
            let at = Hpa::new(frame.as_u64() + offset);
            if origin.is_counted() {
                self.frames.read(at, &mut bytes)?;
            } else {
                // SAFETY: a template has no device passed through, so these are bytes of a `HostBytes`.
                unsafe { self.frames.read_host(at, &mut bytes)? };
            }
            for word in bytes.as_chunks::<8>().0 {
                let word = u64::from_le_bytes(*word);
                any |= word;
                self.add(word);
            }
        }
        if any == 0 {
            self.state = before;
        }
        Ok(())
    }
}

impl<M: PhysMem> Space<'_, M> {
    /// A number made from every byte that is mapped and not in a page of zeroes, and from where. The time it takes is in
    /// proportion to that. The space must have no device passed through.
    pub fn checksum(&self) -> Result<u64, Reason> {
        let device = |region: &&Region| matches!(region.kind, RegionKind::PassThrough(_));
        if let Some(Region { tag, .. }) = self.regions().find(device) {
            return Err(Reason::NotMemory { tag: *tag });
        }
        let mut sum = Sum {
            frames: self.spaces.frames,
            zero: self.spaces.zero,
            state: 0,
        };
        sum.table(self.tree.root(), 4, 0)?;
        Ok(sum.state)
    }
}

impl<M: PhysMem> FrozenSpace<'_, M> {
    /// As [`Space::checksum`].
    pub fn checksum(&self) -> Result<u64, Reason> {
        self.as_space().checksum()
    }
}
