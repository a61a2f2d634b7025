//! What came of a violation.

use crate::ept::error::Reason;
use crate::ept::hw::violation::Violation;
use crate::ept::spaces::space::Faults;
use core::fmt;

/// How an access was made possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It was possible already: another CPU was faster, or this one used what it had cached.
    Present,
    /// The zero page was mapped.
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
    /// The same, and there is more to the violation than an access: see
    /// [`Violation::nmi_unblocked_by_iret`].
    Special(Fill),
    /// The access is to be carried out by the device model behind the region.
    Mmio {
        /// The region's tag.
        tag: u32,
        /// Bytes from the start of the region.
        offset: u64,
    },
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

impl Faults {
    /// Notes what a violation came to.
    pub(in crate::ept) fn count(&mut self, fill: Fill) {
        let counter = match fill {
            Fill::Present => &mut self.spurious,
            Fill::ZeroShared => &mut self.zero_shared,
            Fill::Zeroed => &mut self.filled,
            Fill::Copied => &mut self.copied,
            Fill::TakenOver => &mut self.taken_over,
            Fill::HostMapped => &mut self.host_mapped,
            Fill::Zeroing => return,
        };
        *counter += 1;
    }
}
