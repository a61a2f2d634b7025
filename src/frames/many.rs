//! The references to a frame that others refer to as well: looked up once, copied and given up.

use super::counts::Record;
use super::{Frame, FrameAllocator, FrameError, PhysMem, bytes};
use crate::addr::Hpa;

/// A frame to which there was more than one reference, of which the holder of this has one.
pub struct OneOfMany<'a> {
    address: Hpa,
    record: &'a Record,
    count: u32,
}

impl<M: PhysMem> FrameAllocator<M> {
    /// The frame at `address`, to which a table entry holds a reference, if there are more. `None` also where that is not
    /// quickly known: of a part of a larger block, and of what is not managed.
    #[inline(always)]
    pub fn one_of_many(&self, address: Hpa) -> Option<OneOfMany<'_>> {
        let record = self.quick_counts().record(address)?;
        let count = record.own_count_of_many()?;
        Some(OneOfMany {
            address,
            record,
            count,
        })
    }

    /// A new frame with the content of one that others refer to.
    #[inline(always)]
    pub fn copy_of(&self, shared: &OneOfMany<'_>) -> Result<Frame, FrameError> {
        let frame = self.alloc_inline()?;
        // SAFETY: both frames are managed and allocated, the new one to us alone, so they differ. A guest that still
        // writes the old one on another CPU can only spoil bytes of its own.
        unsafe { bytes::copy(&self.mem, shared.address, frame.address()) };
        Ok(frame)
    }
}

impl OneOfMany<'_> {
    /// Takes away the reference that the table entry held, which is gone. Where the count is not what it was, nothing changes,
    /// and `false` is yielded: the reference may be the last one.
    #[inline(always)]
    pub fn leave(self) -> bool {
        self.record.give_one_of(self.count)
    }
}
