//! A guest's processor: its VMCS and what the VMCS does not hold.

use super::loader::Start;
use super::machine::{Machine, give_back};
use crate::addr::Hpa;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::vmx::controls::{Entry, Secondary};
use crate::vmx::cpu::{CurrentVmcs, EntryArea, Resident, exit_point};
use crate::vmx::{Field16, Field32, Field64, FieldNatural, Gpr, Vmcs, VmFail, VmcsError};

/// Exceptions that exit: #DB and #AC can be made to follow one another without end inside the CPU, where no timer
/// reaches; #MC is the host's.
const EXITING_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// CR0 of a 64-bit guest at its start: PG, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8001_0033;
/// CR4 of a 64-bit guest at its start: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// EFER of a 64-bit guest at its start: NXE, LMA, LME.
const EFER: u64 = 0xd00;
/// IA32_PAT after reset.
const PAT: u64 = 0x0007_0406_0007_0406;

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
    pub(super) launched: bool,
    pub(super) vpid: u16,
}

impl Vcpu {
    /// A processor that starts in 64-bit mode at `start`, in the guest-physical space behind `eptp`.
    pub fn create<M: PhysMem>(
        machine: &mut Machine<'_, M>,
        eptp: u64,
        start: &Start,
    ) -> Result<Self, VcpuError> {
        let vmcs = machine.vmcs_region()?;
        let area = match machine.frames.alloc_zeroed() {
            Ok(area) => area,
            Err(error) => {
                give_back(machine.frames, vmcs);
                return Err(error.into());
            }
        };
        let vpid = if machine.controls.has(Secondary::EnableVpid) { machine.next_vpid() } else { 0 };
        let mut this = Self { vmcs, area, resident: Resident::RESET, launched: false, vpid };
        let mut regs_area = EntryArea::new();
        regs_area.regs.set(Gpr::Rdi, start.rdi.as_u64());
        // SAFETY: the frame is fresh, larger than the area and aligned to a page.
        unsafe { this.area_ptr(machine.frames).write(regs_area) };
        match this.set_up(machine, eptp, start) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.end(machine);
                Err(error)
            }
        }
    }

    fn set_up<M: PhysMem>(
        &mut self,
        machine: &mut Machine<'_, M>,
        eptp: u64,
        start: &Start,
    ) -> Result<(), VcpuError> {
        let region = self.vmcs.address();
        // SAFETY: the frame is this VMCS's own.
        unsafe { machine.vmx.clear(region)? };
        let mut vmcs = self.make_current(machine)?;
        let mut controls = machine.controls;
        controls.set(Entry::Ia32eModeGuest, true);
        controls.write(&mut vmcs)?;
        machine.host.write(&mut vmcs, exit_point())?;
        let bitmaps = &machine.bitmaps;
        for (field, value) in [
            (Field64::IoBitmapA, bitmaps.io[0].address().as_u64()),
            (Field64::IoBitmapB, bitmaps.io[1].address().as_u64()),
            (Field64::MsrBitmaps, bitmaps.msr.address().as_u64()),
            (Field64::EptPointer, eptp),
            (Field64::VmcsLinkPointer, u64::MAX),
            (Field64::TscOffset, 0),
        ] {
            vmcs.write64(field, value)?;
        }
        vmcs.write32(Field32::ExceptionBitmap, EXITING_EXCEPTIONS)?;
        if self.vpid != 0 {
            vmcs.write16(Field16::Vpid, self.vpid)?;
        }
        let fixed_cr4 = machine.capabilities.cr4.fixed0;
        write_start(&mut vmcs, start, fixed_cr4)?;
        Ok(())
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

    /// Where the VMCS is.
    pub fn vmcs_region(&self) -> Hpa {
        self.vmcs.address()
    }

    /// Gives its frames back.
    pub fn end<M: PhysMem>(self, machine: &mut Machine<'_, M>) {
        // SAFETY: the VMCS is this one's own; after this the CPU has nothing cached of it.
        if let Err(fail) = unsafe { machine.vmx.clear(self.vmcs.address()) } {
            log::error!("VMCLEAR of a VMCS that ends: {fail}");
        }
        give_back(machine.frames, self.vmcs);
        give_back(machine.frames, self.area);
    }
}

/// Writes the guest-state area for a start in 64-bit mode.
fn write_start(vmcs: &mut impl Vmcs, start: &Start, fixed_cr4: u64) -> Result<(), VmcsError> {
    use FieldNatural as N;
    for (field, value) in [
        (N::GuestCr0, CR0),
        (N::Cr0ReadShadow, CR0),
        // Every bit is the host's: each write exits and is checked.
        (N::Cr0GuestHostMask, !0),
        (N::GuestCr3, start.cr3.as_u64()),
        (N::GuestCr4, CR4 | fixed_cr4),
        (N::Cr4ReadShadow, CR4),
        (N::Cr4GuestHostMask, !0),
        (N::GuestDr7, 0x400),
        (N::GuestRsp, start.rsp.as_u64()),
        (N::GuestRip, start.rip.as_u64()),
        (N::GuestRflags, 2),
    ] {
        vmcs.write_natural(field, value)?;
    }
    vmcs.write64(Field64::GuestEfer, EFER)?;
    vmcs.write64(Field64::GuestPat, PAT)?;
    vmcs.write64(Field64::GuestDebugctl, 0)?;
    let code = 0xa09b;
    let data = 0xc093;
    for (selector, limit, rights, values) in [
        (Field16::GuestCsSelector, Field32::GuestCsLimit, Field32::GuestCsAccessRights, (8, !0, code)),
        (Field16::GuestSsSelector, Field32::GuestSsLimit, Field32::GuestSsAccessRights, (16, !0, data)),
        (Field16::GuestDsSelector, Field32::GuestDsLimit, Field32::GuestDsAccessRights, (16, !0, data)),
        (Field16::GuestEsSelector, Field32::GuestEsLimit, Field32::GuestEsAccessRights, (16, !0, data)),
        (Field16::GuestFsSelector, Field32::GuestFsLimit, Field32::GuestFsAccessRights, (16, !0, data)),
        (Field16::GuestGsSelector, Field32::GuestGsLimit, Field32::GuestGsAccessRights, (16, !0, data)),
        (Field16::GuestLdtrSelector, Field32::GuestLdtrLimit, Field32::GuestLdtrAccessRights, (0, 0, 0x1_0000)),
        (Field16::GuestTrSelector, Field32::GuestTrLimit, Field32::GuestTrAccessRights, (24, 0x67, 0x8b)),
    ] {
        vmcs.write16(selector, values.0)?;
        vmcs.write32(limit, values.1)?;
        vmcs.write32(rights, values.2)?;
    }
    Ok(())
}
