//! How a guest goes on: behind its instruction, at it once more, or with an event.

use super::exits::Exits;
use crate::virt::{BreakpointHits, Event};

/// What is done to a guest before it is entered again.
pub trait Progress: Exits {
    /// After an instruction that took too long: whether its state is still the guest's.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn survives_timeout(&mut self) -> Result<bool, Self::Error>;
    /// Does to DR6 and DR7 what the debug exception would have done without an exit.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn note_debug_exception(&mut self) -> Result<(), Self::Error>;
    /// Goes on behind the instruction that exited, with all that its completion entails.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance(&mut self) -> Result<(), Self::Error>;
    /// The same for an instruction of `length` bytes, at an exit that does not tell it.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance_by(&mut self, length: u8) -> Result<(), Self::Error>;
    /// The same for an instruction of which the place is known.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance_from(&mut self, place: Self::Place) -> Result<(), Self::Error>;
    /// What the completion of some elements of a repeated string instruction entails: it is executed again for the others.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn repeat(&mut self) -> Result<(), Self::Error>;
    /// Has an instruction executed again from its beginning that has exited because the host wanted it to.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn restart(&mut self) -> Result<(), Self::Error>;
    /// Takes back what is pending of an instruction that was not completed.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn undo_step(&mut self) -> Result<(), Self::Error>;
    /// Has the next entry deliver #DB for breakpoints that were met, where the instruction is completed.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn pend_breakpoints(&mut self, met: BreakpointHits) -> Result<(), Self::Error>;
    /// To be called when an exit for #DB is to go back to the guest: what an entry demands of a guest that is stepped.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn pend_single_step(&mut self) -> Result<(), Self::Error>;
    /// Raises an exception at the instruction that exited, in its place.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn raise(&mut self, event: Event) -> Result<(), Self::Error>;
    /// Delivers an event again, once the reason of the exit is dealt with.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn reinject(&mut self, event: Event) -> Result<(), Self::Error>;
    /// Blocks NMIs again where an IRET had unblocked them, but the exit undid that IRET. Returns what is blocked then, as the
    /// CPU has it.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn block_nmis_again(&mut self) -> Result<u32, Self::Error>;
    /// After an exit because the log is full: the access is made again.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn retry_logged(&mut self) -> Result<(), Self::Error>;
}
