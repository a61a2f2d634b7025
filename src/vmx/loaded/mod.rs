//! A guest's processor that is loaded into a CPU with VMX: what [`Processor`] asks for, by the current VMCS.

mod exits;
mod progress;
mod registers;

pub use exits::Place;

use core::fmt;

use super::capabilities::Capabilities;
use super::dump::{dump_vmcs, report_failed_entry, summarize_vmcs};
use super::entry_check::CheckGroup;
use super::exit::{EntryFailure, Exit, ExitReasonField};
use super::fields::{Field32, Field64};
use super::instruction_error::VmFail;
use super::pml::Pml;
use super::vmcs::{Vmcs, VmcsError};
use crate::ept::{CpuId, Entered, Eptp, Invalidate, Space};
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::Nested;
use crate::virt::cpu::EntryArea;
use crate::virt::exit::ExitReason;
use crate::virt::processor::{Processor, SpecialExit};

/// What [`OnCpu::enter`] returns where the entry failed, larger than any exit-reason field: VMfailInvalid.
pub(super) const FAILED_INVALID: u64 = 1 << 32;
/// VMfailValid.
pub(super) const FAILED_VALID: u64 = FAILED_INVALID | 1;

/// Why a guest could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// VMLAUNCH, VMRESUME, or what comes before them, failed.
    Instruction(VmFail),
    /// The CPU refused the guest's state.
    State(EntryFailure),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instruction(fail) => write!(f, "VM entry: {fail}"),
            Self::State(failure) => failure.fmt(f),
        }
    }
}

impl core::error::Error for EntryError {}

/// What a current VMCS can do on its CPU beside being read and written.
///
/// # Safety
/// [`OnCpu::invept`] and [`OnCpu::invvpid`] must have dropped, when they return without an error, what the CPU has cached under
/// their EPT pointer or VPID.
pub unsafe trait OnCpu: Vmcs {
    /// Enters the guest: see [`CurrentVmcs::enter`](super::cpu::CurrentVmcs::enter).
    ///
    /// # Safety
    /// As there.
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64;
    /// Why VMLAUNCH or VMRESUME did not happen, where `entered` says so.
    #[cold]
    fn entry_failure(&self, entered: u64) -> Option<VmFail> {
        match entered {
            FAILED_INVALID => Some(VmFail::Invalid),
            FAILED_VALID => Some(match self.read32(Field32::VmInstructionError) {
                Ok(number) => VmFail::from_number(number),
                Err(VmcsError { fail, .. }) => fail,
            }),
            _ => None,
        }
    }
    /// INVEPT of one EPT pointer, or of all where the CPU can only do that.
    ///
    /// # Errors
    /// What INVEPT says.
    fn invept(&mut self, eptp: u64) -> Result<(), VmFail>;
    /// INVVPID of one VPID, or of all where the CPU can only do that.
    ///
    /// # Errors
    /// What INVVPID says.
    ///
    /// # Safety
    /// The CPU has INVVPID.
    unsafe fn invvpid(&mut self, vpid: u16) -> Result<(), VmFail>;
    /// DR0 to DR3.
    fn breakpoint_addresses(&self) -> [u64; 4];
    /// Sets CR2.
    fn set_cr2(&mut self, address: u64);
    /// Changes DR6.
    fn update_dr6(&mut self, change: impl FnOnce(u64) -> u64);
    /// Sets one of [`SWITCHED_MSRS`](crate::virt::cpu::SWITCHED_MSRS).
    ///
    /// # Safety
    /// The CPU has it and accepts `value`.
    unsafe fn set_switched(&mut self, index: u32, value: u64);
    /// Sets XCR0.
    ///
    /// # Safety
    /// The CPU has XSAVE and accepts `value`.
    unsafe fn set_xcr0(&mut self, value: u64);
}

/// A processor whose VMCS is current.
#[derive(Debug)]
pub struct Loaded<'c, V> {
    /// The VMCS.
    pub vmcs: V,
    /// The VPID, on a CPU that has them, and INVVPID.
    pub vpid: Option<u16>,
    /// What the CPU can do.
    pub capabilities: &'c Capabilities,
    /// Where it can log pages.
    pub pml: Option<&'c Pml>,
    /// Whether the preemption timer goes on over an exit.
    pub timer_is_saved: bool,
}

// SAFETY: there is one processor, and the EPT pointer and the VPID are those of the guest that is loaded, whose VPID never changes.
unsafe impl<V: OnCpu> Invalidate for Loaded<'_, V> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        if self.vmcs.invept(eptp.as_u64()).is_err() {
            invept_failed();
        }
    }
    #[inline(always)]
    fn invvpid(&mut self, eptp: Eptp) {
        // Without a VPID each VM entry drops what is cached by linear addresses.
        if let Some(number) = self.vpid {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            if unsafe { self.vmcs.invvpid(number) }.is_err() {
                self.invept(eptp);
            }
        }
    }
}

impl<V: OnCpu> Processor for Loaded<'_, V> {
    type EntryError = EntryError;
    const REASONS: usize = ExitReason::COUNT_ON_VMX;

    fn get_ready(&mut self, eptp: Eptp, ticks: u64) -> Result<(), VmcsError> {
        self.set_timer(ticks)?;
        self.vmcs.write64(Field64::EptPointer, eptp.as_u64())
    }
    #[inline(always)]
    fn set_timer(&mut self, ticks: u64) -> Result<(), VmcsError> {
        let value = self.capabilities.misc.preemption_timer_value(ticks);
        self.vmcs.write32(Field32::PreemptionTimerValue, value)
    }
    #[inline(always)]
    fn timer_is_saved(&self) -> bool {
        self.timer_is_saved
    }
    #[inline(always)]
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64 {
        // SAFETY: the caller's; the EPT pointer is that of `right` since `get_ready`, and the host state in the VMCS is this CPU's.
        unsafe { self.vmcs.enter::<X87_SELECTORS>(right, area) }
    }
    #[cold]
    fn special_exit(&self, entered: u64) -> Result<SpecialExit<EntryError>, VmcsError> {
        if let Some(fail) = self.vmcs.entry_failure(entered) {
            return Ok(SpecialExit::EntryFailed(EntryError::Instruction(fail)));
        }
        Ok(match Exit::read(&self.vmcs)? {
            Exit::Left(reason) if ExitReasonField(entered as u32).is_reason_beside_bus_lock() => {
                SpecialExit::BusLock(reason)
            }
            Exit::Left(reason) => SpecialExit::Unexpected(reason),
            Exit::EntryFailed(failure) => match failure {
                EntryFailure::MachineCheck => SpecialExit::MachineCheck(EntryError::State(failure)),
                _ => SpecialExit::EntryFailed(EntryError::State(failure)),
            },
            Exit::Unknown(number) => SpecialExit::Unknown(number),
        })
    }
    fn flush_linear(&mut self) -> Result<(), EntryError> {
        match self.vpid {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            Some(vpid) => unsafe { self.vmcs.invvpid(vpid) }.map_err(EntryError::Instruction),
            None => Ok(()),
        }
    }
    fn can_log(&self) -> bool {
        self.pml.is_some()
    }
    fn begin_log(&mut self) -> Result<(), VmcsError> {
        match self.pml {
            Some(pml) => pml.load(&mut self.vmcs),
            None => Ok(()),
        }
    }
    fn drain_log<M: PhysMem, F: Nested>(
        &mut self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M, F>,
    ) -> Result<(), VmcsError> {
        match self.pml {
            Some(pml) => pml.drain(frames, space, &mut self.vmcs),
            None => Ok(()),
        }
    }
    fn summarize(&self, out: &mut impl fmt::Write) -> fmt::Result {
        summarize_vmcs(&self.vmcs, out)
    }
    fn dump(&self, out: &mut impl fmt::Write) -> fmt::Result {
        dump_vmcs(&self.vmcs, out)
    }
    fn report_failed_entry(&self, error: EntryError, out: &mut impl fmt::Write) -> fmt::Result {
        let group = match error {
            EntryError::Instruction(fail) => CheckGroup::of_instruction(fail),
            EntryError::State(failure) => CheckGroup::of_entry(failure),
        };
        report_failed_entry(group, &self.vmcs, self.capabilities, out)
    }
}

#[cold]
pub(super) fn invept_failed() {
    log::error!("INVEPT failed");
}
