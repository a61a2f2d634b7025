//! The run loop: enter the guest, look why it left, do what it needs, enter it again.

use core::arch::x86_64::_rdtsc;

use super::Host;
use super::cpuid::Live;
use super::invalidate::OnlyCpu;
use super::machine::Machine;
use super::outcome::Outcome;
use super::stats::RunStats;
use super::vcpu::Vcpu;
use crate::ept::Space;
use crate::frames::PhysMem;
use crate::vmx::cpu::{CurrentVmcs, EntryArea};
use crate::vmx::{
    Event, Exit, ExitReason, Field32, FieldNatural, Gpr, Vmcs, VmcsError, advance_rip,
};

/// What is to happen after an exit was handled.
pub(super) enum Next {
    /// The guest goes on where it is.
    Resume,
    /// The guest is done.
    Stop(Outcome),
}

/// A guest that is loaded into the CPU.
pub(super) struct Running<'r, 'f, 's, M: PhysMem, H> {
    pub machine: &'r mut Machine<'f, M>,
    pub host: &'r mut H,
    pub space: &'r mut Space<'s, M>,
    pub vcpu: &'r mut Vcpu,
    pub vmcs: CurrentVmcs,
    pub area: &'r mut EntryArea,
    pub stats: &'r mut RunStats,
    /// How many ticks the guest may take in all.
    pub budget: u64,
    /// Whether the preemption timer goes on over an exit.
    pub timer_is_saved: bool,
}

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Runs the guest until it stops.
    pub fn run(&mut self) -> Outcome {
        match self.turn() {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Vmcs(error),
        }
    }

    fn turn(&mut self) -> Result<Outcome, VmcsError> {
        self.wind_timer(self.budget.saturating_sub(self.stats.ticks()))?;
        // SAFETY: every CPU with 64-bit mode has RDTSC.
        let now = || unsafe { _rdtsc() };
        let begin = now();
        let before = self.stats.ticks();
        let deadline = begin.saturating_add(self.budget.saturating_sub(before));
        let mut in_guest = 0_u64;
        let outcome = loop {
            if !self.timer_is_saved {
                self.wind_timer(deadline.saturating_sub(now()))?;
            }
            // What it returns says that no invalidation is owed; the EPT pointer is in the VMCS since the start.
            let _ = self.space.enter(&mut OnlyCpu(&mut self.machine.vmx));
            let start = now();
            // SAFETY: the VMCS is complete since `Vcpu::create`, the host state in it is this CPU's, `area` is the
            // guest's own, and `load` has put the rest of its state into the CPU.
            let entry = unsafe { self.vmcs.enter(self.area, self.vcpu.launched) };
            let left = now();
            in_guest = in_guest.wrapping_add(left.wrapping_sub(start));
            if let Err(fail) = entry {
                break Ok(Outcome::EntryInstruction(fail));
            }
            self.vcpu.launched = true;
            let next = match Exit::read(&self.vmcs) {
                Ok(Exit::Left(reason)) => {
                    self.stats.count(reason);
                    match reason {
                        ExitReason::Cpuid => self.cpuid(),
                        other => self.dispatch(other),
                    }
                }
                Ok(Exit::EntryFailed(failure)) => break Ok(Outcome::EntryFailed(failure)),
                Ok(Exit::Unknown(number)) => break Ok(Outcome::UnknownExit(number)),
                Err(error) => Err(error),
            };
            match next {
                Ok(Next::Resume) if left < deadline => {}
                Ok(Next::Resume) => break Ok(Outcome::OutOfBudget),
                Ok(Next::Stop(outcome)) => break Ok(outcome),
                Err(error) => break Err(error),
            }
        };
        let total = now().wrapping_sub(begin);
        self.stats.guest_ticks += in_guest;
        self.stats.host_ticks += total.saturating_sub(in_guest);
        outcome
    }

    #[inline(always)]
    fn cpuid(&mut self) -> Result<Next, VmcsError> {
        let regs = &mut self.area.regs;
        let (vmcs, xcr0) = (&self.vmcs, self.vcpu.resident.xcr0);
        let mut failed = None;
        // CR4.OSXSAVE is the guest's own bit, so the real register has what it wrote.
        let live = || {
            let cr4 = vmcs.read_natural(FieldNatural::GuestCr4);
            Live {
                cr4: cr4.unwrap_or_else(|error| {
                    failed = Some(error);
                    0
                }),
                xcr0,
            }
        };
        let answer = self
            .machine
            .cpuid
            .answer(regs.get(Gpr::Rax), regs.get(Gpr::Rcx), live);
        if let Some(error) = failed {
            return Err(error);
        }
        regs.set(Gpr::Rax, answer.eax.into());
        regs.set(Gpr::Rbx, answer.ebx.into());
        regs.set(Gpr::Rcx, answer.ecx.into());
        regs.set(Gpr::Rdx, answer.edx.into());
        self.advance()
    }

    /// Goes on behind the instruction.
    #[inline(always)]
    pub fn advance(&mut self) -> Result<Next, VmcsError> {
        advance_rip(&mut self.vmcs)?;
        Ok(Next::Resume)
    }

    /// Raises an exception at the instruction.
    pub fn raise(&mut self, event: Event) -> Result<Next, VmcsError> {
        event.inject(&mut self.vmcs)?;
        Ok(Next::Resume)
    }

    /// Makes the guest exit after so many ticks of its own, or as many as the preemption timer can count.
    pub fn wind_timer(&mut self, ticks: u64) -> Result<(), VmcsError> {
        let value = self.machine.capabilities.misc.preemption_timer_value(ticks);
        self.vmcs.write32(Field32::PreemptionTimerValue, value)
    }
}
