//! A guest's processor: its VMCS and what the VMCS does not hold.

use super::clock::now;
use super::loader::Start;
use super::machine::Machine;
use super::vcpu_state::VcpuState;
use crate::counting::{Counted, add};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::register_bits::CR4_VMXE;
use crate::virt::Gpr;
use crate::virt::cpu::{EntryArea, Resident};
use crate::vmx::controls::{EntryControl, Secondary};
use crate::vmx::cpu::CurrentVmcs;
use crate::vmx::start_state::{NO_LINK_POINTER, Start64};
use crate::vmx::vpid::Vpid;
use crate::vmx::{Field16, Field32, Field64, FieldNatural, GuestState, VmFail, Vmcs, VmcsError};

/// Exceptions that exit: #DB and #AC can be made to follow one another without end inside the CPU, where no timer
/// reaches; #MC is the host's.
const EXITING_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// How long an instruction may take before the CPU exits, in cycles of its crystal clock beside what the CPU adds: some tens of
/// milliseconds, more than any that ends.
const LONGEST_INSTRUCTION: u32 = 1 << 20;

/// Why a processor could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuError {
    /// No frame for it.
    Frames(FrameError),
    /// VMCLEAR or VMPTRLD failed.
    Vmx(VmFail),
    /// A field could not be written.
    Field(VmcsError),
}

impl core::fmt::Display for VcpuError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frames(error) => error.fmt(f),
            Self::Vmx(error) => error.fmt(f),
            Self::Field(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for VcpuError {}

impl From<FrameError> for VcpuError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}
impl From<VmFail> for VcpuError {
    fn from(error: VmFail) -> Self {
        Self::Vmx(error)
    }
}
impl From<VmcsError> for VcpuError {
    fn from(error: VmcsError) -> Self {
        Self::Field(error)
    }
}

/// A virtual processor. It ends by [`Vcpu::end`].
#[must_use = "a processor that is dropped without `end` leaks its frames"]
#[derive(Debug)]
pub struct Vcpu {
    vmcs: Frame,
    area: Frame,
    /// What stays in the CPU while the guest runs; here while it does not.
    pub(super) resident: Resident,
    pub(super) vpid: Vpid,
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
        match this.set_up(machine, eptp, start) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error)
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
        let done = this
            .set_up_controls(machine, eptp)
            .and_then(|mut vmcs| this.assume(machine, &mut vmcs, state));
        match done {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error)
            }
        }
    }

    /// A processor without any state. The entry area has to be filled before it is used.
    fn new<M: PhysMem>(machine: &mut Machine<'_, M>) -> Result<Self, VcpuError> {
        let vmcs = machine.vmcs_region()?;
        let area = match machine.frames.alloc() {
            Ok(area) => area,
            Err(error) => {
                machine.frames.release(vmcs);
                return Err(error.into());
            }
        };
        let vpid = if machine.controls.has(Secondary::EnableVpid) {
            machine.vpids.take()
        } else {
            Vpid::NONE
        };
        Ok(Self {
            vmcs,
            area,
            resident: Resident::RESET,
            vpid,
            cr8: 0,
        })
    }

    /// Writes all of the VMCS but the guest's state.
    fn set_up_controls<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M>,
        eptp: u64,
    ) -> Result<CurrentVmcs, VcpuError> {
        let region = self.vmcs.address();
        // SAFETY: the frame is this VMCS's own.
        unsafe { machine.vmx.clear(region)? };
        let mut vmcs = self.make_current(machine)?;
        self.write_controls(machine, &mut vmcs, eptp)?;
        Ok(vmcs)
    }

    #[inline]
    fn write_controls<M: PhysMem>(
        &self,
        machine: &Machine<'_, M>,
        vmcs: &mut impl Vmcs,
        eptp: u64,
    ) -> Result<(), VcpuError> {
        let mut controls = machine.controls;
        controls.set(EntryControl::Ia32eModeGuest, true);
        controls.write(vmcs)?;
        machine.host.write(vmcs)?;
        let bitmaps = &machine.bitmaps;
        for (field, value) in [
            (Field64::IoBitmapA, bitmaps.io[0].address().as_u64()),
            (Field64::IoBitmapB, bitmaps.io[1].address().as_u64()),
            (Field64::MsrBitmaps, bitmaps.msr.address().as_u64()),
            (Field64::EptPointer, eptp),
            (Field64::TscOffset, 0),
            (Field64::VmcsLinkPointer, NO_LINK_POINTER),
        ] {
            vmcs.write64(field, value)?;
        }
        vmcs.write32(Field32::ExceptionBitmap, EXITING_EXCEPTIONS)?;
        if controls.has(Secondary::InstructionTimeout) {
            vmcs.write32(Field32::InstructionTimeoutControl, LONGEST_INSTRUCTION)?;
        }
        if let Some(vpid) = self.vpid.number() {
            vmcs.write16(Field16::Vpid, vpid)?;
        }
        let limits = &machine.limits;
        vmcs.write_natural(FieldNatural::Cr0GuestHostMask, limits.cr0_mask())?;
        vmcs.write_natural(FieldNatural::Cr4GuestHostMask, limits.cr4_mask())?;
        Ok(())
    }

    fn set_up<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M>,
        eptp: u64,
        start: &Start,
    ) -> Result<(), VcpuError> {
        let mut vmcs = self.set_up_controls(machine, eptp)?;
        let at = Start64 {
            rip: start.rip.as_u64(),
            rsp: start.rsp.as_u64(),
            cr3: start.cr3.as_u64(),
        };
        at.write(&machine.capabilities, &mut vmcs)?;
        let limits = &machine.limits;
        let cr0 = vmcs.read_natural(FieldNatural::GuestCr0)?;
        let cr4 = vmcs.read_natural(FieldNatural::GuestCr4)? & !CR4_VMXE;
        for (field, value) in [
            (FieldNatural::Cr0ReadShadow, cr0),
            (FieldNatural::Cr4ReadShadow, cr4),
            (FieldNatural::GuestCr4, limits.real_cr4(cr4)),
        ] {
            vmcs.write_natural(field, value)?;
        }
        Ok(())
    }

    /// Has INT3 exit, and every exception where there is no interrupt-descriptor table: its base is still what it was at
    /// the start, 0, where nothing is mapped.
    pub(super) fn exit_on_breakpoints<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M>,
    ) -> Result<(), VcpuError> {
        let mut vmcs = self.make_current(machine)?;
        let bitmap = match vmcs.read_natural(FieldNatural::GuestIdtrBase)? {
            0 => u32::MAX,
            _ => EXITING_EXCEPTIONS | 1 << 3,
        };
        // Every page fault, whatever its error code.
        vmcs.write32(Field32::PageFaultErrorCodeMask, 0)?;
        vmcs.write32(Field32::PageFaultErrorCodeMatch, 0)?;
        Ok(vmcs.write32(Field32::ExceptionBitmap, bitmap)?)
    }

    /// Takes this processor's state, as it is while the guest does not run.
    pub(super) fn capture<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M>,
    ) -> Result<VcpuState, VcpuError> {
        let vmcs = self.make_current(machine)?;
        let offset = vmcs.read64(Field64::TscOffset)?;
        let fields = GuestState::capture(&vmcs)?;
        Ok(VcpuState {
            area: self.area.address(),
            fields,
            resident: self.resident,
            cr8: self.cr8,
            tsc: now().wrapping_add(offset),
        })
    }

    /// Gives this processor the state, the time included. The VMCS is its own, and current.
    fn assume<M: PhysMem>(
        &mut self,
        machine: &Machine<'_, M>,
        vmcs: &mut impl Vmcs,
        state: &VcpuState,
    ) -> Result<(), VcpuError> {
        state.fields.write(vmcs)?;
        self.restore_rest(machine, vmcs, state)
    }

    /// As [`Vcpu::assume`], of a processor that was made with a state of this template.
    #[inline]
    pub(super) fn restore<M: PhysMem>(
        &mut self,
        machine: &Machine<'_, M>,
        vmcs: &mut impl Vmcs,
        state: &VcpuState,
    ) -> Result<(), VcpuError> {
        state.fields.rewrite(vmcs)?;
        self.restore_rest(machine, vmcs, state)
    }

    #[inline(always)]
    fn restore_rest<M: PhysMem>(
        &mut self,
        machine: &Machine<'_, M>,
        vmcs: &mut impl Vmcs,
        state: &VcpuState,
    ) -> Result<(), VcpuError> {
        let of_state: *const EntryArea = machine.frames.mem().ptr(state.area).cast();
        // SAFETY: both areas were filled when they were made and are in frames of their own; neither guest runs.
        unsafe { (*self.area_ptr(machine.frames)).restore(&*of_state) };
        self.resident = state.resident;
        self.cr8 = state.cr8;
        // Its page tables may hold other bytes than those that the CPU has cached translations of.
        self.vpid.outdate();
        // The last access is looked at, whatever those before were.
        Ok(vmcs.write64(Field64::TscOffset, state.tsc.wrapping_sub(now()))?)
    }

    /// Gives the VMCS back; what is left is the frame of the entry area.
    pub(super) fn into_area<M: PhysMem>(self, machine: &mut Machine<'_, M>) -> Frame {
        // SAFETY: the VMCS is this one's own; after this the CPU has nothing cached of it.
        if let Err(fail) = unsafe { machine.vmx.clear(self.vmcs.address()) } {
            log::error!("VMCLEAR of a VMCS that ends: {fail}");
        }
        machine.frames.release(self.vmcs);
        self.area
    }

    /// The entry area, while the guest does not run.
    pub(super) fn area<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> &mut EntryArea {
        // SAFETY: the frame is this processor's own and was filled when it was made; it is borrowed with it.
        unsafe { &mut *self.area_ptr(frames) }
    }

    /// Makes this processor's VMCS current.
    pub(super) fn make_current<M: PhysMem>(
        &self,
        machine: &mut Machine<'_, M>,
    ) -> Result<CurrentVmcs, VmFail> {
        // SAFETY: the VMCS was cleared when it was made, and the run loop uses one at a time.
        unsafe { machine.vmx.make_current(self.vmcs.address()) }
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
