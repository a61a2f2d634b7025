//! A guest's processor that is loaded into a CPU with VMX: what [`Processor`] asks for, by the current VMCS.

use core::fmt;

use super::advance::{
    advance_rip, advance_rip_by, advance_rip_from, pend_breakpoints, repeat, restart, undo_step,
};
use super::capabilities::Capabilities;
use super::controls::{ControlSet, ControlWord, EntryControl};
use super::dump::{dump_vmcs, report_failed_entry, summarize_vmcs};
use super::entry_check::CheckGroup;
use super::event::{
    EventError, interrupted_event, pend_single_step, raise, reinject, restore_nmi_blocking,
};
use super::exit::{EntryFailure, Exit, ExitReasonField};
use super::fields::{Field32, Field64, FieldNatural};
use super::instruction_error::VmFail;
use super::interruption::Interruption;
use super::pml::{Pml, pml_full_unblocked_nmis};
use super::qualification::{
    DebugException, InstructionTimeout, address_size, byte_access, cr_access, io_access,
};
use super::segments::{outs_segment, read_segment, segment_fields};
use super::vmcs::{Vmcs, VmcsError};
use crate::addr::{Gpa, Gva};
use crate::ept::{CpuId, Entered, Eptp, Invalidate, Space, Violation};
use crate::frames::{FrameAllocator, PhysMem};
use crate::register_bits::EFER_LMA;
use crate::virt::control_registers::{ControlRegisters, CrAccess};
use crate::virt::cpu::EntryArea;
use crate::virt::event::Event;
use crate::virt::io::IoAccess;
use crate::virt::processor::{
    ExceptionExit, InstructionState, NoEvent, PortExit, PortString, Processor, RegisterMasks,
    SpecialExit,
};
use crate::virt::{AccessRights, BreakpointHits, Segment, SegmentRegister};

/// In IDT-vectoring information: an event was being delivered.
const VALID: u64 = 1 << 31;
/// DR7.GD: access to debug registers raises #DB.
const DR7_GD: u64 = 1 << 13;
const PDPTES: [Field64; 4] = [
    Field64::GuestPdpte0,
    Field64::GuestPdpte1,
    Field64::GuestPdpte2,
    Field64::GuestPdpte3,
];

/// What [`OnCpu::enter`] returns where the entry failed, larger than any exit-reason field: VMfailInvalid.
pub(super) const FAILED_INVALID: u64 = 1 << 32;
/// VMfailValid.
pub(super) const FAILED_VALID: u64 = FAILED_INVALID | 1;

/// Why a guest could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// VMLAUNCH, VMRESUME, or what comes before them, failed.
    Instruction(VmFail),
    /// The CPU refused the guest's state.
    State(EntryFailure),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instruction(fail) => write!(f, "VM entry: {fail}"),
            Self::State(failure) => failure.fmt(f),
        }
    }
}

impl core::error::Error for EntryError {}

/// What a current VMCS can do on its CPU beside being read and written.
///
/// # Safety
/// [`OnCpu::invept`] and [`OnCpu::invvpid`] must have dropped, when they return without an error, what the CPU has cached under
/// their EPT pointer or VPID.
pub unsafe trait OnCpu: Vmcs {
    /// Enters the guest: see [`CurrentVmcs::enter`](super::cpu::CurrentVmcs::enter).
    ///
    /// # Safety
    /// As there.
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64;
    /// Why VMLAUNCH or VMRESUME did not happen, where `entered` says so.
    #[cold]
    fn entry_failure(&self, entered: u64) -> Option<VmFail> {
        match entered {
            FAILED_INVALID => Some(VmFail::Invalid),
            FAILED_VALID => Some(match self.read32(Field32::VmInstructionError) {
                Ok(number) => VmFail::from_number(number),
                Err(VmcsError { fail, .. }) => fail,
            }),
            _ => None,
        }
    }
    /// INVEPT of one EPT pointer, or of all where the CPU can only do that.
    ///
    /// # Errors
    /// What INVEPT says.
    fn invept(&mut self, eptp: u64) -> Result<(), VmFail>;
    /// INVVPID of one VPID, or of all where the CPU can only do that.
    ///
    /// # Errors
    /// What INVVPID says.
    ///
    /// # Safety
    /// The CPU has INVVPID.
    unsafe fn invvpid(&mut self, vpid: u16) -> Result<(), VmFail>;
    /// DR0 to DR3.
    fn breakpoint_addresses(&self) -> [u64; 4];
    /// Sets CR2.
    fn set_cr2(&mut self, address: u64);
    /// Changes DR6.
    fn update_dr6(&mut self, change: impl FnOnce(u64) -> u64);
    /// Sets one of [`SWITCHED_MSRS`](crate::virt::cpu::SWITCHED_MSRS).
    ///
    /// # Safety
    /// The CPU has it and accepts `value`.
    unsafe fn set_switched(&mut self, index: u32, value: u64);
    /// Sets XCR0.
    ///
    /// # Safety
    /// The CPU has XSAVE and accepts `value`.
    unsafe fn set_xcr0(&mut self, value: u64);
}

/// A processor whose VMCS is current.
#[derive(Debug)]
pub struct Loaded<'c, V> {
    /// The VMCS.
    pub vmcs: V,
    /// The VPID, on a CPU that has them, and INVVPID.
    pub vpid: Option<u16>,
    /// What the CPU can do.
    pub capabilities: &'c Capabilities,
    /// Where it can log pages.
    pub pml: Option<&'c Pml>,
    /// Whether the preemption timer goes on over an exit.
    pub timer_is_saved: bool,
}

/// An instruction that exited.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    rip: u64,
    length: u64,
    interruptibility: u64,
    rflags: u64,
}

impl<V: OnCpu> Loaded<'_, V> {
    fn qualification(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::ExitQualification)
    }
}

// SAFETY: there is one processor, and the EPT pointer and the VPID are those of the guest that is loaded, whose VPID never changes.
unsafe impl<V: OnCpu> Invalidate for Loaded<'_, V> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        if self.vmcs.invept(eptp.as_u64()).is_err() {
            super::cpu::invept_failed();
        }
    }
    #[inline(always)]
    fn invvpid(&mut self, eptp: Eptp) {
        // Without a VPID each VM entry drops what is cached by linear addresses.
        if let Some(number) = self.vpid {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            if unsafe { self.vmcs.invvpid(number) }.is_err() {
                self.invept(eptp);
            }
        }
    }
}

impl<V: OnCpu> Processor for Loaded<'_, V> {
    type Error = VmcsError;
    type EntryError = EntryError;
    /// The exit qualification.
    type PortDetail = u64;
    type Place = Place;

    fn get_ready(&mut self, eptp: Eptp, ticks: u64) -> Result<(), VmcsError> {
        self.set_timer(ticks)?;
        self.vmcs.write64(Field64::EptPointer, eptp.as_u64())
    }
    #[inline(always)]
    fn set_timer(&mut self, ticks: u64) -> Result<(), VmcsError> {
        let value = self.capabilities.misc.preemption_timer_value(ticks);
        self.vmcs.write32(Field32::PreemptionTimerValue, value)
    }
    #[inline(always)]
    fn timer_is_saved(&self) -> bool {
        self.timer_is_saved
    }
    #[inline(always)]
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64 {
        // SAFETY: the caller's; the EPT pointer is that of `right` since `get_ready`, and the host state in the VMCS is this CPU's.
        unsafe { self.vmcs.enter::<X87_SELECTORS>(right, area) }
    }
    #[cold]
    fn special_exit(&self, entered: u64) -> Result<SpecialExit<EntryError>, VmcsError> {
        if let Some(fail) = self.vmcs.entry_failure(entered) {
            return Ok(SpecialExit::EntryFailed(EntryError::Instruction(fail)));
        }
        Ok(match Exit::read(&self.vmcs)? {
            Exit::Left(reason) if ExitReasonField(entered as u32).is_reason_beside_bus_lock() => {
                SpecialExit::BusLock(reason)
            }
            Exit::Left(reason) => SpecialExit::Unexpected(reason),
            Exit::EntryFailed(failure) => match failure {
                EntryFailure::MachineCheck => SpecialExit::MachineCheck(EntryError::State(failure)),
                _ => SpecialExit::EntryFailed(EntryError::State(failure)),
            },
            Exit::Unknown(number) => SpecialExit::Unknown(number),
        })
    }
    fn flush_linear(&mut self) -> Result<(), EntryError> {
        match self.vpid {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            Some(vpid) => unsafe { self.vmcs.invvpid(vpid) }.map_err(EntryError::Instruction),
            None => Ok(()),
        }
    }

    #[inline(always)]
    fn port_exit(&self) -> Result<PortExit<u64, Place>, VmcsError> {
        let [qualification, dr7, rip, length, interruptibility, rflags] = self.vmcs.read_six([
            FieldNatural::ExitQualification.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestRip.into(),
            Field32::ExitInstructionLength.into(),
            Field32::GuestInterruptibilityState.into(),
            FieldNatural::GuestRflags.into(),
        ])?;
        Ok(PortExit {
            byte: byte_access(qualification),
            dr7,
            detail: qualification,
            place: Place {
                rip,
                length,
                interruptibility,
                rflags,
            },
        })
    }
    fn port_access(qualification: u64) -> Option<IoAccess> {
        io_access(qualification)
    }
    fn port_string(&self) -> Result<Option<PortString>, VmcsError> {
        if !self.capabilities.basic.reports_ins_outs() {
            return Ok(None);
        }
        let information = self.vmcs.read32(Field32::ExitInstructionInformation)?;
        Ok(Some(PortString {
            address_size: address_size(information),
            segment: outs_segment(information),
            length: self.instruction_length()? as u8,
        }))
    }
    #[inline(always)]
    fn violation(&self) -> Result<(Violation, bool), VmcsError> {
        let [qualification, gpa, vectoring, pending] = self.vmcs.read_four([
            FieldNatural::ExitQualification.into(),
            Field64::GuestPhysicalAddress.into(),
            Field32::IdtVectoringInformation.into(),
            FieldNatural::GuestPendingDebugExceptions.into(),
        ])?;
        // SAFETY: this is the violation by which the guest has just left the CPU.
        let violation = unsafe { Violation::at_exit(qualification, Gpa::new(gpa)) };
        Ok((violation, vectoring & VALID == 0 && pending == 0))
    }
    fn physical_address(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestPhysicalAddress)
    }
    #[inline(always)]
    fn linear_address(&self) -> Result<Gva, VmcsError> {
        self.vmcs
            .read_natural(FieldNatural::GuestLinearAddress)
            .map(Gva::new)
    }
    fn was_delivering(&self) -> Result<bool, VmcsError> {
        let vectoring = self.vmcs.read32(Field32::IdtVectoringInformation)?;
        Ok(u64::from(vectoring) & VALID != 0)
    }
    fn cr_access(&self) -> Result<Option<CrAccess>, VmcsError> {
        self.qualification().map(cr_access)
    }
    fn exception(&self) -> Result<Option<ExceptionExit>, VmcsError> {
        let information = self.vmcs.read32(Field32::ExitInterruptionInformation)?;
        let interruption = Interruption::decode(information);
        Ok(interruption.and_then(|interruption| {
            Some(ExceptionExit {
                vector: interruption.vector,
                kind: interruption.kind.of_event()?,
                has_error_code: interruption.has_error_code,
            })
        }))
    }
    fn error_code(&self) -> Result<u32, VmcsError> {
        self.vmcs.read32(Field32::ExitInterruptionErrorCode)
    }
    fn fault_address(&self) -> Result<Gva, VmcsError> {
        self.qualification().map(Gva::new)
    }
    fn interrupt_vector(&self) -> Result<u8, VmcsError> {
        self.vmcs
            .read32(Field32::ExitInterruptionInformation)
            .map(|information| information as u8)
    }
    fn instruction_length(&self) -> Result<u32, VmcsError> {
        self.vmcs.read32(Field32::ExitInstructionLength)
    }
    fn survives_timeout(&mut self) -> Result<bool, VmcsError> {
        let timeout = InstructionTimeout::decode(self.qualification()?);
        if !timeout.context_is_lost {
            restore_nmi_blocking(&mut self.vmcs, timeout.nmi_unblocked_by_iret)?;
        }
        Ok(!timeout.context_is_lost)
    }
    fn note_debug_exception(&mut self) -> Result<(), VmcsError> {
        let exception = DebugException::decode(self.qualification()?);
        self.vmcs.update_dr6(|dr6| exception.to_dr6(dr6));
        if exception.debug_register_access() {
            let dr7 = self.vmcs.read_natural(FieldNatural::GuestDr7)?;
            self.vmcs
                .write_natural(FieldNatural::GuestDr7, dr7 & !DR7_GD)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn rip(&self) -> Result<Gva, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRip).map(Gva::new)
    }
    #[inline(always)]
    fn rsp(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRsp)
    }
    #[inline(always)]
    fn set_rsp(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write_natural(FieldNatural::GuestRsp, value)
    }
    #[inline(always)]
    fn rflags(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRflags)
    }
    #[inline(always)]
    fn set_rflags(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write_natural(FieldNatural::GuestRflags, value)
    }
    #[inline(always)]
    fn cr0(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestCr0)
    }
    #[inline(always)]
    fn cr4(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestCr4)
    }
    #[inline(always)]
    fn efer(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestEfer)
    }
    #[inline(always)]
    fn set_efer(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestEfer, value)
    }
    fn control_registers(&self) -> Result<ControlRegisters, VmcsError> {
        Ok(ControlRegisters {
            cr0: self.cr0()?,
            cr3: self.vmcs.read_natural(FieldNatural::GuestCr3)?,
            cr4: self.cr4()?,
            efer: self.efer()?,
        })
    }
    fn visible_registers(&self, masks: &RegisterMasks) -> Result<ControlRegisters, VmcsError> {
        let real = self.control_registers()?;
        let shadow = |field| self.vmcs.read_natural(field);
        Ok(ControlRegisters {
            cr0: masks.visible_cr0(real.cr0, shadow(FieldNatural::Cr0ReadShadow)?),
            cr4: masks.visible_cr4(real.cr4, shadow(FieldNatural::Cr4ReadShadow)?),
            ..real
        })
    }
    fn set_registers(
        &mut self,
        visible: &ControlRegisters,
        real_cr0: u64,
        real_cr4: u64,
    ) -> Result<(), VmcsError> {
        for (field, value) in [
            (FieldNatural::GuestCr0, real_cr0),
            (FieldNatural::Cr0ReadShadow, visible.cr0),
            (FieldNatural::GuestCr3, visible.cr3),
            (FieldNatural::GuestCr4, real_cr4),
            (FieldNatural::Cr4ReadShadow, visible.cr4),
        ] {
            self.vmcs.write_natural(field, value)?;
        }
        Ok(())
    }
    fn set_mode(&mut self, efer: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestEfer, efer)?;
        let mut entry = ControlSet::read(&self.vmcs)?;
        entry.set(EntryControl::Ia32eModeGuest, efer & EFER_LMA != 0);
        let word = entry.word(ControlWord::Entry) as u32;
        self.vmcs.write32(Field32::EntryControls, word)
    }
    #[cold]
    fn pdptes(&self) -> Result<[u64; 4], VmcsError> {
        self.vmcs.read_four(PDPTES.map(Into::into))
    }
    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), VmcsError> {
        for (field, entry) in PDPTES.into_iter().zip(entries) {
            self.vmcs.write64(field, entry)?;
        }
        Ok(())
    }
    #[inline(always)]
    fn segment(&self, register: SegmentRegister) -> Result<Segment, VmcsError> {
        read_segment(&self.vmcs, register)
    }
    #[inline(always)]
    fn access_rights(&self, register: SegmentRegister) -> Result<AccessRights, VmcsError> {
        let [.., field] = segment_fields(register);
        let bits = self.vmcs.read_any(field)?;
        Ok(AccessRights(bits as u32))
    }
    #[inline(always)]
    fn instruction_state(&self) -> Result<InstructionState, VmcsError> {
        let [cr0, cr3, efer, cr4] = self.vmcs.read_four([
            FieldNatural::GuestCr0.into(),
            FieldNatural::GuestCr3.into(),
            Field64::GuestEfer.into(),
            FieldNatural::GuestCr4.into(),
        ])?;
        let [rflags, rsp, cs, ss, dr7, cs_base] = self.vmcs.read_six([
            FieldNatural::GuestRflags.into(),
            FieldNatural::GuestRsp.into(),
            Field32::GuestCsAccessRights.into(),
            Field32::GuestSsAccessRights.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestCsBase.into(),
        ])?;
        Ok(InstructionState {
            registers: ControlRegisters {
                cr0,
                cr3,
                cr4,
                efer,
            },
            rflags,
            rsp,
            cs: AccessRights(cs as u32),
            cs_base,
            ss: AccessRights(ss as u32),
            dr7,
        })
    }
    #[inline(always)]
    fn pat(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestPat)
    }
    #[inline(always)]
    fn set_pat(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestPat, value)
    }
    #[inline(always)]
    fn tsc_offset(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::TscOffset)
    }
    #[inline(always)]
    fn set_tsc_offset(&mut self, ticks: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::TscOffset, ticks)
    }
    fn set_sysenter_esp(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs
            .write_natural(FieldNatural::GuestSysenterEsp, value)
    }
    fn set_sysenter_eip(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs
            .write_natural(FieldNatural::GuestSysenterEip, value)
    }

    fn breakpoint_addresses(&self) -> [u64; 4] {
        self.vmcs.breakpoint_addresses()
    }
    fn set_cr2(&mut self, address: Gva) {
        self.vmcs.set_cr2(address.as_u64());
    }
    unsafe fn set_switched(&mut self, index: u32, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.vmcs.set_switched(index, value) };
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.vmcs.set_xcr0(value) };
    }

    #[inline(always)]
    fn advance(&mut self) -> Result<(), VmcsError> {
        advance_rip(&mut self.vmcs)
    }
    #[inline(always)]
    fn advance_by(&mut self, length: u8) -> Result<(), VmcsError> {
        advance_rip_by(&mut self.vmcs, length)
    }
    #[inline(always)]
    fn advance_from(&mut self, place: Place) -> Result<(), VmcsError> {
        let Place {
            rip,
            length,
            interruptibility,
            rflags,
        } = place;
        advance_rip_from(&mut self.vmcs, rip, length, interruptibility, rflags)
    }
    fn repeat(&mut self) -> Result<(), VmcsError> {
        repeat(&mut self.vmcs)
    }
    fn restart(&mut self) -> Result<(), VmcsError> {
        restart(&mut self.vmcs)
    }
    fn undo_step(&mut self) -> Result<(), VmcsError> {
        undo_step(&mut self.vmcs)
    }
    fn pend_breakpoints(&mut self, met: BreakpointHits) -> Result<(), VmcsError> {
        pend_breakpoints(&mut self.vmcs, met)
    }
    fn pend_single_step(&mut self) -> Result<(), VmcsError> {
        pend_single_step(&mut self.vmcs)
    }
    fn raise(&mut self, event: Event) -> Result<(), VmcsError> {
        raise(&mut self.vmcs, event)
    }
    fn reinject(&mut self, event: Event) -> Result<(), VmcsError> {
        reinject(&mut self.vmcs, event)
    }
    fn interrupted(&self) -> Result<Option<Event>, NoEvent<VmcsError>> {
        interrupted_event(&self.vmcs).map_err(|error| match error {
            EventError::Vmcs(error) => NoEvent::State(error),
            EventError::InstructionLength(_) | EventError::BadVectoring(_) => NoEvent::Impossible,
        })
    }
    fn block_nmis_again(&mut self) -> Result<u32, VmcsError> {
        restore_nmi_blocking(&mut self.vmcs, true)?;
        self.vmcs.read32(Field32::GuestInterruptibilityState)
    }

    fn can_log(&self) -> bool {
        self.pml.is_some()
    }
    fn begin_log(&mut self) -> Result<(), VmcsError> {
        match self.pml {
            Some(pml) => pml.load(&mut self.vmcs),
            None => Ok(()),
        }
    }
    fn drain_log<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M>,
    ) -> Result<(), VmcsError> {
        match self.pml {
            Some(pml) => pml.drain(frames, space, &mut self.vmcs),
            None => Ok(()),
        }
    }
    fn retry_logged(&mut self) -> Result<(), VmcsError> {
        let unblocked = pml_full_unblocked_nmis(self.qualification()?);
        undo_step(&mut self.vmcs)?;
        restore_nmi_blocking(&mut self.vmcs, unblocked)
    }

    fn summarize(&self, out: &mut impl fmt::Write) -> fmt::Result {
        summarize_vmcs(&self.vmcs, out)
    }
    fn dump(&self, out: &mut impl fmt::Write) -> fmt::Result {
        dump_vmcs(&self.vmcs, out)
    }
    fn report_failed_entry(&self, error: EntryError, out: &mut impl fmt::Write) -> fmt::Result {
        let group = match error {
            EntryError::Instruction(fail) => CheckGroup::of_instruction(fail),
            EntryError::State(failure) => CheckGroup::of_entry(failure),
        };
        report_failed_entry(group, &self.vmcs, self.capabilities, out)
    }
}
