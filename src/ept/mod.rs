//! Guest-physical address spaces: regions that are filled on the first touch and copied on the first write, and what
//! must be flushed.
//!
//! A [`Space`] is one guest's physical memory: its regions and its EPT tables. It is made by [`Spaces`], which holds what
//! all of them share. A guest that touches what is not mapped, or not so, exits with a [`Violation`], which
//! [`Space::resolve`] turns into a mapping, an access for a device model, or a reason to stop the guest. The only way to
//! run a guest is [`Space::enter`], which pays what invalidation is owed.
//!
//! Its folders, each of which imports only from those before it: `hw` (what the CPU is told and tells), `error`, `tables` (one
//! space's tables and what is noted beside them), `regions`, `spaces`, `resolve` (from a violation to a leaf), `memory` (the
//! host's reads, writes and harvests), `templates`, `check`.

mod check;
mod error;
mod hw;
mod memory;
mod regions;
mod resolve;
mod spaces;
mod tables;
mod templates;
#[cfg(test)]
mod tests;

pub use crate::paging::{Ept, EptAttr, EptEntry, EptMetaData, ExtendedPageTable, MemoryType};
pub use check::audit::{Census, Flaw};
pub use error::Reason;
pub use hw::capability::{EptCapability, Eptp};
pub use hw::debt::{CpuId, Invalidate};
pub use hw::mtrr::{MtrrRegisters, Mtrrs, VARIABLE_MAX, VariableRegisters};
pub use hw::violation::{Access, Allowed, Cause, Violation};
pub use memory::bytes::AccessError;
pub use memory::words::{Near, words_by};
pub use regions::region::{DeviceRange, HostBytes, MAX_REGIONS, Region, RegionError, RegionKind};
pub use resolve::outcome::{Fill, Resolution, Unresolved};
pub use spaces::edit::EditError;
pub use spaces::end::Ending;
pub use spaces::space::{Entered, Faults, Space, Spaces};
pub use tables::entry::Origin;
pub use tables::policy::{AROUND, MAX_AROUND, PagePolicy};
pub use templates::error::{FreezeError, ResetError};
pub use templates::reset::{IDLE, Reset, Restored};
pub use templates::template::FrozenSpace;
