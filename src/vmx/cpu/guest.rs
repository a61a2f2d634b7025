//! The VMCS of a guest: made, given a state, loaded, ended.

use core::fmt;

use super::CurrentVmcs;
use super::operation::{Operation, region};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::register_bits::CR4_VMXE;
use crate::virt::processor::RegisterMasks;
use crate::vmx::controls::{EntryControl, ExitControl, Secondary};
use crate::vmx::fields::{Field16, Field32, Field64, FieldNatural};
use crate::vmx::guest_state::GuestState;
use crate::vmx::instruction_error::VmFail;
use crate::vmx::loaded::Loaded;
use crate::vmx::start_state::{NO_LINK_POINTER, Start64};
use crate::vmx::vmcs::{Vmcs, VmcsError};
use crate::vmx::vpid::Vpid;

/// Exceptions that exit: #DB and #AC can be made to follow one another without end inside the CPU, where no timer
/// reaches; #MC is the host's.
const EXITING_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// How long an instruction may take before the CPU exits, in cycles of its crystal clock beside what the CPU adds: some tens of
/// milliseconds, more than any that ends.
const LONGEST_INSTRUCTION: u32 = 1 << 20;

/// Why a VMCS could not be made current, or accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestVmcsError {
    /// VMCLEAR, VMPTRLD or INVVPID failed.
    Instruction(VmFail),
    /// A field could not be accessed.
    Field(VmcsError),
}

impl fmt::Display for GuestVmcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instruction(error) => error.fmt(f),
            Self::Field(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GuestVmcsError {}

impl From<VmFail> for GuestVmcsError {
    fn from(error: VmFail) -> Self {
        Self::Instruction(error)
    }
}
impl From<VmcsError> for GuestVmcsError {
    fn from(error: VmcsError) -> Self {
        Self::Field(error)
    }
}

/// The VMCS of a guest. It ends by [`GuestVmcs::end`].
#[must_use = "a VMCS that is dropped without `end` leaks its frame"]
#[derive(Debug)]
pub struct GuestVmcs {
    frame: Frame,
    vpid: Vpid,
}

impl GuestVmcs {
    /// One without any state.
    ///
    /// # Errors
    /// No frame for it.
    #[inline(always)]
    pub fn new<M: PhysMem>(
        cpu: &mut Operation,
        frames: &FrameAllocator<M>,
    ) -> Result<Self, FrameError> {
        Ok(Self {
            frame: region(frames, &cpu.found.capabilities)?,
            vpid: cpu.next_vpid(),
        })
    }

    /// Writes all of it but the guest's state.
    #[inline(always)]
    fn set_up(
        &self,
        cpu: &mut Operation,
        eptp: u64,
        masks: &RegisterMasks,
    ) -> Result<CurrentVmcs, GuestVmcsError> {
        // SAFETY: the frame is this VMCS's own.
        unsafe { cpu.vmx.clear(self.frame.address())? };
        let mut vmcs = self.make_current(cpu)?;
        self.write_controls(cpu, &mut vmcs, eptp, masks)?;
        Ok(vmcs)
    }

    #[inline(always)]
    fn write_controls(
        &self,
        cpu: &Operation,
        vmcs: &mut impl Vmcs,
        eptp: u64,
        masks: &RegisterMasks,
    ) -> Result<(), VmcsError> {
        let mut controls = cpu.found.controls;
        controls.set(EntryControl::Ia32eModeGuest, true);
        controls.write(vmcs)?;
        cpu.host.write(vmcs)?;
        let bitmaps = &cpu.bitmaps;
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
        vmcs.write_natural(FieldNatural::Cr0GuestHostMask, masks.cr0)?;
        vmcs.write_natural(FieldNatural::Cr4GuestHostMask, masks.cr4)
    }

    /// Has the guest start in 64-bit mode at `start`, in the space behind `eptp`. `real_cr4` gives the CR4 that the CPU runs with
    /// for the one that the guest sees.
    ///
    /// # Errors
    /// The VMCS cannot be loaded or written.
    pub fn start_at(
        &self,
        cpu: &mut Operation,
        eptp: u64,
        masks: &RegisterMasks,
        start: &Start64,
        real_cr4: impl FnOnce(u64) -> u64,
    ) -> Result<(), GuestVmcsError> {
        let mut vmcs = self.set_up(cpu, eptp, masks)?;
        start.write(&cpu.found.capabilities, &mut vmcs)?;
        let cr0 = vmcs.read_natural(FieldNatural::GuestCr0)?;
        let cr4 = vmcs.read_natural(FieldNatural::GuestCr4)? & !CR4_VMXE;
        for (field, value) in [
            (FieldNatural::Cr0ReadShadow, cr0),
            (FieldNatural::Cr4ReadShadow, cr4),
            (FieldNatural::GuestCr4, real_cr4(cr4)),
        ] {
            vmcs.write_natural(field, value)?;
        }
        Ok(())
    }

    /// Has the guest begin with a state that was captured, in the space behind `eptp`, and with this offset of its time-stamp
    /// counter.
    ///
    /// # Errors
    /// The VMCS cannot be loaded or written.
    #[inline(always)]
    pub fn assume(
        &mut self,
        cpu: &mut Operation,
        eptp: u64,
        masks: &RegisterMasks,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), GuestVmcsError> {
        let mut vmcs = self.set_up(cpu, eptp, masks)?;
        state.write(&mut vmcs)?;
        self.vpid.outdate();
        Ok(vmcs.write64(Field64::TscOffset, tsc_offset())?)
    }

    /// Brings the guest back to a state of the template that it was made of.
    ///
    /// # Errors
    /// The VMCS cannot be loaded or written.
    #[inline]
    pub fn restore(
        &mut self,
        cpu: &mut Operation,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), GuestVmcsError> {
        let mut vmcs = self.make_current(cpu)?;
        state.rewrite(&mut vmcs)?;
        // Its page tables may hold other bytes than those that the CPU has cached translations of.
        self.vpid.outdate();
        // The last access is looked at, whatever those before were.
        Ok(vmcs.write64(Field64::TscOffset, tsc_offset())?)
    }

    /// Takes the guest's state, and the offset of its time-stamp counter.
    ///
    /// # Errors
    /// The VMCS cannot be loaded or read.
    pub fn capture(&self, cpu: &mut Operation) -> Result<(GuestState, u64), GuestVmcsError> {
        let vmcs = self.make_current(cpu)?;
        let offset = vmcs.read64(Field64::TscOffset)?;
        Ok((GuestState::capture(&vmcs)?, offset))
    }

    /// Has INT3 exit, and every exception where there is no interrupt-descriptor table: its base is still what it was at
    /// the start, 0, where nothing is mapped.
    ///
    /// # Errors
    /// The VMCS cannot be loaded or accessed.
    pub fn exit_on_breakpoints(&self, cpu: &mut Operation) -> Result<(), GuestVmcsError> {
        let mut vmcs = self.make_current(cpu)?;
        let bitmap = match vmcs.read_natural(FieldNatural::GuestIdtrBase)? {
            0 => u32::MAX,
            _ => EXITING_EXCEPTIONS | 1 << 3,
        };
        // Every page fault, whatever its error code.
        vmcs.write32(Field32::PageFaultErrorCodeMask, 0)?;
        vmcs.write32(Field32::PageFaultErrorCodeMatch, 0)?;
        Ok(vmcs.write32(Field32::ExceptionBitmap, bitmap)?)
    }

    /// Makes the VMCS current.
    ///
    /// # Errors
    /// What VMPTRLD says.
    pub fn make_current(&self, cpu: &mut Operation) -> Result<CurrentVmcs, VmFail> {
        // SAFETY: the VMCS was cleared when it was made, and one is used at a time.
        unsafe { cpu.vmx.make_current(self.frame.address()) }
    }

    /// Loads the guest's processor into the CPU, but what entries and exits do not switch. What the CPU has cached of another
    /// guest, or of an earlier state of this one, is dropped.
    ///
    /// # Errors
    /// The VMCS cannot be loaded.
    #[inline]
    pub fn load<'c>(
        &mut self,
        cpu: &'c mut Operation,
    ) -> Result<Loaded<'c, CurrentVmcs>, GuestVmcsError> {
        let vmcs = self.make_current(cpu)?;
        // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
        let invvpid = |vpid| unsafe { cpu.vmx.invvpid(vpid) };
        self.vpid.make_ready(invvpid)?;
        Ok(Loaded {
            vmcs,
            vpid: self.vpid.number(),
            capabilities: &cpu.found.capabilities,
            pml: cpu.bitmaps.pml.as_ref(),
            timer_is_saved: cpu.found.controls.has(ExitControl::SavePreemptionTimer),
        })
    }

    /// Gives its frame back.
    ///
    /// # Errors
    /// What VMCLEAR says.
    pub fn end<M: PhysMem>(
        self,
        cpu: &mut Operation,
        frames: &FrameAllocator<M>,
    ) -> Result<(), VmFail> {
        // SAFETY: the VMCS is this one's own; after this the CPU has nothing cached of it.
        let cleared = unsafe { cpu.vmx.clear(self.frame.address()) };
        frames.release(self.frame);
        cleared
    }
}
