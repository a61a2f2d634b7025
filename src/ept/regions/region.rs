//! What a guest's physical addresses are: the regions of a space.

use crate::addr::{AddrRange, Address, Gpa, Hpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::hw::violation::Access;
use crate::frames::FrameError;
use crate::paging::MemoryType;
use core::fmt;

/// How many regions a space has at most.
pub const MAX_REGIONS: usize = 32;

/// Bytes of host memory that guests may read: a boot module, a file. Guests never write them in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBytes(AddrRange<Hpa>);

impl HostBytes {
    /// The bytes in `range`.
    ///
    /// # Safety
    /// As long as any space refers to them, the bytes must stay what they are, and the [`PhysMem`](crate::frames::PhysMem)
    /// of the spaces must reach them as it does managed frames.
    pub const unsafe fn new(range: AddrRange<Hpa>) -> Self {
        Self(range)
    }
    /// Where they are.
    pub const fn range(self) -> AddrRange<Hpa> {
        self.0
    }
}

/// A range of host-physical addresses that a guest is given as it is: the registers or the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRange(AddrRange<Hpa>);

impl DeviceRange {
    /// The addresses in `range`.
    ///
    /// # Safety
    /// Whatever a guest reads or writes there must not touch memory of the hypervisor or of another guest, neither at once
    /// nor by what the device does then.
    pub const unsafe fn new(range: AddrRange<Hpa>) -> Self {
        Self(range)
    }
    /// Where it is.
    pub const fn range(self) -> AddrRange<Hpa> {
        self.0
    }
}

/// What stands behind a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory that is zero until it is written.
    Ram,
    /// Memory that only the host writes.
    Rom,
    /// The bytes, followed by zeroes; each guest's writes are its own.
    CopyOnWrite(HostBytes),
    /// The bytes, followed by zeroes.
    ReadOnly(HostBytes),
    /// No memory: each access is handed to a device model.
    Mmio,
    /// The device itself.
    PassThrough(DeviceRange),
}

impl RegionKind {
    /// Whether the guest can write here without being stopped.
    pub const fn is_writable(&self) -> bool {
        matches!(
            self,
            Self::Ram | Self::CopyOnWrite(_) | Self::PassThrough(_)
        )
    }
    /// Whether this is memory made of bytes that the host can copy in and out.
    pub const fn is_memory(&self) -> bool {
        !matches!(self, Self::Mmio | Self::PassThrough(_))
    }
    /// What of the host's is behind it: bytes, or a device.
    pub const fn host(&self) -> Option<AddrRange<Hpa>> {
        match self {
            Self::CopyOnWrite(bytes) | Self::ReadOnly(bytes) => Some(bytes.0),
            Self::PassThrough(device) => Some(device.0),
            Self::Ram | Self::Rom | Self::Mmio => None,
        }
    }
    /// The same with another range, of what its own was, where it has one.
    const fn with_host(self, range: AddrRange<Hpa>) -> Self {
        match self {
            Self::CopyOnWrite(_) => Self::CopyOnWrite(HostBytes(range)),
            Self::ReadOnly(_) => Self::ReadOnly(HostBytes(range)),
            Self::PassThrough(_) => Self::PassThrough(DeviceRange(range)),
            Self::Ram | Self::Rom | Self::Mmio => self,
        }
    }
}

/// A range of guest-physical addresses and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The addresses, whole pages.
    pub range: AddrRange<Gpa>,
    /// What is there.
    pub kind: RegionKind,
    /// Whether the guest may write, where the kind lets it.
    pub write: bool,
    /// Whether instructions may be fetched.
    pub execute: bool,
    /// How it is cached.
    pub memory_type: MemoryType,
    /// The caller's name for it: comes back with accesses to be emulated.
    pub tag: u32,
}

impl Region {
    /// A region with the memory type that goes with its kind (uncacheable for devices, write-back for the rest), in
    /// which instructions may be fetched unless it is a device.
    pub const fn new(range: AddrRange<Gpa>, kind: RegionKind) -> Self {
        let memory = kind.is_memory();
        let memory_type = if memory {
            MemoryType::WriteBack
        } else {
            MemoryType::Uncacheable
        };
        Self {
            range,
            kind,
            write: true,
            execute: memory,
            memory_type,
            tag: 0,
        }
    }
    /// The same with a tag.
    pub const fn with_tag(self, tag: u32) -> Self {
        Self { tag, ..self }
    }
    /// The same with instruction fetches allowed or not.
    pub const fn with_execute(self, execute: bool) -> Self {
        Self { execute, ..self }
    }

    /// Whether the guest may write here.
    pub const fn is_writable(&self) -> bool {
        self.write && self.kind.is_writable()
    }

    /// Why an access to memory or to a device that is passed through is not allowed, if it is not.
    pub fn refusal(&self, access: Access) -> Option<Reason> {
        let tag = self.tag;
        let (write, fetch) = (access.write, access.fetch);
        if write && !self.kind.is_writable() || fetch && !self.kind.is_memory() && !self.execute {
            Some(Reason::Denied { tag })
        } else if write && !self.write || fetch && !self.execute {
            Some(Reason::Protected { tag })
        } else {
            None
        }
    }

    /// The part of the region that lies in `range`. The registers of a device model are not divided: `None` of a part of
    /// them.
    pub(in crate::ept) fn part(&self, range: AddrRange<Gpa>) -> Option<Self> {
        let range = self.range.intersection(range)?;
        if self.kind == RegionKind::Mmio && range != self.range {
            return None;
        }
        let mut kind = self.kind;
        if let Some(host) = kind.host() {
            let offset = self.offset(range.start());
            let left = host.len().saturating_sub(offset).min(range.len());
            let start = match left {
                0 => host.start(),
                _ => host.start().checked_add(offset)?,
            };
            kind = kind.with_host(AddrRange::new(start, left)?);
        }
        Some(Self {
            range,
            kind,
            ..*self
        })
    }

    /// This region and the one behind it as one, if there is no difference between a page of the one and of the other.
    pub(in crate::ept) fn joined(&self, next: &Self) -> Option<Self> {
        let kind = match (self.kind.host(), next.kind.host()) {
            (Some(a), Some(b)) => {
                // The first holds bytes to its end, unless nothing but zeroes follows.
                let whole = a.len() == self.range.len();
                let follows = whole && a.start().checked_add(a.len()) == Some(b.start());
                let both = AddrRange::new(a.start(), a.len().checked_add(b.len())?)?;
                (b.is_empty() || follows).then_some(self.kind.with_host(both))?
            }
            _ if self.kind == RegionKind::Mmio => return None,
            _ => self.kind,
        };
        let (start, len) = (self.range.start(), self.range.len());
        let adjacent = start.checked_add(len) == Some(next.range.start());
        let joined = Self {
            range: AddrRange::new(start, len.checked_add(next.range.len())?)?,
            kind,
            ..*self
        };
        let other = next.kind.host().map_or(kind, |host| kind.with_host(host));
        let same = Self {
            range: next.range,
            kind: other,
            ..*self
        };
        (adjacent && same == *next).then_some(joined)
    }

    /// Bytes from the start of the region to `gpa`, which must be in it.
    pub fn offset(&self, gpa: Gpa) -> u64 {
        gpa.as_u64().wrapping_sub(self.range.start().as_u64())
    }

    pub(in crate::ept) fn check(&self, width: u32) -> Result<(), RegionError> {
        let range = self.range;
        let Some(last) = range.last() else {
            return Err(RegionError::Empty(range.start()));
        };
        if !range.start().is_aligned(PAGE_SIZE) || !range.len().is_multiple_of(PAGE_SIZE) {
            return Err(RegionError::Unaligned(range));
        }
        if last.as_u64() >> width != 0 {
            return Err(RegionError::TooWide { range, width });
        }
        match self.kind.host() {
            Some(host)
                if !host.start().is_aligned(PAGE_SIZE)
                    || host.len() > range.len()
                    || !self.kind.is_memory() && host.len() != range.len() =>
            {
                Err(RegionError::HostRange(host))
            }
            _ => Ok(()),
        }
    }
}

/// Why a region was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// It has no bytes.
    Empty(Gpa),
    /// It is not made of whole pages.
    Unaligned(AddrRange<Gpa>),
    /// It reaches beyond the guest's physical addresses.
    TooWide {
        /// The region.
        range: AddrRange<Gpa>,
        /// Bits of a guest-physical address.
        width: u32,
    },
    /// It shares addresses with another.
    Overlaps {
        /// The region.
        range: AddrRange<Gpa>,
        /// The one that is there.
        other: AddrRange<Gpa>,
    },
    /// There are [`MAX_REGIONS`] already.
    TooMany,
    /// The host's bytes do not start at a page, or do not fit the region.
    HostRange(AddrRange<Hpa>),
    /// The host's bytes reach beyond what the CPU can address.
    HostTooWide {
        /// Where they are.
        range: AddrRange<Hpa>,
        /// Bits of a physical address.
        width: u8,
    },
    /// The host's bytes lie in memory whose frames the allocator hands out.
    HostManaged(AddrRange<Hpa>),
    /// The memory cannot be cached so: memory that the host also uses is write-back, a device is uncacheable or what the
    /// machine says, and write-combining where the CPU has it.
    MemoryType {
        /// The region.
        range: AddrRange<Gpa>,
        /// The type asked for.
        memory_type: MemoryType,
    },
    /// It is not, or not all, in regions.
    NoSuchRegion(AddrRange<Gpa>),
    /// It has a part of the registers of a device model, which are not divided.
    Indivisible(AddrRange<Gpa>),
    /// There is no frame for the list of regions.
    Frames(FrameError),
}

impl From<FrameError> for RegionError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(start) => write!(f, "the region at GPA {start:#x} is empty"),
            Self::Unaligned(range) => {
                write!(f, "the region {range} is not made of whole 4 KiB pages")
            }
            Self::TooWide { range, width } => {
                write!(
                    f,
                    "the region {range} reaches beyond guest-physical addresses of {width} bits"
                )
            }
            Self::Overlaps { range, other } => {
                write!(f, "the region {range} overlaps the region {other}")
            }
            Self::TooMany => write!(f, "a space has at most {MAX_REGIONS} regions"),
            Self::HostRange(range) => {
                write!(
                    f,
                    "the host range {range} does not start at a page or does not fit the region"
                )
            }
            Self::HostTooWide { range, width } => {
                write!(
                    f,
                    "the host range {range} reaches beyond physical addresses of {width} bits"
                )
            }
            Self::HostManaged(range) => {
                write!(
                    f,
                    "the host range {range} lies in memory that is handed out frame by frame"
                )
            }
            Self::MemoryType { range, memory_type } => {
                write!(f, "the region {range} cannot be {memory_type}")
            }
            Self::NoSuchRegion(range) => write!(f, "{range} is not all in regions"),
            Self::Indivisible(range) => {
                write!(f, "{range} has a part of a device model's registers only")
            }
            Self::Frames(error) => write!(f, "the list of regions: {error}"),
        }
    }
}

impl core::error::Error for RegionError {}
