//! What a CPU is affected by: what it says itself, and where it cannot say so, its model.

use core::fmt;

use super::facts::{Facts, Vendor};

/// The faults that concern a hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// L1 terminal fault: guests read what is in the L1 data cache by its physical address.
    pub l1tf: bool,
    /// Microarchitectural data sampling: guests see what was in buffers.
    pub mds: bool,
    /// TSX asynchronous abort: the same by transactions.
    pub taa: bool,
    /// Processor MMIO stale data: the same by accesses to devices.
    pub mmio: bool,
    /// Register file data sampling.
    pub rfds: bool,
    /// Branch target injection: a guest trains the predictor for others.
    pub spectre_v2: bool,
    /// Post-barrier return stack buffer: the first return after an exit.
    pub pbrsb: bool,
    /// Branch history injection.
    pub bhi: bool,
    /// A machine check where a fetch meets a page whose size has changed.
    pub multihit: bool,
}

/// What a model does not have.
const SPECULATION: u8 = 1 << 0;
const L1TF: u8 = 1 << 1;
const MDS: u8 = 1 << 2;
const MULTIHIT: u8 = 1 << 3;
const PBRSB: u8 = 1 << 4;
/// What a model has, and no bit says.
const MMIO: u8 = 1 << 5;
const RFDS: u8 = 1 << 6;

/// Models of Intel's family 6 that differ from the rule, which is: everything that the CPU does not deny, but the last two.
static MODELS: &[(u32, u8)] = &[
    // Bonnell and Saltwell execute in order.
    (0x1c, SPECULATION | MULTIHIT),
    (0x26, SPECULATION | MULTIHIT),
    (0x27, SPECULATION | MULTIHIT),
    (0x35, SPECULATION | MULTIHIT),
    (0x36, SPECULATION | MULTIHIT),
    // Silvermont, Airmont, Knights Landing and Mill.
    (0x37, L1TF | MULTIHIT),
    (0x4d, L1TF | MULTIHIT),
    (0x4a, L1TF | MULTIHIT),
    (0x5a, L1TF | MULTIHIT),
    (0x4c, L1TF | MULTIHIT),
    (0x75, L1TF | MULTIHIT),
    (0x57, L1TF | MULTIHIT),
    (0x85, L1TF | MULTIHIT),
    // Goldmont, Denverton, Goldmont Plus.
    (0x5c, L1TF | MDS | MULTIHIT | RFDS),
    (0x5f, L1TF | MDS | MULTIHIT | RFDS),
    (0x7a, L1TF | MDS | MULTIHIT | PBRSB | RFDS),
    // Tremont: Snow Ridge, Elkhart Lake, Jasper Lake.
    (0x86, MULTIHIT | PBRSB | MMIO | RFDS),
    (0x96, PBRSB | MMIO | RFDS),
    (0x9c, PBRSB | MMIO | RFDS),
    // Haswell and Broadwell servers.
    (0x3f, MMIO),
    (0x4f, MMIO),
    (0x56, MMIO),
    // Skylake, Kaby Lake, Coffee Lake, Comet Lake.
    (0x55, MMIO),
    (0x4e, MMIO),
    (0x5e, MMIO),
    (0x8e, MMIO),
    (0x9e, MMIO),
    (0xa5, MMIO),
    (0xa6, MMIO),
    // Ice Lake, Lakefield, Rocket Lake.
    (0x7e, MMIO),
    (0x6a, MMIO),
    (0x6c, MMIO),
    (0x8a, MMIO),
    (0xa7, MMIO),
    // Alder Lake, Raptor Lake, Gracemont.
    (0x97, RFDS),
    (0x9a, RFDS),
    (0xb7, RFDS),
    (0xba, RFDS),
    (0xbf, RFDS),
    (0xbe, RFDS),
];

impl Affected {
    /// What a CPU with these facts is affected by. One that nothing is known of has every fault that it does not deny.
    pub fn by(facts: &Facts) -> Self {
        if facts.vendor == Vendor::Amd {
            return Self {
                spectre_v2: true,
                ..Self::default()
            };
        }
        let (family, model) = facts.family_model;
        let entry = MODELS
            .iter()
            .find(|(known, _)| facts.vendor == Vendor::Intel && (6, *known) == (family, model));
        let said = entry.map_or(0, |(_, said)| *said);
        let spared = |fault| said & (fault | SPECULATION) != 0;
        let has = |fault| said & fault != 0;
        let denies_mmio = facts.sbdr_ssdp_no() && facts.fbsdp_no() && facts.psdp_no();
        Self {
            l1tf: !spared(L1TF) && !facts.rdcl_no(),
            mds: !spared(MDS) && !facts.mds_no(),
            taa: !spared(0) && !facts.taa_no() && (facts.rtm() || facts.tsx_ctrl()),
            mmio: has(MMIO) && !denies_mmio,
            rfds: !facts.rfds_no() && (has(RFDS) || facts.rfds_clear()),
            spectre_v2: !spared(0),
            pbrsb: facts.enhanced_ibrs() && !spared(PBRSB) && !facts.pbrsb_no(),
            bhi: !spared(0) && !facts.bhi_no(),
            multihit: !spared(MULTIHIT) && !facts.if_pschange_mc_no(),
        }
    }

    /// Whether guests may see what is left in buffers.
    pub const fn buffers(&self) -> bool {
        self.mds || self.taa || self.mmio || self.rfds
    }
}

impl fmt::Display for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.l1tf, "L1TF"),
            (self.mds, "MDS"),
            (self.taa, "TAA"),
            (self.mmio, "MMIO stale data"),
            (self.rfds, "RFDS"),
            (self.spectre_v2, "branch target injection"),
            (self.pbrsb, "PBRSB"),
            (self.bhi, "BHI"),
            (self.multihit, "iTLB multihit"),
        ];
        let mut separator = "";
        for (_, name) in all.iter().filter(|(has, _)| *has) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        if separator.is_empty() {
            f.write_str("nothing of these")?;
        }
        Ok(())
    }
}
