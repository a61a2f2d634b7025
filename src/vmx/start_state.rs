//! What the VMCS of a guest begins with: the state of its processor, and that of the host.
//!
//! What the VMCS does not hold (general registers, FPU, CR2, DR0 to DR3, DR6, the syscall MSRs, XCR0) is not here.

use super::capabilities::Capabilities;
use super::fields::{Field, Field32, Field64, FieldNatural, FieldType};
use super::guest_state::GUEST_STATE_FIELDS;
use super::segments::write_segment;
use super::vmcs::{Vmcs, VmcsError};
use crate::register_bits::{
    CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, DR7_RESET,
    EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, PAT_RESET, RFLAGS_RESET,
};
use crate::virt::{AccessRights, Segment, SegmentRegister};

/// The VMCS link pointer of a CPU that shadows no VMCS.
pub const NO_LINK_POINTER: u64 = u64::MAX;

/// Where a guest begins in 64-bit mode: code, data and stack of privilege 0, with paging, NX and SSE on, interrupts off, and
/// neither a GDT nor an IDT: the guest loads its own. It needs no unrestricted guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start64 {
    /// The first instruction.
    pub rip: u64,
    /// The stack.
    pub rsp: u64,
    /// Its 4-level tables.
    pub cr3: u64,
}

impl Start64 {
    /// Writes the guest-state area, fields excepted that no entry of ours loads, and nothing to be injected. The real CR0 and CR4
    /// have the bits that VMX operation fixes.
    ///
    /// # Errors
    /// The first field that cannot be written.
    pub fn write(
        &self,
        capabilities: &Capabilities,
        vmcs: &mut impl Vmcs,
    ) -> Result<(), VmcsError> {
        let is_guests = |field: &Field| field.field_type() == FieldType::Guest;
        for field in GUEST_STATE_FIELDS.into_iter().filter(is_guests) {
            vmcs.write_any(field, 0)?;
        }
        for register in SegmentRegister::ALL {
            let segment = match register {
                SegmentRegister::Cs => Segment::flat(0x8, AccessRights::CODE64),
                SegmentRegister::Ldtr => Segment::UNUSABLE,
                SegmentRegister::Tr => EMPTY_TSS,
                _ => Segment::flat(0x10, AccessRights::DATA),
            };
            write_segment(vmcs, register, &segment)?;
        }
        let cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        let cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        for (field, value) in [
            (FieldNatural::GuestCr0, capabilities.cr0.apply(cr0)),
            (FieldNatural::GuestCr3, self.cr3),
            (FieldNatural::GuestCr4, capabilities.cr4.apply(cr4)),
            (FieldNatural::GuestDr7, DR7_RESET),
            (FieldNatural::GuestRsp, self.rsp),
            (FieldNatural::GuestRip, self.rip),
            (FieldNatural::GuestRflags, RFLAGS_RESET),
        ] {
            vmcs.write_natural(field, value)?;
        }
        vmcs.write32(Field32::GuestGdtrLimit, 0xffff)?;
        vmcs.write32(Field32::GuestIdtrLimit, 0xffff)?;
        vmcs.write32(Field32::EntryInterruptionInformation, 0)?;
        vmcs.write64(Field64::GuestPat, PAT_RESET)?;
        let efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
        vmcs.write64(Field64::GuestEfer, efer)
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

/// What an exit loads: the host-state area, fields excepted that no exit of ours loads, and RSP, which the entry routine keeps.
///
/// It loads no limits of GDTR and IDTR: they are 0xffff afterwards (SDM "Loading Host Segment and Descriptor-Table
/// Registers", 29.5.2), so the host's tables must be loaded again if longer memory than theirs must not be reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostState(pub [(Field, u64); 21]);

impl HostState {
    /// Writes it.
    ///
    /// # Errors
    /// The first field that cannot be written.
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        for (field, value) in &self.0 {
            vmcs.write_any(*field, *value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "start_state_tests.rs"]
pub(crate) mod tests;
