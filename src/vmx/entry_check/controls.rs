//! SDM "Checks on VMX Controls", 28.2.1.

use bit_field::BitField;

use super::super::controls::{
    Control, ControlWord, EntryControl, ExitControl, Pin, Primary, Secondary,
};
use super::super::fields::{Field16, Field32, Field64, FieldNatural};
use super::super::interruption::{Interruption, InterruptionType};
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;
use crate::register_bits::CR0_PE;
use crate::virt::Rule;
use crate::virt::event::has_error_code;

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_controls(&mut self) -> Result<(), VmcsError> {
        self.reserved_settings()?;
        self.execution_controls()?;
        self.execution_structures()?;
        self.exit_and_entry_controls()?;
        self.injected_event()
    }

    /// Every word of controls against its capability MSR.
    fn reserved_settings(&mut self) -> Result<(), VmcsError> {
        for word in ControlWord::ALL {
            let value = self.controls.word(word);
            let allowed = self.capabilities.allowed(word);
            if self.controls.activates(word) && allowed.must_be_one & !value != 0 {
                let rule = "a control is 0 that the capability MSR says must be 1";
                self.fail(word.field(), rule)?;
            }
            if self.controls.activates(word) && value & !allowed.may_be_one != 0 {
                let rule = "a control is 1 that the capability MSR says must be 0";
                self.fail(word.field(), rule)?;
            }
        }
        Ok(())
    }

    /// That a control is not 1 without another one.
    pub(super) fn needs(
        &mut self,
        control: impl Into<Control>,
        needed: impl Into<Control>,
    ) -> Result<(), VmcsError> {
        let (control, needed) = (control.into(), needed.into());
        if self.has(control) && !self.has(needed) {
            let name = |control: Control| control.name().unwrap_or("reserved");
            let rule = Rule::Needs(name(control), name(needed));
            self.broken(control.word().field(), rule)?;
        }
        Ok(())
    }

    fn execution_controls(&mut self) -> Result<(), VmcsError> {
        use {Pin as I, Primary as P, Secondary as S};
        let targets = self.vmcs.read32(Field32::Cr3TargetCount)?;
        if targets > self.capabilities.misc.cr3_targets() {
            let rule = "must not be greater than the number of CR3-target values";
            self.fail(Field32::Cr3TargetCount, rule)?;
        }
        self.needs(I::VirtualNmis, I::NmiExiting)?;
        self.needs(P::NmiWindowExiting, I::VirtualNmis)?;
        self.needs(S::UnrestrictedGuest, S::EnableEpt)?;
        self.needs(S::EnablePml, S::EnableEpt)?;
        self.needs(S::ModeBasedExecuteControl, S::EnableEpt)?;
        self.needs(S::VirtualInterruptDelivery, I::ExternalInterruptExiting)?;
        self.needs(S::VirtualizeX2apicMode, P::UseTprShadow)?;
        self.needs(I::ProcessPostedInterrupts, S::VirtualInterruptDelivery)
    }

    /// What the execution controls point to.
    fn execution_structures(&mut self) -> Result<(), VmcsError> {
        use {Field64 as Q, Primary as P, Secondary as S};
        for (control, field) in [
            (P::UseIoBitmaps.control(), Q::IoBitmapA),
            (P::UseIoBitmaps.control(), Q::IoBitmapB),
            (P::UseMsrBitmaps.control(), Q::MsrBitmaps),
            (P::UseTprShadow.control(), Q::VirtualApicAddress),
            (S::VirtualizeApicAccesses.control(), Q::ApicAccessAddress),
            (S::EnablePml.control(), Q::PmlAddress),
        ] {
            if self.has(control) {
                self.require_physical(field, 12)?;
            }
        }
        if self.has(Secondary::EnableVpid) && self.get(Field16::Vpid)? == 0 {
            self.fail(Field16::Vpid, "must not be 0 with \"enable VPID\"")?;
        }
        if self.has(Secondary::EnableEpt) {
            self.ept_pointer()?;
        }
        Ok(())
    }

    fn ept_pointer(&mut self) -> Result<(), VmcsError> {
        const EPTP: Field64 = Field64::EptPointer;
        let eptp = self.get(EPTP)?;
        let can = self.capabilities.ept;
        match eptp.get_bits(0..3) {
            0 if can.uncacheable_tables => (),
            6 if can.write_back_tables => (),
            _ => self.fail(EPTP, "bits 2:0 must be a supported memory type")?,
        }
        match eptp.get_bits(3..6) {
            3 if can.walk_length_4 => (),
            4 if can.walk_length_5 => (),
            _ => {
                let rule = "bits 5:3 must be a supported page-walk length less 1";
                self.fail(EPTP, rule)?;
            }
        }
        if eptp.get_bit(6) && !can.accessed_dirty {
            let rule = "bit 6 must be 0: no accessed and dirty flags for EPT";
            self.fail(EPTP, rule)?;
        }
        let reserved = match can.supervisor_shadow_stack {
            true => 0xf00,
            false => 0xf80,
        };
        self.require_zero(EPTP, reserved)?;
        self.require_width(EPTP, self.capabilities.physical_bits)
    }

    fn exit_and_entry_controls(&mut self) -> Result<(), VmcsError> {
        self.needs(
            ExitControl::SavePreemptionTimer,
            Pin::ActivatePreemptionTimer,
        )?;
        for (count, address) in [
            (Field32::ExitMsrStoreCount, Field64::ExitMsrStoreAddress),
            (Field32::ExitMsrLoadCount, Field64::ExitMsrLoadAddress),
            (Field32::EntryMsrLoadCount, Field64::EntryMsrLoadAddress),
        ] {
            self.msr_list(count, address)?;
        }
        if self.has(EntryControl::EntryToSmm) || self.has(EntryControl::DeactivateDualMonitor) {
            let rule =
                "\"entry to SMM\" and \"deactivate dual-monitor treatment\" must be 0 outside SMM";
            self.fail(Field32::EntryControls, rule)?;
        }
        Ok(())
    }

    fn msr_list(&mut self, count: Field32, address: Field64) -> Result<(), VmcsError> {
        let entries = self.get(count)?;
        if entries == 0 {
            return Ok(());
        }
        self.require_physical(address, 4)?;
        let last = self.get(address)?.checked_add(entries * 16 - 1);
        if !last.is_some_and(|last| super::is_physical(last, self.capabilities.physical_bits)) {
            self.fail(count, "the list must end within the physical-address width")?;
        }
        Ok(())
    }

    /// The VM-entry interruption-information field and its companions (28.2.1.3).
    fn injected_event(&mut self) -> Result<(), VmcsError> {
        const INFORMATION: Field32 = Field32::EntryInterruptionInformation;
        let Some(event) = self.event()? else {
            return Ok(());
        };
        let right_type = match event.kind {
            InterruptionType::Reserved => false,
            InterruptionType::OtherEvent => self.capabilities.offers(Primary::MonitorTrapFlag),
            _ => true,
        };
        if !right_type {
            self.fail(INFORMATION, "the interruption type is reserved")?;
        }
        let right_vector = match event.kind {
            InterruptionType::Nmi => event.vector == 2,
            InterruptionType::HardwareException => event.vector <= 31,
            InterruptionType::OtherEvent => event.vector == 0,
            _ => true,
        };
        if !right_vector {
            let rule = "the vector does not go with the interruption type";
            self.fail(INFORMATION, rule)?;
        }
        let protected = self.get(FieldNatural::GuestCr0)? & CR0_PE != 0;
        let exception = event.kind == InterruptionType::HardwareException && protected;
        let any_vector = self.capabilities.basic.any_error_code();
        let has_code = has_error_code(event.vector);
        let right_code = match event.has_error_code {
            true => exception && (has_code || any_vector),
            false => !(exception && has_code) || any_vector,
        };
        if !right_code {
            let rule = "bit 11 (deliver error code) must be 1 for #DF, #TS, #NP, #SS, #GP, #PF and #AC in protected \
                        mode, else 0";
            self.fail(INFORMATION, rule)?;
        }
        self.require_zero(INFORMATION, 0x7fff_f000)?;
        if event.has_error_code {
            self.require_zero(Field32::EntryExceptionErrorCode, 0xffff_0000)?;
        }
        if event.kind.is_software() {
            let length = self.get(Field32::EntryInstructionLength)?;
            let shortest = u64::from(!self.capabilities.misc.zero_length_injection());
            if !(shortest..=15).contains(&length) {
                let rule = "must be 1 to 15 for a software event";
                self.fail(Field32::EntryInstructionLength, rule)?;
            }
        }
        Ok(())
    }

    /// The event that the entry would inject.
    pub(super) fn event(&self) -> Result<Option<Interruption>, VmcsError> {
        let information = self.vmcs.read32(Field32::EntryInterruptionInformation)?;
        Ok(Interruption::decode(information))
    }
}
