//! Whose processors guests run on. Both makers' are in the one image: whoever starts a [`Machine`](super::Machine) chooses.

mod on_svm;
mod on_vmx;

pub use on_svm::OnSvm;
pub use on_vmx::OnVmx;

use core::fmt;

use super::cpuid::{Enabled, Features};
use crate::ept::{Capability, Eptp, Invalidate};
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::svm;
use crate::svm::loaded::{Refused, UnknownInstruction};
use crate::virt::Processor;
use crate::virt::control_registers::FixedBits;
use crate::virt::cpu::{Guard, ResidentFeatures};
use crate::virt::processor::RegisterMasks;
use crate::vmx::VmcsError;
use crate::vmx::cpu::{self, GuestVmcsError};
use crate::vmx::loaded;

/// Where a guest begins.
pub(super) type Start64 = crate::vmx::Start64;
/// Why what a CPU holds of a guest could not be loaded or accessed.
pub type ControlError = GuestVmcsError;

/// What a CPU that runs guests can do, as far as the policy on guests depends on it.
#[derive(Clone, Copy, Debug)]
pub struct CpuFacts<C> {
    /// What of it guests may use.
    pub enabled: Enabled,
    /// What it fixes in CR0 and CR4 while guests run.
    pub fixed: RegisterFixes,
    /// What its second-level tables can do.
    pub tables: C,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// Whether it can log the pages that it marks dirty.
    pub logs: bool,
}

/// The bits of CR0 and CR4 that are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterFixes {
    /// Of CR0.
    pub cr0: FixedBits,
    /// Of CR4.
    pub cr4: FixedBits,
}

/// Why a CPU cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStartError {
    /// With VMX.
    Vmx(cpu::StartError),
    /// With SVM.
    Svm(svm::cpu::StartError),
}

impl fmt::Display for CpuStartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CpuStartError {}

/// A way in which CPUs run guests. There are two, [`OnVmx`] and [`OnSvm`]; what is done at entries and exits is the processor's,
/// [`Backend::Loaded`].
pub trait Backend: Copy + fmt::Debug + 'static {
    /// What its second-level tables can do.
    type Tables: Capability + Copy;
    /// What it needs of the kernel.
    type Platform;
    /// What a CPU has, and what of it is used.
    type Found;
    /// A CPU that runs guests.
    type Operation: Invalidate;
    /// What a CPU holds of a guest.
    type Control: fmt::Debug;
    /// The state in it.
    type State: Clone + fmt::Debug;
    /// A guest's processor that is loaded.
    type Loaded<'c>: Cpu;

    /// Asks the CPU that executes this.
    ///
    /// # Errors
    /// It does not run guests in this way.
    fn find() -> Result<Self::Found, CpuStartError>;
    /// What was found.
    fn facts(found: &Self::Found) -> CpuFacts<Self::Tables>;
    /// The same with no large page executable: for a CPU on which a fetch from one can end in a machine check.
    fn deny_large_execution(tables: Self::Tables) -> Self::Tables;
    /// Makes the registers of this CPU fit.
    ///
    /// # Errors
    /// They cannot be.
    ///
    /// # Safety
    /// In the kernel, at CPL 0, on the CPU that was asked; nothing else uses the register bits concerned.
    unsafe fn prepare(found: &Self::Found) -> Result<ResidentFeatures, CpuStartError>;
    /// Has the CPU run guests that have `features`.
    ///
    /// # Errors
    /// The CPU does not, or there is no frame.
    ///
    /// # Safety
    /// In the kernel, at CPL 0, with interrupts off, on tables and with segments that stay as they are, after
    /// [`Backend::prepare`] on this CPU, which has returned `resident` and which has what `guard` asks for.
    unsafe fn start<M: PhysMem>(
        frames: &FrameAllocator<M>,
        found: Self::Found,
        resident: ResidentFeatures,
        guard: &Guard,
        features: &Features,
        platform: Self::Platform,
    ) -> Result<Self::Operation, CpuStartError>;
    /// Has it run no more, and gives every frame back.
    fn stop<M: PhysMem>(operation: Self::Operation, frames: &FrameAllocator<M>);
    /// How many frames it holds.
    fn frames_held(operation: &Self::Operation) -> u64;

    /// What it holds of another guest, without any state.
    ///
    /// # Errors
    /// No frame for it.
    fn control<M: PhysMem>(
        operation: &mut Self::Operation,
        frames: &FrameAllocator<M>,
    ) -> Result<Self::Control, FrameError>;
    /// Has the guest start in 64-bit mode at `start`, in the space behind `eptp`. `real_cr4` gives the CR4 that the CPU runs with
    /// for the one that the guest sees.
    ///
    /// # Errors
    /// What is held of it cannot be loaded or written.
    fn start_at(
        control: &mut Self::Control,
        operation: &mut Self::Operation,
        eptp: Eptp,
        masks: &RegisterMasks,
        start: &Start64,
        real_cr4: impl FnOnce(u64) -> u64,
    ) -> Result<(), ControlError>;
    /// Has the guest begin with a state that was captured, in the space behind `eptp`, and with this offset of its time-stamp
    /// counter.
    ///
    /// # Errors
    /// As of [`Backend::start_at`].
    fn assume(
        control: &mut Self::Control,
        operation: &mut Self::Operation,
        eptp: Eptp,
        masks: &RegisterMasks,
        state: &Self::State,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError>;
    /// Brings the guest back to a state of the template that it was made of.
    ///
    /// # Errors
    /// As of [`Backend::start_at`].
    fn restore(
        control: &mut Self::Control,
        operation: &mut Self::Operation,
        state: &Self::State,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError>;
    /// Takes the guest's state, and the offset of its time-stamp counter.
    ///
    /// # Errors
    /// As of [`Backend::start_at`].
    fn capture(
        control: &Self::Control,
        operation: &mut Self::Operation,
    ) -> Result<(Self::State, u64), ControlError>;
    /// The parts of a state, each with its name.
    fn named(state: &Self::State) -> impl Iterator<Item = (&'static str, u64)>;
    /// Whether an event is to be injected with it.
    fn has_event(state: &Self::State) -> bool;
    /// Has INT3 exit, and every exception where there is no interrupt-descriptor table.
    ///
    /// # Errors
    /// As of [`Backend::start_at`].
    fn exit_on_breakpoints(
        control: &mut Self::Control,
        operation: &mut Self::Operation,
    ) -> Result<(), ControlError>;
    /// Loads the guest's processor into the CPU, but what entries and exits do not switch.
    ///
    /// # Errors
    /// As of [`Backend::start_at`].
    fn load<'c>(
        control: &'c mut Self::Control,
        operation: &'c mut Self::Operation,
    ) -> Result<Self::Loaded<'c>, ControlError>;
    /// Gives back the frame of what is held of a guest.
    fn end<M: PhysMem>(
        control: Self::Control,
        operation: &mut Self::Operation,
        frames: &FrameAllocator<M>,
    );
}

/// The format of the second-level tables of guests that run in a way.
pub type TablesOf<B> = <<B as Backend>::Tables as Capability>::Format;

/// A part of a guest's state could not be read or written: our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// In a VMCS.
    Vmcs(VmcsError),
    /// With SVM.
    Svm(UnknownInstruction),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmcs(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StateError {}

impl From<VmcsError> for StateError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

impl From<UnknownInstruction> for StateError {
    fn from(error: UnknownInstruction) -> Self {
        Self::Svm(error)
    }
}

/// A guest could not be entered: our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// With VMX.
    Vmx(loaded::EntryError),
    /// With SVM.
    Svm(Refused),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for EntryError {}

impl From<loaded::EntryError> for EntryError {
    fn from(error: loaded::EntryError) -> Self {
        Self::Vmx(error)
    }
}

impl From<Refused> for EntryError {
    fn from(error: Refused) -> Self {
        Self::Svm(error)
    }
}

/// A processor of which what fails can be said in these words.
pub trait Cpu: Processor<Error: Into<StateError>, EntryError: Into<EntryError>> {
    /// What an error of its own says. `None`: it is another's.
    fn own(error: EntryError) -> Option<Self::EntryError>;
}

impl<V: loaded::OnCpu> Cpu for loaded::Loaded<'_, V> {
    fn own(error: EntryError) -> Option<loaded::EntryError> {
        match error {
            EntryError::Vmx(error) => Some(error),
            EntryError::Svm(_) => None,
        }
    }
}

impl<C: svm::loaded::OnCpu> Cpu for svm::loaded::Loaded<'_, C> {
    fn own(error: EntryError) -> Option<Refused> {
        match error {
            EntryError::Svm(error) => Some(error),
            EntryError::Vmx(_) => None,
        }
    }
}
