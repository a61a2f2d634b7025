//! A number that stands for all memory of a template, to see that it never changes.

use super::entry::{Origin, decode};
use super::tables::{ENTRIES, word};
use super::{FrozenSpace, Reason};
use crate::addr::{Hpa, PAGE_SIZE};
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

    fn page(&mut self, gpa: u64, frame: Hpa, origin: Origin) -> Result<(), Reason> {
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
                self.add(u64::from_le_bytes(*word));
            }
        }
        Ok(())
    }
}

impl<M: PhysMem> FrozenSpace<'_, M> {
    /// A number made from every byte that is mapped, and from where. The time it takes is in proportion to that.
    pub fn checksum(&self) -> Result<u64, Reason> {
        let shared = &self.space.spaces;
        let mut sum = Sum {
            frames: shared.frames,
            zero: shared.zero,
            state: 0,
        };
        sum.table(self.root(), 4, 0)?;
        Ok(sum.state)
    }
}
