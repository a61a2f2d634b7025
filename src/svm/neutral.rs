//! What this layer uses that is neither maker's.

pub(super) use crate::ept::{Access, Cause};
pub(super) use crate::virt::Gpr;
pub(super) use crate::virt::cpuid::{CpuRead, address_bits};
pub(super) use crate::virt::io::IoSize;
pub(super) use crate::virt::{AccessRights, Segment, SegmentRegister};
