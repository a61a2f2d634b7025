//! A guest's processor: what the CPU holds of it, and what it does not.

use super::backend::{Backend, ControlError, OnVmx, Start64, StateError};
use super::clock::now;
use super::loader::Start;
use super::machine::Machine;
use super::outcome::Outcome;
use super::vcpu_state::VcpuState;
use crate::addr::Gva;
use crate::counting::{Counted, add};
use crate::ept::Eptp;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::virt::Gpr;
use crate::virt::cpu::{EntryArea, Resident};
use crate::virt::processor::Registers;

/// Why a processor could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuError {
    /// No frame for it.
    Frames(FrameError),
    /// What the CPU holds of it could not be loaded or accessed.
    Control(ControlError),
    /// Its state could not be read.
    State(StateError),
}

impl core::fmt::Display for VcpuError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frames(error) => error.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for VcpuError {}

impl From<FrameError> for VcpuError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}
impl From<ControlError> for VcpuError {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl From<ControlError> for Outcome {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Field(error) => Self::State(error.into()),
            ControlError::Instruction(fail) => {
                Self::Entry(crate::vmx::loaded::EntryError::Instruction(fail).into())
            }
        }
    }
}

impl From<VcpuError> for Outcome {
    fn from(error: VcpuError) -> Self {
        match error {
            VcpuError::Control(error) => error.into(),
            VcpuError::State(error) => Self::State(error),
            VcpuError::Frames(_) => Self::Unsupported("no frame for its processor"),
        }
    }
}

/// A virtual processor. It ends by [`Vcpu::end`].
#[must_use = "a processor that is dropped without `end` leaks its frames"]
#[derive(Debug)]
pub struct Vcpu<B: Backend = OnVmx> {
    pub(super) control: B::Control,
    area: Frame,
    /// What stays in the CPU while the guest runs; here while it does not.
    pub(super) resident: Resident,
    /// CR8, which has no effect: no interrupt of ours has a priority.
    pub(super) cr8: u8,
}

impl<B: Backend> Vcpu<B> {
    /// A processor that starts in 64-bit mode at `start`, in the guest-physical space behind `eptp`.
    pub fn create<M: PhysMem>(
        machine: &mut Machine<'_, M, B>,
        eptp: Eptp,
        start: &Start,
    ) -> Result<Self, VcpuError> {
        let mut this = Self::new(machine)?;
        let mut area = EntryArea::new();
        area.regs.set(Gpr::Rdi, start.rdi.as_u64());
        // SAFETY: the frame is fresh, larger than the area and aligned to a page.
        unsafe { this.area_ptr(machine.frames).write(area) };
        let at = Start64 {
            rip: start.rip.as_u64(),
            rsp: start.rsp.as_u64(),
            cr3: start.cr3.as_u64(),
        };
        let limits = &machine.limits;
        let real_cr4 = |visible| limits.real_cr4(visible);
        let cpu = &mut machine.cpu;
        let control = &mut this.control;
        match B::start_at(control, cpu, eptp, &limits.masks(), &at, real_cr4) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error.into())
            }
        }
    }

    /// A processor with the state of a frozen one, in the guest-physical space behind `eptp`.
    pub(super) fn fork<M: PhysMem>(
        machine: &mut Machine<'_, M, B>,
        eptp: Eptp,
        state: &VcpuState<B>,
    ) -> Result<Self, VcpuError> {
        let mut this = Self::new(machine)?;
        add(Counted::Bytes, size_of::<EntryArea>() as u64);
        // SAFETY: the frame is fresh, larger than the area and aligned to a page.
        unsafe { this.area_ptr(machine.frames).write(EntryArea::new()) };
        this.restore_area(machine.frames, state);
        let masks = machine.limits.masks();
        let offset = || state.tsc.wrapping_sub(now());
        let cpu = &mut machine.cpu;
        match B::assume(&mut this.control, cpu, eptp, &masks, &state.fields, offset) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error.into())
            }
        }
    }

    /// A processor without any state. The entry area has to be filled before it is used.
    #[inline(always)]
    fn new<M: PhysMem>(machine: &mut Machine<'_, M, B>) -> Result<Self, VcpuError> {
        let control = B::control(&mut machine.cpu, machine.frames)?;
        let area = match machine.frames.alloc() {
            Ok(area) => area,
            Err(error) => {
                B::end(control, &mut machine.cpu, machine.frames);
                return Err(error.into());
            }
        };
        Ok(Self {
            control,
            area,
            resident: Resident::RESET,
            cr8: 0,
        })
    }

    /// Takes this processor's state, as it is while the guest does not run.
    pub(super) fn capture<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M, B>,
    ) -> Result<VcpuState<B>, VcpuError> {
        let (fields, offset) = B::capture(&self.control, &mut machine.cpu)?;
        Ok(VcpuState {
            area: self.area.address(),
            fields,
            resident: self.resident,
            cr8: self.cr8,
            tsc: now().wrapping_add(offset),
        })
    }

    /// Gives this processor, which was made with a state of this template, the state, the time included.
    #[inline]
    pub(super) fn restore<M: PhysMem>(
        &mut self,
        machine: &mut Machine<'_, M, B>,
        state: &VcpuState<B>,
    ) -> Result<(), VcpuError> {
        self.restore_area(machine.frames, state);
        let offset = || state.tsc.wrapping_sub(now());
        let (control, cpu) = (&mut self.control, &mut machine.cpu);
        Ok(B::restore(control, cpu, &state.fields, offset)?)
    }

    /// What the CPU does not hold of the state.
    #[inline(always)]
    fn restore_area<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, state: &VcpuState<B>) {
        let of_state: *const EntryArea = frames.mem().ptr(state.area).cast();
        // SAFETY: both areas were filled when they were made and are in frames of their own; neither guest runs.
        unsafe { (*self.area_ptr(frames)).restore(&*of_state) };
        self.resident = state.resident;
        self.cr8 = state.cr8;
    }

    /// Gives back what the CPU holds; what is left is the frame of the entry area.
    pub(super) fn into_area<M: PhysMem>(self, machine: &mut Machine<'_, M, B>) -> Frame {
        B::end(self.control, &mut machine.cpu, machine.frames);
        self.area
    }

    /// Where the guest is.
    pub(super) fn rip<M: PhysMem>(
        &mut self,
        machine: &mut Machine<'_, M, B>,
    ) -> Result<Gva, VcpuError> {
        let processor = B::load(&mut self.control, &mut machine.cpu)?;
        processor
            .rip()
            .map_err(|error| VcpuError::State(error.into()))
    }

    /// The entry area, while the guest does not run.
    pub(super) fn area<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> &mut EntryArea {
        // SAFETY: the frame is this processor's own and was filled when it was made; it is borrowed with it.
        unsafe { &mut *self.area_ptr(frames) }
    }

    /// Where the entry area is.
    pub(super) fn area_ptr<M: PhysMem>(&self, frames: &FrameAllocator<M>) -> *mut EntryArea {
        const { assert!(size_of::<EntryArea>() <= 4096) };
        frames.mem().ptr(self.area.address()).cast()
    }

    /// Gives its frames back.
    pub fn end<M: PhysMem>(self, machine: &mut Machine<'_, M, B>) {
        let area = self.into_area(machine);
        machine.frames.release(area);
    }
}
