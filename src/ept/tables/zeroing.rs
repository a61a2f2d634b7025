//! Zeroing a large page, part by part.

use crate::addr::{Hpa, PageSize};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};

/// So many bytes of a large page are zeroed at a violation.
pub(in crate::ept) const ZEROED_AT_ONCE: u64 = if cfg!(test) { 1 << 20 } else { 256 << 10 };

/// A block that is being zeroed, and the reference to it.
#[derive(Debug)]
pub(in crate::ept) struct Zeroing {
    block: Hpa,
    pub size: PageSize,
    /// How many bytes are done.
    done: u64,
}

impl Zeroing {
    /// The block.
    pub fn into_frame<M: PhysMem>(self, frames: &FrameAllocator<M>) -> Result<Frame, FrameError> {
        frames.from_entry(self.block)
    }
    /// Where it is.
    pub const fn block(&self) -> Hpa {
        self.block
    }
}

/// A zeroed block, or `None` while that takes more violations.
pub(in crate::ept) fn zeroed<M: PhysMem>(
    frames: &FrameAllocator<M>,
    zeroing: &mut Option<Zeroing>,
    size: PageSize,
) -> Result<Option<Frame>, FrameError> {
    let (block, done) = match zeroing.take() {
        Some(begun) if begun.size == size => {
            let done = begun.done;
            (begun.into_frame(frames)?, done)
        }
        other => {
            if let Some(other) = other {
                frames.release(other.into_frame(frames)?)?;
            }
            (frames.alloc_large(size)?, 0)
        }
    };
    let done = frames.zero_some(&block, size, done, ZEROED_AT_ONCE);
    if done == size.bytes() {
        return Ok(Some(block));
    }
    *zeroing = Some(Zeroing {
        block: block.into_raw(),
        size,
        done,
    });
    Ok(None)
}
