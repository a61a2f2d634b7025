//! What entry and exit move between the CPU and memory, beside the VMCB.

use core::mem::offset_of;

use super::super::neutral::{ExtendedState, GuestRegs};
use crate::addr::Hpa;

/// What entry and exit move between the CPU and memory. The extended state comes first: FXSAVE writes to its start.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EntryArea {
    /// x87 and SSE state at every exit; what lies above them stays in the CPU until another guest is loaded.
    pub extended: ExtendedState,
    /// The general registers but RSP, which the VMCB has. It has RAX, too, from which it comes here at every exit.
    pub regs: GuestRegs,
    /// Where the guest's VMCB is.
    pub(super) guest: Hpa,
    /// Where that of the host is.
    pub(super) host: Hpa,
}

impl EntryArea {
    /// All registers zero, the extended state as after reset.
    pub const fn new() -> Self {
        Self {
            extended: ExtendedState::new(),
            regs: GuestRegs::ZERO,
            guest: Hpa::new(0),
            host: Hpa::new(0),
        }
    }
}

impl Default for EntryArea {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) const REGS: usize = offset_of!(EntryArea, regs);
pub(super) const GUEST: usize = offset_of!(EntryArea, guest);
pub(super) const HOST: usize = offset_of!(EntryArea, host);
