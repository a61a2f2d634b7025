//! Guest-physical address spaces: regions that are filled on the first touch and copied on the first write, and what
//! must be flushed.
//!
//! A [`Space`] is one guest's physical memory: its regions and its EPT tables. It is made by [`Spaces`], which holds what
//! all of them share. A guest that touches what is not mapped, or not so, exits with a [`Violation`], which
//! [`Space::resolve`] turns into a mapping, an access for a device model, or a reason to stop the guest. The only way to
//! run a guest is [`Space::enter`], which pays what invalidation is owed.

mod around;
mod audit;
mod capability;
mod checksum;
mod cow;
mod debt;
mod dirty;
mod dirty_log;
mod edit;
mod end;
mod entry;
mod fetch;
mod fill;
mod known;
mod large;
mod log;
mod memory;
mod merge;
mod mtrr;
mod policy;
mod provide;
mod reach;
mod region;
mod region_map;
mod reset;
mod resolve;
mod sharing;
mod space;
mod tables;
mod template;
mod tree;
mod violation;
mod warm;
mod words;
mod working_set;

pub use crate::paging::{Ept, EptAttr, EptEntry, EptMetaData, ExtendedPageTable, MemoryType};
pub use around::{AROUND, MAX_AROUND};
pub use audit::{Census, Flaw};
pub use capability::{EptCapability, Eptp};
pub use debt::{CpuId, Invalidate};
pub use edit::EditError;
pub use end::Ending;
pub use entry::Origin;
pub use memory::AccessError;
pub use mtrr::{MtrrRegisters, Mtrrs, VARIABLE_MAX, VariableRegisters};
pub use policy::PagePolicy;
pub use region::{DeviceRange, HostBytes, MAX_REGIONS, Region, RegionError, RegionKind};
pub use reset::{IDLE, Reset, ResetError, Restored};
pub use resolve::{Fill, Reason, Resolution, Unresolved};
pub use space::{Entered, Faults, Space, Spaces};
pub use template::{FreezeError, FrozenSpace};
pub use violation::{Access, Allowed, Cause, LinearPage, Violation, ViolationFields};
pub use words::{Near, words_by};

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod generations;
#[cfg(test)]
mod gib;
#[cfg(test)]
mod life;
#[cfg(test)]
mod template_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tlb;
