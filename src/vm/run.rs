//! The run loop: enter the guest, look why it left, do what it needs, enter it again.

use core::arch::x86_64::CpuidResult;

use super::Host;
use super::backend::Cpu;
use super::clock::now;
use super::cpuid::{CpuidTable, Live};
use super::cr::Limits;
use super::devices::Devices;
use super::mmio::Decoded;
use super::name::ForkId;
use super::outcome::{Outcome, Turn};
use super::stats::RunStats;
use crate::addr::{AddrRange, Gpa};
use crate::ept::Space;
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Ept, Nested};
use crate::virt::cpu::EntryArea;
use crate::virt::exit::ExitReason;
use crate::virt::processor::SpecialExit;
use crate::virt::{Event, Gpr, GuestRegs};

const CPUID: u64 = ExitReason::Cpuid as u64;
const HLT: u64 = ExitReason::Hlt as u64;
const VMCALL: u64 = ExitReason::Vmcall as u64;
const IO_INSTRUCTION: u64 = ExitReason::IoInstruction as u64;
const RDMSR: u64 = ExitReason::Rdmsr as u64;
const EPT_VIOLATION: u64 = ExitReason::EptViolation as u64;

/// What is to happen after an exit was handled.
pub(super) enum Next {
    /// The guest goes on where it is.
    Resume,
    /// The guest leaves the CPU: [`Running::turn`] says why.
    Stop,
}

/// A guest that is loaded into the CPU.
pub(super) struct Running<'r, 's, M: PhysMem, H, P, F: Nested = Ept> {
    pub frames: &'r FrameAllocator<M>,
    /// What guests are told of the CPU.
    pub cpuid: &'r CpuidTable,
    pub limits: &'r Limits,
    /// Instructions that made accesses to devices.
    pub decoded: &'r mut Decoded,
    pub host: &'r mut H,
    pub space: &'r mut Space<'s, M, F>,
    pub processor: P,
    /// XCR0, for CPUID.
    pub xcr0: &'r mut u64,
    /// CR8, which has no effect: no interrupt of ours has a priority.
    pub cr8: &'r mut u8,
    pub area: &'r mut EntryArea,
    pub devices: &'r mut Devices,
    pub stats: &'r mut RunStats,
    /// Which fork it is.
    pub fork: ForkId,
    /// How many more ticks the guest may take.
    pub budget: u64,
    /// How many of them at most in this turn; then, and where it halts, others have theirs.
    pub slice: Option<u64>,
    /// When, by the TSC, the turn is over.
    pub deadline: u64,
    /// What it has to pay for in this turn beside the time that it took.
    pub charged: u64,
    /// What became of the turn.
    pub turn: Turn,
    /// Where a guest that asks to be frozen wants a message.
    pub message: Option<AddrRange<Gpa>>,
    /// The CPU has [`ResidentFeatures::x87_selectors`](crate::virt::cpu::ResidentFeatures::x87_selectors).
    pub x87_selectors: bool,
}

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Runs the guest until it stops.
    pub fn run(&mut self) -> Turn {
        match self.x87_selectors {
            false => self.run_on::<false>(),
            true => self.run_on::<true>(),
        }
    }

    /// The same, with what the CPU has: so it is asked once, not at each entry.
    #[inline(never)]
    fn run_on<const X87_SELECTORS: bool>(&mut self) -> Turn {
        let begin = now();
        let slice = self.slice.or_else(|| self.host.wants_back());
        let left = slice.unwrap_or(u64::MAX).min(self.budget);
        self.deadline = begin.saturating_add(left);
        let mut in_guest = 0;
        let ready = self.get_ready(left);
        let done = ready.and_then(|()| self.turns::<X87_SELECTORS>(&mut in_guest));
        if let Err(error) = done.and_then(|()| self.drain_pml()) {
            self.turn = Turn::Ended(Outcome::State(error.into()));
        }
        self.stats.guest_ticks += in_guest;
        let all = now().wrapping_sub(begin).saturating_add(self.charged);
        self.stats.host_ticks += all.saturating_sub(in_guest);
        if matches!(self.turn, Turn::SliceOver) && all >= self.budget {
            self.turn = Turn::Ended(Outcome::OutOfBudget);
        }
        self.turn
    }

    /// Gives the processor what is of this run.
    fn get_ready(&mut self, left: u64) -> Result<(), P::Error> {
        self.processor.get_ready(self.space.eptp(), left)?;
        match self.space.logs_dirty() {
            true => self.processor.begin_log(),
            false => Ok(()),
        }
    }

    /// Enters the guest and handles its exits, until it is done. Adds the ticks from each entry to its exit to
    /// `in_guest`.
    #[inline(always)]
    fn turns<const X87_SELECTORS: bool>(&mut self, in_guest: &mut u64) -> Result<(), P::Error> {
        loop {
            if !self.processor.timer_is_saved() {
                self.wind_timer()?;
            }
            let right = self.space.enter(&mut self.processor);
            let start = now();
            // SAFETY: the state is complete since `Vcpu::create`, `get_ready` was called with this space, `area` is the guest's
            // own, and `Guest::loaded` has put the rest of its state into the CPU.
            let reason = unsafe { self.processor.enter::<X87_SELECTORS>(right, self.area) };
            let left = now();
            *in_guest = in_guest.wrapping_add(left.wrapping_sub(start));
            if P::MAY_WANT_CODE
                && self.processor.wants_code()
                && let Some(next) = self.give_code()?
            {
                if matches!(next, Next::Stop) || left >= self.deadline {
                    return Ok(());
                }
                continue;
            }
            // The frequent ones are handled here, without a look into the table of reasons.
            let next = match reason {
                CPUID => {
                    self.stats.count(ExitReason::Cpuid);
                    self.cpuid()?
                }
                HLT => {
                    self.stats.count(ExitReason::Hlt);
                    self.hlt()?
                }
                VMCALL => {
                    self.stats.count(ExitReason::Vmcall);
                    self.call()?
                }
                EPT_VIOLATION => {
                    self.stats.count(ExitReason::EptViolation);
                    self.ept_violation()?
                }
                RDMSR => {
                    self.stats.count(ExitReason::Rdmsr);
                    self.rdmsr()?
                }
                IO_INSTRUCTION => {
                    self.stats.count(ExitReason::IoInstruction);
                    self.port()
                }
                other => self.infrequent(other),
            };
            if matches!(next, Next::Stop) {
                return Ok(());
            }
            if left >= self.deadline {
                return Ok(());
            }
        }
    }

    /// Handles an exit, or whatever `entered` says instead of a reason. An error becomes the outcome.
    #[inline(never)]
    fn infrequent(&mut self, entered: u64) -> Next {
        self.area.flush_is_due();
        let handled = match u32::try_from(entered)
            .ok()
            .and_then(|number| ExitReason::from_number_below(number, P::REASONS))
        {
            Some(reason) => {
                self.stats.count(reason);
                self.dispatch(reason)
            }
            None => self.no_reason(entered),
        };
        self.settle(handled)
    }

    /// An error becomes the outcome.
    #[inline(always)]
    pub fn settle(&mut self, handled: Result<Next, P::Error>) -> Next {
        handled.unwrap_or_else(|error| {
            self.turn = Turn::Ended(Outcome::State(error.into()));
            Next::Stop
        })
    }

    /// An entry that failed, or an exit-reason field that is not just the number of a reason that we know.
    #[cold]
    fn no_reason(&mut self, entered: u64) -> Result<Next, P::Error> {
        let outcome = match self.processor.special_exit(entered)? {
            SpecialExit::BusLock(reason) => {
                self.stats.count(ExitReason::BusLock);
                self.stats.count(reason);
                return self.dispatch(reason);
            }
            SpecialExit::Unexpected(reason) => Outcome::UnexpectedExit(reason),
            SpecialExit::MachineCheck(error) => {
                // The guest has not caused it: the host's handler reports it and ends the run.
                self.host.machine_check();
                Outcome::Entry(error.into())
            }
            SpecialExit::EntryFailed(error) => Outcome::Entry(error.into()),
            SpecialExit::Unknown(number) => Outcome::UnknownExit(number),
        };
        self.stop(outcome)
    }

    /// A reason that the run loop compares with, where the field of the exit has more in it.
    #[cold]
    pub(super) fn frequent(&mut self, reason: ExitReason) -> Result<Next, P::Error> {
        match reason {
            ExitReason::Cpuid => self.cpuid(),
            ExitReason::Hlt => self.hlt(),
            ExitReason::Vmcall => self.call(),
            ExitReason::EptViolation => self.ept_violation(),
            ExitReason::Rdmsr => self.rdmsr(),
            ExitReason::IoInstruction => Ok(self.port()),
            other => self.stop(Outcome::UnexpectedExit(other)),
        }
    }

    /// The guest has printed: it has so much less of its turn. Where nobody else waits for the CPU, the host soon wants it back, to
    /// put that out.
    #[cold]
    pub fn printed(&mut self) -> Result<(), P::Error> {
        let owed = self.devices.console.pay();
        self.charged = self.charged.saturating_add(owed);
        self.deadline = self.deadline.saturating_sub(owed);
        if self.slice.is_some() {
            return Ok(());
        }
        let Some(soon) = self.host.wants_back() else {
            return Ok(());
        };
        let deadline = now().saturating_add(soon);
        if deadline < self.deadline {
            self.deadline = deadline;
            self.processor.set_timer(soon)?;
        }
        Ok(())
    }

    /// The guest is done.
    #[cold]
    pub fn stop(&mut self, outcome: Outcome) -> Result<Next, P::Error> {
        self.turn = Turn::Ended(outcome);
        Ok(Next::Stop)
    }

    #[inline(always)]
    fn cpuid(&mut self) -> Result<Next, P::Error> {
        let rax = self.area.regs.get(Gpr::Rax);
        if let Some(answer) = self.cpuid.constant_answer(rax) {
            set_cpuid(&mut self.area.regs, answer);
        } else {
            self.rare_cpuid(rax)?;
        }
        self.advance()
    }

    #[inline(never)]
    fn rare_cpuid(&mut self, rax: u64) -> Result<(), P::Error> {
        // CR4.OSXSAVE is in the real register as the guest wrote it.
        let cr4 = self.processor.cr4()?;
        if let Some(xcr0) = self.processor.unseen_xcr0() {
            *self.xcr0 = xcr0;
        }
        let xcr0 = *self.xcr0;
        let rcx = self.area.regs.get(Gpr::Rcx);
        let answer = self.cpuid.answer(rax, rcx, || Live {
            cr4,
            xcr0,
            generation: self.space.generation(),
            fork: self.fork.number as u32,
        });
        set_cpuid(&mut self.area.regs, &answer);
        Ok(())
    }

    /// Goes on behind the instruction.
    #[inline(always)]
    pub fn advance(&mut self) -> Result<Next, P::Error> {
        self.processor.advance()?;
        Ok(Next::Resume)
    }

    /// Raises an exception at the instruction, which is not completed.
    pub fn raise(&mut self, event: Event) -> Result<Next, P::Error> {
        self.processor.raise(event)?;
        Ok(Next::Resume)
    }

    /// Makes the guest exit at the end of its turn.
    pub fn wind_timer(&mut self) -> Result<(), P::Error> {
        let left = self.deadline.saturating_sub(now());
        self.processor.set_timer(left)
    }
}

#[inline(always)]
fn set_cpuid(regs: &mut GuestRegs, answer: &CpuidResult) {
    regs.set(Gpr::Rax, answer.eax.into());
    regs.set(Gpr::Rbx, answer.ebx.into());
    regs.set(Gpr::Rcx, answer.ecx.into());
    regs.set(Gpr::Rdx, answer.edx.into());
}

#[cfg(test)]
mod svm_tests;
#[cfg(test)]
mod tests;
