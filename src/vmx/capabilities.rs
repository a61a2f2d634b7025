//! What this CPU's VMX can do: asked once, in an order in which no question can fault.
//!
//! CPUID comes before every MSR, and an MSR is only read where another has said that it exists: reading one that the
//! CPU lacks raises #GP.

use core::fmt;

use bit_field::BitField;
use x86::msr;

use super::capability_msrs::{AllowedSettings, Basic, Misc};
use super::controls::{Control, ControlWord, Secondary};
use super::fields::Field;
use crate::ept::EptCapability;
use crate::virt::control_registers::FixedBits;
use crate::virt::cpuid::{CpuRead, address_bits, highest_extended_leaf};

/// IA32_VMX_PROCBASED_CTLS3 (SDM "Tertiary Processor-Based VM-Execution Controls", A.3.4).
const IA32_VMX_PROCBASED_CTLS3: u32 = 0x492;
/// IA32_VMX_EXIT_CTLS2 (SDM "Secondary VM-Exit Controls", A.4.2).
const IA32_VMX_EXIT_CTLS2: u32 = 0x493;

/// Why there is no VMX to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmxUnavailable {
    /// CPUID says so.
    NoVmx {
        /// The vendor in CPUID leaf 0.
        vendor: [u8; 12],
        /// Whether there is AMD's SVM instead.
        svm: bool,
        /// Whether this is a virtual machine, whose host may withhold VMX.
        virtual_machine: bool,
    },
    /// The firmware has locked IA32_FEATURE_CONTROL with VMX off.
    LockedOff {
        /// Whether VMX is on in SMX operation, which does not help.
        inside_smx: bool,
    },
}

impl fmt::Display for VmxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx {
                vendor,
                svm,
                virtual_machine,
            } => {
                let vendor = core::str::from_utf8(vendor).unwrap_or("unknown vendor");
                write!(
                    f,
                    "this CPU ({vendor}) has no VMX: CPUID.01H:ECX.VMX[bit 5] is 0"
                )?;
                if *svm {
                    f.write_str("; it has SVM (AMD-V), which is not supported")?;
                }
                if *virtual_machine {
                    f.write_str("; this is a virtual machine, whose host must offer nested VMX")?;
                }
                Ok(())
            }
            Self::LockedOff { inside_smx } => {
                f.write_str(
                    "VMX is switched off in the firmware settings: IA32_FEATURE_CONTROL is locked \
                     with bit 2 (enable VMX outside SMX operation) 0",
                )?;
                if *inside_smx {
                    f.write_str(", and bit 1 (inside SMX operation) 1")?;
                }
                Ok(())
            }
        }
    }
}

impl core::error::Error for VmxUnavailable {}

/// The state of IA32_FEATURE_CONTROL on a CPU on which VMXON can succeed (SDM "Enabling and Entering VMX
/// Operation", 25.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureControl {
    /// Locked with VMX on: nothing to be done.
    LockedOn,
    /// Not locked: this value is to be written before VMXON.
    Unlocked {
        /// What was there, with VMX outside SMX on, and locked.
        to_write: u64,
    },
}

/// Everything this CPU says about its VMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// IA32_FEATURE_CONTROL.
    pub feature_control: FeatureControl,
    /// Revision, size and memory type of the VMCS, and more.
    pub basic: Basic,
    /// Timer rate, activity states, limits.
    pub misc: Misc,
    /// The fixed bits of CR0.
    pub cr0: FixedBits,
    /// The fixed bits of CR4.
    pub cr4: FixedBits,
    /// What EPT and VPID can do.
    pub ept: EptCapability,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// Bits of a linear address.
    pub linear_bits: u8,
    allowed: [AllowedSettings; ControlWord::COUNT],
}

impl Capabilities {
    /// Asks the CPU.
    ///
    /// # Errors
    /// Why there is no VMX.
    pub fn discover(cpu: &impl CpuRead) -> Result<Self, VmxUnavailable> {
        ask_cpuid(cpu)?;
        let feature_control = read_feature_control(cpu)?;
        let basic = Basic(cpu.rdmsr(msr::IA32_VMX_BASIC));
        let allowed = read_allowed(cpu, basic);
        let (physical_bits, linear_bits) = address_bits(cpu);
        let mut this = Self {
            feature_control,
            basic,
            misc: Misc(cpu.rdmsr(msr::IA32_VMX_MISC)),
            cr0: FixedBits {
                fixed0: cpu.rdmsr(msr::IA32_VMX_CR0_FIXED0),
                fixed1: cpu.rdmsr(msr::IA32_VMX_CR0_FIXED1),
            },
            cr4: FixedBits {
                fixed0: cpu.rdmsr(msr::IA32_VMX_CR4_FIXED0),
                fixed1: cpu.rdmsr(msr::IA32_VMX_CR4_FIXED1),
            },
            ept: EptCapability::default(),
            physical_bits,
            linear_bits,
            allowed,
        };
        if this.offers(Secondary::EnableEpt) || this.offers(Secondary::EnableVpid) {
            let value = cpu.rdmsr(msr::IA32_VMX_EPT_VPID_CAP);
            this.ept = EptCapability::new(value, this.physical_bits);
        }
        Ok(this)
    }

    /// The settings allowed of `word`. A word that the CPU lacks allows nothing but zeros.
    pub fn allowed(&self, word: ControlWord) -> AllowedSettings {
        self.allowed[word as usize]
    }
    /// Whether `control` may be 1.
    pub fn offers(&self, control: impl Into<Control>) -> bool {
        let control = control.into();
        self.allowed(control.word()).offers(control)
    }
    /// Whether `control` may not be 0.
    pub fn forces(&self, control: impl Into<Control>) -> bool {
        let control = control.into();
        self.allowed(control.word()).must_be_one & control.mask() != 0
    }
}

fn ask_cpuid(cpu: &impl CpuRead) -> Result<(), VmxUnavailable> {
    let leaf0 = cpu.cpuid(0, 0);
    let features = if leaf0.eax >= 1 {
        cpu.cpuid(1, 0).ecx
    } else {
        0
    };
    if features.get_bit(5) {
        return Ok(());
    }
    let mut vendor = [0; 12];
    for (to, from) in vendor
        .chunks_exact_mut(4)
        .zip([leaf0.ebx, leaf0.edx, leaf0.ecx])
    {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let extended = highest_extended_leaf(cpu) >= 0x8000_0001;
    Err(VmxUnavailable::NoVmx {
        vendor,
        svm: extended && cpu.cpuid(0x8000_0001, 0).ecx.get_bit(2),
        virtual_machine: features.get_bit(31),
    })
}

fn read_feature_control(cpu: &impl CpuRead) -> Result<FeatureControl, VmxUnavailable> {
    const LOCK: usize = 0;
    const INSIDE_SMX: usize = 1;
    const OUTSIDE_SMX: usize = 2;
    let value = cpu.rdmsr(msr::IA32_FEATURE_CONTROL);
    if !value.get_bit(LOCK) {
        let mut to_write = value;
        to_write.set_bit(OUTSIDE_SMX, true).set_bit(LOCK, true);
        return Ok(FeatureControl::Unlocked { to_write });
    }
    if value.get_bit(OUTSIDE_SMX) {
        return Ok(FeatureControl::LockedOn);
    }
    Err(VmxUnavailable::LockedOff {
        inside_smx: value.get_bit(INSIDE_SMX),
    })
}

/// SDM "VM-Execution Controls", A.3, to "VM-Entry Controls", A.5: with the TRUE MSRs, they alone say which of the
/// default-1 controls may be 0.
fn read_allowed(cpu: &impl CpuRead, basic: Basic) -> [AllowedSettings; ControlWord::COUNT] {
    let mut all = [AllowedSettings::default(); ControlWord::COUNT];
    for word in ControlWord::ALL {
        let (index, true_index) = match word {
            ControlWord::Pin => (
                msr::IA32_VMX_PINBASED_CTLS,
                msr::IA32_VMX_TRUE_PINBASED_CTLS,
            ),
            ControlWord::Primary => (
                msr::IA32_VMX_PROCBASED_CTLS,
                msr::IA32_VMX_TRUE_PROCBASED_CTLS,
            ),
            ControlWord::Exit => (msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS),
            ControlWord::Entry => (msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS),
            ControlWord::Secondary => {
                (msr::IA32_VMX_PROCBASED_CTLS2, msr::IA32_VMX_PROCBASED_CTLS2)
            }
            ControlWord::Tertiary => (IA32_VMX_PROCBASED_CTLS3, IA32_VMX_PROCBASED_CTLS3),
            ControlWord::SecondaryExit => (IA32_VMX_EXIT_CTLS2, IA32_VMX_EXIT_CTLS2),
        };
        let offered = |control: Control| all[control.word() as usize].offers(control);
        if word.activated_by().is_none_or(offered) {
            let value = cpu.rdmsr(if basic.has_true_controls() {
                true_index
            } else {
                index
            });
            all[word as usize] = match word.field() {
                Field::Bits64(_) => AllowedSettings::all_may_be_zero(value),
                _ => AllowedSettings::from_halves(value),
            };
        }
    }
    all
}

#[cfg(test)]
#[path = "capabilities_tests.rs"]
pub(crate) mod tests;
