//! Exits for events: exceptions, interrupts, the timer; and the event whose delivery an exit interrupted.

use super::super::Host;
use super::super::clock::now;
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::unhandled::{PAGE_FAULT, Unhandled};
use crate::addr::{Gpa, Gva};
use crate::frames::PhysMem;
use crate::virt::Event;
use crate::virt::event::Combined;
use crate::virt::exit::ExitReason;
use crate::vmx::event::{
    EventError, interrupted_event, pend_single_step, reinject, restore_nmi_blocking,
};
use crate::vmx::interruption::{Interruption, InterruptionType};
use crate::vmx::qualification::{DebugException, InstructionTimeout};
use crate::vmx::{Field32, FieldNatural, Vmcs, VmcsError, restart};

/// DR7.GD: access to debug registers raises #DB.
const DR7_GD: u64 = 1 << 13;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Delivers again the event whose delivery the exit interrupted, if there is one.
    pub(super) fn deliver_again(&mut self) -> Result<Next, VmcsError> {
        match interrupted_event(&self.vmcs) {
            Ok(Some(event)) => reinject(&mut self.vmcs, event)?,
            Ok(None) => {}
            Err(EventError::Vmcs(error)) => return Err(error),
            Err(_) => return self.stop(Outcome::Reinject),
        }
        Ok(Next::Resume)
    }

    /// Exceptions that exit are raised in the guest all the same; NMIs and machine checks are the host's.
    pub(super) fn exception(&mut self) -> Result<Next, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        let Some(interruption) = Interruption::decode(information) else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::ExceptionOrNmi));
        };
        if interruption.kind == InterruptionType::Nmi {
            self.host.non_maskable_interrupt();
            return self.deliver_again();
        }
        let event = match interruption.vector {
            // INT1 is a trap of its own kind, which says nothing in DR6.
            1 if interruption.kind == InterruptionType::PrivilegedSoftwareException => {
                pend_single_step(&mut self.vmcs)?;
                let length = self.vmcs.read32(Field32::ExitInstructionLength)?;
                match Event::int1(length) {
                    Some(event) => event,
                    None => return self.stop(Outcome::Reinject),
                }
            }
            1 => {
                let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
                self.set_dr6(DebugException::decode(qualification))?;
                pend_single_step(&mut self.vmcs)?;
                Event::DEBUG
            }
            3 => return self.breakpoint(),
            17 => Event::ALIGNMENT_CHECK,
            18 => {
                self.host.machine_check();
                return self.deliver_again();
            }
            vector => return self.unhandled(vector, interruption.has_error_code),
        };
        let interrupted = match interrupted_event(&self.vmcs) {
            Ok(interrupted) => interrupted,
            Err(EventError::Vmcs(error)) => return Err(error),
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
    fn unhandled(&mut self, vector: u8, has_code: bool) -> Result<Next, VmcsError> {
        let code = match has_code {
            true => Some(self.vmcs.read32(Field32::ExitInterruptionErrorCode)?),
            false => None,
        };
        let address = match vector {
            PAGE_FAULT => Some(self.vmcs.read_natural(FieldNatural::ExitQualification)?),
            _ => None,
        };
        self.stop(Outcome::Exception(Unhandled {
            vector,
            code,
            address: address.map(Gva::new),
        }))
    }

    /// Puts back the byte in place of which the host has put a breakpoint, so that the guest goes on with the instruction
    /// that belongs there. A guest's code is where its image was loaded: its GVA is its GPA.
    #[cold]
    fn breakpoint(&mut self) -> Result<Next, VmcsError> {
        let rip = self.vmcs.read_natural(FieldNatural::GuestRip)?;
        let Some(byte) = self.host.breakpoint(Gva::new(rip)) else {
            let length = self.vmcs.read32(Field32::ExitInstructionLength)?;
            return match Event::breakpoint(length) {
                Some(event) => self.raise(event),
                None => self.stop(Outcome::Reinject),
            };
        };
        if let Err(error) = self.space.load(Gpa::new(rip), &[byte]) {
            return self.stop(Outcome::Access(error));
        }
        // INT3 came in place of its first byte, past its breakpoint.
        restart(&mut self.vmcs)?;
        Ok(Next::Resume)
    }

    pub(super) fn external_interrupt(&mut self) -> Result<Next, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        self.host.external_interrupt(information as u8);
        self.deliver_again()
    }

    /// The run loop looks at the budget after every exit. The timer only sees to it that there is one: it counts to
    /// 2^32 at most, and is wound up again where that was not the whole budget.
    pub(super) fn timer(&mut self) -> Result<Next, VmcsError> {
        self.wind_timer(self.deadline.saturating_sub(now()))?;
        self.deliver_again()
    }

    /// An instruction, or the delivery of an event, took so long that no interrupt could come between. It goes on, unless the
    /// CPU has lost where it was.
    #[cold]
    pub(super) fn instruction_timeout(&mut self) -> Result<Next, VmcsError> {
        let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
        let timeout = InstructionTimeout::decode(qualification);
        if timeout.context_is_lost {
            return self.stop(Outcome::Unsupported(
                "an instruction that never ended, of which the CPU has lost the state",
            ));
        }
        restore_nmi_blocking(&mut self.vmcs, timeout.nmi_unblocked_by_iret)?;
        self.deliver_again()
    }

    /// An INIT signal, which no guest can send: the machine or another CPU has. The exit has taken it, and the guest is
    /// not to suffer from it.
    #[cold]
    pub(super) fn init_signal(&mut self) -> Result<Next, VmcsError> {
        log::warn!("an INIT signal came to this CPU while a guest ran; it has no effect");
        self.deliver_again()
    }

    /// Does to DR6 and DR7 what the exception would have done without an exit.
    fn set_dr6(&mut self, exception: DebugException) -> Result<(), VmcsError> {
        crate::virt::cpu::update_dr6(|dr6| exception.to_dr6(dr6));
        if exception.debug_register_access() {
            let dr7 = self.vmcs.read_natural(FieldNatural::GuestDr7)?;
            self.vmcs
                .write_natural(FieldNatural::GuestDr7, dr7 & !DR7_GD)?;
        }
        Ok(())
    }
}
