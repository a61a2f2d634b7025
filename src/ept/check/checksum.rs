//! A number that stands for all memory of a space: to see that a template never changes, and that a reset fork is as it.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::table::TableSlot;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::{FrameAllocator, FrameRef, PhysMem};
use crate::paging::{Content, Decoded};

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

    fn leaf(&mut self, slot: TableSlot<'_, M>) -> Result<bool, Reason> {
        if let Decoded::Content(Content::Page { phys, attr }) = slot.says
            && phys != self.zero
        {
            for offset in (0..slot.table.size().bytes()).step_by(PAGE_SIZE as usize) {
                let frame = Hpa::new(phys.as_u64() + offset);
                self.page(slot.gpa.as_u64() + offset, frame, Origin::of(attr))?;
            }
        }
        Ok(true)
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
                // SAFETY: the leaf stays where it is.
                let frame = unsafe { FrameRef::from_raw(frame) };
                self.frames.read(&frame, offset, &mut bytes)?;
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
    ///
    /// # Errors
    /// There is a device passed through, or a frame that cannot be read.
    pub fn checksum(&self) -> Result<u64, Reason> {
        let device = |region: &&Region| matches!(region.kind, RegionKind::PassThrough(_));
        if let Some(Region { tag, .. }) = self.regions().find(device) {
            return Err(Reason::NotMemory { tag: *tag });
        }
        let mut sum = Sum {
            frames: self.frames,
            zero: self.spaces.zero.address(),
            state: 0,
        };
        let (first, last) = (Gpa::new(0), Gpa::new((1 << 48) - 1));
        let top = self.tree.view(self.frames);
        top.walk(first, last, &mut |slot| sum.leaf(slot))?;
        Ok(sum.state)
    }
}

impl<M: PhysMem> FrozenSpace<'_, M> {
    /// As [`Space::checksum`].
    ///
    /// # Errors
    /// There is a device passed through, or a frame that cannot be read.
    pub fn checksum(&self) -> Result<u64, Reason> {
        self.as_space().checksum()
    }
}
