//! Guest-physical address spaces: regions that are filled on the first touch and copied on the first write, and what
//! must be flushed.
//!
//! A [`Space`] is one guest's physical memory: its regions and its tables, which are EPT or, of [`Npt`], AMD's nested page tables:
//! all works alike over either, and what differs is said by the format ([`Nested`]) and by what the CPU can do with it
//! ([`Capability`]). It is made by [`Spaces`], which holds what all of them share. A guest that touches what is not mapped, or not so, exits with a [`Violation`], which
//! [`Space::resolve`] turns into a mapping, an access for a device model, or a reason to stop the guest. The only way to
//! run a guest is [`Space::enter`], which pays what invalidation is owed.
//!
//! A template and a fork that has written one page. All that the fork has not written it shares, and no path to that grants
//! write: the fork's top table refers to the template's tables without it.
//!
//! ```text
//!  template   top --> table --> table --> table --> page A  (count 1: only the template's)
//!                       |          |         `----> page B  (count 2)
//!                       |          `--> table          ^
//!                       `--> table       ^             |  without write
//!                             ^          |             |
//!  fork       top --> copy ---'          |             |
//!                       `-------> copy --'             |
//!                                   `---> copy --------'
//!                                           `-----> page A' (the fork's own, writable)
//! ```
//!
//! ```
//! use offshoot::addr::{AddrRange, Gpa, Hpa};
//! use offshoot::ept::{Access, EptCapability, Fill, Region, RegionKind, Resolution, Spaces, Violation};
//! use offshoot::frames::{PageBytes, PageMemory};
//! # use offshoot::ept::{CpuId, Eptp, Invalidate};
//! # struct NoCpu(CpuId);
//! # // SAFETY: no CPU ever runs on these tables, so none has cached anything of them.
//! # unsafe impl Invalidate for NoCpu {
//! #     fn cpu(&self) -> CpuId {
//! #         self.0
//! #     }
//! #     fn invept(&mut self, _: Eptp) {}
//! #     fn invvpid(&mut self, _: Eptp) {}
//! # }
//!
//! let mut pages = vec![PageBytes::ZERO; 64];
//! let frames = PageMemory::allocator(Hpa::new(0x10_0000), &mut pages)?;
//! let spaces = Spaces::new(&frames, EptCapability::typical())?;
//! let mut space = spaces.create(36)?;
//! let ram = AddrRange::new(Gpa::new(0), 1 << 30).ok_or("a range")?;
//! space.map(Region::new(ram, RegionKind::Ram))?;
//! // The guest writes where nothing is yet: a zeroed frame is mapped, and it can try again.
//! let done = space.resolve(&Violation::new(Gpa::new(0x1234), Access::WRITE))?;
//! assert_eq!(done, Resolution::Retry(Fill::Zeroed));
//! let mut bytes = [0xff; 4];
//! space.read(Gpa::new(0x1234), &mut bytes)?;
//! assert_eq!(bytes, [0; 4]);
//! # let mut cpu = NoCpu(CpuId::new(0).ok_or("a CPU")?);
//! # let mut ending = space.end();
//! # while !ending.step(&mut cpu, 100) {}
//! # drop(spaces);
//! # assert_eq!(frames.statistics().used, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! The programs `lazy_memory` and `forks` in `examples/` go on from there.
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

pub use crate::paging::{
    Ept, EptAttr, EptEntry, EptMetaData, ExtendedPageTable, MemoryType, Nested, Npt,
};
pub use check::audit::{Census, Flaw};
pub use error::Reason;
pub use hw::capability::{Capability, EptCapability, Eptp, Features, NptCapability};
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
