//! Going on behind an instruction that exited, or at it, or with an event.

use super::super::advance::{advance_by, advance_to, raise, repeat, set_resume_flag};
use super::super::event::{Injection, is_injecting};
use super::super::fields::{DR6, INTERRUPT_SHADOW};
use super::super::neutral::Event;
use super::exits::Place;
use super::{Loaded, OnCpu, UnknownInstruction};
use crate::virt::BreakpointHits;
use crate::virt::processor::Progress;

/// B0 to B3 of DR6.
const DR6_HITS: u64 = 0xf;

impl<C: OnCpu> Progress for Loaded<'_, C> {
    /// No CPU has such an exit.
    fn survives_timeout(&mut self) -> Result<bool, UnknownInstruction> {
        Ok(true)
    }
    /// The exit has stored both as the handler is to find them.
    fn note_debug_exception(&mut self) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    #[inline(always)]
    fn advance(&mut self) -> Result<(), UnknownInstruction> {
        self.step_over()
    }
    #[inline(always)]
    fn advance_by(&mut self, length: u8) -> Result<(), UnknownInstruction> {
        advance_by(self.vmcb, length);
        Ok(())
    }
    #[inline(always)]
    fn advance_from(&mut self, Place(next): Place) -> Result<(), UnknownInstruction> {
        advance_to(self.vmcb, next);
        Ok(())
    }
    fn repeat(&mut self) -> Result<(), UnknownInstruction> {
        repeat(self.vmcb);
        Ok(())
    }
    fn restart(&mut self) -> Result<(), UnknownInstruction> {
        set_resume_flag(self.vmcb);
        Ok(())
    }
    /// Nothing is pending at an exit.
    fn undo_step(&mut self) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    fn pend_breakpoints(&mut self, met: BreakpointHits) -> Result<(), UnknownInstruction> {
        let dr6 = self.vmcb.get(DR6) & !DR6_HITS | met.dr6();
        self.vmcb.set(DR6, dr6);
        // Together with the step, where one is due.
        if !is_injecting(self.vmcb) {
            Injection::of(Event::DEBUG).inject(self.vmcb);
        }
        Ok(())
    }
    /// No entry demands any.
    fn pend_single_step(&mut self) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    fn raise(&mut self, event: Event) -> Result<(), UnknownInstruction> {
        // What an instruction asks for pushes what comes behind it.
        if event.length() != 0 {
            advance_by(self.vmcb, event.length());
        }
        raise(self.vmcb, event);
        Ok(())
    }
    fn reinject(&mut self, event: Event) -> Result<(), UnknownInstruction> {
        Injection::of(event).inject(self.vmcb);
        Ok(())
    }
    /// No guest is given an NMI, so none has blocked them.
    fn block_nmis_again(&mut self) -> Result<u32, UnknownInstruction> {
        Ok(self.vmcb.get(INTERRUPT_SHADOW) as u32)
    }
    fn retry_logged(&mut self) -> Result<(), UnknownInstruction> {
        Ok(())
    }
}
