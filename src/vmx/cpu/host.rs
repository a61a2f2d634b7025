//! The state of the host that every exit must bring back, as it is now.

use core::arch::asm;

use x86::msr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};

use super::super::state::HostState;
use super::guard::exit_point;

/// Reads the host's state. RSP is left 0: the entry routine keeps it.
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
    HostState {
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
        sysenter_cs: rdmsr(msr::IA32_SYSENTER_CS) as u32,
        sysenter_esp: rdmsr(msr::IA32_SYSENTER_ESP),
        sysenter_eip: rdmsr(msr::IA32_SYSENTER_EIP),
        rsp: 0,
        rip: exit_point(),
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
