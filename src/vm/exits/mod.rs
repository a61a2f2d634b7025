//! What each exit needs, but the few that the run loop itself handles.

mod call;
mod change;
mod code;
mod cr;
mod emulate;
mod events;
mod io;
mod memory;
mod mmio;
mod view;

use super::backend::Cpu;
use super::clock::now;
use super::msr::{self, Gp};
use super::outcome::{Outcome, Turn};
use super::run::{Next, Running};
use super::{Host, xcr0};
use crate::addr::Gpa;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::register_bits::RFLAGS_IF;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::exit::ExitReason;

/// How many frames are to be zeroed ahead of need: 1 MiB.
pub(super) const ZEROED_GOAL: u32 = 256;
/// How many of them are zeroed while a guest halts.
const ZEROED_AT_ONCE: u32 = 16;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Does what an exit needs. Every reason is here: what no control of ours asks for stops the guest.
    #[inline(always)]
    pub fn dispatch(&mut self, reason: ExitReason) -> Result<Next, P::Error> {
        match reason {
            // The run loop has these, unless there was a bus lock, too.
            ExitReason::Cpuid
            | ExitReason::Hlt
            | ExitReason::Vmcall
            | ExitReason::EptViolation
            | ExitReason::Rdmsr
            | ExitReason::IoInstruction => self.frequent(reason),
            ExitReason::Wrmsr => self.wrmsr(),
            ExitReason::CrAccess => self.cr_access(),
            ExitReason::Xsetbv => self.xsetbv(),
            ExitReason::ExceptionOrNmi => self.exception(),
            ExitReason::ExternalInterrupt => self.external_interrupt(),
            ExitReason::PreemptionTimer => self.timer(),
            ExitReason::TripleFault => self.stop(Outcome::TripleFault),
            ExitReason::EptMisconfiguration => {
                let gpa = self.processor.physical_address()?;
                self.stop(Outcome::EptMisconfiguration(Gpa::new(gpa)))
            }
            ExitReason::PmlFull => self.log_full(),
            // The instruction is done, and the exit was its price. The firmware has had an SMI that was to exit.
            ExitReason::BusLock | ExitReason::OtherSmi => self.deliver_again(),
            ExitReason::InstructionTimeout => self.instruction_timeout(),
            ExitReason::InitSignal => self.init_signal(),
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
            | ExitReason::Tdcall
            | ExitReason::Rdmsrlist
            | ExitReason::Wrmsrlist
            | ExitReason::RdmsrImmediate
            | ExitReason::WrmsrImmediate
            | ExitReason::Vmrun
            | ExitReason::Vmload
            | ExitReason::Vmsave
            | ExitReason::Stgi
            | ExitReason::Clgi
            | ExitReason::Skinit
            | ExitReason::Invlpga
            | ExitReason::Invlpgb
            | ExitReason::Tlbsync
            | ExitReason::Rdpru
            | ExitReason::Mcommit => self.raise(Event::INVALID_OPCODE),
            other => self.stop(Outcome::UnexpectedExit(other)),
        }
    }

    #[inline(always)]
    pub fn hlt(&mut self) -> Result<Next, P::Error> {
        if self.processor.rflags()? & RFLAGS_IF == 0 {
            return self.stop(Outcome::Halted);
        }
        // No device of a guest interrupts yet, so there is nothing to wait for: HLT gives the turn away. Time that the
        // guest has no use for goes into frames that it may need.
        self.frames.refill_to(ZEROED_GOAL, ZEROED_AT_ONCE);
        if self.slice.is_some() {
            self.turn = Turn::Halts;
            self.deadline = 0;
        }
        self.advance()
    }

    #[inline(always)]
    pub fn rdmsr(&mut self) -> Result<Next, P::Error> {
        let value = match msr::read(self.area.regs.get(Gpr::Rcx)) {
            Ok(msr::Read::Value(value)) => value,
            Ok(msr::Read::Efer) => self.processor.efer()?,
            Ok(msr::Read::Pat) => self.processor.pat()?,
            Ok(msr::Read::Tsc) => now().wrapping_add(self.processor.tsc_offset()?),
            Err(Gp) => return self.raise(Event::GENERAL_PROTECTION),
        };
        let (rax, rdx) = msr::read_result(value);
        self.area.regs.set(Gpr::Rax, rax);
        self.area.regs.set(Gpr::Rdx, rdx);
        self.advance()
    }

    fn wrmsr(&mut self) -> Result<Next, P::Error> {
        let regs = &self.area.regs;
        let value = msr::written_value(regs.get(Gpr::Rax), regs.get(Gpr::Rdx));
        let live = msr::Live {
            cr0: self.processor.cr0()?,
            efer: self.processor.efer()?,
        };
        match msr::write(regs.get(Gpr::Rcx), value, &self.limits.features, || live) {
            Ok(msr::Write::Done) => {}
            Ok(msr::Write::Efer(efer)) => self.processor.set_efer(efer)?,
            Ok(msr::Write::Pat(pat)) => self.processor.set_pat(pat)?,
            Ok(msr::Write::Tsc(tsc)) => {
                let offset = tsc.wrapping_sub(now());
                self.processor.set_tsc_offset(offset)?;
            }
            Ok(msr::Write::SysenterEsp(esp)) => {
                self.processor.set_sysenter_esp(esp)?;
            }
            Ok(msr::Write::SysenterEip(eip)) => {
                self.processor.set_sysenter_eip(eip)?;
            }
            Ok(msr::Write::Switched(index, value)) => {
                // SAFETY: the guest has the register, so the CPU has, and the value is legal in it by the check. The guest
                // is loaded, so what is in the CPU is its own.
                unsafe { self.processor.set_switched(index, value) };
            }
            Err(Gp) => return self.raise(Event::GENERAL_PROTECTION),
        }
        self.advance()
    }

    fn xsetbv(&mut self) -> Result<Next, P::Error> {
        let regs = &self.area.regs;
        let (rcx, rax, rdx) = (regs.get(Gpr::Rcx), regs.get(Gpr::Rax), regs.get(Gpr::Rdx));
        let cpl = self.processor.cpl()?;
        match xcr0::xsetbv(rcx, rax, rdx, cpl, &self.limits.features) {
            Ok(value) => {
                // SAFETY: legal by the check, of components that this CPU has; CR4.OSXSAVE is on in the host.
                unsafe { self.processor.set_xcr0(value) };
                *self.xcr0 = value;
                self.advance()
            }
            Err(Gp) => self.raise(Event::GENERAL_PROTECTION),
        }
    }
}
