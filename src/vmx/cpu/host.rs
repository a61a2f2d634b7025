//! The state of the host that every exit must bring back, as it is now.

use core::arch::asm;

use x86::msr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};

use super::super::fields::{Field16, Field32, Field64, FieldNatural as N};
use super::super::start_state::HostState;
use super::guard::exit_point;

/// Reads the host's state.
///
/// An exit loads selectors with RPL and TI clear (SDM "Checks on Host Segment and Descriptor-Table Registers", 28.2.3),
/// which the kernel's are.
///
/// # Safety
/// At CPL 0, on a CPU with 64-bit mode.
pub unsafe fn read_host_state() -> HostState {
    let tr: u16;
    // SAFETY: stores the selector, nothing else.
    unsafe { asm!("str {0:x}", out(reg) tr, options(nomem, nostack, preserves_flags)) };
    let (gdtr, idtr) = (sgdt(), sidt());
    // SAFETY: the task-state segment that TR selects stands in the GDT in use.
    let tr_base = unsafe { system_segment_base(gdtr.base.as_u64(), tr) };
    // SAFETY: at CPL 0, by the caller's word; these MSRs exist on every CPU with 64-bit mode.
    let rdmsr = |index| unsafe { msr::rdmsr(index) };
    let (frame, flags) = Cr3::read_raw();
    let cr3 = frame.start_address().as_u64() | u64::from(flags);
    HostState([
        (N::HostCr0.into(), Cr0::read_raw()),
        (N::HostCr3.into(), cr3),
        (N::HostCr4.into(), Cr4::read_raw()),
        (Field16::HostCsSelector.into(), CS::get_reg().0.into()),
        (Field16::HostSsSelector.into(), SS::get_reg().0.into()),
        (Field16::HostDsSelector.into(), DS::get_reg().0.into()),
        (Field16::HostEsSelector.into(), ES::get_reg().0.into()),
        (Field16::HostFsSelector.into(), FS::get_reg().0.into()),
        (Field16::HostGsSelector.into(), GS::get_reg().0.into()),
        (Field16::HostTrSelector.into(), tr.into()),
        (N::HostFsBase.into(), rdmsr(msr::IA32_FS_BASE)),
        (N::HostGsBase.into(), rdmsr(msr::IA32_GS_BASE)),
        (N::HostTrBase.into(), tr_base),
        (N::HostGdtrBase.into(), gdtr.base.as_u64()),
        (N::HostIdtrBase.into(), idtr.base.as_u64()),
        (Field64::HostEfer.into(), rdmsr(msr::IA32_EFER)),
        (Field64::HostPat.into(), rdmsr(msr::IA32_PAT)),
        (Field32::HostSysenterCs.into(), rdmsr(msr::IA32_SYSENTER_CS)),
        (N::HostSysenterEsp.into(), rdmsr(msr::IA32_SYSENTER_ESP)),
        (N::HostSysenterEip.into(), rdmsr(msr::IA32_SYSENTER_EIP)),
        (N::HostRip.into(), exit_point()),
    ])
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
