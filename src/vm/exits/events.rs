//! Exits for events: exceptions, interrupts, the timer; and the event whose delivery an exit interrupted.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::unhandled::{PAGE_FAULT, Unhandled};
use crate::addr::Gpa;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::virt::Event;
use crate::virt::event::Combined;
use crate::virt::event::EventKind;
use crate::virt::exit::ExitReason;
use crate::virt::processor::NoEvent;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Delivers again the event whose delivery the exit interrupted, if there is one.
    pub(super) fn deliver_again(&mut self) -> Result<Next, P::Error> {
        match self.processor.interrupted() {
            Ok(Some(event)) => self.processor.reinject(event)?,
            Ok(None) => {}
            Err(NoEvent::State(error)) => return Err(error),
            Err(_) => return self.stop(Outcome::Reinject),
        }
        Ok(Next::Resume)
    }

    /// Exceptions that exit are raised in the guest all the same; NMIs and machine checks are the host's.
    pub(super) fn exception(&mut self) -> Result<Next, P::Error> {
        let Some(exception) = self.processor.exception()? else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::ExceptionOrNmi));
        };
        if exception.kind == EventKind::Nmi {
            self.host.non_maskable_interrupt();
            return self.deliver_again();
        }
        let event = match exception.vector {
            // INT1 is a trap of its own kind, which says nothing in DR6.
            1 if exception.kind == EventKind::PrivilegedSoftwareException => {
                self.processor.pend_single_step()?;
                let length = self.processor.instruction_length()?;
                match Event::int1(length) {
                    Some(event) => event,
                    None => return self.stop(Outcome::Reinject),
                }
            }
            1 => {
                self.processor.note_debug_exception()?;
                self.processor.pend_single_step()?;
                Event::DEBUG
            }
            3 => return self.breakpoint(),
            6 if P::MAY_WANT_CODE => {
                if self.is_others_call()? {
                    self.stats.count(ExitReason::Vmcall);
                    return self.call();
                }
                Event::INVALID_OPCODE
            }
            17 => Event::ALIGNMENT_CHECK,
            18 => {
                self.host.machine_check();
                return self.deliver_again();
            }
            vector => return self.unhandled(vector, exception.has_error_code),
        };
        let interrupted = match self.processor.interrupted() {
            Ok(interrupted) => interrupted,
            Err(NoEvent::State(error)) => return Err(error),
            Err(_) => return self.stop(Outcome::Reinject),
        };
        match interrupted.map_or(Combined::Second, |first| first.followed_by(event)) {
            Combined::Second => self.raise(event),
            Combined::DoubleFault => self.raise(Event::DOUBLE_FAULT),
            Combined::TripleFault => self.stop(Outcome::TripleFault),
        }
    }

    /// An exception that exits because the guest has no interrupt-descriptor table.
    #[cold]
    fn unhandled(&mut self, vector: u8, has_code: bool) -> Result<Next, P::Error> {
        let code = match has_code {
            true => Some(self.processor.error_code()?),
            false => None,
        };
        let address = match vector {
            PAGE_FAULT => Some(self.processor.fault_address()?),
            _ => None,
        };
        self.stop(Outcome::Exception(Unhandled {
            vector,
            code,
            address,
        }))
    }

    /// Puts back the byte in place of which the host has put a breakpoint, so that the guest goes on with the instruction
    /// that belongs there. A guest's code is where its image was loaded: its GVA is its GPA.
    #[cold]
    fn breakpoint(&mut self) -> Result<Next, P::Error> {
        let rip = self.processor.rip()?;
        let Some(byte) = self.host.breakpoint(rip) else {
            let length = self.processor.instruction_length()?;
            return match Event::breakpoint(length) {
                Some(event) => self.raise(event),
                None => self.stop(Outcome::Reinject),
            };
        };
        if let Err(error) = self.space.load(Gpa::new(rip.as_u64()), &[byte]) {
            return self.stop(Outcome::Access(error));
        }
        // INT3 came in place of its first byte, past its breakpoint.
        self.processor.restart()?;
        Ok(Next::Resume)
    }

    pub(super) fn external_interrupt(&mut self) -> Result<Next, P::Error> {
        self.host
            .external_interrupt(self.processor.interrupt_vector()?);
        self.deliver_again()
    }

    /// The run loop looks at the budget after every exit. The timer only sees to it that there is one: it counts to
    /// 2^32 at most, and is wound up again where that was not the whole budget.
    pub(super) fn timer(&mut self) -> Result<Next, P::Error> {
        self.wind_timer()?;
        self.deliver_again()
    }

    /// An instruction, or the delivery of an event, took so long that no interrupt could come between. It goes on, unless the
    /// CPU has lost where it was.
    #[cold]
    pub(super) fn instruction_timeout(&mut self) -> Result<Next, P::Error> {
        if !self.processor.survives_timeout()? {
            return self.stop(Outcome::Unsupported(
                "an instruction that never ended, of which the CPU has lost the state",
            ));
        }
        self.deliver_again()
    }

    /// An INIT signal, which no guest can send: the machine or another CPU has. The exit has taken it, and the guest is
    /// not to suffer from it.
    #[cold]
    pub(super) fn init_signal(&mut self) -> Result<Next, P::Error> {
        log::warn!("an INIT signal came to this CPU while a guest ran; it has no effect");
        self.deliver_again()
    }
}
