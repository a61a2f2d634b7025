//! The guest and host state of the VMCS as plain structs, written and read as a whole.
//!
//! What the VMCS does not hold (general registers, FPU, CR2, DR0 to DR3, DR6, the syscall MSRs, XCR0) is not here.

use super::capabilities::Capabilities;
use super::fields::{Field16, Field32, Field64, FieldNatural};
use super::register_bits::{
    CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, DR7_RESET,
    EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, PAT_RESET, RFLAGS_RESET,
};
use super::segment::{AccessRights, Segment, SegmentRegister};
use super::vmcs::{Vmcs, VmcsError};

/// The VMCS link pointer of a CPU that shadows no VMCS.
pub const NO_LINK_POINTER: u64 = u64::MAX;

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The base.
    pub base: u64,
    /// The limit: bytes less 1.
    pub limit: u16,
}

/// What a guest is doing (SDM "Guest Non-Register State", 26.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivityState {
    /// Executing instructions.
    #[default]
    Active,
    /// Halted.
    Hlt,
    /// Shut down by a triple fault.
    Shutdown,
    /// Waiting for a start-up IPI.
    WaitForSipi,
    /// A number the manual does not define.
    Unknown(u32),
}

impl ActivityState {
    /// From the field.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Active,
            1 => Self::Hlt,
            2 => Self::Shutdown,
            3 => Self::WaitForSipi,
            other => Self::Unknown(other),
        }
    }
    /// For the field.
    pub const fn number(self) -> u32 {
        match self {
            Self::Active => 0,
            Self::Hlt => 1,
            Self::Shutdown => 2,
            Self::WaitForSipi => 3,
            Self::Unknown(other) => other,
        }
    }
}

/// All of a guest's state that the VMCS holds and that our entries load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GuestState {
    /// With the bits that VMX operation fixes; the guest sees the read shadow.
    pub cr0: u64,
    pub cr3: u64,
    /// As `cr0`.
    pub cr4: u64,
    pub dr7: u64,
    pub rsp: u64,
    pub rip: u64,
    pub rflags: u64,
    /// In the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub debugctl: u64,
    pub pat: u64,
    pub efer: u64,
    pub sysenter_cs: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub activity: ActivityState,
    pub interruptibility: u32,
    pub pending_debug: u64,
    /// Used with PAE paging only.
    pub pdptes: [u64; 4],
}

const PDPTES: [Field64; 4] = [
    Field64::GuestPdpte0,
    Field64::GuestPdpte1,
    Field64::GuestPdpte2,
    Field64::GuestPdpte3,
];

/// Where a guest begins in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start64 {
    /// The first instruction.
    pub rip: u64,
    /// The stack.
    pub rsp: u64,
    /// Its 4-level tables.
    pub cr3: u64,
}

impl GuestState {
    /// Code, data and stack of 64-bit mode at privilege 0, with paging, NX and SSE on, interrupts off, and neither a
    /// GDT nor an IDT: the guest loads its own. It needs no unrestricted guest.
    pub fn long_mode(start: Start64, capabilities: &Capabilities) -> Self {
        let data = Segment::flat(0x10, AccessRights::DATA);
        let code = Segment::flat(0x8, AccessRights::CODE64);
        let cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        let cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        Self {
            cr0: capabilities.cr0.apply(cr0),
            cr3: start.cr3,
            cr4: capabilities.cr4.apply(cr4),
            rsp: start.rsp,
            rip: start.rip,
            segments: [
                data,
                code,
                data,
                data,
                data,
                data,
                Segment::UNUSABLE,
                EMPTY_TSS,
            ],
            efer: EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE,
            ..RESET
        }
    }
    /// Flat 32-bit protected mode without paging, as Multiboot loaders leave it. It needs an unrestricted guest.
    pub fn flat_32_bit(rip: u32, capabilities: &Capabilities) -> Self {
        let data = Segment::flat(0x10, AccessRights::DATA);
        let code = Segment::flat(0x8, AccessRights::CODE32);
        let cr0 = capabilities.cr0.for_unrestricted_guest();
        Self {
            cr0: cr0.apply(CR0_PE | CR0_ET | CR0_NE),
            cr4: capabilities.cr4.apply(0),
            rip: rip.into(),
            segments: [
                data,
                code,
                data,
                data,
                data,
                data,
                Segment::UNUSABLE,
                EMPTY_TSS,
            ],
            ..RESET
        }
    }
    /// Real mode as after a reset (SDM "Processor State After Reset", table 10-1), but with the caches on. It needs
    /// an unrestricted guest.
    pub fn after_reset(capabilities: &Capabilities) -> Self {
        let cr0 = capabilities.cr0.for_unrestricted_guest();
        Self {
            cr0: cr0.apply(CR0_ET),
            cr4: capabilities.cr4.apply(0),
            ..RESET
        }
    }

    /// The segment register `register`.
    pub const fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }
    /// Whether the guest is in IA-32e mode: what the VM-entry control "IA-32e mode guest" must say.
    pub const fn is_ia32e(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Writes the whole guest-state area, fields excepted that no entry of ours loads. It leaves no VMCS linked and
    /// nothing to be injected.
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        for (register, segment) in SegmentRegister::ALL.iter().zip(&self.segments) {
            register.write(segment, vmcs)?;
        }
        for (field, value) in [
            (FieldNatural::GuestCr0, self.cr0),
            (FieldNatural::GuestCr3, self.cr3),
            (FieldNatural::GuestCr4, self.cr4),
            (FieldNatural::GuestDr7, self.dr7),
            (FieldNatural::GuestRsp, self.rsp),
            (FieldNatural::GuestRip, self.rip),
            (FieldNatural::GuestRflags, self.rflags),
            (FieldNatural::GuestGdtrBase, self.gdtr.base),
            (FieldNatural::GuestIdtrBase, self.idtr.base),
            (FieldNatural::GuestSysenterEsp, self.sysenter_esp),
            (FieldNatural::GuestSysenterEip, self.sysenter_eip),
            (
                FieldNatural::GuestPendingDebugExceptions,
                self.pending_debug,
            ),
        ] {
            vmcs.write_natural(field, value)?;
        }
        for (field, value) in [
            (Field32::GuestGdtrLimit, self.gdtr.limit.into()),
            (Field32::GuestIdtrLimit, self.idtr.limit.into()),
            (Field32::GuestSysenterCs, self.sysenter_cs),
            (Field32::GuestActivityState, self.activity.number()),
            (Field32::GuestInterruptibilityState, self.interruptibility),
            (Field32::EntryInterruptionInformation, 0),
        ] {
            vmcs.write32(field, value)?;
        }
        for (field, value) in [
            (Field64::GuestDebugctl, self.debugctl),
            (Field64::GuestPat, self.pat),
            (Field64::GuestEfer, self.efer),
            (Field64::VmcsLinkPointer, NO_LINK_POINTER),
        ] {
            vmcs.write64(field, value)?;
        }
        for (field, value) in PDPTES.into_iter().zip(self.pdptes) {
            vmcs.write64(field, value)?;
        }
        Ok(())
    }

    /// Reads the state back, as an exit has saved it.
    pub fn read(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        let mut segments = [Segment::UNUSABLE; 8];
        for (register, segment) in SegmentRegister::ALL.iter().zip(&mut segments) {
            *segment = register.read(vmcs)?;
        }
        let mut pdptes = [0; 4];
        for (field, pdpte) in PDPTES.into_iter().zip(&mut pdptes) {
            *pdpte = vmcs.read64(field)?;
        }
        let table = |base, limit| {
            Ok(DescriptorTable {
                base: vmcs.read_natural(base)?,
                // A VM entry checks that no higher bit is set, and no exit saves any.
                limit: vmcs.read32(limit)? as u16,
            })
        };
        Ok(Self {
            cr0: vmcs.read_natural(FieldNatural::GuestCr0)?,
            cr3: vmcs.read_natural(FieldNatural::GuestCr3)?,
            cr4: vmcs.read_natural(FieldNatural::GuestCr4)?,
            dr7: vmcs.read_natural(FieldNatural::GuestDr7)?,
            rsp: vmcs.read_natural(FieldNatural::GuestRsp)?,
            rip: vmcs.read_natural(FieldNatural::GuestRip)?,
            rflags: vmcs.read_natural(FieldNatural::GuestRflags)?,
            segments,
            gdtr: table(FieldNatural::GuestGdtrBase, Field32::GuestGdtrLimit)?,
            idtr: table(FieldNatural::GuestIdtrBase, Field32::GuestIdtrLimit)?,
            debugctl: vmcs.read64(Field64::GuestDebugctl)?,
            pat: vmcs.read64(Field64::GuestPat)?,
            efer: vmcs.read64(Field64::GuestEfer)?,
            sysenter_cs: vmcs.read32(Field32::GuestSysenterCs)?,
            sysenter_esp: vmcs.read_natural(FieldNatural::GuestSysenterEsp)?,
            sysenter_eip: vmcs.read_natural(FieldNatural::GuestSysenterEip)?,
            activity: ActivityState::from_number(vmcs.read32(Field32::GuestActivityState)?),
            interruptibility: vmcs.read32(Field32::GuestInterruptibilityState)?,
            pending_debug: vmcs.read_natural(FieldNatural::GuestPendingDebugExceptions)?,
            pdptes,
        })
    }
}

/// TR must be usable even of a guest that has no TSS yet. Its limit is that of the smallest TSS, and has nothing to do
/// with the selector.
const EMPTY_TSS: Segment = Segment {
    selector: 0,
    base: 0,
    limit: 0x67,
    access: AccessRights::BUSY_TSS,
};

/// A reset CPU without what VMX operation fixes.
const RESET: GuestState = {
    let data = Segment::real_mode(0, AccessRights::REAL_DATA);
    GuestState {
        cr0: 0,
        cr3: 0,
        cr4: 0,
        dr7: DR7_RESET,
        rsp: 0,
        rip: 0xfff0,
        rflags: RFLAGS_RESET,
        segments: [
            data,
            Segment {
                selector: 0xf000,
                base: 0xffff_0000,
                limit: 0xffff,
                access: AccessRights::REAL_CODE,
            },
            data,
            data,
            data,
            data,
            Segment::real_mode(0, AccessRights::LDT),
            Segment::real_mode(0, AccessRights::BUSY_TSS),
        ],
        gdtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        idtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        debugctl: 0,
        pat: PAT_RESET,
        efer: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        activity: ActivityState::Active,
        interruptibility: 0,
        pending_debug: 0,
        pdptes: [0; 4],
    }
};

/// What an exit loads.
///
/// It loads no limits of GDTR and IDTR: they are 0xffff afterwards (SDM "Loading Host Segment and Descriptor-Table
/// Registers", 29.5.2), so the host's tables must be loaded again if longer memory than theirs must not be reachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HostState {
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
    pub sysenter_cs: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub efer: u64,
    pub rsp: u64,
    pub rip: u64,
}

impl HostState {
    /// Writes the whole host-state area, fields excepted that no exit of ours loads.
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
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
            (FieldNatural::HostRsp, self.rsp),
            (FieldNatural::HostRip, self.rip),
        ] {
            vmcs.write_natural(field, value)?;
        }
        vmcs.write32(Field32::HostSysenterCs, self.sysenter_cs)?;
        vmcs.write64(Field64::HostPat, self.pat)?;
        vmcs.write64(Field64::HostEfer, self.efer)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
pub(crate) mod tests;
