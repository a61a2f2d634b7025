//! Writes of a guest to its control registers, when they exit: a pure function from what is there to what comes
//! after, or to the #GP that the manual demands (SDM "MOV—Move to/from Control ControlRegisters", "LMSW", "CLTS").
//!
//! A guest sees *visible* values. What the CPU runs with, the *real* values, differs in bits that VMX operation fixes
//! (NE, VMXE), in MCE, and in CD and NW, which VM entries leave alone. [`Limits::real_cr0`] and [`Limits::real_cr4`] go from the
//! one to the other; the bits in which they may differ are host-owned, and the read shadow holds the visible ones.

use core::fmt;

use x86_64::registers::control::Cr4Flags;

use super::cpuid::Features;
use crate::register_bits::{
    CR0_AM as AM, CR0_CD as CD, CR0_EM as EM, CR0_ET as ET, CR0_MP as MP, CR0_NE as NE,
    CR0_NW as NW, CR0_PE as PE, CR0_PG as PG, CR0_TS as TS, CR0_WP as WP, CR4_MCE as MCE,
    CR4_PAE as PAE, CR4_PCIDE as PCIDE, CR4_PGE as PGE, CR4_PSE as PSE, CR4_SMEP as SMEP,
    CR4_VMXE as VMXE, EFER_LMA as LMA, EFER_LME as LME,
};
use crate::virt::AccessRights;
use crate::virt::CodeMode;
use crate::virt::control_registers::{ControlRegisters, FixedBits};
use crate::virt::processor::RegisterMasks;

const CR0_DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;

/// The bits of CR0 that a guest may own: nothing of ours depends on them.
const CR0_GUEST_OWNED: u64 = MP | EM | TS | WP | AM;
/// The same of CR4, where the CPU has them.
const CR4_GUEST_OWNED: u64 = Cr4Flags::VIRTUAL_8086_MODE_EXTENSIONS
    .union(Cr4Flags::PROTECTED_MODE_VIRTUAL_INTERRUPTS)
    .union(Cr4Flags::TIMESTAMP_DISABLE)
    .union(Cr4Flags::DEBUGGING_EXTENSIONS)
    .union(Cr4Flags::PAGE_GLOBAL)
    .union(Cr4Flags::PERFORMANCE_MONITOR_COUNTER)
    .union(Cr4Flags::OSFXSR)
    .union(Cr4Flags::OSXMMEXCPT_ENABLE)
    .union(Cr4Flags::FSGSBASE)
    .bits();

/// What the control registers of a guest may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What VMX operation fixes in CR0, without regard to unrestricted guests.
    pub cr0: FixedBits,
    /// What it fixes in CR4.
    pub cr4: FixedBits,
    /// Whether guests may run without paging and protection.
    pub unrestricted: bool,
    /// What the guest's CPUID offers.
    pub features: Features,
}

impl Limits {
    /// What VMX operation fixes in the CR0 of a guest.
    const fn guest_cr0(&self) -> FixedBits {
        if self.unrestricted {
            self.cr0.for_unrestricted_guest()
        } else {
            self.cr0
        }
    }
    /// What the CPU must run with so that the guest sees `visible` in CR0.
    pub const fn real_cr0(&self, visible: u64) -> u64 {
        self.guest_cr0().apply(visible & !(CD | NW) | ET)
    }
    /// What the CPU must run with so that the guest sees `visible` in CR4. MCE is on where the CPU has it: without
    /// it, a machine check while the guest runs would not exit but shut the machine down.
    pub const fn real_cr4(&self, visible: u64) -> u64 {
        self.cr4.apply(visible | MCE)
    }
    /// The guest/host mask of CR0: bits whose change exits.
    pub const fn cr0_mask(&self) -> u64 {
        !(CR0_GUEST_OWNED & self.guest_cr0().fixed1 & !self.guest_cr0().fixed0)
    }
    /// The guest/host mask of CR4.
    pub const fn cr4_mask(&self) -> u64 {
        !(CR4_GUEST_OWNED & self.cr4_allowed() & !self.cr4.fixed0)
    }
    /// Both masks.
    pub const fn masks(&self) -> RegisterMasks {
        RegisterMasks {
            cr0: self.cr0_mask(),
            cr4: self.cr4_mask(),
        }
    }
    const fn cr4_allowed(&self) -> u64 {
        self.features.cr4 & self.cr4.fixed1 & !VMXE
    }
}

/// What else a write depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The access rights of CS.
    pub cs: AccessRights,
    /// Whether TR refers to a 16-bit TSS.
    pub tr_16_bit: bool,
}

impl Segments {
    /// Whether the guest executes 64-bit code.
    const fn are_64_bit(self, now: ControlRegisters) -> bool {
        matches!(CodeMode::of(now.efer, self.cs), CodeMode::Bits64)
    }
}

/// A write to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrWrite {
    /// MOV to CR0.
    Cr0(u64),
    /// MOV to CR3.
    Cr3(u64),
    /// MOV to CR4.
    Cr4(u64),
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw(u16),
}

/// The state after a legal write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The registers.
    pub registers: ControlRegisters,
    /// Translations of the guest's linear addresses that are cached must go.
    pub flush: bool,
    /// PAE paging is in use, and its four page-directory-pointer entries must be read anew. A reserved bit in a present
    /// one raises #GP instead of the change.
    pub load_pdptes: bool,
}

/// Why a write is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrFault {
    /// #GP(0) in the guest.
    Gp,
    /// Legal, but this CPU cannot run a guest so: the guest ends.
    Unsupported(Unsupported),
}

/// A legal state in which this CPU cannot run a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Protection off, and guests are not unrestricted.
    RealMode,
    /// Paging off, and guests are not unrestricted.
    NoPaging,
    /// Bits of CR0 that must be 0 in VMX operation.
    FixedCr0(u64),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RealMode => f.write_str(
                "the guest left protected mode, which needs \"unrestricted guest\"; this CPU has none",
            ),
            Self::NoPaging => f.write_str(
                "the guest switched paging off, which needs \"unrestricted guest\"; this CPU has none",
            ),
            Self::FixedCr0(bits) => {
                write!(f, "the guest set bits {bits:#x} of CR0, which VMX forbids on this CPU")
            }
        }
    }
}
impl core::error::Error for Unsupported {}

/// Carries out `write` on `now`. Of a MOV outside 64-bit mode the lower half of the register counts: what the upper one
/// holds is left over from 64-bit code.
///
/// # Errors
/// What the guest is given in place of the write.
pub fn write(
    now: ControlRegisters,
    segments: Segments,
    write: CrWrite,
    limits: &Limits,
) -> Result<Change, CrFault> {
    let long = segments.are_64_bit(now);
    let operand = |value: u64| if long { value } else { value & 0xffff_ffff };
    match write {
        CrWrite::Cr0(value) => write_cr0(now, segments, operand(value), limits),
        CrWrite::Cr3(value) => write_cr3(now, operand(value), limits),
        CrWrite::Cr4(value) => write_cr4(now, operand(value), limits),
        CrWrite::Clts => write_cr0(now, segments, now.cr0 & !TS, limits),
        // LMSW can set PE but not clear it.
        CrWrite::Lmsw(word) => {
            let low = u64::from(word) & (PE | MP | EM | TS);
            write_cr0(now, segments, now.cr0 & !(MP | EM | TS) | low, limits)
        }
    }
}

/// MOV to CR8: the new task priority.
///
/// # Errors
/// #GP(0) for a value above 15.
pub fn write_cr8(value: u64) -> Result<u8, CrFault> {
    if value > 0xf {
        Err(CrFault::Gp)
    } else {
        Ok(value as u8)
    }
}

fn write_cr0(
    now: ControlRegisters,
    segments: Segments,
    value: u64,
    limits: &Limits,
) -> Result<Change, CrFault> {
    // Undefined bits in the lower half are ignored, in the upper half they fault.
    let cr0 = value & (CR0_DEFINED | 0xffff_ffff << 32) | ET;
    let illegal = cr0 >> 32 != 0
        || cr0 & (PG | PE) == PG
        || cr0 & (NW | CD) == NW
        || (paging(cr0) && !paging(now.cr0) && !may_enable_paging(now, segments))
        || (!paging(cr0) && paging(now.cr0) && !may_disable_paging(now, segments));
    if illegal {
        return Err(CrFault::Gp);
    }
    supported(cr0, limits).map_err(CrFault::Unsupported)?;
    let long = paging(cr0) && now.efer & LME != 0;
    let efer = if long {
        now.efer | LMA
    } else {
        now.efer & !LMA
    };
    let registers = ControlRegisters { cr0, efer, ..now };
    let changed = cr0 ^ now.cr0;
    Ok(Change {
        registers,
        flush: changed & (PG | PE) != 0,
        load_pdptes: pae_paging(registers) && changed & (PG | CD | NW) != 0,
    })
}

const fn paging(cr0: u64) -> bool {
    cr0 & PG != 0
}

/// PAE paging: with entries that are loaded into registers of their own.
const fn pae_paging(registers: ControlRegisters) -> bool {
    paging(registers.cr0) && registers.cr4 & PAE != 0 && registers.efer & LMA == 0
}

/// SDM "Initializing IA-32e Mode", 11.8.5: with LME, paging starts IA-32e mode, which needs PAE, and neither CS.L nor
/// a 16-bit TSS.
const fn may_enable_paging(now: ControlRegisters, segments: Segments) -> bool {
    now.efer & LME == 0 || now.cr4 & PAE != 0 && !segments.cs.long() && !segments.tr_16_bit
}

/// Not from 64-bit mode, and not with PCIDs, which exist in IA-32e mode only.
const fn may_disable_paging(now: ControlRegisters, segments: Segments) -> bool {
    now.cr4 & PCIDE == 0 && !segments.are_64_bit(now)
}

fn supported(cr0: u64, limits: &Limits) -> Result<(), Unsupported> {
    let fixed = limits.guest_cr0();
    if fixed.fixed0 & PE & !cr0 != 0 {
        return Err(Unsupported::RealMode);
    }
    if fixed.fixed0 & PG & !cr0 != 0 {
        return Err(Unsupported::NoPaging);
    }
    match cr0 & !(CD | NW) & !fixed.fixed1 {
        0 => Ok(()),
        bits => Err(Unsupported::FixedCr0(bits)),
    }
}

fn write_cr3(now: ControlRegisters, value: u64, limits: &Limits) -> Result<Change, CrFault> {
    const KEEP_TRANSLATIONS: u64 = 1 << 63;
    let pcids = now.cr4 & PCIDE != 0;
    let cr3 = if pcids {
        value & !KEEP_TRANSLATIONS
    } else {
        value
    };
    if now.efer & LMA != 0 && cr3 >> limits.features.physical_bits.min(52) != 0 {
        return Err(CrFault::Gp);
    }
    let registers = ControlRegisters { cr3, ..now };
    let flush = cr3 == value;
    Ok(Change {
        registers,
        flush,
        load_pdptes: pae_paging(registers),
    })
}

fn write_cr4(now: ControlRegisters, cr4: u64, limits: &Limits) -> Result<Change, CrFault> {
    let set = cr4 & !now.cr4;
    let illegal = cr4 & !limits.cr4_allowed() != 0
        || now.efer & LMA != 0 && cr4 & PAE == 0
        || set & PCIDE != 0 && (now.efer & LMA == 0 || now.cr3 & 0xfff != 0);
    if illegal {
        return Err(CrFault::Gp);
    }
    let changed = cr4 ^ now.cr4;
    let registers = ControlRegisters { cr4, ..now };
    Ok(Change {
        registers,
        // SDM "Operations that Invalidate TLBs and Paging-Structure Caches", 5.10.4.1.
        flush: changed & (PSE | PAE | PGE | PCIDE | SMEP) != 0,
        // SDM "PDPTE ControlRegisters", 5.4.1.
        load_pdptes: pae_paging(registers) && changed & (PSE | PAE | PGE | SMEP) != 0,
    })
}

#[cfg(test)]
mod tests;
