//! The registers of the host that every exit must bring back, as they are now.

use core::arch::asm;

use x86::msr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};

use super::super::fields::{Field16, Field32, Field64, FieldNatural};
use super::super::vmcs::{Vmcs, VmcsError};

/// What the host-state area of a VMCS is filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HostRegisters {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    pub tr: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub tr_base: u64,
    pub gdtr_base: u64,
    pub idtr_base: u64,
    pub efer: u64,
    pub pat: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

impl HostRegisters {
    /// Reads them.
    ///
    /// # Safety
    /// At CPL 0, on a CPU with 64-bit mode.
    pub unsafe fn read() -> Self {
        let tr: u16;
        // SAFETY: stores the selector, nothing else.
        unsafe { asm!("str {0:x}", out(reg) tr, options(nomem, nostack, preserves_flags)) };
        let (gdtr, idtr) = (sgdt(), sidt());
        // SAFETY: the task-state segment that TR selects stands in the GDT in use.
        let tr_base = unsafe { system_segment_base(gdtr.base.as_u64(), tr) };
        // SAFETY: at CPL 0, by the caller's word; these MSRs exist on every CPU with 64-bit mode.
        let rdmsr = |index| unsafe { msr::rdmsr(index) };
        let (frame, flags) = Cr3::read_raw();
        Self {
            cr0: Cr0::read_raw(),
            cr3: frame.start_address().as_u64() | u64::from(flags),
            cr4: Cr4::read_raw(),
            cs: CS::get_reg().0,
            ss: SS::get_reg().0,
            ds: DS::get_reg().0,
            es: ES::get_reg().0,
            fs: FS::get_reg().0,
            gs: GS::get_reg().0,
            tr,
            fs_base: rdmsr(msr::IA32_FS_BASE),
            gs_base: rdmsr(msr::IA32_GS_BASE),
            tr_base,
            gdtr_base: gdtr.base.as_u64(),
            idtr_base: idtr.base.as_u64(),
            efer: rdmsr(msr::IA32_EFER),
            pat: rdmsr(msr::IA32_PAT),
            sysenter_cs: rdmsr(msr::IA32_SYSENTER_CS),
            sysenter_esp: rdmsr(msr::IA32_SYSENTER_ESP),
            sysenter_eip: rdmsr(msr::IA32_SYSENTER_EIP),
        }
    }

    /// Writes the whole host-state area but RSP, which the entry routine keeps. RIP is `exit_point`.
    ///
    /// An exit loads the selectors with RPL and TI clear (SDM "Checks on Host Segment and Descriptor-Table Registers",
    /// 28.2.3), which the kernel's are.
    pub fn write(&self, vmcs: &mut impl Vmcs, exit_point: u64) -> Result<(), VmcsError> {
        for (field, value) in [
            (Field16::HostCsSelector, self.cs),
            (Field16::HostSsSelector, self.ss),
            (Field16::HostDsSelector, self.ds),
            (Field16::HostEsSelector, self.es),
            (Field16::HostFsSelector, self.fs),
            (Field16::HostGsSelector, self.gs),
            (Field16::HostTrSelector, self.tr),
        ] {
            vmcs.write16(field, value)?;
        }
        for (field, value) in [
            (FieldNatural::HostCr0, self.cr0),
            (FieldNatural::HostCr3, self.cr3),
            (FieldNatural::HostCr4, self.cr4),
            (FieldNatural::HostFsBase, self.fs_base),
            (FieldNatural::HostGsBase, self.gs_base),
            (FieldNatural::HostTrBase, self.tr_base),
            (FieldNatural::HostGdtrBase, self.gdtr_base),
            (FieldNatural::HostIdtrBase, self.idtr_base),
            (FieldNatural::HostSysenterEsp, self.sysenter_esp),
            (FieldNatural::HostSysenterEip, self.sysenter_eip),
            (FieldNatural::HostRip, exit_point),
        ] {
            vmcs.write_natural(field, value)?;
        }
        vmcs.write64(Field64::HostEfer, self.efer)?;
        vmcs.write64(Field64::HostPat, self.pat)?;
        vmcs.write32(Field32::HostSysenterCs, self.sysenter_cs as u32)
    }
}

/// The base in the 16-byte descriptor of a system segment.
///
/// # Safety
/// `selector` must be of such a descriptor in the table at `gdt`, which must be mapped.
unsafe fn system_segment_base(gdt: u64, selector: u16) -> u64 {
    let at = (gdt + u64::from(selector & !7)) as *const [u64; 2];
    // SAFETY: the caller's.
    let [low, high] = unsafe { at.read_unaligned() };
    (low >> 16 & 0xff_ffff) | (low >> 56 & 0xff) << 24 | high << 32
}
