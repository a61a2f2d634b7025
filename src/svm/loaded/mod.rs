//! A guest's processor that is loaded into a CPU with SVM: what [`Processor`] asks for, by its VMCB.

mod exits;
mod instruction;
mod progress;
mod registers;
mod told;

use core::fmt;

use super::asid::Asid;
use super::capabilities::Capabilities;
use super::dump::{dump_vmcb, report_refused_entry, summarize_vmcb};
use super::event::{Injection, is_injecting_software};
use super::exit::Exit;
use super::feature::Features;
use super::fields::{EXIT_CODE, EXIT_INFO_1, NESTED_CR3};
use super::left::exit_reason;
use super::vmcb::Vmcb;
use crate::ept::{CpuId, Entered, Eptp, Invalidate, Space};
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::Nested;
use crate::virt::cpu::EntryArea;
use crate::virt::exit::ExitReason;
use crate::virt::processor::{Processor, SpecialExit};
pub(in crate::svm) use registers::intercept_reads;
use told::Told;

/// VMRUN has refused the VMCB: the guest has not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VMRUN refused the VMCB (exit code -1)")
    }
}

impl core::error::Error for Refused {}

/// Where the instruction ends that has exited, or which it is, was asked for without its code having been given: our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownInstruction;

impl fmt::Display for UnknownInstruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not known which instruction has exited")
    }
}

impl core::error::Error for UnknownInstruction {}

/// An interrupt that the host has taken after it made a guest exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The timer's, or none that is there any more. It has been acknowledged.
    Timer,
    /// One with this vector.
    Other(u8),
}

/// What a CPU does for the guest whose VMCB this is, beside what stands there.
///
/// # Safety
/// What is outdated of the ASID must be dropped, when [`OnCpu::enter`] runs the guest, before it runs.
pub unsafe trait OnCpu {
    /// Enters the guest: see [`Svm::enter`](super::cpu::Svm::enter). `X87_SELECTORS`: see
    /// [`Processor::enter`].
    ///
    /// # Errors
    /// VMRUN has refused the VMCB.
    ///
    /// # Safety
    /// As there.
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        vmcb: &mut Vmcb,
        asid: &mut Asid,
        area: &mut EntryArea,
    ) -> Result<(), Refused>;
    /// The VMCB that the last entry has refused, as it was then.
    fn refused(&self) -> &Vmcb;
    /// Interrupts the guest after so many ticks of the time-stamp counter, whatever it does, or as many as can be counted.
    fn set_timer(&mut self, ticks: u64);
    /// Takes the interrupt by which the guest has left.
    fn take_interrupt(&mut self) -> Taken;
    /// DR0 to DR3.
    fn breakpoint_addresses(&self) -> [u64; 4];
    /// Sets IA32_TSC_AUX.
    ///
    /// # Safety
    /// The CPU has it and accepts `value`.
    unsafe fn set_tsc_aux(&mut self, value: u64);
    /// XCR0, on a CPU that has it, of which a guest may have set what it is not offered.
    fn xcr0(&self) -> Option<u64>;
    /// Sets XCR0.
    ///
    /// # Safety
    /// The CPU has XSAVE and accepts `value`.
    unsafe fn set_xcr0(&mut self, value: u64);
}

/// A processor whose VMCB is to be run next.
#[derive(Debug)]
pub struct Loaded<'c, C> {
    cpu: C,
    vmcb: &'c mut Vmcb,
    asid: &'c mut Asid,
    capabilities: &'c Capabilities,
    /// What is used of the CPU's features.
    features: Features,
    told: Option<Told>,
    /// The last entry had a software event delivered, whose instruction RIP is behind already.
    had_software_event: bool,
    /// The vector of the interrupt by which the guest has left.
    interrupt: u8,
}

/// What [`Loaded::run`] returns for a VMCB that was refused: larger than the number of any reason.
const REFUSED: u64 = 1 << 32;
/// The same for an exit of which there is no reason.
const NO_REASON: u64 = 1 << 33;

impl<'c, C: OnCpu> Loaded<'c, C> {
    /// With what is used of the CPU's features.
    pub fn new(
        cpu: C,
        vmcb: &'c mut Vmcb,
        asid: &'c mut Asid,
        capabilities: &'c Capabilities,
        features: Features,
    ) -> Self {
        Self {
            cpu,
            vmcb,
            asid,
            capabilities,
            features,
            told: None,
            had_software_event: false,
            interrupt: 0,
        }
    }

    /// Enters the guest, and returns the number of the reason for its next exit, or one of the larger numbers.
    ///
    /// # Safety
    /// As of [`OnCpu::enter`].
    #[inline(always)]
    unsafe fn run<const X87_SELECTORS: bool>(&mut self, area: &mut EntryArea) -> u64 {
        self.told = None;
        self.had_software_event = is_injecting_software(self.vmcb);
        // SAFETY: the caller's.
        let entered = unsafe { self.cpu.enter::<X87_SELECTORS>(self.vmcb, self.asid, area) };
        if entered == Err(Refused) {
            return REFUSED;
        }
        match exit_reason(self.vmcb) {
            Some(ExitReason::ExternalInterrupt) => self.take_interrupt() as u64,
            Some(reason) => reason as u64,
            None => NO_REASON,
        }
    }

    /// The host takes an interrupt as soon as the guest has left: what it is decides what the exit was for.
    #[cold]
    fn take_interrupt(&mut self) -> ExitReason {
        match self.cpu.take_interrupt() {
            Taken::Timer => ExitReason::PreemptionTimer,
            Taken::Other(vector) => {
                self.interrupt = vector;
                ExitReason::ExternalInterrupt
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn cpu(&self) -> &C {
        &self.cpu
    }
    #[cfg(test)]
    pub(crate) fn cpu_mut(&mut self) -> &mut C {
        &mut self.cpu
    }
    #[cfg(test)]
    pub(crate) fn vmcb(&self) -> &Vmcb {
        self.vmcb
    }
    #[cfg(test)]
    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        self.vmcb
    }

    /// The last exit, decoded.
    fn exit(&self) -> Exit {
        Exit::read(self.vmcb, self.features)
    }

    /// Whether the event that the exit has interrupted is of an instruction that is executed again: it asks for it again.
    fn comes_again(&self, event: Injection) -> bool {
        event.is_software() && !self.had_software_event
    }

    /// The code and its information of an exit that has no reason, as far as they are numbers that can be told.
    fn unknown(&self) -> u16 {
        self.vmcb.get(EXIT_CODE) as u16
    }
    /// The first word of what the exit tells.
    fn information(&self) -> u64 {
        self.vmcb.get(EXIT_INFO_1)
    }
}

// SAFETY: there is one processor. A guest's translations are cached under the ASID that is loaded with it and is used with no other
// nested tables; what is outdated is dropped before the next entry, and nothing uses them before.
unsafe impl<C: OnCpu> Invalidate for Loaded<'_, C> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, _: Eptp) {
        self.asid.outdate();
    }
    #[inline(always)]
    fn invvpid(&mut self, _: Eptp) {
        self.asid.outdate();
    }
}

/// Accesses to the VMCB do not fail. What can is to ask for what only the code of an instruction tells.
impl<C: OnCpu> Processor for Loaded<'_, C> {
    type EntryError = Refused;
    const REASONS: usize = ExitReason::COUNT;

    fn get_ready(&mut self, eptp: Eptp, ticks: u64) -> Result<(), UnknownInstruction> {
        self.cpu.set_timer(ticks);
        let root = eptp.root().as_u64();
        if self.vmcb.get(NESTED_CR3) != root {
            self.vmcb.set(NESTED_CR3, root);
        }
        Ok(())
    }
    fn set_timer(&mut self, ticks: u64) -> Result<(), UnknownInstruction> {
        self.cpu.set_timer(ticks);
        Ok(())
    }
    /// It runs while the host does, too.
    #[inline(always)]
    fn timer_is_saved(&self) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64 {
        debug_assert_eq!(self.vmcb.get(NESTED_CR3), right.eptp().root().as_u64());
        // SAFETY: the caller's; the nested tables are those of `right` since `get_ready`.
        unsafe { self.run::<X87_SELECTORS>(area) }
    }
    #[cold]
    fn special_exit(&self, entered: u64) -> Result<SpecialExit<Refused>, UnknownInstruction> {
        Ok(match entered {
            REFUSED => SpecialExit::EntryFailed(Refused),
            NO_REASON => SpecialExit::Unknown(self.unknown()),
            _ => match exit_reason(self.vmcb) {
                Some(reason) => SpecialExit::Unexpected(reason),
                None => SpecialExit::Unknown(self.unknown()),
            },
        })
    }
    fn flush_linear(&mut self) -> Result<(), Refused> {
        self.asid.outdate();
        Ok(())
    }
    fn can_log(&self) -> bool {
        false
    }
    fn begin_log(&mut self) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    fn drain_log<M: PhysMem, F: Nested>(
        &mut self,
        _: &FrameAllocator<M>,
        _: &mut Space<'_, M, F>,
    ) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    fn summarize(&self, out: &mut impl fmt::Write) -> fmt::Result {
        summarize_vmcb(self.vmcb, self.features, out)
    }
    fn dump(&self, out: &mut impl fmt::Write) -> fmt::Result {
        dump_vmcb(self.vmcb, self.features, out)
    }
    fn report_failed_entry(&self, Refused: Refused, out: &mut impl fmt::Write) -> fmt::Result {
        report_refused_entry(self.cpu.refused(), self.capabilities, out)
    }
}
