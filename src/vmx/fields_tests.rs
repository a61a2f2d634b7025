use x86::vmx::vmcs::{control, guest, host, ro};

use super::*;
use Field::{Bits16, Bits32, Bits64, Natural};

/// Our fields beside the constants of the `x86` crate.
const SECOND_SOURCE: &[(Field, u32)] = &[
    (Bits16(Field16::Vpid), control::VPID),
    (
        Bits16(Field16::PostedInterruptNotificationVector),
        control::POSTED_INTERRUPT_NOTIFICATION_VECTOR,
    ),
    (Bits16(Field16::EptpIndex), control::EPTP_INDEX),
    (Bits64(Field64::IoBitmapA), control::IO_BITMAP_A_ADDR_FULL),
    (Bits64(Field64::IoBitmapB), control::IO_BITMAP_B_ADDR_FULL),
    (Bits64(Field64::MsrBitmaps), control::MSR_BITMAPS_ADDR_FULL),
    (
        Bits64(Field64::ExitMsrStoreAddress),
        control::VMEXIT_MSR_STORE_ADDR_FULL,
    ),
    (
        Bits64(Field64::ExitMsrLoadAddress),
        control::VMEXIT_MSR_LOAD_ADDR_FULL,
    ),
    (
        Bits64(Field64::EntryMsrLoadAddress),
        control::VMENTRY_MSR_LOAD_ADDR_FULL,
    ),
    (
        Bits64(Field64::ExecutiveVmcsPointer),
        control::EXECUTIVE_VMCS_PTR_FULL,
    ),
    (Bits64(Field64::PmlAddress), control::PML_ADDR_FULL),
    (Bits64(Field64::TscOffset), control::TSC_OFFSET_FULL),
    (
        Bits64(Field64::VirtualApicAddress),
        control::VIRT_APIC_ADDR_FULL,
    ),
    (
        Bits64(Field64::ApicAccessAddress),
        control::APIC_ACCESS_ADDR_FULL,
    ),
    (
        Bits64(Field64::PostedInterruptDescriptorAddress),
        control::POSTED_INTERRUPT_DESC_ADDR_FULL,
    ),
    (
        Bits64(Field64::VmFunctionControls),
        control::VM_FUNCTION_CONTROLS_FULL,
    ),
    (Bits64(Field64::EptPointer), control::EPTP_FULL),
    (Bits64(Field64::EoiExitBitmap0), control::EOI_EXIT0_FULL),
    (Bits64(Field64::EoiExitBitmap1), control::EOI_EXIT1_FULL),
    (Bits64(Field64::EoiExitBitmap2), control::EOI_EXIT2_FULL),
    (Bits64(Field64::EoiExitBitmap3), control::EOI_EXIT3_FULL),
    (
        Bits64(Field64::EptpListAddress),
        control::EPTP_LIST_ADDR_FULL,
    ),
    (
        Bits64(Field64::VmreadBitmapAddress),
        control::VMREAD_BITMAP_ADDR_FULL,
    ),
    (
        Bits64(Field64::VmwriteBitmapAddress),
        control::VMWRITE_BITMAP_ADDR_FULL,
    ),
    (
        Bits64(Field64::VirtualizationExceptionInformationAddress),
        control::VIRT_EXCEPTION_INFO_ADDR_FULL,
    ),
    (
        Bits64(Field64::XssExitingBitmap),
        control::XSS_EXITING_BITMAP_FULL,
    ),
    (
        Bits64(Field64::EnclsExitingBitmap),
        control::ENCLS_EXITING_BITMAP_FULL,
    ),
    (
        Bits64(Field64::SubPagePermissionTablePointer),
        control::SUBPAGE_PERM_TABLE_PTR_FULL,
    ),
    (Bits64(Field64::TscMultiplier), control::TSC_MULTIPLIER_FULL),
    (
        Bits32(Field32::PinBasedControls),
        control::PINBASED_EXEC_CONTROLS,
    ),
    (
        Bits32(Field32::PrimaryProcessorBasedControls),
        control::PRIMARY_PROCBASED_EXEC_CONTROLS,
    ),
    (Bits32(Field32::ExceptionBitmap), control::EXCEPTION_BITMAP),
    (
        Bits32(Field32::PageFaultErrorCodeMask),
        control::PAGE_FAULT_ERR_CODE_MASK,
    ),
    (
        Bits32(Field32::PageFaultErrorCodeMatch),
        control::PAGE_FAULT_ERR_CODE_MATCH,
    ),
    (Bits32(Field32::Cr3TargetCount), control::CR3_TARGET_COUNT),
    (Bits32(Field32::ExitControls), control::VMEXIT_CONTROLS),
    (
        Bits32(Field32::ExitMsrStoreCount),
        control::VMEXIT_MSR_STORE_COUNT,
    ),
    (
        Bits32(Field32::ExitMsrLoadCount),
        control::VMEXIT_MSR_LOAD_COUNT,
    ),
    (Bits32(Field32::EntryControls), control::VMENTRY_CONTROLS),
    (
        Bits32(Field32::EntryMsrLoadCount),
        control::VMENTRY_MSR_LOAD_COUNT,
    ),
    (
        Bits32(Field32::EntryInterruptionInformation),
        control::VMENTRY_INTERRUPTION_INFO_FIELD,
    ),
    (
        Bits32(Field32::EntryExceptionErrorCode),
        control::VMENTRY_EXCEPTION_ERR_CODE,
    ),
    (
        Bits32(Field32::EntryInstructionLength),
        control::VMENTRY_INSTRUCTION_LEN,
    ),
    (Bits32(Field32::TprThreshold), control::TPR_THRESHOLD),
    (
        Bits32(Field32::SecondaryProcessorBasedControls),
        control::SECONDARY_PROCBASED_EXEC_CONTROLS,
    ),
    (Bits32(Field32::PleGap), control::PLE_GAP),
    (Bits32(Field32::PleWindow), control::PLE_WINDOW),
    (
        Natural(FieldNatural::Cr0GuestHostMask),
        control::CR0_GUEST_HOST_MASK,
    ),
    (
        Natural(FieldNatural::Cr4GuestHostMask),
        control::CR4_GUEST_HOST_MASK,
    ),
    (
        Natural(FieldNatural::Cr0ReadShadow),
        control::CR0_READ_SHADOW,
    ),
    (
        Natural(FieldNatural::Cr4ReadShadow),
        control::CR4_READ_SHADOW,
    ),
    (
        Natural(FieldNatural::Cr3TargetValue0),
        control::CR3_TARGET_VALUE0,
    ),
    (
        Natural(FieldNatural::Cr3TargetValue1),
        control::CR3_TARGET_VALUE1,
    ),
    (
        Natural(FieldNatural::Cr3TargetValue2),
        control::CR3_TARGET_VALUE2,
    ),
    (
        Natural(FieldNatural::Cr3TargetValue3),
        control::CR3_TARGET_VALUE3,
    ),
    (Bits16(Field16::GuestEsSelector), guest::ES_SELECTOR),
    (Bits16(Field16::GuestCsSelector), guest::CS_SELECTOR),
    (Bits16(Field16::GuestSsSelector), guest::SS_SELECTOR),
    (Bits16(Field16::GuestDsSelector), guest::DS_SELECTOR),
    (Bits16(Field16::GuestFsSelector), guest::FS_SELECTOR),
    (Bits16(Field16::GuestGsSelector), guest::GS_SELECTOR),
    (Bits16(Field16::GuestLdtrSelector), guest::LDTR_SELECTOR),
    (Bits16(Field16::GuestTrSelector), guest::TR_SELECTOR),
    (
        Bits16(Field16::GuestInterruptStatus),
        guest::INTERRUPT_STATUS,
    ),
    (Bits16(Field16::PmlIndex), guest::PML_INDEX),
    (Bits64(Field64::VmcsLinkPointer), guest::LINK_PTR_FULL),
    (Bits64(Field64::GuestDebugctl), guest::IA32_DEBUGCTL_FULL),
    (Bits64(Field64::GuestPat), guest::IA32_PAT_FULL),
    (Bits64(Field64::GuestEfer), guest::IA32_EFER_FULL),
    (
        Bits64(Field64::GuestPerfGlobalCtrl),
        guest::IA32_PERF_GLOBAL_CTRL_FULL,
    ),
    (Bits64(Field64::GuestPdpte0), guest::PDPTE0_FULL),
    (Bits64(Field64::GuestPdpte1), guest::PDPTE1_FULL),
    (Bits64(Field64::GuestPdpte2), guest::PDPTE2_FULL),
    (Bits64(Field64::GuestPdpte3), guest::PDPTE3_FULL),
    (Bits64(Field64::GuestBndcfgs), guest::IA32_BNDCFGS_FULL),
    (Bits64(Field64::GuestRtitCtl), guest::IA32_RTIT_CTL_FULL),
    (Bits32(Field32::GuestEsLimit), guest::ES_LIMIT),
    (Bits32(Field32::GuestCsLimit), guest::CS_LIMIT),
    (Bits32(Field32::GuestSsLimit), guest::SS_LIMIT),
    (Bits32(Field32::GuestDsLimit), guest::DS_LIMIT),
    (Bits32(Field32::GuestFsLimit), guest::FS_LIMIT),
    (Bits32(Field32::GuestGsLimit), guest::GS_LIMIT),
    (Bits32(Field32::GuestLdtrLimit), guest::LDTR_LIMIT),
    (Bits32(Field32::GuestTrLimit), guest::TR_LIMIT),
    (Bits32(Field32::GuestGdtrLimit), guest::GDTR_LIMIT),
    (Bits32(Field32::GuestIdtrLimit), guest::IDTR_LIMIT),
    (
        Bits32(Field32::GuestEsAccessRights),
        guest::ES_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestCsAccessRights),
        guest::CS_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestSsAccessRights),
        guest::SS_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestDsAccessRights),
        guest::DS_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestFsAccessRights),
        guest::FS_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestGsAccessRights),
        guest::GS_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestLdtrAccessRights),
        guest::LDTR_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestTrAccessRights),
        guest::TR_ACCESS_RIGHTS,
    ),
    (
        Bits32(Field32::GuestInterruptibilityState),
        guest::INTERRUPTIBILITY_STATE,
    ),
    (Bits32(Field32::GuestActivityState), guest::ACTIVITY_STATE),
    (Bits32(Field32::GuestSmbase), guest::SMBASE),
    (Bits32(Field32::GuestSysenterCs), guest::IA32_SYSENTER_CS),
    (
        Bits32(Field32::PreemptionTimerValue),
        guest::VMX_PREEMPTION_TIMER_VALUE,
    ),
    (Natural(FieldNatural::GuestCr0), guest::CR0),
    (Natural(FieldNatural::GuestCr3), guest::CR3),
    (Natural(FieldNatural::GuestCr4), guest::CR4),
    (Natural(FieldNatural::GuestEsBase), guest::ES_BASE),
    (Natural(FieldNatural::GuestCsBase), guest::CS_BASE),
    (Natural(FieldNatural::GuestSsBase), guest::SS_BASE),
    (Natural(FieldNatural::GuestDsBase), guest::DS_BASE),
    (Natural(FieldNatural::GuestFsBase), guest::FS_BASE),
    (Natural(FieldNatural::GuestGsBase), guest::GS_BASE),
    (Natural(FieldNatural::GuestLdtrBase), guest::LDTR_BASE),
    (Natural(FieldNatural::GuestTrBase), guest::TR_BASE),
    (Natural(FieldNatural::GuestGdtrBase), guest::GDTR_BASE),
    (Natural(FieldNatural::GuestIdtrBase), guest::IDTR_BASE),
    (Natural(FieldNatural::GuestDr7), guest::DR7),
    (Natural(FieldNatural::GuestRsp), guest::RSP),
    (Natural(FieldNatural::GuestRip), guest::RIP),
    (Natural(FieldNatural::GuestRflags), guest::RFLAGS),
    (
        Natural(FieldNatural::GuestPendingDebugExceptions),
        guest::PENDING_DBG_EXCEPTIONS,
    ),
    (
        Natural(FieldNatural::GuestSysenterEsp),
        guest::IA32_SYSENTER_ESP,
    ),
    (
        Natural(FieldNatural::GuestSysenterEip),
        guest::IA32_SYSENTER_EIP,
    ),
    (Bits16(Field16::HostEsSelector), host::ES_SELECTOR),
    (Bits16(Field16::HostCsSelector), host::CS_SELECTOR),
    (Bits16(Field16::HostSsSelector), host::SS_SELECTOR),
    (Bits16(Field16::HostDsSelector), host::DS_SELECTOR),
    (Bits16(Field16::HostFsSelector), host::FS_SELECTOR),
    (Bits16(Field16::HostGsSelector), host::GS_SELECTOR),
    (Bits16(Field16::HostTrSelector), host::TR_SELECTOR),
    (Bits64(Field64::HostPat), host::IA32_PAT_FULL),
    (Bits64(Field64::HostEfer), host::IA32_EFER_FULL),
    (
        Bits64(Field64::HostPerfGlobalCtrl),
        host::IA32_PERF_GLOBAL_CTRL_FULL,
    ),
    (Bits32(Field32::HostSysenterCs), host::IA32_SYSENTER_CS),
    (Natural(FieldNatural::HostCr0), host::CR0),
    (Natural(FieldNatural::HostCr3), host::CR3),
    (Natural(FieldNatural::HostCr4), host::CR4),
    (Natural(FieldNatural::HostFsBase), host::FS_BASE),
    (Natural(FieldNatural::HostGsBase), host::GS_BASE),
    (Natural(FieldNatural::HostTrBase), host::TR_BASE),
    (Natural(FieldNatural::HostGdtrBase), host::GDTR_BASE),
    (Natural(FieldNatural::HostIdtrBase), host::IDTR_BASE),
    (
        Natural(FieldNatural::HostSysenterEsp),
        host::IA32_SYSENTER_ESP,
    ),
    (
        Natural(FieldNatural::HostSysenterEip),
        host::IA32_SYSENTER_EIP,
    ),
    (Natural(FieldNatural::HostRsp), host::RSP),
    (Natural(FieldNatural::HostRip), host::RIP),
    (
        Bits64(Field64::GuestPhysicalAddress),
        ro::GUEST_PHYSICAL_ADDR_FULL,
    ),
    (
        Bits32(Field32::VmInstructionError),
        ro::VM_INSTRUCTION_ERROR,
    ),
    (Bits32(Field32::ExitReason), ro::EXIT_REASON),
    (
        Bits32(Field32::ExitInterruptionInformation),
        ro::VMEXIT_INTERRUPTION_INFO,
    ),
    (
        Bits32(Field32::ExitInterruptionErrorCode),
        ro::VMEXIT_INTERRUPTION_ERR_CODE,
    ),
    (
        Bits32(Field32::IdtVectoringInformation),
        ro::IDT_VECTORING_INFO,
    ),
    (
        Bits32(Field32::IdtVectoringErrorCode),
        ro::IDT_VECTORING_ERR_CODE,
    ),
    (
        Bits32(Field32::ExitInstructionLength),
        ro::VMEXIT_INSTRUCTION_LEN,
    ),
    (
        Bits32(Field32::ExitInstructionInformation),
        ro::VMEXIT_INSTRUCTION_INFO,
    ),
    (
        Natural(FieldNatural::ExitQualification),
        ro::EXIT_QUALIFICATION,
    ),
    (Natural(FieldNatural::IoRcx), ro::IO_RCX),
    (Natural(FieldNatural::IoRsi), ro::IO_RSI),
    (Natural(FieldNatural::IoRdi), ro::IO_RDI),
    (Natural(FieldNatural::IoRip), ro::IO_RIP),
    (
        Natural(FieldNatural::GuestLinearAddress),
        ro::GUEST_LINEAR_ADDR,
    ),
];

/// The fields that the `x86` crate lacks, each with its type and its place in that type's table of appendix B (the
/// index, bits 9:1 of the encoding); the width is in the variant.
const INDEX_IN_MANUAL: &[(Field, FieldType, u32)] = &[
    (Bits16(Field16::HlatPrefixSize), FieldType::Control, 3),
    (Bits16(Field16::LastPidPointerIndex), FieldType::Control, 4),
    (Bits16(Field16::GuestUinv), FieldType::Guest, 10),
    (
        Bits64(Field64::TertiaryProcessorBasedControls),
        FieldType::Control,
        26,
    ),
    (Bits64(Field64::EnclvExitingBitmap), FieldType::Control, 27),
    (
        Bits64(Field64::LowPasidDirectoryAddress),
        FieldType::Control,
        28,
    ),
    (
        Bits64(Field64::HighPasidDirectoryAddress),
        FieldType::Control,
        29,
    ),
    (Bits64(Field64::SharedEptPointer), FieldType::Control, 30),
    (
        Bits64(Field64::PconfigExitingBitmap),
        FieldType::Control,
        31,
    ),
    (Bits64(Field64::HlatPointer), FieldType::Control, 32),
    (
        Bits64(Field64::PidPointerTableAddress),
        FieldType::Control,
        33,
    ),
    (
        Bits64(Field64::SecondaryExitControls),
        FieldType::Control,
        34,
    ),
    (Bits64(Field64::SpecCtrlMask), FieldType::Control, 37),
    (Bits64(Field64::SpecCtrlShadow), FieldType::Control, 38),
    (Bits64(Field64::InjectedEventData), FieldType::Control, 41),
    (
        Bits64(Field64::OriginalEventData),
        FieldType::ExitInformation,
        2,
    ),
    (Bits64(Field64::GuestLbrCtl), FieldType::Guest, 11),
    (Bits64(Field64::GuestPkrs), FieldType::Guest, 12),
    (Bits64(Field64::GuestFredConfig), FieldType::Guest, 13),
    (Bits64(Field64::GuestFredRsp1), FieldType::Guest, 14),
    (Bits64(Field64::GuestFredRsp2), FieldType::Guest, 15),
    (Bits64(Field64::GuestFredRsp3), FieldType::Guest, 16),
    (Bits64(Field64::GuestFredStklvls), FieldType::Guest, 17),
    (Bits64(Field64::GuestFredSsp1), FieldType::Guest, 18),
    (Bits64(Field64::GuestFredSsp2), FieldType::Guest, 19),
    (Bits64(Field64::GuestFredSsp3), FieldType::Guest, 20),
    (Bits64(Field64::HostPkrs), FieldType::Host, 3),
    (Bits64(Field64::HostFredConfig), FieldType::Host, 4),
    (Bits64(Field64::HostFredRsp1), FieldType::Host, 5),
    (Bits64(Field64::HostFredRsp2), FieldType::Host, 6),
    (Bits64(Field64::HostFredRsp3), FieldType::Host, 7),
    (Bits64(Field64::HostFredStklvls), FieldType::Host, 8),
    (Bits64(Field64::HostFredSsp1), FieldType::Host, 9),
    (Bits64(Field64::HostFredSsp2), FieldType::Host, 10),
    (Bits64(Field64::HostFredSsp3), FieldType::Host, 11),
    (
        Bits32(Field32::InstructionTimeoutControl),
        FieldType::Control,
        18,
    ),
    (Natural(FieldNatural::GuestSCet), FieldType::Guest, 20),
    (Natural(FieldNatural::GuestSsp), FieldType::Guest, 21),
    (
        Natural(FieldNatural::GuestInterruptSspTableAddress),
        FieldType::Guest,
        22,
    ),
    (Natural(FieldNatural::HostSCet), FieldType::Host, 12),
    (Natural(FieldNatural::HostSsp), FieldType::Host, 13),
    (
        Natural(FieldNatural::HostInterruptSspTableAddress),
        FieldType::Host,
        14,
    ),
];

fn width_code(field: Field) -> u32 {
    match field {
        Bits16(_) => 0,
        Bits64(_) => 1,
        Bits32(_) => 2,
        Natural(_) => 3,
    }
}

#[test]
fn every_encoding_agrees_with_a_second_source() {
    for (field, other) in SECOND_SOURCE {
        assert_eq!(field.encoding(), *other, "{field}");
    }
    for (field, field_type, index) in INDEX_IN_MANUAL {
        let type_code = *field_type as u32;
        let expected = width_code(*field) << 13 | type_code << 10 | index << 1;
        assert_eq!(field.encoding(), expected, "{field}");
        assert_eq!(field.field_type(), *field_type, "{field}");
    }
}

#[test]
fn no_field_is_left_unchecked() {
    let mut checked: Vec<u32> = SECOND_SOURCE.iter().map(|(f, _)| f.encoding()).collect();
    checked.extend(INDEX_IN_MANUAL.iter().map(|(f, ..)| f.encoding()));
    checked.sort_unstable();
    let mut all: Vec<u32> = Field::all().map(Field::encoding).collect();
    all.sort_unstable();
    assert_eq!(checked, all);
    all.dedup();
    assert_eq!(checked, all, "an encoding occurs twice");
}

#[test]
fn encodings_follow_the_structure_of_the_manual() {
    for field in Field::all() {
        let encoding = field.encoding();
        assert_eq!(encoding & 1, 0, "{field}: access type must be full");
        assert_eq!(encoding >> 12 & 1, 0, "{field}: bit 12 is reserved");
        assert_eq!(encoding >> 13, width_code(field), "{field}: width");
    }
}

#[test]
fn the_type_follows_from_the_name() {
    // The name of a field is a third source for its type: it catches fields swapped between the guest and the host area.
    for field in Field::all() {
        let name = field.name();
        let expected = match field {
            Bits64(Field64::GuestPhysicalAddress) | Natural(FieldNatural::GuestLinearAddress) => {
                FieldType::ExitInformation
            }
            Bits16(Field16::PmlIndex)
            | Bits64(Field64::VmcsLinkPointer)
            | Bits32(Field32::PreemptionTimerValue) => FieldType::Guest,
            _ if name.starts_with("guest ") => FieldType::Guest,
            _ if name.starts_with("host ") => FieldType::Host,
            _ => continue,
        };
        assert_eq!(field.field_type(), expected, "{field}");
    }
}

#[test]
fn only_exit_information_is_read_only() {
    assert!(Bits32(Field32::ExitReason).is_read_only());
    assert!(Natural(FieldNatural::ExitQualification).is_read_only());
    assert!(Bits64(Field64::GuestPhysicalAddress).is_read_only());
    assert!(!Bits32(Field32::EntryInterruptionInformation).is_read_only());
    assert!(!Natural(FieldNatural::GuestRip).is_read_only());
    assert!(!Bits16(Field16::Vpid).is_read_only());
    assert_eq!(Field::all().filter(|f| f.is_read_only()).count(), 16);
}

#[test]
fn an_encoding_becomes_its_field_and_no_other_number_does() {
    for field in Field::all() {
        assert_eq!(Field::from_encoding(field.encoding()), Some(field));
    }
    for number in [0x2001, 0x4403, 0x6402 + (1 << 15), 0x1000, u32::MAX] {
        assert_eq!(Field::from_encoding(number), None, "{number:#x}");
    }
}

#[test]
fn a_field_shows_its_name_in_the_manual() {
    let rip = Natural(FieldNatural::GuestRip);
    assert_eq!(rip.to_string(), "guest RIP (0x681e)");
}
