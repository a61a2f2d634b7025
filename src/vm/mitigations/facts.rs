//! What a CPU says of itself as far as side channels are concerned.

use bit_field::BitField;

use crate::virt::cpuid::CpuRead;

const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// Who made the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and Hygon, whose CPUs are the same.
    Amd,
    /// Anybody else: taken to have every fault of Intel's.
    Other,
}

/// The registers that tell what a CPU is affected by and what it has against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who made it.
    pub vendor: Vendor,
    /// DisplayFamily and DisplayModel of CPUID leaf 1.
    pub family_model: (u32, u32),
    /// CPUID leaf 7, subleaf 0, EBX.
    pub leaf_7_ebx: u32,
    /// CPUID leaf 7, subleaf 0, EDX.
    pub leaf_7_edx: u32,
    /// CPUID leaf 7, subleaf 2, EDX.
    pub leaf_7_2_edx: u32,
    /// CPUID leaf 80000008H, EBX, where AMD says it.
    pub leaf_ext_8_ebx: u32,
    /// IA32_ARCH_CAPABILITIES, 0 without one.
    pub arch_capabilities: u64,
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $field:ident $bit:literal,)*) => {
        impl Facts {
            $($(#[$doc])* pub fn $name(&self) -> bool {
                self.$field.get_bit($bit)
            })*
        }
    };
}

facts! {
    /// Restricted transactional memory, which TAA needs.
    rtm = leaf_7_ebx 11,
    /// VERW clears buffers.
    md_clear = leaf_7_edx 10,
    /// SERIALIZE, which came with Alder Lake and Sapphire Rapids.
    serialize = leaf_7_edx 14,
    /// IA32_SPEC_CTRL and IA32_PRED_CMD, Intel's bit.
    spec_ctrl = leaf_7_edx 26,
    /// IA32_FLUSH_CMD.
    flush_cmd = leaf_7_edx 28,
    /// IA32_SPEC_CTRL.BHI_DIS_S.
    bhi_ctrl = leaf_7_2_edx 4,
    /// IA32_PRED_CMD, AMD's bit.
    amd_ibpb = leaf_ext_8_ebx 12,
    /// IA32_SPEC_CTRL.IBRS, AMD's bit.
    amd_ibrs = leaf_ext_8_ebx 14,
    /// Not affected by Meltdown and L1TF.
    rdcl_no = arch_capabilities 0,
    /// IBRS that is set once and for all.
    enhanced_ibrs = arch_capabilities 1,
    /// A hypervisor below flushes the L1 data cache.
    skip_l1dfl_vmentry = arch_capabilities 3,
    /// Not affected by MDS.
    mds_no = arch_capabilities 5,
    /// A change of page size does not raise a machine check.
    if_pschange_mc_no = arch_capabilities 6,
    /// IA32_TSX_CTRL.
    tsx_ctrl = arch_capabilities 7,
    /// Not affected by TAA.
    taa_no = arch_capabilities 8,
    /// Not affected by SBDR and SSDP.
    sbdr_ssdp_no = arch_capabilities 13,
    /// Not affected by FBSDP.
    fbsdp_no = arch_capabilities 14,
    /// Not affected by PSDP.
    psdp_no = arch_capabilities 15,
    /// VERW clears fill buffers, too.
    fb_clear = arch_capabilities 17,
    /// Not affected by BHI.
    bhi_no = arch_capabilities 20,
    /// Not affected by PBRSB.
    pbrsb_no = arch_capabilities 24,
    /// Not affected by RFDS.
    rfds_no = arch_capabilities 27,
    /// Affected by RFDS, and VERW clears the register file.
    rfds_clear = arch_capabilities 28,
}

impl Facts {
    /// Asks a CPU. The MSR is read only where CPUID says that it exists.
    pub fn read(cpu: &impl CpuRead) -> Self {
        let leaf_0 = cpu.cpuid(0, 0);
        let vendor = match (leaf_0.ebx, leaf_0.edx, leaf_0.ecx) {
            (0x756e_6547, 0x4965_6e69, 0x6c65_746e) => Vendor::Intel,
            (0x6874_7541, 0x6974_6e65, 0x444d_4163) => Vendor::Amd,
            (0x6f67_7948, 0x6e65_476e, 0x656e_6975) => Vendor::Amd,
            _ => Vendor::Other,
        };
        let leaf_7 = (leaf_0.eax >= 7).then(|| cpu.cpuid(7, 0));
        let leaf_7_2 = leaf_7.filter(|leaf| leaf.eax >= 2).map(|_| cpu.cpuid(7, 2));
        let leaf_ext_8 =
            (cpu.cpuid(0x8000_0000, 0).eax >= 0x8000_0008).then(|| cpu.cpuid(0x8000_0008, 0));
        let leaf_7_edx = leaf_7.map_or(0, |leaf| leaf.edx);
        Self {
            vendor,
            family_model: family_model(cpu.cpuid(1, 0).eax),
            leaf_7_ebx: leaf_7.map_or(0, |leaf| leaf.ebx),
            leaf_7_edx,
            leaf_7_2_edx: leaf_7_2.map_or(0, |leaf| leaf.edx),
            leaf_ext_8_ebx: leaf_ext_8.map_or(0, |leaf| leaf.ebx),
            arch_capabilities: match leaf_7_edx.get_bit(29) {
                true => cpu.rdmsr(IA32_ARCH_CAPABILITIES),
                false => 0,
            },
        }
    }

    /// Whether there is IA32_PRED_CMD.
    pub fn has_ibpb(&self) -> bool {
        self.spec_ctrl() || self.amd_ibpb()
    }
    /// Whether there is IA32_SPEC_CTRL.IBRS.
    pub fn has_ibrs(&self) -> bool {
        self.spec_ctrl() || self.amd_ibrs()
    }
}

/// DisplayFamily and DisplayModel (SDM "CPUID—CPU Identification", leaf 01H, EAX).
fn family_model(eax: u32) -> (u32, u32) {
    let (family, model) = (eax.get_bits(8..12), eax.get_bits(4..8));
    let extended_model = eax.get_bits(16..20) << 4;
    match family {
        6 => (6, model | extended_model),
        15 => (15 + eax.get_bits(20..28), model | extended_model),
        _ => (family, model),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::arch::x86_64::CpuidResult;

    /// A CPU that says this in leaf 7, and faults on an MSR that it does not have.
    struct Cpu {
        max_leaf: u32,
        leaf_7: [u32; 4],
    }

    impl CpuRead for Cpu {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
            let [eax, ebx, ecx, edx] = match (leaf, subleaf) {
                (0, _) => [self.max_leaf, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
                (1, _) => [0x0008_06c1, 0, 0, 0],
                (7, 0) if self.max_leaf >= 7 => self.leaf_7,
                (7, 2) if self.leaf_7[0] >= 2 => [0, 0, 0, 1 << 4],
                (0x8000_0000, _) => [0x8000_0004, 0, 0, 0],
                _ => panic!("leaf {leaf:#x} {subleaf} is not there"),
            };
            CpuidResult { eax, ebx, ecx, edx }
        }
        fn rdmsr(&self, index: u32) -> u64 {
            assert_eq!(index, 0x10a);
            assert!(self.leaf_7[3] >> 29 & 1 != 0, "#GP");
            1 << 3
        }
    }

    #[test]
    fn nothing_is_asked_that_is_not_there() {
        let old = Facts::read(&Cpu {
            max_leaf: 5,
            leaf_7: [0; 4],
        });
        assert_eq!((old.leaf_7_edx, old.arch_capabilities), (0, 0));
        assert_eq!((old.vendor, old.family_model), (Vendor::Intel, (6, 0x8c)));
        let hidden = Facts::read(&Cpu {
            max_leaf: 7,
            leaf_7: [0, 1 << 11, 0, 1 << 26],
        });
        assert!(hidden.rtm() && hidden.has_ibpb() && !hidden.bhi_ctrl());
        assert!(!hidden.skip_l1dfl_vmentry());
        let new = Facts::read(&Cpu {
            max_leaf: 7,
            leaf_7: [2, 0, 0, 1 << 29],
        });
        assert!(new.bhi_ctrl() && new.skip_l1dfl_vmentry() && !new.has_ibrs());
    }

    #[test]
    fn models_are_numbered_as_the_manual_does() {
        for (eax, expected) in [
            (0x0001_06e5, (6, 0x1e)),  // Lynnfield
            (0x0005_0654, (6, 0x55)),  // Skylake-X
            (0x000a_0671, (6, 0xa7)),  // Rocket Lake
            (0x00a2_0f12, (25, 0x21)), // Zen 3
            (0x0000_0543, (5, 4)),
        ] {
            assert_eq!(family_model(eax), expected);
        }
    }
}
