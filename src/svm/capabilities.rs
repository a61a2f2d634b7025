//! What this CPU's SVM can do: asked once, in an order in which no question can fault (APM volume 2, "Enabling SVM", 15.4).
//!
//! CPUID comes before the one MSR: VM_CR exists where SVM does, and reading it elsewhere raises #GP.

use core::arch::x86_64::CpuidResult;
use core::fmt;

use bit_field::BitField;

use super::feature::{Feature, Features};
use super::neutral::{CpuRead, address_bits};

/// VM_CR (APM "VM_CR MSR (C001_0114h)", 15.30.1).
pub const VM_CR: u32 = 0xc001_0114;
/// VM_CR.LOCK: this bit and SVMDIS cannot be changed.
const LOCK: usize = 3;
/// VM_CR.SVMDIS: EFER.SVME cannot be set.
const SVMDIS: usize = 4;

/// The leaf that has SVM's bit.
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// The leaf that says what SVM can do.
const SVM_LEAF: u32 = 0x8000_000a;

/// Why there is no SVM to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SvmUnavailable {
    /// CPUID says so.
    NoSvm {
        /// The vendor in CPUID leaf 0.
        vendor: [u8; 12],
        /// Whether there is Intel's VMX instead.
        vmx: bool,
        /// Whether this is a virtual machine, whose host may withhold SVM.
        virtual_machine: bool,
    },
    /// CPUID has SVM's bit, but not the leaf that says what it can do.
    NoLeaf {
        /// The highest leaf that there is.
        highest: u32,
    },
    /// The firmware has switched it off, and locked the switch.
    LockedOff {
        /// Whether the CPU has a key to the lock, which the firmware may have set and would have to tell.
        has_key: bool,
    },
}

impl fmt::Display for SvmUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSvm {
                vendor,
                vmx,
                virtual_machine,
            } => {
                let vendor = core::str::from_utf8(vendor).unwrap_or("unknown vendor");
                write!(
                    f,
                    "this CPU ({vendor}) has no SVM: CPUID.8000_0001H:ECX.SVM[bit 2] is 0"
                )?;
                if *vmx {
                    f.write_str("; it has VMX (Intel VT-x)")?;
                }
                if *virtual_machine {
                    f.write_str("; this is a virtual machine, whose host must offer nested SVM")?;
                }
                Ok(())
            }
            Self::NoLeaf { highest } => write!(
                f,
                "CPUID.8000_0001H:ECX.SVM[bit 2] is 1, but the highest leaf is {highest:#x}: \
                 8000_000AH, which says what SVM can do, is missing"
            ),
            Self::LockedOff { has_key } => {
                f.write_str(
                    "SVM is switched off in the firmware settings: VM_CR has SVMDIS (bit 4) 1 and is \
                     locked (bit 3)",
                )?;
                if *has_key {
                    f.write_str("; only the firmware knows the key that would unlock it")?;
                }
                Ok(())
            }
        }
    }
}

impl core::error::Error for SvmUnavailable {}

/// The state of VM_CR on a CPU on which EFER.SVME can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SvmSwitch {
    /// SVM is on: nothing to be done.
    On,
    /// It is off, but not locked: this value is to be written before EFER.SVME is set.
    Unlocked {
        /// What was there, without SVMDIS.
        to_write: u64,
    },
}

/// Everything this CPU says about its SVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// VM_CR.
    pub switch: SvmSwitch,
    /// The revision of SVM.
    pub revision: u8,
    /// How many ASIDs there are, with 0, which is the host's.
    pub asids: u32,
    /// What there is beyond the first revision.
    pub features: Features,
    /// Whether pages can be made not executable, which nested tables need as any others.
    pub no_execute: bool,
    /// The bits of CR4 that there are.
    pub cr4: u64,
    /// Which instructions there are whose intercepts came with them.
    pub instructions: Instructions,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// Bits of a linear address.
    pub linear_bits: u8,
}

/// Instructions that not every CPU with SVM has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// RDPRU.
    pub rdpru: bool,
    /// INVLPGB and TLBSYNC.
    pub invlpgb: bool,
    /// MCOMMIT.
    pub mcommit: bool,
}

impl Capabilities {
    /// Asks the CPU.
    ///
    /// # Errors
    /// Why there is no SVM.
    pub fn discover(cpu: &impl CpuRead) -> Result<Self, SvmUnavailable> {
        let highest = ask_cpuid(cpu)?;
        let leaf = cpu.cpuid(SVM_LEAF, 0);
        let features = Features::from_edx(leaf.edx);
        let switch = read_switch(cpu, features)?;
        let (physical_bits, linear_bits) = address_bits(cpu);
        let instructions = if highest < 0x8000_0008 {
            0
        } else {
            cpu.cpuid(0x8000_0008, 0).ebx
        };
        Ok(Self {
            switch,
            revision: leaf.eax.get_bits(0..8) as u8,
            asids: leaf.ebx,
            features,
            no_execute: cpu.cpuid(EXTENDED_FEATURES, 0).edx.get_bit(20),
            cr4: cr4_bits(cpu),
            instructions: Instructions {
                rdpru: instructions.get_bit(4),
                invlpgb: instructions.get_bit(3),
                mcommit: instructions.get_bit(8),
            },
            physical_bits,
            linear_bits,
        })
    }
}

/// The bits of CR4 that exist on this CPU: those that every CPU with SVM has, and those of features.
fn cr4_bits(cpu: &impl CpuRead) -> u64 {
    /// VME to OSXMMEXCPT.
    const ALWAYS: u64 = 0x7ff;
    let highest = cpu.cpuid(0, 0).eax;
    let leaf = |leaf: u32| (highest >= leaf).then(|| cpu.cpuid(leaf, 0));
    let (one, seven) = (leaf(1), leaf(7));
    let ecx = |leaf: Option<CpuidResult>| leaf.map_or(0, |leaf| leaf.ecx);
    let ebx = |leaf: Option<CpuidResult>| leaf.map_or(0, |leaf| leaf.ebx);
    [
        // UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE, CET.
        (11, ecx(seven), 2),
        (12, ecx(seven), 16),
        (16, ebx(seven), 0),
        (17, ecx(one), 17),
        (18, ecx(one), 26),
        (20, ebx(seven), 7),
        (21, ebx(seven), 20),
        (22, ecx(seven), 3),
        (23, ecx(seven), 7),
    ]
    .into_iter()
    .filter(|(_, register, bit)| register >> bit & 1 != 0)
    .fold(ALWAYS, |bits, (cr4, ..)| bits | 1 << cr4)
}

/// That SVM and its leaf are there: the highest extended leaf.
fn ask_cpuid(cpu: &impl CpuRead) -> Result<u32, SvmUnavailable> {
    let highest = cpu.cpuid(0x8000_0000, 0).eax;
    // A CPU without extended leaves answers with the data of another leaf.
    let extended = highest.get_bits(16..32) == 0x8000 && highest >= EXTENDED_FEATURES;
    if extended && cpu.cpuid(EXTENDED_FEATURES, 0).ecx.get_bit(2) {
        return if highest < SVM_LEAF {
            Err(SvmUnavailable::NoLeaf { highest })
        } else {
            Ok(highest)
        };
    }
    let leaf0 = cpu.cpuid(0, 0);
    let features = if leaf0.eax >= 1 {
        cpu.cpuid(1, 0).ecx
    } else {
        0
    };
    let mut vendor = [0; 12];
    for (to, from) in vendor
        .chunks_exact_mut(4)
        .zip([leaf0.ebx, leaf0.edx, leaf0.ecx])
    {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Err(SvmUnavailable::NoSvm {
        vendor,
        vmx: features.get_bit(5),
        virtual_machine: features.get_bit(31),
    })
}

fn read_switch(cpu: &impl CpuRead, features: Features) -> Result<SvmSwitch, SvmUnavailable> {
    let value = cpu.rdmsr(VM_CR);
    match (value.get_bit(SVMDIS), value.get_bit(LOCK)) {
        (false, _) => Ok(SvmSwitch::On),
        (true, false) => Ok(SvmSwitch::Unlocked {
            to_write: value & !(1 << SVMDIS),
        }),
        (true, true) => Err(SvmUnavailable::LockedOff {
            has_key: features.has(Feature::SvmLock),
        }),
    }
}

/// Whether this value of VM_CR keeps EFER.SVME from being set.
pub(super) fn is_switched_off(vm_cr: u64) -> bool {
    vm_cr.get_bit(SVMDIS)
}

#[cfg(test)]
#[path = "capabilities_tests.rs"]
pub(crate) mod tests;
