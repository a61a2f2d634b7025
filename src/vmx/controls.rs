//! The VMX controls by name, and whole sets of them.
//!
//! A control's text is its name in SDM "VM-Execution Control Fields", 26.6, to "VM-Entry Control Fields", 26.8.

use core::fmt;

use super::fields::{Field, Field32, Field64};
use super::vmcs::{Vmcs, VmcsError};

/// A word of controls: one field of the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlWord {
    /// Pin-based VM-execution controls.
    Pin,
    /// Primary processor-based VM-execution controls.
    Primary,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// Tertiary processor-based VM-execution controls.
    Tertiary,
    /// Primary VM-exit controls.
    Exit,
    /// Secondary VM-exit controls.
    SecondaryExit,
    /// VM-entry controls.
    Entry,
}

impl ControlWord {
    /// How many words there are.
    pub const COUNT: usize = 7;
    /// Every word, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Pin,
        Self::Primary,
        Self::Secondary,
        Self::Tertiary,
        Self::Exit,
        Self::SecondaryExit,
        Self::Entry,
    ];

    /// The field that holds the word.
    #[inline(always)]
    pub const fn field(self) -> Field {
        match self {
            Self::Pin => Field::Bits32(Field32::PinBasedControls),
            Self::Primary => Field::Bits32(Field32::PrimaryProcessorBasedControls),
            Self::Secondary => Field::Bits32(Field32::SecondaryProcessorBasedControls),
            Self::Tertiary => Field::Bits64(Field64::TertiaryProcessorBasedControls),
            Self::Exit => Field::Bits32(Field32::ExitControls),
            Self::SecondaryExit => Field::Bits64(Field64::SecondaryExitControls),
            Self::Entry => Field::Bits32(Field32::EntryControls),
        }
    }
    /// The control of an earlier word without which this one counts as 0 and its field may not exist.
    #[inline(always)]
    pub const fn activated_by(self) -> Option<Control> {
        match self {
            Self::Secondary => Some(Primary::ActivateSecondaryControls.control()),
            Self::Tertiary => Some(Primary::ActivateTertiaryControls.control()),
            Self::SecondaryExit => Some(ExitControl::ActivateSecondaryControls.control()),
            Self::Pin | Self::Primary | Self::Exit | Self::Entry => None,
        }
    }
    /// What one control of the word is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pin => "pin-based control",
            Self::Primary => "primary processor-based control",
            Self::Secondary => "secondary processor-based control",
            Self::Tertiary => "tertiary processor-based control",
            Self::Exit => "VM-exit control",
            Self::SecondaryExit => "secondary VM-exit control",
            Self::Entry => "VM-entry control",
        }
    }
}

/// Any one control.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Control {
    word: ControlWord,
    bit: u8,
}

impl Control {
    /// The control at `bit` of `word`, whether it has a name or not.
    pub const fn new(word: ControlWord, bit: u8) -> Self {
        Self { word, bit }
    }
    /// The word the control is in.
    pub const fn word(self) -> ControlWord {
        self.word
    }
    /// Its bit in the word.
    pub const fn bit(self) -> u8 {
        self.bit
    }
    /// Its bit as a mask.
    pub const fn mask(self) -> u64 {
        1 << self.bit
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or("reserved");
        write!(f, "{name} ({} {})", self.word.name(), self.bit)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! controls {
    ($($(#[$doc:meta])* $enum:ident of $word:ident { $($name:ident = $bit:literal $text:literal,)* })*) => {
        $(
            #[repr(u8)]
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $enum {
                $(#[doc = $text] $name = $bit,)*
            }
            impl $enum {
                /// This, as a control of any word.
                pub const fn control(self) -> Control {
                    Control::new(ControlWord::$word, self as u8)
                }
            }
            impl From<$enum> for Control {
                fn from(control: $enum) -> Self {
                    control.control()
                }
            }
        )*
        impl Control {
            /// Its name in the manual, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match (self.word, self.bit) {
                    $($((ControlWord::$word, $bit) => Some($text),)*)*
                    _ => None,
                }
            }
        }
    };
}

controls! {
    /// Pin-based VM-execution controls.
    Pin of Pin {
        ExternalInterruptExiting = 0 "external-interrupt exiting",
        NmiExiting = 3 "NMI exiting",
        VirtualNmis = 5 "virtual NMIs",
        ActivatePreemptionTimer = 6 "activate VMX-preemption timer",
        ProcessPostedInterrupts = 7 "process posted interrupts",
    }
    /// Primary processor-based VM-execution controls.
    Primary of Primary {
        InterruptWindowExiting = 2 "interrupt-window exiting",
        UseTscOffsetting = 3 "use TSC offsetting",
        HltExiting = 7 "HLT exiting",
        InvlpgExiting = 9 "INVLPG exiting",
        MwaitExiting = 10 "MWAIT exiting",
        RdpmcExiting = 11 "RDPMC exiting",
        RdtscExiting = 12 "RDTSC exiting",
        Cr3LoadExiting = 15 "CR3-load exiting",
        Cr3StoreExiting = 16 "CR3-store exiting",
        ActivateTertiaryControls = 17 "activate tertiary controls",
        Cr8LoadExiting = 19 "CR8-load exiting",
        Cr8StoreExiting = 20 "CR8-store exiting",
        UseTprShadow = 21 "use TPR shadow",
        NmiWindowExiting = 22 "NMI-window exiting",
        MovDrExiting = 23 "MOV-DR exiting",
        UnconditionalIoExiting = 24 "unconditional I/O exiting",
        UseIoBitmaps = 25 "use I/O bitmaps",
        MonitorTrapFlag = 27 "monitor trap flag",
        UseMsrBitmaps = 28 "use MSR bitmaps",
        MonitorExiting = 29 "MONITOR exiting",
        PauseExiting = 30 "PAUSE exiting",
        ActivateSecondaryControls = 31 "activate secondary controls",
    }
    /// Secondary processor-based VM-execution controls.
    Secondary of Secondary {
        VirtualizeApicAccesses = 0 "virtualize APIC accesses",
        EnableEpt = 1 "enable EPT",
        DescriptorTableExiting = 2 "descriptor-table exiting",
        EnableRdtscp = 3 "enable RDTSCP",
        VirtualizeX2apicMode = 4 "virtualize x2APIC mode",
        EnableVpid = 5 "enable VPID",
        WbinvdExiting = 6 "WBINVD exiting",
        UnrestrictedGuest = 7 "unrestricted guest",
        ApicRegisterVirtualization = 8 "APIC-register virtualization",
        VirtualInterruptDelivery = 9 "virtual-interrupt delivery",
        PauseLoopExiting = 10 "PAUSE-loop exiting",
        RdrandExiting = 11 "RDRAND exiting",
        EnableInvpcid = 12 "enable INVPCID",
        EnableVmFunctions = 13 "enable VM functions",
        VmcsShadowing = 14 "VMCS shadowing",
        EnableEnclsExiting = 15 "enable ENCLS exiting",
        RdseedExiting = 16 "RDSEED exiting",
        EnablePml = 17 "enable PML",
        EptViolationVe = 18 "EPT-violation #VE",
        ConcealVmxFromPt = 19 "conceal VMX from PT",
        EnableXsaves = 20 "enable XSAVES/XRSTORS",
        PasidTranslation = 21 "PASID translation",
        ModeBasedExecuteControl = 22 "mode-based execute control for EPT",
        SubPageWritePermissions = 23 "sub-page write permissions for EPT",
        PtUsesGuestPhysicalAddresses = 24 "Intel PT uses guest physical addresses",
        UseTscScaling = 25 "use TSC scaling",
        EnableUserWaitAndPause = 26 "enable user wait and pause",
        EnablePconfig = 27 "enable PCONFIG",
        EnableEnclvExiting = 28 "enable ENCLV exiting",
        BusLockDetection = 30 "VMM bus-lock detection",
        InstructionTimeout = 31 "instruction timeout",
    }
    /// Tertiary processor-based VM-execution controls.
    Tertiary of Tertiary {
        LoadiwkeyExiting = 0 "LOADIWKEY exiting",
        EnableHlat = 1 "enable HLAT",
        EptPagingWriteControl = 2 "EPT paging-write control",
        GuestPagingVerification = 3 "guest-paging verification",
        IpiVirtualization = 4 "IPI virtualization",
        EnableMsrListInstructions = 6 "enable MSR-list instructions",
        VirtualizeSpecCtrl = 7 "virtualize IA32_SPEC_CTRL",
    }
    /// Primary VM-exit controls.
    ExitControl of Exit {
        SaveDebugControls = 2 "save debug controls",
        HostAddressSpaceSize = 9 "host address-space size",
        LoadPerfGlobalCtrl = 12 "load IA32_PERF_GLOBAL_CTRL",
        AcknowledgeInterruptOnExit = 15 "acknowledge interrupt on exit",
        SavePat = 18 "save IA32_PAT",
        LoadPat = 19 "load IA32_PAT",
        SaveEfer = 20 "save IA32_EFER",
        LoadEfer = 21 "load IA32_EFER",
        SavePreemptionTimer = 22 "save VMX-preemption timer value",
        ClearBndcfgs = 23 "clear IA32_BNDCFGS",
        ConcealVmxFromPt = 24 "conceal VMX from PT",
        ClearRtitCtl = 25 "clear IA32_RTIT_CTL",
        ClearLbrCtl = 26 "clear IA32_LBR_CTL",
        ClearUinv = 27 "clear UINV",
        LoadCetState = 28 "load CET state",
        LoadPkrs = 29 "load PKRS",
        SavePerfGlobalCtl = 30 "save IA32_PERF_GLOBAL_CTL",
        ActivateSecondaryControls = 31 "activate secondary controls",
    }
    /// Secondary VM-exit controls.
    SecondaryExit of SecondaryExit {
        SaveFred = 0 "save IA32_FRED",
        LoadFred = 1 "load IA32_FRED",
        PrematurelyBusyShadowStack = 3 "prematurely busy shadow stack",
    }
    /// VM-entry controls.
    EntryControl of Entry {
        LoadDebugControls = 2 "load debug controls",
        Ia32eModeGuest = 9 "IA-32e mode guest",
        EntryToSmm = 10 "entry to SMM",
        DeactivateDualMonitor = 11 "deactivate dual-monitor treatment",
        LoadPerfGlobalCtrl = 13 "load IA32_PERF_GLOBAL_CTRL",
        LoadPat = 14 "load IA32_PAT",
        LoadEfer = 15 "load IA32_EFER",
        LoadBndcfgs = 16 "load IA32_BNDCFGS",
        ConcealVmxFromPt = 17 "conceal VMX from PT",
        LoadRtitCtl = 18 "load IA32_RTIT_CTL",
        LoadUinv = 19 "load UINV",
        LoadCetState = 20 "load CET state",
        LoadLbrCtl = 21 "load guest IA32_LBR_CTL",
        LoadPkrs = 22 "load PKRS",
        LoadFred = 23 "load IA32_FRED",
    }
}

/// The value of every word of controls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlSet {
    words: [u64; ControlWord::COUNT],
}

impl ControlSet {
    /// No control at all.
    pub const EMPTY: Self = Self {
        words: [0; ControlWord::COUNT],
    };

    /// The value of `word`.
    pub const fn word(&self, word: ControlWord) -> u64 {
        self.words[word as usize]
    }
    /// Whether `control` is 1.
    pub fn has(&self, control: impl Into<Control>) -> bool {
        let control = control.into();
        self.word(control.word()) & control.mask() != 0
    }
    /// Makes `control` 1 or 0.
    pub fn set(&mut self, control: impl Into<Control>, on: bool) {
        let control = control.into();
        let word = &mut self.words[control.word() as usize];
        if on {
            *word |= control.mask();
        } else {
            *word &= !control.mask();
        }
    }
    pub(super) fn add(&mut self, word: ControlWord, bits: u64) {
        self.words[word as usize] |= bits;
    }
    /// Whether no control is 1.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
    /// Every control that is 1.
    pub fn iter(&self) -> impl Iterator<Item = Control> + '_ {
        ControlWord::ALL.into_iter().flat_map(|word| {
            (0..64)
                .map(move |bit| Control::new(word, bit))
                .filter(|control| self.has(*control))
        })
    }

    /// Whether `word` counts.
    #[inline(always)]
    pub fn activates(&self, word: ControlWord) -> bool {
        word.activated_by().is_none_or(|control| self.has(control))
    }

    /// Writes the words into the VMCS, those that are not activated excepted: their fields may not exist.
    ///
    /// ENCLS and ENCLV exit in every form where they exit at all.
    ///
    /// # Errors
    /// The first field that cannot be written.
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        // One by one: what is known of each word to the compiler need not be looked up at each fork.
        self.write_word(ControlWord::Pin, vmcs)?;
        self.write_word(ControlWord::Primary, vmcs)?;
        self.write_word(ControlWord::Secondary, vmcs)?;
        self.write_word(ControlWord::Tertiary, vmcs)?;
        self.write_word(ControlWord::Exit, vmcs)?;
        self.write_word(ControlWord::SecondaryExit, vmcs)?;
        self.write_word(ControlWord::Entry, vmcs)?;
        if self.has(Secondary::EnableEnclsExiting) {
            vmcs.write64(Field64::EnclsExitingBitmap, u64::MAX)?;
        }
        if self.has(Secondary::EnableEnclvExiting) {
            vmcs.write64(Field64::EnclvExitingBitmap, u64::MAX)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn write_word(&self, word: ControlWord, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        match self.activates(word) {
            // Words in fields of 32 bits have no bit above: no capability MSR has.
            true => vmcs.write_any(word.field(), self.word(word)),
            false => Ok(()),
        }
    }

    /// Reads the words back from the VMCS. A word that is not activated counts as 0, as it does for the CPU.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn read(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        let mut this = Self::EMPTY;
        for word in ControlWord::ALL {
            if this.activates(word) {
                this.add(word, vmcs.read_any(word.field())?);
            }
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::*;

    #[test]
    fn a_control_names_itself_as_the_manual_does() {
        assert_eq!(
            Secondary::EnableEpt.control().to_string(),
            "enable EPT (secondary processor-based control 1)"
        );
        assert_eq!(
            Control::new(ControlWord::Pin, 1).to_string(),
            "reserved (pin-based control 1)"
        );
        for (index, word) in ControlWord::ALL.into_iter().enumerate() {
            assert_eq!(word as usize, index);
        }
    }

    #[test]
    fn bits_agree_with_a_second_source() {
        use x86::vmx::vmcs::control::{
            EntryControls as N, ExitControls as X, PinbasedControls as I, PrimaryControls as P,
            SecondaryControls as S,
        };
        let pairs: &[(Control, u32)] = &[
            (
                Pin::ExternalInterruptExiting.into(),
                I::EXTERNAL_INTERRUPT_EXITING.bits(),
            ),
            (Pin::NmiExiting.into(), I::NMI_EXITING.bits()),
            (Pin::VirtualNmis.into(), I::VIRTUAL_NMIS.bits()),
            (
                Pin::ActivatePreemptionTimer.into(),
                I::VMX_PREEMPTION_TIMER.bits(),
            ),
            (
                Pin::ProcessPostedInterrupts.into(),
                I::POSTED_INTERRUPTS.bits(),
            ),
            (
                Primary::InterruptWindowExiting.into(),
                P::INTERRUPT_WINDOW_EXITING.bits(),
            ),
            (
                Primary::UseTscOffsetting.into(),
                P::USE_TSC_OFFSETTING.bits(),
            ),
            (Primary::HltExiting.into(), P::HLT_EXITING.bits()),
            (Primary::InvlpgExiting.into(), P::INVLPG_EXITING.bits()),
            (Primary::MwaitExiting.into(), P::MWAIT_EXITING.bits()),
            (Primary::RdpmcExiting.into(), P::RDPMC_EXITING.bits()),
            (Primary::RdtscExiting.into(), P::RDTSC_EXITING.bits()),
            (Primary::Cr3LoadExiting.into(), P::CR3_LOAD_EXITING.bits()),
            (Primary::Cr3StoreExiting.into(), P::CR3_STORE_EXITING.bits()),
            (Primary::Cr8LoadExiting.into(), P::CR8_LOAD_EXITING.bits()),
            (Primary::Cr8StoreExiting.into(), P::CR8_STORE_EXITING.bits()),
            (Primary::UseTprShadow.into(), P::USE_TPR_SHADOW.bits()),
            (
                Primary::NmiWindowExiting.into(),
                P::NMI_WINDOW_EXITING.bits(),
            ),
            (Primary::MovDrExiting.into(), P::MOV_DR_EXITING.bits()),
            (
                Primary::UnconditionalIoExiting.into(),
                P::UNCOND_IO_EXITING.bits(),
            ),
            (Primary::UseIoBitmaps.into(), P::USE_IO_BITMAPS.bits()),
            (Primary::MonitorTrapFlag.into(), P::MONITOR_TRAP_FLAG.bits()),
            (Primary::UseMsrBitmaps.into(), P::USE_MSR_BITMAPS.bits()),
            (Primary::MonitorExiting.into(), P::MONITOR_EXITING.bits()),
            (Primary::PauseExiting.into(), P::PAUSE_EXITING.bits()),
            (
                Primary::ActivateSecondaryControls.into(),
                P::SECONDARY_CONTROLS.bits(),
            ),
            (
                Secondary::VirtualizeApicAccesses.into(),
                S::VIRTUALIZE_APIC.bits(),
            ),
            (Secondary::EnableEpt.into(), S::ENABLE_EPT.bits()),
            (
                Secondary::DescriptorTableExiting.into(),
                S::DTABLE_EXITING.bits(),
            ),
            (Secondary::EnableRdtscp.into(), S::ENABLE_RDTSCP.bits()),
            (
                Secondary::VirtualizeX2apicMode.into(),
                S::VIRTUALIZE_X2APIC.bits(),
            ),
            (Secondary::EnableVpid.into(), S::ENABLE_VPID.bits()),
            (Secondary::WbinvdExiting.into(), S::WBINVD_EXITING.bits()),
            (
                Secondary::UnrestrictedGuest.into(),
                S::UNRESTRICTED_GUEST.bits(),
            ),
            (Secondary::RdrandExiting.into(), S::RDRAND_EXITING.bits()),
            (Secondary::EnableInvpcid.into(), S::ENABLE_INVPCID.bits()),
            (
                Secondary::EnableVmFunctions.into(),
                S::ENABLE_VM_FUNCTIONS.bits(),
            ),
            (Secondary::VmcsShadowing.into(), S::VMCS_SHADOWING.bits()),
            (
                Secondary::EnableEnclsExiting.into(),
                S::ENCLS_EXITING.bits(),
            ),
            (Secondary::RdseedExiting.into(), S::RDSEED_EXITING.bits()),
            (Secondary::EnablePml.into(), S::ENABLE_PML.bits()),
            (Secondary::EptViolationVe.into(), S::EPT_VIOLATION_VE.bits()),
            (
                Secondary::EnableXsaves.into(),
                S::ENABLE_XSAVES_XRSTORS.bits(),
            ),
            (Secondary::UseTscScaling.into(), S::USE_TSC_SCALING.bits()),
            (
                ExitControl::SaveDebugControls.into(),
                X::SAVE_DEBUG_CONTROLS.bits(),
            ),
            (
                ExitControl::HostAddressSpaceSize.into(),
                X::HOST_ADDRESS_SPACE_SIZE.bits(),
            ),
            (
                ExitControl::LoadPerfGlobalCtrl.into(),
                X::LOAD_IA32_PERF_GLOBAL_CTRL.bits(),
            ),
            (
                ExitControl::AcknowledgeInterruptOnExit.into(),
                X::ACK_INTERRUPT_ON_EXIT.bits(),
            ),
            (ExitControl::SavePat.into(), X::SAVE_IA32_PAT.bits()),
            (ExitControl::LoadPat.into(), X::LOAD_IA32_PAT.bits()),
            (ExitControl::SaveEfer.into(), X::SAVE_IA32_EFER.bits()),
            (ExitControl::LoadEfer.into(), X::LOAD_IA32_EFER.bits()),
            (
                ExitControl::SavePreemptionTimer.into(),
                X::SAVE_VMX_PREEMPTION_TIMER.bits(),
            ),
            (
                EntryControl::LoadDebugControls.into(),
                N::LOAD_DEBUG_CONTROLS.bits(),
            ),
            (
                EntryControl::Ia32eModeGuest.into(),
                N::IA32E_MODE_GUEST.bits(),
            ),
            (EntryControl::EntryToSmm.into(), N::ENTRY_TO_SMM.bits()),
            (
                EntryControl::LoadPerfGlobalCtrl.into(),
                N::LOAD_IA32_PERF_GLOBAL_CTRL.bits(),
            ),
            (EntryControl::LoadPat.into(), N::LOAD_IA32_PAT.bits()),
            (EntryControl::LoadEfer.into(), N::LOAD_IA32_EFER.bits()),
            (
                Secondary::ApicRegisterVirtualization.into(),
                S::VIRTUALIZE_APIC_REGISTER.bits(),
            ),
            (
                Secondary::VirtualInterruptDelivery.into(),
                S::VIRTUAL_INTERRUPT_DELIVERY.bits(),
            ),
            (
                Secondary::PauseLoopExiting.into(),
                S::PAUSE_LOOP_EXITING.bits(),
            ),
            (
                Secondary::ConcealVmxFromPt.into(),
                S::CONCEAL_VMX_FROM_PT.bits(),
            ),
            (
                Secondary::ModeBasedExecuteControl.into(),
                S::MODE_BASED_EPT.bits(),
            ),
            (
                Secondary::SubPageWritePermissions.into(),
                S::SUB_PAGE_EPT.bits(),
            ),
            (
                Secondary::PtUsesGuestPhysicalAddresses.into(),
                S::INTEL_PT_GUEST_PHYSICAL.bits(),
            ),
            (
                Secondary::EnableUserWaitAndPause.into(),
                S::ENABLE_USER_WAIT_PAUSE.bits(),
            ),
            (
                Secondary::EnableEnclvExiting.into(),
                S::ENCLV_EXITING.bits(),
            ),
            (
                ExitControl::ClearBndcfgs.into(),
                X::CLEAR_IA32_BNDCFGS.bits(),
            ),
            (
                ExitControl::ConcealVmxFromPt.into(),
                X::CONCEAL_VMX_FROM_PT.bits(),
            ),
            (
                ExitControl::ClearRtitCtl.into(),
                X::CLEAR_IA32_RTIT_CTL.bits(),
            ),
            (
                EntryControl::DeactivateDualMonitor.into(),
                N::DEACTIVATE_DUAL_MONITOR.bits(),
            ),
            (
                EntryControl::LoadBndcfgs.into(),
                N::LOAD_IA32_BNDCFGS.bits(),
            ),
            (
                EntryControl::ConcealVmxFromPt.into(),
                N::CONCEAL_VMX_FROM_PT.bits(),
            ),
            (
                EntryControl::LoadRtitCtl.into(),
                N::LOAD_IA32_RTIT_CTL.bits(),
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours.mask(), u64::from(*theirs), "{ours}");
        }
    }

    #[test]
    fn words_that_are_not_activated_are_neither_written_nor_read() {
        let mut vmcs = FakeVmcs::new();
        vmcs.remove(Field32::SecondaryProcessorBasedControls)
            .remove(Field64::TertiaryProcessorBasedControls)
            .remove(Field64::SecondaryExitControls)
            .remove(Field64::EnclsExitingBitmap);
        let mut set = ControlSet::EMPTY;
        set.set(Pin::NmiExiting, true);
        set.set(EntryControl::Ia32eModeGuest, true);
        set.write(&mut vmcs).unwrap();
        assert_eq!(ControlSet::read(&vmcs), Ok(set));

        set.set(Primary::ActivateSecondaryControls, true);
        let error = set.write(&mut vmcs).unwrap_err();
        assert_eq!(error.field, Field32::SecondaryProcessorBasedControls.into());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut vmcs = FakeVmcs::new();
        let mut set = ControlSet::EMPTY;
        for control in [
            Primary::ActivateSecondaryControls.control(),
            Primary::ActivateTertiaryControls.into(),
            ExitControl::ActivateSecondaryControls.into(),
            Secondary::EnableEnclsExiting.into(),
            Tertiary::VirtualizeSpecCtrl.into(),
            SecondaryExit::LoadFred.into(),
        ] {
            set.set(control, true);
        }
        set.write(&mut vmcs).unwrap();
        assert_eq!(ControlSet::read(&vmcs), Ok(set));
        assert_eq!(set.iter().count(), 6);
        assert_eq!(vmcs.get(Field64::EnclsExitingBitmap), u64::MAX);
        set.set(Tertiary::VirtualizeSpecCtrl, false);
        assert!(!set.has(Tertiary::VirtualizeSpecCtrl) && set.has(SecondaryExit::LoadFred));
    }
}
