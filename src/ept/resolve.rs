//! Resolving EPT violations: one look at the region, one descent of the tables.

use super::violation::{NOT_DATA, TRANSLATION};
use super::{RegionKind, Space, Violation};
use crate::addr::{Address, Gpa, PAGE_SIZE};
use crate::frames::{FrameError, PhysMem};
use crate::paging::{Ept, Error, PagingError};
use core::fmt;

/// How an access was made possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It was possible already: another CPU was faster, or this one used what it had cached.
    Present,
    /// The frame of zeroes was mapped.
    ZeroShared,
    /// A zeroed frame was mapped.
    Zeroed,
    /// A copy was mapped.
    Copied,
    /// The page's frame was nobody else's any more: permission was added.
    TakenOver,
    /// Host bytes or a device were mapped.
    HostMapped,
    /// Nothing was mapped: a part of the large page to come was zeroed.
    Zeroing,
}

/// What came of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The guest can try again.
    Retry(Fill),
    /// The access is to be carried out by the device model behind the region.
    Mmio {
        /// The region's tag.
        tag: u32,
        /// Bytes from the start of the region.
        offset: u64,
    },
}

/// Why an access could not be made possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no region: the guest touched what it does not own.
    NoRegion,
    /// The region does not allow it.
    Denied {
        /// The region's tag.
        tag: u32,
    },
    /// The region would allow it, but was protected against it.
    Protected {
        /// The region's tag.
        tag: u32,
    },
    /// This is not memory whose bytes can be copied.
    NotMemory {
        /// The region's tag.
        tag: u32,
    },
    /// There is no frame for it.
    OutOfFrames,
    /// The frames' counts forbid it.
    Frames(FrameError),
    /// The tables are not what this code makes them: a bug.
    Tables(Error<Ept>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegion => f.write_str("nothing is there"),
            Self::Denied { tag } => write!(f, "region {tag} does not allow it"),
            Self::Protected { tag } => write!(f, "region {tag} is protected against it"),
            Self::NotMemory { tag } => write!(f, "region {tag} is a device, not memory"),
            Self::OutOfFrames => f.write_str("the host is out of frames"),
            Self::Frames(error) => write!(f, "{error}"),
            Self::Tables(error) => write!(f, "bug in the hypervisor: {error}"),
        }
    }
}

impl core::error::Error for Reason {}

impl From<FrameError> for Reason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::OutOfFrames => Self::OutOfFrames,
            other => Self::Frames(other),
        }
    }
}

impl From<Error<Ept>> for Reason {
    fn from(error: Error<Ept>) -> Self {
        match error {
            PagingError::OutOfTables => Self::OutOfFrames,
            other => Self::Tables(other),
        }
    }
}

/// A violation that stops the guest, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// What the guest tried.
    pub violation: Violation,
    /// Why it cannot have it.
    pub reason: Reason,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.violation, self.reason)
    }
}

impl core::error::Error for Unresolved {}

impl<M: PhysMem> Space<'_, M> {
    /// Makes the access possible that the guest was denied, if it may have it. Who can promise that the violation is
    /// what the guest was stopped by has [`Space::fill`] for the frequent ones.
    pub fn resolve(&mut self, violation: &Violation) -> Result<Resolution, Unresolved> {
        if let Some(fill) = self.short_way(violation.qualification, violation.gpa) {
            self.tree.debt.distrust_violation();
            return Ok(Resolution::Retry(fill));
        }
        self.resolve_rest(violation)
    }

    /// As [`Space::resolve`], where [`Space::fill`] could not do it.
    pub fn resolve_rest(&mut self, violation: &Violation) -> Result<Resolution, Unresolved> {
        let done = self.decide(violation);
        match done {
            Ok(Resolution::Retry(fill)) => self.count(fill),
            Ok(Resolution::Mmio { .. }) => self.faults.mmio += 1,
            Err(_) => self.faults.refused += 1,
        }
        done.map_err(|reason| Unresolved {
            violation: *violation,
            reason,
        })
    }

    /// The tag of the region of a device and how far into it `gpa` is, if a violation with this exit qualification is the
    /// access of an instruction to one: the frequent case of [`Resolution::Mmio`].
    #[inline]
    pub fn device(&mut self, qualification: u64, gpa: Gpa) -> Option<(u32, u64)> {
        if qualification & (TRANSLATION | NOT_DATA) != TRANSLATION {
            return None;
        }
        let region = &self.regions.find_often(gpa)?.region;
        if !matches!(region.kind, RegionKind::Mmio) {
            return None;
        }
        let found = (region.tag, region.offset(gpa));
        self.faults.mmio += 1;
        Some(found)
    }

    #[inline]
    fn decide(&mut self, violation: &Violation) -> Result<Resolution, Reason> {
        let gpa = violation.gpa;
        let known = self.regions.find_often(gpa).ok_or(Reason::NoRegion)?;
        let (region, access) = (&known.region, violation.access);
        let tag = region.tag;
        if matches!(region.kind, RegionKind::Mmio) {
            // A fetch cannot be emulated, and neither can a walk of page tables in registers.
            return if access.fetch || violation.is_page_walk() {
                Err(Reason::NotMemory { tag })
            } else {
                Ok(Resolution::Mmio {
                    tag,
                    offset: region.offset(gpa),
                })
            };
        }
        if let Some(reason) = region.refusal(access) {
            return Err(reason);
        }
        // Controls that no guest is given (SDM "Guest-Paging Verification", "EPT and Shadow Stacks") cannot be satisfied by
        // a mapping, and trying again would not end.
        if violation.paging_verification || violation.shadow_stack {
            return Err(Reason::Denied { tag });
        }
        self.tree
            .provide(&self.spaces, known, gpa.align_down(PAGE_SIZE), access)
            .map(Resolution::Retry)
    }

    fn count(&mut self, fill: Fill) {
        let counter = match fill {
            Fill::Present => &mut self.faults.spurious,
            Fill::ZeroShared => &mut self.faults.zero_shared,
            Fill::Zeroed => &mut self.faults.filled,
            Fill::Copied => &mut self.faults.copied,
            Fill::TakenOver => &mut self.faults.taken_over,
            Fill::HostMapped => &mut self.faults.host_mapped,
            Fill::Zeroing => return,
        };
        *counter += 1;
    }
}
