//! SDM "Checks on the Guest State Area", 28.3.1, segment registers excepted.

use bit_field::BitField;

use super::super::controls::{EntryControl, Pin, Secondary};
use super::super::fields::{Field32, Field64, FieldNatural};
use super::super::guest_state::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_SMI, BLOCKING_BY_STI, PENDING_BS,
};
use super::super::interruption::InterruptionType;
use super::super::segments::read_segment;
use super::super::start_state::NO_LINK_POINTER;
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;
use crate::register_bits::{
    CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, DEBUGCTL_BTF, EFER_LMA, EFER_LME, RFLAGS_IF, RFLAGS_TF,
    RFLAGS_VM,
};
use crate::virt::SegmentRegister::{Cs, Ss};

const UPPER_HALF: u64 = 0xffff_ffff_0000_0000;
/// SDM table 26-3: bits 31:5.
const INTERRUPTIBILITY_RESERVED: u64 = 0xffff_ffe0;
/// SDM table 26-4: what is neither B0 to B3, BLD, "enabled breakpoint", BS nor RTM.
const PENDING_DEBUG_RESERVED: u64 = !(0xf | 1 << 11 | 1 << 12 | PENDING_BS | 1 << 16);
/// LBR, BTF, BLD and bits 15:6; the others of IA32_DEBUGCTL are reserved.
const DEBUGCTL_RESERVED: u64 = !0xffc7;
const RFLAGS_RESERVED: u64 = !0 << 22 | 1 << 15 | 1 << 5 | 1 << 3;

/// Activity states, as numbers in their field.
const ACTIVE: u64 = 0;
const HLT: u64 = 1;
const SHUTDOWN: u64 = 2;
const WAIT_FOR_SIPI: u64 = 3;

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_guest(&mut self) -> Result<(), VmcsError> {
        self.guest_control_registers()?;
        self.guest_msrs()?;
        self.guest_segments()?;
        self.guest_descriptor_tables()?;
        self.guest_rip_and_rflags()?;
        self.guest_activity()?;
        self.guest_interruptibility()?;
        self.guest_pending_debug()?;
        if self.get(Field64::VmcsLinkPointer)? != NO_LINK_POINTER {
            let rule = "must be all ones: no VMCS is shadowed";
            self.fail(Field64::VmcsLinkPointer, rule)?;
        }
        self.guest_pdptes()
    }

    /// 28.3.1.1, the registers.
    fn guest_control_registers(&mut self) -> Result<(), VmcsError> {
        const CR0: FieldNatural = FieldNatural::GuestCr0;
        const CR4: FieldNatural = FieldNatural::GuestCr4;
        // Bits that an entry does not change are not checked either: ET, 15:6, 17, 28:19, NW and CD.
        const NOT_CHECKED: u64 = 1 << 4 | 0x3ff << 6 | 1 << 17 | 0x3ff << 19 | 3 << 29;
        let (cr0, cr4) = (self.get(CR0)?, self.get(CR4)?);
        let mut fixed = self.capabilities.cr0;
        if self.has(Secondary::UnrestrictedGuest) {
            fixed = fixed.for_unrestricted_guest();
        }
        self.require_fixed(CR0, fixed, NOT_CHECKED)?;
        if cr0 & CR0_PG != 0 && cr0 & CR0_PE == 0 {
            self.fail(CR0, "PG must be 0 where PE is 0")?;
        }
        self.require_fixed(CR4, self.capabilities.cr4, 0)?;
        if self.has(EntryControl::Ia32eModeGuest) {
            if cr0 & CR0_PG == 0 {
                self.fail(CR0, "PG must be 1 with \"IA-32e mode guest\"")?;
            }
            if cr4 & CR4_PAE == 0 {
                self.fail(CR4, "PAE must be 1 with \"IA-32e mode guest\"")?;
            }
        } else if cr4 & CR4_PCIDE != 0 {
            self.fail(CR4, "PCIDE must be 0 without \"IA-32e mode guest\"")?;
        }
        self.require_width(FieldNatural::GuestCr3, self.capabilities.physical_bits)?;
        if self.has(EntryControl::LoadDebugControls) {
            self.require_zero(FieldNatural::GuestDr7, UPPER_HALF)?;
        }
        Ok(())
    }

    /// 28.3.1.1, the MSRs.
    fn guest_msrs(&mut self) -> Result<(), VmcsError> {
        const EFER: Field64 = Field64::GuestEfer;
        if self.has(EntryControl::LoadDebugControls) {
            self.require_zero(Field64::GuestDebugctl, DEBUGCTL_RESERVED)?;
        }
        self.require_canonical(FieldNatural::GuestSysenterEsp)?;
        self.require_canonical(FieldNatural::GuestSysenterEip)?;
        if self.has(EntryControl::LoadPat) {
            self.require_pat(Field64::GuestPat)?;
        }
        if self.has(EntryControl::LoadEfer) {
            self.require_efer_reserved(EFER)?;
            let efer = self.get(EFER)?;
            let long = efer & EFER_LMA != 0;
            if long != self.has(EntryControl::Ia32eModeGuest) {
                let rule = "LMA must equal the control \"IA-32e mode guest\"";
                self.fail(EFER, rule)?;
            }
            let paging = self.get(FieldNatural::GuestCr0)? & CR0_PG != 0;
            if paging && long != (efer & EFER_LME != 0) {
                self.fail(EFER, "LMA must equal LME where CR0.PG is 1")?;
            }
        }
        Ok(())
    }

    /// 28.3.1.3.
    fn guest_descriptor_tables(&mut self) -> Result<(), VmcsError> {
        self.require_canonical(FieldNatural::GuestGdtrBase)?;
        self.require_canonical(FieldNatural::GuestIdtrBase)?;
        self.require_zero(Field32::GuestGdtrLimit, 0xffff_0000)?;
        self.require_zero(Field32::GuestIdtrLimit, 0xffff_0000)
    }

    /// 28.3.1.4.
    fn guest_rip_and_rflags(&mut self) -> Result<(), VmcsError> {
        const RIP: FieldNatural = FieldNatural::GuestRip;
        const RFLAGS: FieldNatural = FieldNatural::GuestRflags;
        let ia32e = self.has(EntryControl::Ia32eModeGuest);
        if ia32e && read_segment(self.vmcs, Cs)?.access.long() {
            // Bits 63:N must be identical; bit N-1 need not be: the first fetch faults instead.
            let bits = self.capabilities.linear_bits.saturating_add(1).min(64);
            if !super::is_canonical(self.get(RIP)?, bits) {
                let rule = "bits beyond the linear-address width must be identical";
                self.fail(RIP, rule)?;
            }
        } else if self.get(RIP)? & UPPER_HALF != 0 {
            self.fail(RIP, "bits 63:32 must be 0 outside 64-bit mode")?;
        }
        self.require_zero(RFLAGS, RFLAGS_RESERVED)?;
        let rflags = self.get(RFLAGS)?;
        if !rflags.get_bit(1) {
            self.fail(RFLAGS, "reserved bit 1 must be 1")?;
        }
        let protected = self.get(FieldNatural::GuestCr0)? & CR0_PE != 0;
        if rflags & RFLAGS_VM != 0 && (ia32e || !protected) {
            let rule = "VM must be 0 in IA-32e mode and where CR0.PE is 0";
            self.fail(RFLAGS, rule)?;
        }
        let event = self.event()?.map(|event| event.kind);
        if event == Some(InterruptionType::ExternalInterrupt) && rflags & RFLAGS_IF == 0 {
            self.fail(RFLAGS, "IF must be 1 to inject an external interrupt")?;
        }
        Ok(())
    }

    /// 28.3.1.5, activity state.
    fn guest_activity(&mut self) -> Result<(), VmcsError> {
        const ACTIVITY: Field32 = Field32::GuestActivityState;
        let misc = self.capabilities.misc;
        let activity = self.get(ACTIVITY)?;
        let supported = match activity {
            ACTIVE => true,
            HLT => misc.halt_activity(),
            SHUTDOWN => misc.shutdown_activity(),
            WAIT_FOR_SIPI => misc.wait_for_sipi_activity(),
            _ => false,
        };
        if !supported {
            self.fail(ACTIVITY, "the CPU does not support this state")?;
        }
        if activity == HLT && read_segment(self.vmcs, Ss)?.access.dpl() != 0 {
            self.fail(ACTIVITY, "must not be HLT where the DPL of SS is not 0")?;
        }
        if activity != ACTIVE && self.is_blocked(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS)? {
            let rule = "must be active where events are blocked by STI or MOV SS";
            self.fail(ACTIVITY, rule)?;
        }
        let Some(event) = self.event()? else {
            return Ok(());
        };
        let deliverable = match (activity, event.kind, event.vector) {
            (ACTIVE, ..) => true,
            (HLT | SHUTDOWN, InterruptionType::Nmi, _) => true,
            // #MC; #DB.
            (HLT | SHUTDOWN, InterruptionType::HardwareException, 18) => true,
            (HLT, InterruptionType::HardwareException, 1) => true,
            (HLT, InterruptionType::ExternalInterrupt | InterruptionType::OtherEvent, _) => true,
            _ => false,
        };
        if !deliverable {
            let rule = "the event to be injected cannot be delivered in this state";
            self.fail(ACTIVITY, rule)?;
        }
        Ok(())
    }

    fn is_blocked(&self, by: u32) -> Result<bool, VmcsError> {
        Ok(self.vmcs.read32(Field32::GuestInterruptibilityState)? & by != 0)
    }

    /// 28.3.1.5, interruptibility state.
    fn guest_interruptibility(&mut self) -> Result<(), VmcsError> {
        const FIELD: Field32 = Field32::GuestInterruptibilityState;
        let sti = self.is_blocked(BLOCKING_BY_STI)?;
        let mov_ss = self.is_blocked(BLOCKING_BY_MOV_SS)?;
        self.require_zero(FIELD, INTERRUPTIBILITY_RESERVED)?;
        if sti && mov_ss {
            let rule = "blocking by STI and by MOV SS must not both be 1";
            self.fail(FIELD, rule)?;
        }
        if sti && self.get(FieldNatural::GuestRflags)? & RFLAGS_IF == 0 {
            self.fail(FIELD, "blocking by STI must be 0 where RFLAGS.IF is 0")?;
        }
        if self.is_blocked(BLOCKING_BY_SMI)? {
            self.fail(FIELD, "blocking by SMI must be 0 outside SMM")?;
        }
        let event = self.event()?.map(|event| event.kind);
        if event == Some(InterruptionType::ExternalInterrupt) && (sti || mov_ss) {
            let rule = "blocking by STI and by MOV SS must be 0 to inject an external interrupt";
            self.fail(FIELD, rule)?;
        }
        if event == Some(InterruptionType::Nmi) {
            // Blocking by STI is an error on some CPUs only, so it always is one here.
            if sti || mov_ss {
                let rule = "blocking by STI and by MOV SS must be 0 to inject an NMI";
                self.fail(FIELD, rule)?;
            }
            if self.has(Pin::VirtualNmis) && self.is_blocked(BLOCKING_BY_NMI)? {
                let rule = "blocking by NMI must be 0 to inject an NMI with \"virtual NMIs\"";
                self.fail(FIELD, rule)?;
            }
        }
        Ok(())
    }

    /// 28.3.1.5, pending debug exceptions.
    fn guest_pending_debug(&mut self) -> Result<(), VmcsError> {
        const FIELD: FieldNatural = FieldNatural::GuestPendingDebugExceptions;
        self.require_zero(FIELD, PENDING_DEBUG_RESERVED)?;
        let halted = self.get(Field32::GuestActivityState)? == HLT;
        if halted || self.is_blocked(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS)? {
            let steps = self.get(FieldNatural::GuestRflags)? & RFLAGS_TF != 0
                && self.get(Field64::GuestDebugctl)? & DEBUGCTL_BTF == 0;
            if (self.get(FIELD)? & PENDING_BS != 0) != steps {
                let rule = "where events are blocked by STI or MOV SS, or in HLT, BS must be 1 if and only if RFLAGS.TF \
                            is 1 and IA32_DEBUGCTL.BTF is 0";
                self.fail(FIELD, rule)?;
            }
        }
        Ok(())
    }

    /// 28.3.1.6: with PAE paging under EPT, an entry loads the PDPTEs from the VMCS.
    fn guest_pdptes(&mut self) -> Result<(), VmcsError> {
        let pae = self.get(FieldNatural::GuestCr0)? & CR0_PG != 0
            && self.get(FieldNatural::GuestCr4)? & CR4_PAE != 0
            && !self.has(EntryControl::Ia32eModeGuest)
            && self.has(Secondary::EnableEpt);
        if !pae {
            return Ok(());
        }
        let beyond = u64::MAX.unbounded_shl(self.capabilities.physical_bits.into());
        for field in [
            Field64::GuestPdpte0,
            Field64::GuestPdpte1,
            Field64::GuestPdpte2,
            Field64::GuestPdpte3,
        ] {
            // Reserved bits 2:1, 8:5 and beyond the physical-address width.
            if self.get(field)?.get_bit(0) {
                self.require_zero(field, beyond | 0x1e6)?;
            }
        }
        Ok(())
    }
}
