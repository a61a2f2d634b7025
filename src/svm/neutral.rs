//! What this layer uses that is neither maker's.

pub(super) use crate::ept::{Access, Cause, Violation};
pub(super) use crate::virt::Gpr;
pub(super) use crate::virt::GuestRegs;
pub(super) use crate::virt::cpuid::{CpuRead, address_bits};
pub(super) use crate::virt::event::EventKind;
pub(super) use crate::virt::io::IoSize;
pub(super) use crate::virt::{AccessRights, Segment, SegmentRegister};
pub(super) use crate::virt::{CodeMode, Event};
pub(super) use crate::vmx::start_state::Start64;
