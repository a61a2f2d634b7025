//! EPT violations: the guest touched memory that is not there yet, or not writable, or not its own.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::mmio::MmioDevices;
use super::super::outcome::{MemoryFault, Outcome};
use super::super::run::{Next, Running};
use crate::ept::{Reason, Resolution, Unresolved, Violation};
use crate::frames::PhysMem;
use crate::paging::Nested;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Makes the access possible, or stops the guest.
    #[inline(always)]
    pub fn ept_violation(&mut self) -> Result<Next, P::Error> {
        let (violation, is_plain) = self.processor.violation()?;
        if !is_plain {
            return Ok(self.special_violation(violation));
        }
        match self.space.resolve(&violation) {
            Ok(Resolution::Retry(_)) => Ok(Next::Resume),
            other => Ok(self.not_mapped(violation, other)),
        }
    }

    /// The CPU has no room to log a page that it is about to mark dirty.
    pub(super) fn log_full(&mut self) -> Result<Next, P::Error> {
        self.drain_pml()?;
        self.processor.retry_logged()?;
        self.deliver_again()
    }

    /// A violation after which there is more to do than to let the guest try again.
    #[cold]
    #[inline(never)]
    fn special_violation(&mut self, violation: Violation) -> Next {
        let done = self.space.resolve(&violation);
        self.not_mapped(violation, done)
    }

    fn try_again(&mut self, violation: Violation) -> Result<Next, P::Error> {
        self.processor.undo_step()?;
        if self.processor.was_delivering()? {
            return self.deliver_again();
        }
        if violation.nmi_unblocked_by_iret() {
            self.block_nmis_again(violation)?;
        }
        Ok(Next::Resume)
    }

    /// An access that no mapping makes possible, or after which there is more to do.
    #[cold]
    #[inline(never)]
    fn not_mapped(&mut self, violation: Violation, done: Result<Resolution, Unresolved>) -> Next {
        self.area.flush_is_due();
        let handled = match done {
            Ok(Resolution::Retry(_) | Resolution::Special(_)) => self.try_again(violation),
            other => self.report(violation, other),
        };
        self.settle(handled)
    }

    fn report(
        &mut self,
        violation: Violation,
        done: Result<Resolution, Unresolved>,
    ) -> Result<Next, P::Error> {
        let device = match done {
            Ok(Resolution::Mmio { tag, offset }) => Some((tag, offset)),
            Err(unresolved) if !is_reported(&unresolved) => {
                let fault = MemoryFault {
                    unresolved,
                    gva: self.told_address()?,
                    rip: self.processor.rip()?,
                    during_delivery: self.processor.was_delivering()?,
                };
                return self.stop(Outcome::Memory(fault));
            }
            _ => None,
        };
        self.mmio_of(violation, device)
    }

    #[cold]
    fn block_nmis_again(&mut self, violation: Violation) -> Result<(), P::Error> {
        let state = self.processor.block_nmis_again()?;
        log::debug!("{violation}: by an IRET; interruptibility state {state:#x} again");
        Ok(())
    }
}

/// Whether a device has a say in what the region does not allow.
fn is_reported(unresolved: &Unresolved) -> bool {
    let Reason::Denied { tag } = unresolved.reason else {
        return false;
    };
    unresolved.violation.is_write() && MmioDevices::takes_denied_writes(tag)
}
