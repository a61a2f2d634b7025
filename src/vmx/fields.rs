//! The fields of the VMCS, as one enum per width.
//!
//! Names and encodings are those of SDM "Field Encoding in VMCS", appendix B; a field's text is its name there. A
//! field that has another width than the accessor it is passed to is a type error.

use core::fmt;

/// What a field belongs to: bits 11:10 of its encoding (SDM "VMREAD, VMWRITE, and Encodings of VMCS Fields",
/// 26.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Controls of execution, entry and exit.
    Control,
    /// What an exit reports. Read-only on most CPUs.
    ExitInformation,
    /// State that the guest is entered with and that an exit saves.
    Guest,
    /// State that an exit loads.
    Host,
}

/// A field of any width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// A 16-bit field.
    Bits16(Field16),
    /// A 32-bit field.
    Bits32(Field32),
    /// A 64-bit field.
    Bits64(Field64),
    /// A field as wide as a linear address.
    Natural(FieldNatural),
}

impl Field {
    /// The encoding, as VMREAD and VMWRITE take it.
    pub const fn encoding(self) -> u32 {
        match self {
            Self::Bits16(field) => field as u32,
            Self::Bits32(field) => field as u32,
            Self::Bits64(field) => field as u32,
            Self::Natural(field) => field as u32,
        }
    }
    /// What the field belongs to.
    pub const fn field_type(self) -> FieldType {
        match self.encoding() >> 10 & 3 {
            0 => FieldType::Control,
            1 => FieldType::ExitInformation,
            2 => FieldType::Guest,
            _ => FieldType::Host,
        }
    }
    /// Whether only an exit writes this field. (Some CPUs let VMWRITE do so too; we never rely on it.)
    pub const fn is_read_only(self) -> bool {
        matches!(self.field_type(), FieldType::ExitInformation)
    }
    /// Every field, in the order of their encodings.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..1 << 15).filter_map(Self::from_encoding)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#06x})", self.name(), self.encoding())
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident, $width:ident { $($field:ident = $encoding:literal $text:literal,)* })*) => {
        $(
            #[repr(u32)]
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub enum $name {
                $(#[doc = $text] $field = $encoding,)*
            }
            impl From<$name> for Field {
                #[inline]
                fn from(field: $name) -> Self {
                    Self::$width(field)
                }
            }
        )*
        impl Field {
            /// The field with this encoding.
            pub const fn from_encoding(encoding: u32) -> Option<Self> {
                match encoding {
                    $($($encoding => Some(Self::$width($name::$field)),)*)*
                    _ => None,
                }
            }
            /// The name in the manual.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$width($name::$field) => $text,)*)*
                }
            }
        }
    };
}

fields! {
    /// The 16-bit fields.
    Field16, Bits16 {
        Vpid = 0x0000 "virtual-processor identifier (VPID)",
        PostedInterruptNotificationVector = 0x0002 "posted-interrupt notification vector",
        EptpIndex = 0x0004 "EPTP index",
        HlatPrefixSize = 0x0006 "HLAT prefix size",
        LastPidPointerIndex = 0x0008 "last PID-pointer index",
        GuestEsSelector = 0x0800 "guest ES selector",
        GuestCsSelector = 0x0802 "guest CS selector",
        GuestSsSelector = 0x0804 "guest SS selector",
        GuestDsSelector = 0x0806 "guest DS selector",
        GuestFsSelector = 0x0808 "guest FS selector",
        GuestGsSelector = 0x080a "guest GS selector",
        GuestLdtrSelector = 0x080c "guest LDTR selector",
        GuestTrSelector = 0x080e "guest TR selector",
        GuestInterruptStatus = 0x0810 "guest interrupt status",
        PmlIndex = 0x0812 "PML index",
        GuestUinv = 0x0814 "guest UINV",
        HostEsSelector = 0x0c00 "host ES selector",
        HostCsSelector = 0x0c02 "host CS selector",
        HostSsSelector = 0x0c04 "host SS selector",
        HostDsSelector = 0x0c06 "host DS selector",
        HostFsSelector = 0x0c08 "host FS selector",
        HostGsSelector = 0x0c0a "host GS selector",
        HostTrSelector = 0x0c0c "host TR selector",
    }
    /// The 64-bit fields, by their full encodings.
    Field64, Bits64 {
        IoBitmapA = 0x2000 "address of I/O bitmap A",
        IoBitmapB = 0x2002 "address of I/O bitmap B",
        MsrBitmaps = 0x2004 "address of MSR bitmaps",
        ExitMsrStoreAddress = 0x2006 "VM-exit MSR-store address",
        ExitMsrLoadAddress = 0x2008 "VM-exit MSR-load address",
        EntryMsrLoadAddress = 0x200a "VM-entry MSR-load address",
        ExecutiveVmcsPointer = 0x200c "executive-VMCS pointer",
        PmlAddress = 0x200e "PML address",
        TscOffset = 0x2010 "TSC offset",
        VirtualApicAddress = 0x2012 "virtual-APIC address",
        ApicAccessAddress = 0x2014 "APIC-access address",
        PostedInterruptDescriptorAddress = 0x2016 "posted-interrupt descriptor address",
        VmFunctionControls = 0x2018 "VM-function controls",
        EptPointer = 0x201a "EPT pointer (EPTP)",
        EoiExitBitmap0 = 0x201c "EOI-exit bitmap 0",
        EoiExitBitmap1 = 0x201e "EOI-exit bitmap 1",
        EoiExitBitmap2 = 0x2020 "EOI-exit bitmap 2",
        EoiExitBitmap3 = 0x2022 "EOI-exit bitmap 3",
        EptpListAddress = 0x2024 "EPTP-list address",
        VmreadBitmapAddress = 0x2026 "VMREAD-bitmap address",
        VmwriteBitmapAddress = 0x2028 "VMWRITE-bitmap address",
        VirtualizationExceptionInformationAddress = 0x202a "virtualization-exception information address",
        XssExitingBitmap = 0x202c "XSS-exiting bitmap",
        EnclsExitingBitmap = 0x202e "ENCLS-exiting bitmap",
        SubPagePermissionTablePointer = 0x2030 "sub-page-permission-table pointer (SPPTP)",
        TscMultiplier = 0x2032 "TSC multiplier",
        TertiaryProcessorBasedControls = 0x2034 "tertiary processor-based VM-execution controls",
        EnclvExitingBitmap = 0x2036 "ENCLV-exiting bitmap",
        LowPasidDirectoryAddress = 0x2038 "low PASID directory address",
        HighPasidDirectoryAddress = 0x203a "high PASID directory address",
        SharedEptPointer = 0x203c "shared EPT pointer",
        PconfigExitingBitmap = 0x203e "PCONFIG-exiting bitmap",
        HlatPointer = 0x2040 "hypervisor-managed linear-address translation pointer (HLATP)",
        PidPointerTableAddress = 0x2042 "PID-pointer table address",
        SecondaryExitControls = 0x2044 "secondary VM-exit controls",
        SpecCtrlMask = 0x204a "IA32_SPEC_CTRL mask",
        SpecCtrlShadow = 0x204c "IA32_SPEC_CTRL shadow",
        InjectedEventData = 0x2052 "injected-event data",
        GuestPhysicalAddress = 0x2400 "guest-physical address",
        OriginalEventData = 0x2404 "original-event data",
        VmcsLinkPointer = 0x2800 "VMCS link pointer",
        GuestDebugctl = 0x2802 "guest IA32_DEBUGCTL",
        GuestPat = 0x2804 "guest IA32_PAT",
        GuestEfer = 0x2806 "guest IA32_EFER",
        GuestPerfGlobalCtrl = 0x2808 "guest IA32_PERF_GLOBAL_CTRL",
        GuestPdpte0 = 0x280a "guest PDPTE0",
        GuestPdpte1 = 0x280c "guest PDPTE1",
        GuestPdpte2 = 0x280e "guest PDPTE2",
        GuestPdpte3 = 0x2810 "guest PDPTE3",
        GuestBndcfgs = 0x2812 "guest IA32_BNDCFGS",
        GuestRtitCtl = 0x2814 "guest IA32_RTIT_CTL",
        GuestLbrCtl = 0x2816 "guest IA32_LBR_CTL",
        GuestPkrs = 0x2818 "guest IA32_PKRS",
        GuestFredConfig = 0x281a "guest IA32_FRED_CONFIG",
        GuestFredRsp1 = 0x281c "guest IA32_FRED_RSP1",
        GuestFredRsp2 = 0x281e "guest IA32_FRED_RSP2",
        GuestFredRsp3 = 0x2820 "guest IA32_FRED_RSP3",
        GuestFredStklvls = 0x2822 "guest IA32_FRED_STKLVLS",
        GuestFredSsp1 = 0x2824 "guest IA32_FRED_SSP1",
        GuestFredSsp2 = 0x2826 "guest IA32_FRED_SSP2",
        GuestFredSsp3 = 0x2828 "guest IA32_FRED_SSP3",
        HostPat = 0x2c00 "host IA32_PAT",
        HostEfer = 0x2c02 "host IA32_EFER",
        HostPerfGlobalCtrl = 0x2c04 "host IA32_PERF_GLOBAL_CTRL",
        HostPkrs = 0x2c06 "host IA32_PKRS",
        HostFredConfig = 0x2c08 "host IA32_FRED_CONFIG",
        HostFredRsp1 = 0x2c0a "host IA32_FRED_RSP1",
        HostFredRsp2 = 0x2c0c "host IA32_FRED_RSP2",
        HostFredRsp3 = 0x2c0e "host IA32_FRED_RSP3",
        HostFredStklvls = 0x2c10 "host IA32_FRED_STKLVLS",
        HostFredSsp1 = 0x2c12 "host IA32_FRED_SSP1",
        HostFredSsp2 = 0x2c14 "host IA32_FRED_SSP2",
        HostFredSsp3 = 0x2c16 "host IA32_FRED_SSP3",
    }
    /// The 32-bit fields.
    Field32, Bits32 {
        PinBasedControls = 0x4000 "pin-based VM-execution controls",
        PrimaryProcessorBasedControls = 0x4002 "primary processor-based VM-execution controls",
        ExceptionBitmap = 0x4004 "exception bitmap",
        PageFaultErrorCodeMask = 0x4006 "page-fault error-code mask",
        PageFaultErrorCodeMatch = 0x4008 "page-fault error-code match",
        Cr3TargetCount = 0x400a "CR3-target count",
        ExitControls = 0x400c "primary VM-exit controls",
        ExitMsrStoreCount = 0x400e "VM-exit MSR-store count",
        ExitMsrLoadCount = 0x4010 "VM-exit MSR-load count",
        EntryControls = 0x4012 "VM-entry controls",
        EntryMsrLoadCount = 0x4014 "VM-entry MSR-load count",
        EntryInterruptionInformation = 0x4016 "VM-entry interruption-information field",
        EntryExceptionErrorCode = 0x4018 "VM-entry exception error code",
        EntryInstructionLength = 0x401a "VM-entry instruction length",
        TprThreshold = 0x401c "TPR threshold",
        SecondaryProcessorBasedControls = 0x401e "secondary processor-based VM-execution controls",
        PleGap = 0x4020 "PLE_Gap",
        PleWindow = 0x4022 "PLE_Window",
        InstructionTimeoutControl = 0x4024 "instruction-timeout control",
        VmInstructionError = 0x4400 "VM-instruction error",
        ExitReason = 0x4402 "exit reason",
        ExitInterruptionInformation = 0x4404 "VM-exit interruption information",
        ExitInterruptionErrorCode = 0x4406 "VM-exit interruption error code",
        IdtVectoringInformation = 0x4408 "IDT-vectoring information field",
        IdtVectoringErrorCode = 0x440a "IDT-vectoring error code",
        ExitInstructionLength = 0x440c "VM-exit instruction length",
        ExitInstructionInformation = 0x440e "VM-exit instruction information",
        GuestEsLimit = 0x4800 "guest ES limit",
        GuestCsLimit = 0x4802 "guest CS limit",
        GuestSsLimit = 0x4804 "guest SS limit",
        GuestDsLimit = 0x4806 "guest DS limit",
        GuestFsLimit = 0x4808 "guest FS limit",
        GuestGsLimit = 0x480a "guest GS limit",
        GuestLdtrLimit = 0x480c "guest LDTR limit",
        GuestTrLimit = 0x480e "guest TR limit",
        GuestGdtrLimit = 0x4810 "guest GDTR limit",
        GuestIdtrLimit = 0x4812 "guest IDTR limit",
        GuestEsAccessRights = 0x4814 "guest ES access rights",
        GuestCsAccessRights = 0x4816 "guest CS access rights",
        GuestSsAccessRights = 0x4818 "guest SS access rights",
        GuestDsAccessRights = 0x481a "guest DS access rights",
        GuestFsAccessRights = 0x481c "guest FS access rights",
        GuestGsAccessRights = 0x481e "guest GS access rights",
        GuestLdtrAccessRights = 0x4820 "guest LDTR access rights",
        GuestTrAccessRights = 0x4822 "guest TR access rights",
        GuestInterruptibilityState = 0x4824 "guest interruptibility state",
        GuestActivityState = 0x4826 "guest activity state",
        GuestSmbase = 0x4828 "guest SMBASE",
        GuestSysenterCs = 0x482a "guest IA32_SYSENTER_CS",
        PreemptionTimerValue = 0x482e "VMX-preemption timer value",
        HostSysenterCs = 0x4c00 "host IA32_SYSENTER_CS",
    }
    /// The fields of natural width: 64 bits on every CPU that this hypervisor runs on.
    FieldNatural, Natural {
        Cr0GuestHostMask = 0x6000 "CR0 guest/host mask",
        Cr4GuestHostMask = 0x6002 "CR4 guest/host mask",
        Cr0ReadShadow = 0x6004 "CR0 read shadow",
        Cr4ReadShadow = 0x6006 "CR4 read shadow",
        Cr3TargetValue0 = 0x6008 "CR3-target value 0",
        Cr3TargetValue1 = 0x600a "CR3-target value 1",
        Cr3TargetValue2 = 0x600c "CR3-target value 2",
        Cr3TargetValue3 = 0x600e "CR3-target value 3",
        ExitQualification = 0x6400 "exit qualification",
        IoRcx = 0x6402 "I/O RCX",
        IoRsi = 0x6404 "I/O RSI",
        IoRdi = 0x6406 "I/O RDI",
        IoRip = 0x6408 "I/O RIP",
        GuestLinearAddress = 0x640a "guest-linear address",
        GuestCr0 = 0x6800 "guest CR0",
        GuestCr3 = 0x6802 "guest CR3",
        GuestCr4 = 0x6804 "guest CR4",
        GuestEsBase = 0x6806 "guest ES base",
        GuestCsBase = 0x6808 "guest CS base",
        GuestSsBase = 0x680a "guest SS base",
        GuestDsBase = 0x680c "guest DS base",
        GuestFsBase = 0x680e "guest FS base",
        GuestGsBase = 0x6810 "guest GS base",
        GuestLdtrBase = 0x6812 "guest LDTR base",
        GuestTrBase = 0x6814 "guest TR base",
        GuestGdtrBase = 0x6816 "guest GDTR base",
        GuestIdtrBase = 0x6818 "guest IDTR base",
        GuestDr7 = 0x681a "guest DR7",
        GuestRsp = 0x681c "guest RSP",
        GuestRip = 0x681e "guest RIP",
        GuestRflags = 0x6820 "guest RFLAGS",
        GuestPendingDebugExceptions = 0x6822 "guest pending debug exceptions",
        GuestSysenterEsp = 0x6824 "guest IA32_SYSENTER_ESP",
        GuestSysenterEip = 0x6826 "guest IA32_SYSENTER_EIP",
        GuestSCet = 0x6828 "guest IA32_S_CET",
        GuestSsp = 0x682a "guest SSP",
        GuestInterruptSspTableAddress = 0x682c "guest IA32_INTERRUPT_SSP_TABLE_ADDR",
        HostCr0 = 0x6c00 "host CR0",
        HostCr3 = 0x6c02 "host CR3",
        HostCr4 = 0x6c04 "host CR4",
        HostFsBase = 0x6c06 "host FS base",
        HostGsBase = 0x6c08 "host GS base",
        HostTrBase = 0x6c0a "host TR base",
        HostGdtrBase = 0x6c0c "host GDTR base",
        HostIdtrBase = 0x6c0e "host IDTR base",
        HostSysenterEsp = 0x6c10 "host IA32_SYSENTER_ESP",
        HostSysenterEip = 0x6c12 "host IA32_SYSENTER_EIP",
        HostRsp = 0x6c14 "host RSP",
        HostRip = 0x6c16 "host RIP",
        HostSCet = 0x6c18 "host IA32_S_CET",
        HostSsp = 0x6c1a "host SSP",
        HostInterruptSspTableAddress = 0x6c1c "host IA32_INTERRUPT_SSP_TABLE_ADDR",
    }
}

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
