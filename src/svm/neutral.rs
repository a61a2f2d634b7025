//! What this layer uses that is neither maker's.

pub(super) use crate::virt::cpuid::{CpuRead, address_bits};
