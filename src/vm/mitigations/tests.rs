//! The decisions for processors of each generation, as these describe themselves with the microcode of their last years.

use super::choice::Mitigation;
use super::*;

/// CPUID leaf 7 EDX: SSBD, IA32_ARCH_CAPABILITIES, L1D_FLUSH, STIBP, IBRS with IBPB, and MD_CLEAR.
const NO_ARCH: u32 = 0x9c00_0400;
const ALL: u32 = NO_ARCH | 1 << 29;
const SERIALIZE: u32 = 1 << 14;
const RTM: u32 = 1 << 11;

fn intel(model: u32, leaf_7_edx: u32, arch_capabilities: u64) -> Facts {
    Facts {
        vendor: Vendor::Intel,
        family_model: (6, model),
        leaf_7_ebx: 0,
        leaf_7_edx,
        leaf_7_2_edx: 0,
        leaf_ext_8_ebx: 0,
        arch_capabilities,
    }
}

fn told(facts: &Facts) -> (String, String) {
    let done = Mitigations::choose(Choice::Auto, facts).unwrap();
    (Affected::by(facts).to_string(), done.to_string())
}

#[test]
fn each_generation_gets_what_it_needs() {
    const OLD: &str = "L1TF, MDS, branch target injection, BHI, iTLB multihit";
    const OLD_DONE: &str = "l1tf (IA32_FLUSH_CMD), mds (VERW), ibpb, rsb (filled), ibrs (at exits), bhi (cleared), multihit";
    let rtm = |facts| Facts {
        leaf_7_ebx: RTM,
        ..facts
    };
    let bhi_ctrl = |facts| Facts {
        leaf_7_2_edx: 0x17,
        ..facts
    };
    for (name, facts, affected, done) in [
        (
            "Bonnell executes in order",
            intel(0x1c, 0, 0),
            "nothing of these",
            "none",
        ),
        (
            "Lynnfield as it was sold",
            intel(0x1e, 0, 0),
            OLD,
            "l1tf (reading 64 KiB), mds (VERW), rsb (filled), bhi (cleared), multihit",
        ),
        // Nehalem got no MD_CLEAR.
        (
            "Lynnfield with its last microcode",
            intel(0x1e, 0x9c00_0000, 0),
            OLD,
            OLD_DONE,
        ),
        ("Sandy Bridge", intel(0x2a, NO_ARCH, 0), OLD, OLD_DONE),
        (
            "Silvermont",
            intel(0x37, NO_ARCH, 0),
            "MDS, branch target injection, BHI",
            "mds (VERW), ibpb, rsb (filled), ibrs (at exits), bhi (cleared)",
        ),
        ("Haswell", intel(0x3c, NO_ARCH, 0), OLD, OLD_DONE),
        (
            "Broadwell server with TSX",
            rtm(intel(0x4f, NO_ARCH, 0)),
            "L1TF, MDS, TAA, MMIO stale data, branch target injection, BHI, iTLB multihit",
            OLD_DONE,
        ),
        (
            "Skylake-X",
            rtm(intel(0x55, ALL, 0x200_0c04)),
            "L1TF, MDS, TAA, MMIO stale data, branch target injection, BHI, iTLB multihit",
            OLD_DONE,
        ),
        // The same model: only IA32_ARCH_CAPABILITIES tells.
        (
            "Cascade Lake",
            rtm(intel(0x55, ALL, 0xab)),
            "TAA, MMIO stale data, branch target injection, PBRSB, BHI, iTLB multihit",
            "mds (VERW), ibpb, rsb (one call), ibrs (enhanced), bhi (cleared), multihit",
        ),
        (
            "Ice Lake server",
            intel(0x6a, ALL, 0x16b),
            "MMIO stale data, branch target injection, PBRSB, BHI",
            "mds (VERW), ibpb, rsb (one call), ibrs (enhanced), bhi (cleared)",
        ),
        (
            "Goldmont Plus",
            intel(0x7a, ALL, 0x1000_002b),
            "RFDS, branch target injection, BHI",
            "mds (VERW), ibpb, ibrs (enhanced), bhi (cleared)",
        ),
        (
            "Tiger Lake",
            intel(0x8c, ALL, 0x200_e16b),
            "branch target injection, PBRSB, BHI",
            "ibpb, rsb (one call), ibrs (enhanced), bhi (cleared)",
        ),
        (
            "Rocket Lake",
            intel(0xa7, ALL, 0x202_016b),
            "MMIO stale data, branch target injection, PBRSB, BHI",
            "mds (VERW), ibpb, rsb (one call), ibrs (enhanced), bhi (cleared)",
        ),
        (
            "Alder Lake",
            bhi_ctrl(intel(0x97, ALL | SERIALIZE, 0x1180_fd6b)),
            "RFDS, branch target injection, BHI",
            "mds (VERW), ibpb, ibrs (enhanced), bhi (BHI_DIS_S)",
        ),
        (
            "Sapphire Rapids",
            bhi_ctrl(intel(0x8f, ALL | SERIALIZE, 0x100_e16b)),
            "branch target injection, BHI",
            "ibpb, ibrs (enhanced), bhi (BHI_DIS_S)",
        ),
        (
            "one that has nothing left",
            intel(0xff, ALL | SERIALIZE, 0x910_e16b),
            "branch target injection",
            "ibpb, ibrs (enhanced)",
        ),
    ] {
        let (has, does) = told(&facts);
        assert_eq!((&*has, &*does), (affected, done), "{name}");
    }
}

#[test]
fn what_a_hypervisor_below_hides_counts_as_not_there() {
    // A Skylake that shows none of it, and one whose hypervisor flushes the cache itself.
    let hidden = intel(0x5e, 0, 0);
    assert_eq!(
        told(&hidden).1,
        "l1tf (reading 64 KiB), mds (VERW), rsb (filled), bhi (cleared), multihit"
    );
    let gaps: Vec<_> = Mitigations::choose(Choice::Auto, &hidden)
        .unwrap()
        .gaps(&hidden)
        .collect();
    assert_eq!(gaps.len(), 3);
    let nested = intel(0x5e, ALL, 1 << 3);
    assert!(!told(&nested).1.contains("l1tf"));
    assert!(told(&nested).0.contains("L1TF"));
    // An Alder Lake without BHI_CTRL takes the long loop.
    let short = Mitigations::choose(Choice::Auto, &intel(0x8c, ALL, 0x16b)).unwrap();
    let long = Mitigations::choose(Choice::Auto, &intel(0x97, ALL | SERIALIZE, 0x16b)).unwrap();
    assert_eq!(short.guard().history_loops, Some((5, 5)));
    assert_eq!(long.guard().history_loops, Some((12, 7)));
    // IBRS_ALL without IA32_SPEC_CTRL is no reason to write that.
    let odd = Mitigations::choose(Choice::Auto, &intel(0x8c, 1 << 29, 0x2)).unwrap();
    assert_eq!((odd.ibrs, odd.guard().spec_ctrl), (None, 0));
    // Who is not Intel and not AMD denies what it does not have, or has it.
    let other = Facts {
        vendor: Vendor::Other,
        ..intel(0x1c, 0, 0)
    };
    assert!(told(&other).0.contains("L1TF, MDS"));
}

#[test]
fn amd_has_its_own_list() {
    let zen = Facts {
        vendor: Vendor::Amd,
        family_model: (0x19, 0x21),
        leaf_ext_8_ebx: 1 << 12 | 1 << 14,
        ..intel(0, 0, 0)
    };
    let (affected, done) = told(&zen);
    assert_eq!(affected, "branch target injection");
    assert_eq!(done, "ibpb, rsb (filled), ibrs (at exits)");
}

#[test]
fn off_is_nothing_and_a_list_is_just_that() {
    let haswell = intel(0x3c, NO_ARCH, 0);
    let off = Mitigations::choose(Choice::Off, &haswell).unwrap();
    assert_eq!((off, off.guard()), (Mitigations::NONE, Guard::default()));
    assert_eq!(off.to_string(), "none");
    let newest = intel(0xff, ALL, 0x910_e16b);
    let all = Choice::parse("l1tf,mds,ibpb,rsb,ibrs,bhi,multihit").unwrap();
    assert_eq!(
        Mitigations::choose(all, &newest).unwrap().to_string(),
        "l1tf (IA32_FLUSH_CMD), mds (VERW), ibpb, rsb (one call), ibrs (enhanced), bhi (cleared), multihit"
    );
    for one in Mitigation::ALL {
        let choice = Choice::parse(one.name()).unwrap();
        let done = Mitigations::choose(choice, &newest).unwrap().to_string();
        assert!(
            done.starts_with(one.name()) && !done.contains(','),
            "{done}"
        );
    }
}

#[test]
fn what_the_cpu_lacks_cannot_be_asked_for() {
    let old = intel(0x1e, 0, 0);
    for one in Mitigation::ALL {
        let done = Mitigations::choose(Choice::parse(one.name()).unwrap(), &old);
        let needs = matches!(one, Mitigation::Ibpb | Mitigation::Ibrs);
        assert_eq!(done.is_err(), needs, "{one:?}");
    }
    let lacking = Mitigations::choose(Choice::parse("mds,ibpb").unwrap(), &old).unwrap_err();
    assert_eq!(
        lacking.to_string(),
        "mitigations=ibpb: this CPU has no IA32_PRED_CMD (CPUID.(EAX=07H,ECX=0):EDX[bit 26] is 0)"
    );
}

#[test]
fn no_msr_is_written_that_the_cpu_lacks() {
    // Every combination of the bits that could lead to a write.
    for bits in 0..1u32 << 6 {
        let bit = |n: u32| bits >> n & 1;
        let edx = bit(0) << 26 | bit(1) << 28 | bit(2) << 29;
        let facts = Facts {
            leaf_7_2_edx: bit(3) << 4,
            ..intel(0x5e, edx, u64::from(bit(4)) << 1 & u64::from(bit(2)) << 1)
        };
        let choices = [
            "auto",
            "off",
            "l1tf,mds,rsb,bhi,multihit",
            "l1tf,ibpb,ibrs,bhi",
        ];
        for choice in choices.map(|text| Choice::parse(text).unwrap()) {
            let Ok(done) = Mitigations::choose(choice, &facts) else {
                continue;
            };
            let guard = done.guard();
            let spec_ctrl = guard.spec_ctrl != 0 || guard.ibrs_at_exits;
            assert!(!spec_ctrl || facts.spec_ctrl());
            assert!(guard.spec_ctrl & BHI_DIS_S == 0 || facts.bhi_ctrl());
            assert!(!done.ibpb || facts.spec_ctrl());
            assert!(!guard.flush_by_command || facts.flush_cmd());
            assert!(!(guard.flush_by_command && guard.flush_by_reading));
        }
    }
}
