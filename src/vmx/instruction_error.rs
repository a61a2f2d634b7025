//! Why a VMX instruction failed (SDM "VM Instruction Error Numbers", 32.4).

use core::fmt;

use numeric_enum_macro::numeric_enum;

macro_rules! instruction_errors {
    ($($name:ident = $number:literal $text:literal,)*) => {
        numeric_enum! {
            #[repr(u32)]
            /// The number in the VM-instruction error field after VMfailValid.
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum InstructionError {
                $(#[doc = $text] $name = $number,)*
            }
        }
        impl fmt::Display for InstructionError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = match self {
                    $(Self::$name => $text,)*
                };
                write!(f, "{text} (VM-instruction error {})", *self as u32)
            }
        }
    };
}

instruction_errors! {
    VmcallInRoot = 1 "VMCALL executed in VMX root operation",
    VmclearInvalidAddress = 2 "VMCLEAR with invalid physical address",
    VmclearVmxonPointer = 3 "VMCLEAR with VMXON pointer",
    VmlaunchNotClear = 4 "VMLAUNCH with non-clear VMCS",
    VmresumeNotLaunched = 5 "VMRESUME with non-launched VMCS",
    VmresumeAfterVmxoff = 6 "VMRESUME after VMXOFF (VMXOFF and VMXON between VMLAUNCH and VMRESUME)",
    EntryInvalidControls = 7 "VM entry with invalid control field(s)",
    EntryInvalidHostState = 8 "VM entry with invalid host-state field(s)",
    VmptrldInvalidAddress = 9 "VMPTRLD with invalid physical address",
    VmptrldVmxonPointer = 10 "VMPTRLD with VMXON pointer",
    VmptrldWrongRevision = 11 "VMPTRLD with incorrect VMCS revision identifier",
    UnsupportedField = 12 "VMREAD/VMWRITE from/to unsupported VMCS component",
    VmwriteReadOnly = 13 "VMWRITE to read-only VMCS component",
    VmxonInRoot = 15 "VMXON executed in VMX root operation",
    EntryInvalidExecutivePointer = 16 "VM entry with invalid executive-VMCS pointer",
    EntryNonLaunchedExecutive = 17 "VM entry with non-launched executive VMCS",
    EntryExecutiveNotVmxon = 18 "VM entry with executive-VMCS pointer not VMXON pointer (when attempting to deactivate the dual-monitor treatment of SMIs and SMM)",
    VmcallNotClear = 19 "VMCALL with non-clear VMCS (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
    VmcallInvalidExitControls = 20 "VMCALL with invalid VM-exit control fields",
    VmcallWrongMseg = 22 "VMCALL with incorrect MSEG revision identifier (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
    VmxoffDualMonitor = 23 "VMXOFF under dual-monitor treatment of SMIs and SMM",
    VmcallInvalidSmmFeatures = 24 "VMCALL with invalid SMM-monitor features (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
    EntryInvalidExecutiveControls = 25 "VM entry with invalid VM-execution control fields in executive VMCS (when attempting to return from SMM)",
    EntryBlockedByMovSs = 26 "VM entry with events blocked by MOV SS",
    InvalidInveptOperand = 28 "invalid operand to INVEPT/INVVPID",
}

impl core::error::Error for InstructionError {}

/// How a VMX instruction says that it failed (SDM "Conventions", 32.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmFail {
    /// VMfailInvalid (CF): there is no current VMCS, so there is no number either.
    Invalid,
    /// VMfailValid (ZF), with the number the CPU left.
    Valid(InstructionError),
    /// VMfailValid with a number that the manual does not define.
    Unknown(u32),
}

impl VmFail {
    /// The failure that `number` in the VM-instruction error field stands for, after VMfailValid.
    pub fn from_number(number: u32) -> Self {
        InstructionError::try_from(number).map_or_else(Self::Unknown, Self::Valid)
    }
}

impl fmt::Display for VmFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("there is no current VMCS (VMfailInvalid)"),
            Self::Valid(error) => fmt::Display::fmt(error, f),
            Self::Unknown(number) => write!(f, "unknown VM-instruction error {number}"),
        }
    }
}

impl core::error::Error for VmFail {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_words_of_the_manual() {
        let seven = VmFail::from_number(7);
        assert_eq!(seven, VmFail::Valid(InstructionError::EntryInvalidControls));
        assert_eq!(
            seven.to_string(),
            "VM entry with invalid control field(s) (VM-instruction error 7)"
        );
        assert_eq!(
            VmFail::from_number(28),
            VmFail::Valid(InstructionError::InvalidInveptOperand)
        );
    }

    #[test]
    fn the_gaps_of_the_table_stay_unknown() {
        for number in [0, 14, 21, 27, 29, u32::MAX] {
            assert_eq!(VmFail::from_number(number), VmFail::Unknown(number));
        }
        let known = (0..64).filter(|n| InstructionError::try_from(*n).is_ok());
        assert_eq!(known.count(), 25);
    }
}
