//! SDM "Checks on VMX Controls", 28.2.1.

use bit_field::BitField;

use super::super::controls::{Control, ControlWord, Entry, Exit, Pin, Primary, Secondary};
use super::super::event::has_error_code;
use super::super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::super::interruption::{Interruption, InterruptionType};
use super::super::register_bits::CR0_PE;
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;

const PAGE_ALIGNED: &str = "bits 11:0 must be 0";

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_controls(&mut self) -> Result<(), VmcsError> {
        self.reserved_settings()?;
        self.execution_controls()?;
        self.execution_structures()?;
        self.exit_controls()?;
        self.entry_controls()?;
        self.injected_event()
    }

    /// Every word of controls against its capability MSR.
    fn reserved_settings(&mut self) -> Result<(), VmcsError> {
        for word in ControlWord::ALL {
            let field: Field = match word {
                ControlWord::Pin => Field32::PinBasedControls.into(),
                ControlWord::Primary => Field32::PrimaryProcessorBasedControls.into(),
                ControlWord::Secondary => Field32::SecondaryProcessorBasedControls.into(),
                ControlWord::Tertiary => Field64::TertiaryProcessorBasedControls.into(),
                ControlWord::Exit => Field32::ExitControls.into(),
                ControlWord::SecondaryExit => Field64::SecondaryExitControls.into(),
                ControlWord::Entry => Field32::EntryControls.into(),
            };
            let activated = match word {
                ControlWord::Secondary => self.has(Primary::ActivateSecondaryControls),
                ControlWord::Tertiary => self.has(Primary::ActivateTertiaryControls),
                ControlWord::SecondaryExit => self.has(Exit::ActivateSecondaryControls),
                _ => true,
            };
            if activated {
                let value = self.controls.word(word);
                let allowed = self.capabilities.allowed(word);
                self.require(
                    allowed.must_be_one & !value == 0,
                    field,
                    "a control is 0 that the capability MSR says must be 1",
                )?;
                self.require(
                    value & !allowed.may_be_one == 0,
                    field,
                    "a control is 1 that the capability MSR says must be 0",
                )?;
            }
        }
        Ok(())
    }

    /// Controls that need another one.
    fn execution_controls(&mut self) -> Result<(), VmcsError> {
        let targets = self.vmcs.read32(Field32::Cr3TargetCount)?;
        self.require(
            targets <= self.capabilities.misc.cr3_targets(),
            Field32::Cr3TargetCount,
            "must not be greater than the number of CR3-target values",
        )?;
        const PIN: Field32 = Field32::PinBasedControls;
        const PRIMARY: Field32 = Field32::PrimaryProcessorBasedControls;
        const SECONDARY: Field32 = Field32::SecondaryProcessorBasedControls;
        let rules: [(Control, Control, Field32, &str); 8] = [
            (
                Pin::VirtualNmis.into(),
                Pin::NmiExiting.into(),
                PIN,
                "\"virtual NMIs\" needs \"NMI exiting\"",
            ),
            (
                Primary::NmiWindowExiting.into(),
                Pin::VirtualNmis.into(),
                PRIMARY,
                "\"NMI-window exiting\" needs \"virtual NMIs\"",
            ),
            (
                Secondary::UnrestrictedGuest.into(),
                Secondary::EnableEpt.into(),
                SECONDARY,
                "\"unrestricted guest\" needs \"enable EPT\"",
            ),
            (
                Secondary::EnablePml.into(),
                Secondary::EnableEpt.into(),
                SECONDARY,
                "\"enable PML\" needs \"enable EPT\"",
            ),
            (
                Secondary::ModeBasedExecuteControl.into(),
                Secondary::EnableEpt.into(),
                SECONDARY,
                "\"mode-based execute control for EPT\" needs \"enable EPT\"",
            ),
            (
                Secondary::VirtualInterruptDelivery.into(),
                Pin::ExternalInterruptExiting.into(),
                SECONDARY,
                "\"virtual-interrupt delivery\" needs \"external-interrupt exiting\"",
            ),
            (
                Secondary::VirtualizeX2apicMode.into(),
                Primary::UseTprShadow.into(),
                SECONDARY,
                "\"virtualize x2APIC mode\" needs \"use TPR shadow\"",
            ),
            (
                Pin::ProcessPostedInterrupts.into(),
                Secondary::VirtualInterruptDelivery.into(),
                PIN,
                "\"process posted interrupts\" needs \"virtual-interrupt delivery\"",
            ),
        ];
        for (control, needs, field, rule) in rules {
            self.require(!self.has(control) || self.has(needs), field, rule)?;
        }
        Ok(())
    }

    /// What the execution controls point to.
    fn execution_structures(&mut self) -> Result<(), VmcsError> {
        if self.has(Primary::UseIoBitmaps) {
            self.require_physical(Field64::IoBitmapA, 12, PAGE_ALIGNED)?;
            self.require_physical(Field64::IoBitmapB, 12, PAGE_ALIGNED)?;
        }
        if self.has(Primary::UseMsrBitmaps) {
            self.require_physical(Field64::MsrBitmaps, 12, PAGE_ALIGNED)?;
        }
        if self.has(Primary::UseTprShadow) {
            self.require_physical(Field64::VirtualApicAddress, 12, PAGE_ALIGNED)?;
        }
        if self.has(Secondary::VirtualizeApicAccesses) {
            self.require_physical(Field64::ApicAccessAddress, 12, PAGE_ALIGNED)?;
        }
        if self.has(Secondary::EnableVpid) {
            let vpid = self.vmcs.read16(Field16::Vpid)?;
            self.require(
                vpid != 0,
                Field16::Vpid,
                "must not be 0 with \"enable VPID\"",
            )?;
        }
        if self.has(Secondary::EnablePml) {
            self.require_physical(Field64::PmlAddress, 12, PAGE_ALIGNED)?;
        }
        if self.has(Secondary::EnableEpt) {
            self.ept_pointer()?;
        }
        Ok(())
    }

    fn ept_pointer(&mut self) -> Result<(), VmcsError> {
        let eptp = self.vmcs.read64(Field64::EptPointer)?;
        let can = self.capabilities.ept;
        let memory_type = match eptp.get_bits(0..3) {
            0 => can.uncacheable_tables,
            6 => can.write_back_tables,
            _ => false,
        };
        let walk_length = match eptp.get_bits(3..6) {
            3 => can.walk_length_4,
            4 => can.walk_length_5,
            _ => false,
        };
        const EPTP: Field64 = Field64::EptPointer;
        self.require(
            memory_type,
            EPTP,
            "bits 2:0 must be a supported memory type",
        )?;
        self.require(
            walk_length,
            EPTP,
            "bits 5:3 must be a supported page-walk length less 1",
        )?;
        self.require(
            !eptp.get_bit(6) || can.accessed_dirty,
            EPTP,
            "bit 6 must be 0: no accessed and dirty flags for EPT",
        )?;
        self.require(
            eptp.get_bits(8..12) == 0 && (!eptp.get_bit(7) || can.supervisor_shadow_stack),
            EPTP,
            "reserved bits 11:7 must be 0",
        )?;
        self.require(
            super::is_physical(eptp, self.capabilities.physical_bits),
            EPTP,
            "must not set bits beyond the physical-address width",
        )
    }

    fn exit_controls(&mut self) -> Result<(), VmcsError> {
        self.require(
            self.has(Pin::ActivatePreemptionTimer) || !self.has(Exit::SavePreemptionTimer),
            Field32::ExitControls,
            "\"save VMX-preemption timer value\" needs \"activate VMX-preemption timer\"",
        )?;
        for (count, address) in [
            (Field32::ExitMsrStoreCount, Field64::ExitMsrStoreAddress),
            (Field32::ExitMsrLoadCount, Field64::ExitMsrLoadAddress),
        ] {
            self.msr_list(count, address)?;
        }
        Ok(())
    }

    fn entry_controls(&mut self) -> Result<(), VmcsError> {
        self.msr_list(Field32::EntryMsrLoadCount, Field64::EntryMsrLoadAddress)?;
        self.require(
            !self.has(Entry::EntryToSmm) && !self.has(Entry::DeactivateDualMonitor),
            Field32::EntryControls,
            "\"entry to SMM\" and \"deactivate dual-monitor treatment\" must be 0 outside SMM",
        )
    }

    fn msr_list(&mut self, count: Field32, address: Field64) -> Result<(), VmcsError> {
        let entries = self.vmcs.read32(count)?;
        if entries == 0 {
            return Ok(());
        }
        self.require_physical(address, 4, "bits 3:0 must be 0")?;
        let start = self.vmcs.read64(address)?;
        let last = start.checked_add(u64::from(entries) * 16 - 1);
        let fits = last.is_some_and(|a| super::is_physical(a, self.capabilities.physical_bits));
        self.require(
            fits,
            count,
            "the list must end within the physical-address width",
        )
    }

    /// The VM-entry interruption-information field and its companions (28.2.1.3).
    fn injected_event(&mut self) -> Result<(), VmcsError> {
        const INFORMATION: Field32 = Field32::EntryInterruptionInformation;
        let information = self.vmcs.read32(INFORMATION)?;
        let Some(event) = Interruption::decode(information) else {
            return Ok(());
        };
        let software = matches!(
            event.kind,
            InterruptionType::SoftwareInterrupt
                | InterruptionType::PrivilegedSoftwareException
                | InterruptionType::SoftwareException
        );
        let right_type = match event.kind {
            InterruptionType::Reserved => false,
            InterruptionType::OtherEvent => self.capabilities.offers(Primary::MonitorTrapFlag),
            _ => true,
        };
        self.require(right_type, INFORMATION, "the interruption type is reserved")?;
        let right_vector = match event.kind {
            InterruptionType::Nmi => event.vector == 2,
            InterruptionType::HardwareException => event.vector <= 31,
            InterruptionType::OtherEvent => event.vector == 0,
            _ => true,
        };
        self.require(
            right_vector,
            INFORMATION,
            "the vector does not go with the interruption type",
        )?;
        let protected = self.vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PE != 0;
        let exception = event.kind == InterruptionType::HardwareException && protected;
        let any_vector = self.capabilities.basic.any_error_code();
        let has_code = has_error_code(event.vector);
        let right_code = if event.has_error_code {
            exception && (has_code || any_vector)
        } else {
            !(exception && has_code) || any_vector
        };
        self.require(
            right_code,
            INFORMATION,
            "bit 11 (deliver error code) must be 1 for #DF, #TS, #NP, #SS, #GP, #PF and #AC in protected mode, else 0",
        )?;
        self.require(
            information.get_bits(12..31) == 0,
            INFORMATION,
            "reserved bits 30:12 must be 0",
        )?;
        if event.has_error_code {
            let code = self.vmcs.read32(Field32::EntryExceptionErrorCode)?;
            self.require(
                code >> 16 == 0,
                Field32::EntryExceptionErrorCode,
                "bits 31:16 must be 0",
            )?;
        }
        if software {
            let length = self.vmcs.read32(Field32::EntryInstructionLength)?;
            let shortest = u32::from(!self.capabilities.misc.zero_length_injection());
            self.require(
                (shortest..=15).contains(&length),
                Field32::EntryInstructionLength,
                "must be 1 to 15 for a software event",
            )?;
        }
        Ok(())
    }
}
