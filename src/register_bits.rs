//! Bits of control registers, RFLAGS and MSRs under their names in the manual, and values after a reset.

use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};
use x86_64::registers::rflags::RFlags;

/// CR0.PE.
pub const CR0_PE: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
/// CR0.MP.
pub const CR0_MP: u64 = Cr0Flags::MONITOR_COPROCESSOR.bits();
/// CR0.EM.
pub const CR0_EM: u64 = Cr0Flags::EMULATE_COPROCESSOR.bits();
/// CR0.TS.
pub const CR0_TS: u64 = Cr0Flags::TASK_SWITCHED.bits();
/// CR0.ET.
pub const CR0_ET: u64 = Cr0Flags::EXTENSION_TYPE.bits();
/// CR0.NE.
pub const CR0_NE: u64 = Cr0Flags::NUMERIC_ERROR.bits();
/// CR0.AM.
pub const CR0_AM: u64 = Cr0Flags::ALIGNMENT_MASK.bits();
/// CR0.WP.
pub const CR0_WP: u64 = Cr0Flags::WRITE_PROTECT.bits();
/// CR0.NW.
pub const CR0_NW: u64 = Cr0Flags::NOT_WRITE_THROUGH.bits();
/// CR0.CD.
pub const CR0_CD: u64 = Cr0Flags::CACHE_DISABLE.bits();
/// CR0.PG.
pub const CR0_PG: u64 = Cr0Flags::PAGING.bits();
/// CR4.PSE.
pub const CR4_PSE: u64 = Cr4Flags::PAGE_SIZE_EXTENSION.bits();
/// CR4.PGE.
pub const CR4_PGE: u64 = Cr4Flags::PAGE_GLOBAL.bits();
/// CR4.MCE.
pub const CR4_MCE: u64 = Cr4Flags::MACHINE_CHECK_EXCEPTION.bits();
/// CR4.SMEP.
pub const CR4_SMEP: u64 = Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits();
/// CR4.PAE.
pub const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
/// CR4.DE.
pub const CR4_DE: u64 = Cr4Flags::DEBUGGING_EXTENSIONS.bits();
/// CR4.OSFXSR.
pub const CR4_OSFXSR: u64 = Cr4Flags::OSFXSR.bits();
/// CR4.OSXMMEXCPT.
pub const CR4_OSXMMEXCPT: u64 = Cr4Flags::OSXMMEXCPT_ENABLE.bits();
/// CR4.VMXE.
pub const CR4_VMXE: u64 = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
/// CR4.PCIDE.
pub const CR4_PCIDE: u64 = Cr4Flags::PCID.bits();
/// EFER.SCE.
pub const EFER_SCE: u64 = EferFlags::SYSTEM_CALL_EXTENSIONS.bits();
/// EFER.LME.
pub const EFER_LME: u64 = EferFlags::LONG_MODE_ENABLE.bits();
/// EFER.LMA.
pub const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
/// EFER.NXE.
pub const EFER_NXE: u64 = EferFlags::NO_EXECUTE_ENABLE.bits();
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = RFlags::TRAP_FLAG.bits();
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = RFlags::INTERRUPT_FLAG.bits();
/// RFLAGS.AC.
pub const RFLAGS_AC: u64 = RFlags::ALIGNMENT_CHECK.bits();
/// RFLAGS.RF.
pub const RFLAGS_RF: u64 = RFlags::RESUME_FLAG.bits();
/// RFLAGS.VM.
pub const RFLAGS_VM: u64 = RFlags::VIRTUAL_8086_MODE.bits();
/// IA32_DEBUGCTL.BTF.
pub const DEBUGCTL_BTF: u64 = 1 << 1;

/// IA32_PAT as after a reset.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// DR7 as after a reset.
pub const DR7_RESET: u64 = 0x400;
/// RFLAGS with nothing but the bit that is always 1.
pub const RFLAGS_RESET: u64 = 2;
