//! What its code tells of an instruction, where the CPU does not.

use crate::virt::control_registers::CrAccess;

/// What its code tells of an instruction that has exited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub length: u8,
    pub cr: Option<CrAccess>,
}
