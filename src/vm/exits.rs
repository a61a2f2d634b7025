//! What each exit needs, but the few that the run loop itself handles.

use super::Host;
use super::msr::{self, Gp};
use super::outcome::Outcome;
use super::run::{Next, Running, now};
use super::xcr0;
use crate::addr::{Gpa, Gva};
use crate::ept::{Resolution, Violation, ViolationFields};
use crate::frames::PhysMem;
use crate::vmx::event::{Combined, ReinjectError, restore_nmi_blocking};
use crate::vmx::exit::ExitReason;
use crate::vmx::interruption::{Interruption, InterruptionType};
use crate::vmx::qualification::DebugException;
use crate::vmx::{Event, Field32, Field64, FieldNatural, Gpr, Vmcs, VmcsError};

const RFLAGS_IF: u64 = 1 << 9;
/// DR7.GD: access to debug registers raises #DB.
const DR7_GD: u64 = 1 << 13;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Does what an exit needs. Every reason is here: what no control of ours asks for stops the guest.
    #[inline(never)]
    pub fn dispatch(&mut self, reason: ExitReason) -> Result<Next, VmcsError> {
        match reason {
            ExitReason::EptViolation => self.ept_violation(),
            ExitReason::Vmcall => self.call(),
            ExitReason::Hlt => self.hlt(),
            ExitReason::IoInstruction => self.io(),
            ExitReason::Rdmsr => self.rdmsr(),
            ExitReason::Wrmsr => self.wrmsr(),
            ExitReason::CrAccess => self.cr_access(),
            ExitReason::Xsetbv => self.xsetbv(),
            ExitReason::ExceptionOrNmi => self.exception(),
            ExitReason::ExternalInterrupt => self.external_interrupt(),
            ExitReason::PreemptionTimer => self.timer(),
            ExitReason::TripleFault => self.stop(Outcome::TripleFault),
            ExitReason::EptMisconfiguration => self.stop(Outcome::EptMisconfiguration),
            ExitReason::TaskSwitch => self.stop(Outcome::Unsupported("hardware task switch")),
            // The caches are coherent, and other guests' are not this one's to flush.
            ExitReason::Invd | ExitReason::Wbinvd => self.advance(),
            // There are no performance counters.
            ExitReason::Rdpmc => self.raise(Event::GENERAL_PROTECTION),
            // CPUID offers none of these.
            ExitReason::Getsec
            | ExitReason::Rsm
            | ExitReason::Vmclear
            | ExitReason::Vmlaunch
            | ExitReason::Vmptrld
            | ExitReason::Vmptrst
            | ExitReason::Vmread
            | ExitReason::Vmresume
            | ExitReason::Vmwrite
            | ExitReason::Vmxoff
            | ExitReason::Vmxon
            | ExitReason::Invept
            | ExitReason::Invvpid
            | ExitReason::Vmfunc
            | ExitReason::Monitor
            | ExitReason::Mwait
            | ExitReason::Encls
            | ExitReason::Enclv
            | ExitReason::Xsaves
            | ExitReason::Xrstors
            | ExitReason::Pconfig
            | ExitReason::Umwait
            | ExitReason::Tpause
            | ExitReason::Loadiwkey
            | ExitReason::Seamcall
            | ExitReason::Tdcall => self.raise(Event::INVALID_OPCODE),
            other => self.stop(Outcome::UnexpectedExit(other)),
        }
    }

    #[inline(always)]
    pub fn hlt(&mut self) -> Result<Next, VmcsError> {
        if self.vmcs.read_natural(FieldNatural::GuestRflags)? & RFLAGS_IF == 0 {
            return self.stop(Outcome::Halted);
        }
        // No device of a guest interrupts yet, so there is nothing to wait for: HLT gives the turn away.
        self.advance()
    }

    fn ept_violation(&mut self) -> Result<Next, VmcsError> {
        let vmcs = &self.vmcs;
        let qualification = vmcs.read_natural(FieldNatural::ExitQualification)?;
        let violation = Violation::decode(&ViolationFields {
            qualification,
            gpa: Gpa::new(vmcs.read64(Field64::GuestPhysicalAddress)?),
            gva: Gva::new(vmcs.read_natural(FieldNatural::GuestLinearAddress)?),
            rip: Gva::new(vmcs.read_natural(FieldNatural::GuestRip)?),
            during_delivery: vmcs.read32(Field32::IdtVectoringInformation)? >> 31 != 0,
            advanced_information: self.machine.ept.advanced_information,
        });
        match self.space.resolve(&violation) {
            Ok(Resolution::Retry(_)) => {}
            Ok(Resolution::Mmio { .. }) => {
                return Ok(Next::Stop(Outcome::Unsupported(
                    "access to a device in memory",
                )));
            }
            Err(unresolved) => return self.stop(Outcome::Memory(unresolved)),
        }
        if violation.during_delivery {
            return self.deliver_again();
        }
        restore_nmi_blocking(&mut self.vmcs, violation.nmi_unblocked_by_iret)?;
        Ok(Next::Resume)
    }

    /// Delivers again the event whose delivery the exit interrupted, if there is one.
    fn deliver_again(&mut self) -> Result<Next, VmcsError> {
        match Event::interrupted(&self.vmcs) {
            Ok(Some(event)) => event.reinject(&mut self.vmcs)?,
            Ok(None) => {}
            Err(ReinjectError::Vmcs(error)) => return Err(error),
            Err(ReinjectError::Event(_)) => return self.stop(Outcome::Reinject),
        }
        Ok(Next::Resume)
    }

    fn rdmsr(&mut self) -> Result<Next, VmcsError> {
        let value = match msr::read(self.area.regs.get(Gpr::Rcx)) {
            Ok(msr::Read::Value(value)) => value,
            Ok(msr::Read::Efer) => self.vmcs.read64(Field64::GuestEfer)?,
            Ok(msr::Read::Pat) => self.vmcs.read64(Field64::GuestPat)?,
            Ok(msr::Read::Tsc) => self
                .tsc()
                .wrapping_add(self.vmcs.read64(Field64::TscOffset)?),
            Err(Gp) => return self.raise(Event::GENERAL_PROTECTION),
        };
        let (rax, rdx) = msr::read_result(value);
        self.area.regs.set(Gpr::Rax, rax);
        self.area.regs.set(Gpr::Rdx, rdx);
        self.advance()
    }

    fn wrmsr(&mut self) -> Result<Next, VmcsError> {
        let regs = &self.area.regs;
        let value = msr::written_value(regs.get(Gpr::Rax), regs.get(Gpr::Rdx));
        let live = msr::Live {
            cr0: self.vmcs.read_natural(FieldNatural::GuestCr0)?,
            efer: self.vmcs.read64(Field64::GuestEfer)?,
        };
        match msr::write(regs.get(Gpr::Rcx), value, &self.machine.features, || live) {
            Ok(msr::Write::Done) => {}
            Ok(msr::Write::Efer(efer)) => self.vmcs.write64(Field64::GuestEfer, efer)?,
            Ok(msr::Write::Pat(pat)) => self.vmcs.write64(Field64::GuestPat, pat)?,
            Ok(msr::Write::Tsc(tsc)) => {
                let offset = tsc.wrapping_sub(now());
                self.vmcs.write64(Field64::TscOffset, offset)?;
            }
            Err(Gp) => return self.raise(Event::GENERAL_PROTECTION),
        }
        self.advance()
    }

    fn xsetbv(&mut self) -> Result<Next, VmcsError> {
        let regs = &self.area.regs;
        let (rcx, rax, rdx) = (regs.get(Gpr::Rcx), regs.get(Gpr::Rax), regs.get(Gpr::Rdx));
        let cpl = self.cpl()?;
        match xcr0::xsetbv(rcx, rax, rdx, cpl, &self.machine.features) {
            Ok(value) => {
                // SAFETY: legal by the check, of components that this CPU has; CR4.OSXSAVE is on in the host.
                unsafe { crate::vmx::cpu::xsetbv(value) };
                self.vcpu.resident.xcr0 = value;
                self.advance()
            }
            Err(Gp) => self.raise(Event::GENERAL_PROTECTION),
        }
    }

    /// The guest's privilege level: DPL of SS.
    pub(super) fn cpl(&self) -> Result<u8, VmcsError> {
        Ok((self.vmcs.read32(Field32::GuestSsAccessRights)? >> 5 & 3) as u8)
    }

    /// Exceptions that exit are raised in the guest all the same; NMIs and machine checks are the host's.
    fn exception(&mut self) -> Result<Next, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        let Some(interruption) = Interruption::decode(information) else {
            return Ok(Next::Stop(Outcome::UnexpectedExit(
                ExitReason::ExceptionOrNmi,
            )));
        };
        if interruption.kind == InterruptionType::Nmi {
            self.host.non_maskable_interrupt();
            return self.deliver_again();
        }
        let event = match interruption.vector {
            1 => {
                let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
                self.set_dr6(DebugException::decode(qualification))?;
                Event::DEBUG
            }
            17 => Event::ALIGNMENT_CHECK,
            18 => {
                self.host.machine_check();
                return self.deliver_again();
            }
            _ => {
                return Ok(Next::Stop(Outcome::UnexpectedExit(
                    ExitReason::ExceptionOrNmi,
                )));
            }
        };
        let interrupted = match Event::interrupted(&self.vmcs) {
            Ok(interrupted) => interrupted,
            Err(ReinjectError::Vmcs(error)) => return Err(error),
            Err(ReinjectError::Event(_)) => return self.stop(Outcome::Reinject),
        };
        match interrupted.map_or(Combined::Second, |first| first.followed_by(event)) {
            Combined::Second => self.raise(event),
            Combined::DoubleFault => self.raise(Event::DOUBLE_FAULT),
            Combined::TripleFault => self.stop(Outcome::TripleFault),
        }
    }

    fn external_interrupt(&mut self) -> Result<Next, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        self.host.external_interrupt(information as u8);
        self.deliver_again()
    }

    /// The run loop looks at the budget after every exit. The timer only sees to it that there is one: it counts to
    /// 2^32 at most, and is wound up again where that was not the whole budget.
    fn timer(&mut self) -> Result<Next, VmcsError> {
        self.wind_timer(self.deadline.saturating_sub(now()))?;
        self.deliver_again()
    }

    /// Does to DR6 and DR7 what the exception would have done without an exit.
    fn set_dr6(&mut self, exception: DebugException) -> Result<(), VmcsError> {
        crate::vmx::cpu::update_dr6(|dr6| exception.to_dr6(dr6));
        if exception.debug_register_access() {
            let dr7 = self.vmcs.read_natural(FieldNatural::GuestDr7)?;
            self.vmcs
                .write_natural(FieldNatural::GuestDr7, dr7 & !DR7_GD)?;
        }
        Ok(())
    }

    fn call(&mut self) -> Result<Next, VmcsError> {
        let regs = &mut self.area.regs;
        match regs.get(Gpr::Rax) {
            0 => regs.set(Gpr::Rax, 0),
            1 => {
                let st = regs.get(Gpr::Rdi);
                return self.stop(Outcome::Exited(st));
            }
            2 => {
                let mut b = [0; 1024];
                let n = (regs.get(Gpr::Rsi) as usize).min(1024);
                let cr3 = self.vmcs.read_natural(FieldNatural::GuestCr3)?;
                let ok =
                    super::gva::read(self.space, cr3, Gva::new(regs.get(Gpr::Rdi)), &mut b[..n]);
                log::info!("guest: {:?} {:?}", ok, core::str::from_utf8(&b[..n]));
                regs.set(Gpr::Rax, n as u64);
            }
            3 => {
                let mut b = [0; 32];
                let n = (regs.get(Gpr::Rsi) as usize).min(32);
                let cr3 = self.vmcs.read_natural(FieldNatural::GuestCr3)?;
                let ok =
                    super::gva::read(self.space, cr3, Gva::new(regs.get(Gpr::Rdi)), &mut b[..n]);
                log::info!(
                    "figure: {:?} {:?} {}",
                    ok,
                    core::str::from_utf8(&b[..n]),
                    regs.get(Gpr::Rdx)
                );
                regs.set(Gpr::Rax, 0);
            }
            _ => regs.set(Gpr::Rax, -38i64 as u64),
        }
        self.advance()
    }
    fn io(&mut self) -> Result<Next, VmcsError> {
        self.advance()
    }
    fn cr_access(&mut self) -> Result<Next, VmcsError> {
        self.raise(Event::GENERAL_PROTECTION)
    }
}
