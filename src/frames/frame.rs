//! The owned handle of a frame, and what can go wrong with one.

use crate::addr::{Address, Hpa};
use crate::bomb::Bomb;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;

/// One counted reference to a frame (or to a block of frames that is allocated as one).
///
/// It is linear: it cannot be copied, and it ends by [`FrameAllocator::release`](super::FrameAllocator::release) or by
/// [`Frame::into_raw`], which hands the reference over to a table entry. A handle that is merely dropped is a leak, which
/// stops a test.
#[must_use = "a frame that is dropped without `release` or `into_raw` is leaked"]
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(Hpa, Bomb);

impl Frame {
    pub(super) const fn new(address: Hpa) -> Self {
        Self(address, Bomb::new("a frame"))
    }
    /// Where the frame is.
    #[inline(always)]
    pub const fn address(&self) -> Hpa {
        self.0
    }
    /// Hands the reference over to whoever stores the address: a table entry or a root. It comes back by
    /// [`Frame::from_raw`].
    #[inline(always)]
    pub fn into_raw(self) -> Hpa {
        self.1.defuse();
        self.0
    }
    /// Takes back the reference that a table entry or a root held.
    ///
    /// # Safety
    /// The address, or another one in the same block, must have come from [`Frame::into_raw`], or have been counted by
    /// [`FrameAllocator::share_many`](super::FrameAllocator::share_many) or
    /// [`FrameAllocator::split`](super::FrameAllocator::split), and have been removed from where it was stored: nobody makes
    /// a second handle of the same reference.
    #[inline(always)]
    pub const unsafe fn from_raw(address: Hpa) -> Self {
        Self::new(address)
    }
}

/// A reference that a table entry or a root holds, looked at where it is.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameRef<'a>(ManuallyDrop<Frame>, PhantomData<&'a Frame>);

impl FrameRef<'_> {
    /// Looks at the reference that stands in memory for this address.
    ///
    /// # Safety
    /// As for [`Frame::from_raw`], but that the reference stays where it is, as long as the result lives.
    #[inline(always)]
    pub const unsafe fn from_raw(address: Hpa) -> Self {
        Self(ManuallyDrop::new(Frame::new(address)), PhantomData)
    }
}

impl Deref for FrameRef<'_> {
    type Target = Frame;

    #[inline(always)]
    fn deref(&self) -> &Frame {
        &self.0
    }
}

/// Why the allocator refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No frame is free, or no block of the wanted size and alignment.
    OutOfFrames,
    /// This address is not the start of a frame that the allocator manages.
    NotManaged(Hpa),
    /// This frame is free: nobody holds a reference that could be shared or released.
    NotAllocated(Hpa),
    /// This frame has as many references as can be counted.
    CountOverflow(Hpa),
    /// A block cannot be split or merged while it is shared, or not whole.
    NotExclusive(Hpa),
    /// Bytes from this address on would pass the end of its frame.
    OutOfFrame(Hpa),
    /// The usable memory is too small to keep the counts of its own frames.
    NoRoomForCounts,
}

impl FrameError {
    /// The address that it is about; 0 where it is about none.
    pub const fn frame(self) -> Hpa {
        match self {
            Self::NotManaged(at)
            | Self::NotAllocated(at)
            | Self::CountOverflow(at)
            | Self::NotExclusive(at)
            | Self::OutOfFrame(at) => at,
            Self::OutOfFrames | Self::NoRoomForCounts => Hpa::new(0),
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("out of frames"),
            Self::NotManaged(a) if !a.is_aligned(crate::addr::PAGE_SIZE) => {
                write!(f, "{a:#x} is not the address of a frame")
            }
            Self::NotManaged(a) => write!(f, "frame {a:#x} is not managed by this allocator"),
            Self::NotAllocated(a) => {
                write!(f, "frame {a:#x} is free: it cannot be shared or released")
            }
            Self::CountOverflow(a) => write!(f, "frame {a:#x} has too many references"),
            Self::NotExclusive(a) => write!(f, "block {a:#x} is shared or not whole"),
            Self::OutOfFrame(a) => write!(f, "from {a:#x} on the frame is not as long"),
            Self::NoRoomForCounts => {
                f.write_str("usable memory is too small to hold its own frame counts")
            }
        }
    }
}

impl core::error::Error for FrameError {}

/// How many frames there are and where they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameStatistics {
    /// Frames under management; the allocator's own counts are not among them.
    pub total: u64,
    /// Frames that can be allocated, the zeroed ones included.
    pub free: u64,
    /// Frames that somebody refers to.
    pub used: u64,
    /// The most that were in use at once.
    pub peak: u64,
    /// Free frames that are zeroed already.
    pub zeroed: u64,
    /// Frames that hold the allocator's counts.
    pub counts: u64,
}
