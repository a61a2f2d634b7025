//! A guest's processor: what the CPU holds of it, and what it does not.

use super::backend::{ControlError, GuestControl, Start64};
use super::clock::now;
use super::loader::Start;
use super::machine::Machine;
use super::outcome::Outcome;
use super::vcpu_state::VcpuState;
use crate::addr::Gva;
use crate::counting::{Counted, add};
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
}

impl core::fmt::Display for VcpuError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frames(error) => error.fmt(f),
            Self::Control(error) => error.fmt(f),
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

impl From<VcpuError> for Outcome {
    fn from(error: VcpuError) -> Self {
        match error {
            VcpuError::Control(error) => error.into(),
            VcpuError::Frames(_) => Self::Unsupported("no frame for its processor"),
        }
    }
}

/// A virtual processor. It ends by [`Vcpu::end`].
#[must_use = "a processor that is dropped without `end` leaks its frames"]
#[derive(Debug)]
pub struct Vcpu {
    pub(super) control: GuestControl,
    area: Frame,
    /// What stays in the CPU while the guest runs; here while it does not.
    pub(super) resident: Resident,
    /// CR8, which has no effect: no interrupt of ours has a priority.
    pub(super) cr8: u8,
}

impl Vcpu {
    /// A processor that starts in 64-bit mode at `start`, in the guest-physical space behind `eptp`.
    pub fn create<M: PhysMem>(
        machine: &mut Machine<'_, M>,
        eptp: u64,
        start: &Start,
    ) -> Result<Self, VcpuError> {
        let this = Self::new(machine)?;
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
        match this
            .control
            .start_at(cpu, eptp, &limits.masks(), &at, real_cr4)
        {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error.into())
            }
        }
    }

    /// A processor with the state of a frozen one, in the guest-physical space behind `eptp`.
    pub(super) fn fork<M: PhysMem>(
        machine: &mut Machine<'_, M>,
        eptp: u64,
        state: &VcpuState,
    ) -> Result<Self, VcpuError> {
        let mut this = Self::new(machine)?;
        add(Counted::Bytes, size_of::<EntryArea>() as u64);
        // SAFETY: the frame is fresh, larger than the area and aligned to a page.
        unsafe { this.area_ptr(machine.frames).write(EntryArea::new()) };
        this.restore_area(machine.frames, state);
        let masks = machine.limits.masks();
        let offset = || state.tsc.wrapping_sub(now());
        let cpu = &mut machine.cpu;
        match this
            .control
            .assume(cpu, eptp, &masks, &state.fields, offset)
        {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error.into())
            }
        }
    }

    /// A processor without any state. The entry area has to be filled before it is used.
    #[inline(always)]
    fn new<M: PhysMem>(machine: &mut Machine<'_, M>) -> Result<Self, VcpuError> {
        let control = GuestControl::new(&mut machine.cpu, machine.frames)?;
        let area = match machine.frames.alloc() {
            Ok(area) => area,
            Err(error) => {
                end_control(control, machine);
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
        machine: &mut Machine<'_, M>,
    ) -> Result<VcpuState, VcpuError> {
        let (fields, offset) = self.control.capture(&mut machine.cpu)?;
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
        machine: &mut Machine<'_, M>,
        state: &VcpuState,
    ) -> Result<(), VcpuError> {
        self.restore_area(machine.frames, state);
        let offset = || state.tsc.wrapping_sub(now());
        Ok(self
            .control
            .restore(&mut machine.cpu, &state.fields, offset)?)
    }

    /// What the CPU does not hold of the state.
    #[inline(always)]
    fn restore_area<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, state: &VcpuState) {
        let of_state: *const EntryArea = frames.mem().ptr(state.area).cast();
        // SAFETY: both areas were filled when they were made and are in frames of their own; neither guest runs.
        unsafe { (*self.area_ptr(frames)).restore(&*of_state) };
        self.resident = state.resident;
        self.cr8 = state.cr8;
    }

    /// Gives back what the CPU holds; what is left is the frame of the entry area.
    pub(super) fn into_area<M: PhysMem>(self, machine: &mut Machine<'_, M>) -> Frame {
        end_control(self.control, machine);
        self.area
    }

    /// Where the guest is.
    pub(super) fn rip<M: PhysMem>(
        &mut self,
        machine: &mut Machine<'_, M>,
    ) -> Result<Gva, VcpuError> {
        let processor = self.control.load(&mut machine.cpu)?;
        Ok(processor.rip().map_err(ControlError::from)?)
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
    pub fn end<M: PhysMem>(self, machine: &mut Machine<'_, M>) {
        let area = self.into_area(machine);
        machine.frames.release(area);
    }
}

fn end_control<M: PhysMem>(control: GuestControl, machine: &mut Machine<'_, M>) {
    if let Err(fail) = control.end(&mut machine.cpu, machine.frames) {
        log::error!("VMCLEAR of a VMCS that ends: {fail}");
    }
}
