//! SDM "Checks on the Guest State Area", 28.3.1, segment registers excepted.

use bit_field::BitField;

use super::super::controls::{Entry, Pin, Secondary};
use super::super::fields::{Field32, Field64, FieldNatural};
use super::super::interruption::{Interruption, InterruptionType};
use super::super::register_bits::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_SMI, BLOCKING_BY_STI, CR0_PE, CR0_PG, CR4_PAE,
    CR4_PCIDE, DEBUGCTL_BTF, EFER_LMA, EFER_LME, PENDING_BS, RFLAGS_IF, RFLAGS_TF, RFLAGS_VM,
};
use super::super::segment::SegmentRegister;
use super::super::state::{ActivityState, GuestState, NO_LINK_POINTER};
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;

/// SDM table 26-3: bits 31:5.
const INTERRUPTIBILITY_RESERVED: u32 = !0x1f;
/// SDM table 26-4: what is neither B0 to B3, BLD, "enabled breakpoint", BS nor RTM.
const PENDING_DEBUG_RESERVED: u64 = !(0xf | 1 << 11 | 1 << 12 | PENDING_BS | 1 << 16);
/// LBR, BTF, BLD and bits 15:6; the others of IA32_DEBUGCTL are reserved.
const DEBUGCTL_RESERVED: u64 = !0xffc7;

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_guest(&mut self) -> Result<(), VmcsError> {
        let state = GuestState::read(self.vmcs)?;
        self.guest_control_registers(&state)?;
        self.guest_msrs(&state)?;
        self.guest_segments(&state)?;
        self.guest_descriptor_tables()?;
        self.guest_rip_and_rflags(&state)?;
        self.guest_activity(&state)?;
        self.guest_interruptibility(&state)?;
        self.guest_pending_debug(&state)?;
        self.guest_link_pointer()?;
        self.guest_pdptes(&state)
    }

    /// The event that the entry would inject.
    fn event(&self) -> Result<Option<Interruption>, VmcsError> {
        let information = self.vmcs.read32(Field32::EntryInterruptionInformation)?;
        Ok(Interruption::decode(information))
    }

    /// 28.3.1.1, the registers.
    fn guest_control_registers(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        // Bits that an entry does not change are not checked either: ET, 15:6, 17, 28:19, NW and CD.
        const NOT_CHECKED: u64 = 1 << 4 | 0x3ff << 6 | 1 << 17 | 0x3ff << 19 | 3 << 29;
        let unrestricted = self.has(Secondary::UnrestrictedGuest);
        let mut fixed = self.capabilities.cr0;
        if unrestricted {
            fixed = fixed.for_unrestricted_guest();
        }
        let wrong = match fixed.check(state.cr0) {
            Ok(()) => 0,
            Err(error) => (error.must_set | error.must_clear) & !NOT_CHECKED,
        };
        const CR0: FieldNatural = FieldNatural::GuestCr0;
        const CR4: FieldNatural = FieldNatural::GuestCr4;
        self.require(
            wrong == 0,
            CR0,
            "must have the bits that VMX operation fixes (IA32_VMX_CR0_FIXED0, _FIXED1)",
        )?;
        let paging = state.cr0 & CR0_PG != 0;
        self.require(
            !paging || state.cr0 & CR0_PE != 0,
            CR0,
            "PG must be 0 where PE is 0",
        )?;
        self.require(
            self.capabilities.cr4.check(state.cr4).is_ok(),
            CR4,
            "must have the bits that VMX operation fixes (IA32_VMX_CR4_FIXED0, _FIXED1)",
        )?;
        if self.has(Entry::Ia32eModeGuest) {
            self.require(paging, CR0, "PG must be 1 with \"IA-32e mode guest\"")?;
            self.require(
                state.cr4 & CR4_PAE != 0,
                CR4,
                "PAE must be 1 with \"IA-32e mode guest\"",
            )?;
        } else {
            self.require(
                state.cr4 & CR4_PCIDE == 0,
                CR4,
                "PCIDE must be 0 without \"IA-32e mode guest\"",
            )?;
        }
        self.require_cr3(FieldNatural::GuestCr3)?;
        if self.has(Entry::LoadDebugControls) {
            self.require(
                state.dr7 >> 32 == 0,
                FieldNatural::GuestDr7,
                "bits 63:32 must be 0",
            )?;
        }
        Ok(())
    }

    /// 28.3.1.1, the MSRs.
    fn guest_msrs(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        if self.has(Entry::LoadDebugControls) {
            self.require(
                state.debugctl & DEBUGCTL_RESERVED == 0,
                Field64::GuestDebugctl,
                "reserved bits must be 0",
            )?;
        }
        self.require_canonical(FieldNatural::GuestSysenterEsp)?;
        self.require_canonical(FieldNatural::GuestSysenterEip)?;
        if self.has(Entry::LoadPat) {
            self.require_pat(Field64::GuestPat)?;
        }
        if self.has(Entry::LoadEfer) {
            self.require_efer_reserved(Field64::GuestEfer)?;
            let long = state.efer & EFER_LMA != 0;
            self.require(
                long == self.has(Entry::Ia32eModeGuest),
                Field64::GuestEfer,
                "LMA must equal the control \"IA-32e mode guest\"",
            )?;
            self.require(
                state.cr0 & CR0_PG == 0 || long == (state.efer & EFER_LME != 0),
                Field64::GuestEfer,
                "LMA must equal LME where CR0.PG is 1",
            )?;
        }
        Ok(())
    }

    /// 28.3.1.3.
    fn guest_descriptor_tables(&mut self) -> Result<(), VmcsError> {
        self.require_canonical(FieldNatural::GuestGdtrBase)?;
        self.require_canonical(FieldNatural::GuestIdtrBase)?;
        for field in [Field32::GuestGdtrLimit, Field32::GuestIdtrLimit] {
            let limit = self.vmcs.read32(field)?;
            self.require(limit >> 16 == 0, field, "bits 31:16 must be 0")?;
        }
        Ok(())
    }

    /// 28.3.1.4.
    fn guest_rip_and_rflags(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        const RIP: FieldNatural = FieldNatural::GuestRip;
        const RFLAGS: FieldNatural = FieldNatural::GuestRflags;
        let ia32e = self.has(Entry::Ia32eModeGuest);
        let cs = state.segment(SegmentRegister::Cs);
        if ia32e && cs.access.long() {
            // Bits 63:N must be identical; bit N-1 need not be: the first fetch faults instead.
            let bits = self.capabilities.linear_bits.saturating_add(1).min(64);
            self.require(
                super::is_canonical(state.rip, bits),
                RIP,
                "bits beyond the linear-address width must be identical",
            )?;
        } else {
            self.require(
                state.rip >> 32 == 0,
                RIP,
                "bits 63:32 must be 0 outside 64-bit mode",
            )?;
        }
        let rflags = state.rflags;
        self.require(
            rflags >> 22 == 0 && rflags & (1 << 15 | 1 << 5 | 1 << 3) == 0,
            RFLAGS,
            "reserved bits 63:22, 15, 5 and 3 must be 0",
        )?;
        self.require(rflags.get_bit(1), RFLAGS, "reserved bit 1 must be 1")?;
        self.require(
            rflags & RFLAGS_VM == 0 || !ia32e && state.cr0 & CR0_PE != 0,
            RFLAGS,
            "VM must be 0 in IA-32e mode and where CR0.PE is 0",
        )?;
        let interrupt = self
            .event()?
            .is_some_and(|event| event.kind == InterruptionType::ExternalInterrupt);
        self.require(
            rflags & RFLAGS_IF != 0 || !interrupt,
            RFLAGS,
            "IF must be 1 to inject an external interrupt",
        )
    }

    /// 28.3.1.5, activity state.
    fn guest_activity(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        const ACTIVITY: Field32 = Field32::GuestActivityState;
        let misc = self.capabilities.misc;
        let supported = match state.activity {
            ActivityState::Active => true,
            ActivityState::Hlt => misc.halt_activity(),
            ActivityState::Shutdown => misc.shutdown_activity(),
            ActivityState::WaitForSipi => misc.wait_for_sipi_activity(),
            ActivityState::Unknown(_) => false,
        };
        self.require(supported, ACTIVITY, "the CPU does not support this state")?;
        let ss = state.segment(SegmentRegister::Ss);
        self.require(
            state.activity != ActivityState::Hlt || ss.access.dpl() == 0,
            ACTIVITY,
            "must not be HLT where the DPL of SS is not 0",
        )?;
        self.require(
            state.activity == ActivityState::Active
                || state.interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0,
            ACTIVITY,
            "must be active where events are blocked by STI or MOV SS",
        )?;
        let Some(event) = self.event()? else {
            return Ok(());
        };
        let machine_check = event.kind == InterruptionType::HardwareException && event.vector == 18;
        let nmi = event.kind == InterruptionType::Nmi;
        let deliverable = match state.activity {
            ActivityState::Active => true,
            ActivityState::Hlt => {
                let debug = event.kind == InterruptionType::HardwareException && event.vector == 1;
                let interrupt = event.kind == InterruptionType::ExternalInterrupt;
                let trap = event.kind == InterruptionType::OtherEvent;
                interrupt || nmi || debug || machine_check || trap
            }
            ActivityState::Shutdown => nmi || machine_check,
            ActivityState::WaitForSipi | ActivityState::Unknown(_) => false,
        };
        self.require(
            deliverable,
            ACTIVITY,
            "the event to be injected cannot be delivered in this state",
        )
    }

    /// 28.3.1.5, interruptibility state.
    fn guest_interruptibility(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        const FIELD: Field32 = Field32::GuestInterruptibilityState;
        let blocking = state.interruptibility;
        let sti = blocking & BLOCKING_BY_STI != 0;
        let mov_ss = blocking & BLOCKING_BY_MOV_SS != 0;
        self.require(
            blocking & INTERRUPTIBILITY_RESERVED == 0,
            FIELD,
            "reserved bits 31:5 must be 0",
        )?;
        self.require(
            !(sti && mov_ss),
            FIELD,
            "blocking by STI and by MOV SS must not both be 1",
        )?;
        self.require(
            !sti || state.rflags & RFLAGS_IF != 0,
            FIELD,
            "blocking by STI must be 0 where RFLAGS.IF is 0",
        )?;
        self.require(
            blocking & BLOCKING_BY_SMI == 0,
            FIELD,
            "blocking by SMI must be 0 outside SMM",
        )?;
        match self.event()?.map(|event| event.kind) {
            Some(InterruptionType::ExternalInterrupt) => self.require(
                !sti && !mov_ss,
                FIELD,
                "blocking by STI and by MOV SS must be 0 to inject an external interrupt",
            ),
            Some(InterruptionType::Nmi) => {
                // Blocking by STI is an error on some CPUs only, so it always is one here.
                self.require(
                    !sti && !mov_ss,
                    FIELD,
                    "blocking by STI and by MOV SS must be 0 to inject an NMI",
                )?;
                self.require(
                    !self.has(Pin::VirtualNmis) || blocking & BLOCKING_BY_NMI == 0,
                    FIELD,
                    "blocking by NMI must be 0 to inject an NMI with \"virtual NMIs\"",
                )
            }
            _ => Ok(()),
        }
    }

    /// 28.3.1.5, pending debug exceptions.
    fn guest_pending_debug(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        const FIELD: FieldNatural = FieldNatural::GuestPendingDebugExceptions;
        let pending = state.pending_debug;
        self.require(
            pending & PENDING_DEBUG_RESERVED == 0,
            FIELD,
            "reserved bits must be 0",
        )?;
        let blocked = state.interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) != 0;
        if blocked || state.activity == ActivityState::Hlt {
            let steps = state.rflags & RFLAGS_TF != 0 && state.debugctl & DEBUGCTL_BTF == 0;
            self.require(
                (pending & PENDING_BS != 0) == steps,
                FIELD,
                "where events are blocked by STI or MOV SS, or in HLT, BS must be 1 if and only if RFLAGS.TF is 1 \
                 and IA32_DEBUGCTL.BTF is 0",
            )?;
        }
        Ok(())
    }

    /// 28.3.1.5, VMCS link pointer.
    fn guest_link_pointer(&mut self) -> Result<(), VmcsError> {
        let pointer = self.vmcs.read64(Field64::VmcsLinkPointer)?;
        self.require(
            pointer == NO_LINK_POINTER,
            Field64::VmcsLinkPointer,
            "must be all ones: no VMCS is shadowed",
        )
    }

    /// 28.3.1.6: with PAE paging under EPT, an entry loads the PDPTEs from the VMCS.
    fn guest_pdptes(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        let pae = state.cr0 & CR0_PG != 0
            && state.cr4 & CR4_PAE != 0
            && !self.has(Entry::Ia32eModeGuest)
            && self.has(Secondary::EnableEpt);
        if !pae {
            return Ok(());
        }
        for (field, pdpte) in [
            Field64::GuestPdpte0,
            Field64::GuestPdpte1,
            Field64::GuestPdpte2,
            Field64::GuestPdpte3,
        ]
        .into_iter()
        .zip(state.pdptes)
        {
            let reserved =
                pdpte & 0x1e6 != 0 || !super::is_physical(pdpte, self.capabilities.physical_bits);
            self.require(
                !pdpte.get_bit(0) || !reserved,
                field,
                "reserved bits 2:1, 8:5 and beyond the physical-address width must be 0",
            )?;
        }
        Ok(())
    }
}
