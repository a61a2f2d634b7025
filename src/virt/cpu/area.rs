//! What entry and exit move between the CPU and memory.

use core::mem::offset_of;

use super::super::regs::GuestRegs;
use super::extended::ExtendedState;
use crate::counting::{Counted, add};

/// What entry and exit move between the CPU and memory. The extended state comes first: FXSAVE writes to its start.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EntryArea {
    /// x87 and SSE state at every exit; what lies above them stays in the CPU until another guest is loaded.
    pub extended: ExtendedState,
    /// The general registers but RSP.
    pub regs: GuestRegs,
    /// Not 0: the x87 state is in the form with selectors, which FXRSTOR loads without REX.W.
    selectors: u64,
    /// What the VMCS holds as host RSP, so that it is written only when it changes; one more where there is something to do
    /// before every entry.
    host_rsp: u64,
    /// What is done before every entry: bits of [`super::guard`].
    pub(super) guards: u32,
    /// Not 0: before the next entry the L1 data cache is flushed, where that is to be done.
    due: u32,
}

impl EntryArea {
    /// All registers zero, the extended state as after reset.
    pub const fn new() -> Self {
        Self {
            extended: ExtendedState::new(),
            regs: GuestRegs::ZERO,
            selectors: 0,
            host_rsp: 0,
            guards: 0,
            due: 0,
        }
    }
}

impl EntryArea {
    /// Makes the state the same as that of `from`, a guest's that does not run either.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        let moved = self.extended.restore(&from.extended);
        self.regs = from.regs;
        self.selectors = from.selectors;
        add(Counted::Bytes, (moved + size_of::<GuestRegs>()) as u64);
    }

    /// After an exit to the host, which uses no x87 instruction: has the area hold the selectors of the last x87 instruction
    /// and its operand instead of the upper halves of their offsets, where those are 0 or nothing to the guest's code.
    pub fn keep_selectors(&mut self, is_64_bit_code: impl FnOnce() -> bool) {
        let keep = self.extended.has_short_x87_pointers() || !is_64_bit_code();
        self.selectors = keep.into();
        if keep {
            self.extended.save_x87_selectors();
        }
    }

    /// Code has run that may have read what is not the guest's.
    #[inline(always)]
    pub fn flush_is_due(&mut self) {
        self.due = 1;
    }

    #[cfg(test)]
    pub(super) fn guards_and_due(&self) -> (u32, u32) {
        (self.guards, self.due)
    }
}

impl Default for EntryArea {
    fn default() -> Self {
        Self::new()
    }
}

/// Where an entry routine finds the host RSP.
pub const RSP: usize = offset_of!(EntryArea, host_rsp);
/// Where it finds what is done before every entry.
pub const GUARDS: usize = offset_of!(EntryArea, guards);
/// Where it finds whether a flush is due.
pub const DUE: usize = offset_of!(EntryArea, due);
/// Where it finds the general registers.
pub const REGS: usize = offset_of!(EntryArea, regs);
/// Where it finds whether the x87 state has selectors.
pub const SELECTORS: usize = offset_of!(EntryArea, selectors);
