//! Zeroing a large page, part by part.

use crate::addr::{Hpa, PageSize};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};

/// So many bytes of a large page are zeroed at a violation.
pub(in crate::ept) const ZEROED_AT_ONCE: u64 = if cfg!(test) { 1 << 20 } else { 256 << 10 };

/// A block that is being zeroed, and the reference to it.
#[derive(Debug)]
pub(in crate::ept) struct Zeroing {
    block: Frame,
    pub size: PageSize,
    /// How many bytes are done.
    done: u64,
}

impl Zeroing {
    /// The block.
    pub fn into_frame(self) -> Frame {
        self.block
    }
    /// Where it is.
    pub const fn block(&self) -> Hpa {
        self.block.address()
    }
}

/// A zeroed block, or `None` while that takes more violations.
pub(in crate::ept) fn zeroed<M: PhysMem>(
    frames: &FrameAllocator<M>,
    zeroing: &mut Option<Zeroing>,
    size: PageSize,
) -> Result<Option<Frame>, FrameError> {
    let mut begun = match zeroing.take() {
        Some(begun) if begun.size == size => begun,
        other => {
            if let Some(other) = other {
                frames.release(other.block);
            }
            Zeroing {
                block: frames.alloc_large(size)?,
                size,
                done: 0,
            }
        }
    };
    match frames.zero_some(&mut begun.block, begun.done, ZEROED_AT_ONCE) {
        Ok(done) if done == size.bytes() => Ok(Some(begun.block)),
        Ok(done) => {
            begun.done = done;
            *zeroing = Some(begun);
            Ok(None)
        }
        Err(error) => {
            frames.release(begun.block);
            Err(error)
        }
    }
}
