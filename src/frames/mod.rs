//! Physical frames: the allocator, counts and owned handles.
//!
//! Every frame has a count of who refers to it: handles ([`Frame`]), table entries and roots. A handle is turned into
//! an entry's reference by [`Frame::into_raw`] and back by [`Frame::from_raw`]; the count does not change on
//! the way.
//!
//! ```
//! use offshoot::addr::Hpa;
//! use offshoot::frames::{PageBytes, PageMemory};
//!
//! let mut pages = vec![PageBytes::ZERO; 16];
//! let frames = PageMemory::allocator(Hpa::new(0x10_0000), &mut pages)?;
//! let frame = frames.alloc_zeroed()?;
//! let second = frames.share(&frame)?;
//! assert_eq!(frames.count(frame.address()), 2);
//! frames.release(frame);
//! // The last reference frees it.
//! frames.release(second);
//! assert_eq!(frames.statistics().used, 0);
//! # Ok::<(), offshoot::frames::FrameError>(())
//! ```

mod alloc;
mod audit;
mod blocks;
mod bytes;
mod chained;
mod content;
mod counts;
mod frame;
mod lists;
mod memory_map;
mod page_memory;
mod phys;
mod quick;
mod ranges;
mod references;
mod shared;

#[cfg(test)]
pub(crate) mod arena;
#[cfg(test)]
mod tests;

pub use alloc::{FrameAllocator, ZeroedFrames};
pub use audit::{Audit, Miscount};
pub use chained::FrameList;
pub use frame::{Frame, FrameError, FrameRef, FrameStatistics};
pub use lists::Retired;
pub use memory_map::MemoryMap;
pub use page_memory::{PageBytes, PageMemory};
pub use phys::PhysMem;
pub use quick::{OneOfMany, QuickCounts};
pub use ranges::MAX_RANGES;
pub use shared::{FrameBox, FrameGuard, FrameRc};
