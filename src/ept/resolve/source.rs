//! What a page holds before it is touched.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::tables::entry::Origin;
use crate::frames::{Frame, FrameAllocator, PhysMem};

/// What a page that is not mapped holds.
#[derive(Clone, Copy)]
pub(in crate::ept) enum Source {
    /// Zeroes.
    Zero,
    /// Host bytes, so many; zeroes behind them.
    Host(Hpa, u64),
    /// A device.
    Device(Hpa),
}

impl Source {
    /// What the page at `page` of the region holds.
    pub fn of(region: &Region, page: Gpa) -> Result<Self, Reason> {
        let offset = region.offset(page);
        match region.kind {
            RegionKind::Ram | RegionKind::Rom => Ok(Self::Zero),
            RegionKind::CopyOnWrite(bytes) | RegionKind::ReadOnly(bytes) => {
                let range = bytes.range();
                Ok(match range.len().saturating_sub(offset) {
                    0 => Self::Zero,
                    left => Self::Host(
                        Hpa::new(range.start().as_u64() + offset),
                        left.min(PAGE_SIZE),
                    ),
                })
            }
            RegionKind::PassThrough(device) => Ok(Self::Device(Hpa::new(
                device.range().start().as_u64() + offset,
            ))),
            RegionKind::Mmio => Err(Reason::NotMemory { tag: region.tag }),
        }
    }

    /// A frame of its own with this content.
    pub fn private<M: PhysMem>(
        self,
        region: &Region,
        frames: &FrameAllocator<M>,
    ) -> Result<(Frame, Origin), Reason> {
        match self {
            Self::Zero => Ok((frames.alloc_zeroed()?, Origin::Filled)),
            Self::Host(from, len) => {
                let frame = frames.alloc()?;
                // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
                match unsafe { frames.copy_host_into(&frame, from, len) } {
                    Ok(()) => Ok((frame, Origin::Copied)),
                    Err(error) => {
                        frames.release(frame)?;
                        Err(error.into())
                    }
                }
            }
            Self::Device(_) => Err(Reason::NotMemory { tag: region.tag }),
        }
    }
}
