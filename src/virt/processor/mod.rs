//! What the guest layer needs of a guest's processor that is loaded into the CPU, whoever made that: enter it, know why it left,
//! read and change its state, go on behind an instruction or with an event.
//!
//! What fails in it is our bug, but what it says is a fact: each access returns it.

mod exits;
mod progress;
mod registers;

pub use exits::{ExceptionExit, Exits, NoEvent, PortExit, PortString};
pub use progress::Progress;
pub use registers::{InstructionState, RegisterMasks, Registers};

use core::fmt;

use super::cpu::EntryArea;
use super::exit::ExitReason;
use crate::ept::{Entered, Eptp, Invalidate, Space};
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::Nested;

/// What an entry ended with that is not the number of an exit reason alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialExit<E> {
    /// The guest did not run.
    EntryFailed(E),
    /// It did not run because the machine has failed: the host's handler reports that.
    MachineCheck(E),
    /// It left for this reason, and has locked the bus.
    BusLock(ExitReason),
    /// It left for this reason, and there is more to it that nothing asks for.
    Unexpected(ExitReason),
    /// It left for a reason that we do not know.
    Unknown(u16),
}

/// A guest's processor that is loaded into the CPU.
pub trait Processor: Progress + Invalidate {
    /// Why it could not be entered.
    type EntryError: Copy + fmt::Debug;
    /// From where on there are no numbers of reasons for which it is left.
    const REASONS: usize;

    /// Before a run in the space behind `eptp`, of so many ticks at most.
    ///
    /// # Errors
    /// The state cannot be written.
    fn get_ready(&mut self, eptp: Eptp, ticks: u64) -> Result<(), Self::Error>;
    /// Makes the guest exit after so many ticks of its own, or as many as the CPU can count.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_timer(&mut self, ticks: u64) -> Result<(), Self::Error>;
    /// Whether the timer goes on over an exit.
    fn timer_is_saved(&self) -> bool;
    /// Enters the guest and returns at its next exit with the number of an [`ExitReason`], or with a larger number of which
    /// [`Processor::special_exit`] knows what it means. `X87_SELECTORS`: the CPU has
    /// [`ResidentFeatures::x87_selectors`](super::cpu::ResidentFeatures::x87_selectors).
    ///
    /// # Safety
    /// The processor is loaded: its state is complete, [`Processor::get_ready`] was called with the space of `right`, `area` is
    /// its own, and what entries do not switch is in the CPU.
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64;
    /// What [`Processor::enter`] ended with, where that is no reason's number.
    ///
    /// # Errors
    /// The state cannot be read.
    fn special_exit(&self, entered: u64) -> Result<SpecialExit<Self::EntryError>, Self::Error>;
    /// Drops what the CPU has cached of the guest by linear addresses, where an entry does not.
    ///
    /// # Errors
    /// The CPU does not.
    fn flush_linear(&mut self) -> Result<(), Self::EntryError>;
    /// Whether the CPU can log the pages that it marks dirty.
    fn can_log(&self) -> bool;
    /// Has it do so.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn begin_log(&mut self) -> Result<(), Self::Error>;
    /// Hands what the CPU has logged to the space.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn drain_log<M: PhysMem, F: Nested>(
        &mut self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M, F>,
    ) -> Result<(), Self::Error>;
    /// Writes on one line where the guest was and why it left.
    ///
    /// # Errors
    /// What `out` refuses.
    fn summarize(&self, out: &mut impl fmt::Write) -> fmt::Result;
    /// Writes all that the CPU keeps of the guest.
    ///
    /// # Errors
    /// What `out` refuses.
    fn dump(&self, out: &mut impl fmt::Write) -> fmt::Result;
    /// Writes what can be said about an entry that failed.
    ///
    /// # Errors
    /// What `out` refuses.
    fn report_failed_entry(
        &self,
        error: Self::EntryError,
        out: &mut impl fmt::Write,
    ) -> fmt::Result;
}
