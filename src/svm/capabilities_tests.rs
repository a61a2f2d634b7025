use std::collections::BTreeMap;

use super::*;

/// A CPU, by the leaves that are asked for. As a real one, it faults at an MSR that it lacks: here, the test fails.
#[derive(Clone)]
pub struct Profile {
    leaves: BTreeMap<u32, CpuidResult>,
    msrs: BTreeMap<u32, u64>,
}

impl CpuRead for Profile {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> CpuidResult {
        let none = CpuidResult {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        self.leaves.get(&leaf).copied().unwrap_or(none)
    }
    #[track_caller]
    fn rdmsr(&self, index: u32) -> u64 {
        match self.msrs.get(&index) {
            Some(value) => *value,
            None => panic!("#GP: RDMSR of {index:#x}, which this CPU does not have"),
        }
    }
}

impl Profile {
    fn new(vendor: &[u8; 12], leaves: &[(u32, [u32; 4])], msrs: &[(u32, u64)]) -> Self {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf = |[eax, ebx, ecx, edx]: [u32; 4]| CpuidResult { eax, ebx, ecx, edx };
        let mut all: BTreeMap<_, _> = leaves
            .iter()
            .map(|(number, registers)| (*number, leaf(*registers)))
            .collect();
        all.insert(0, leaf([0xd, word(0), word(8), word(4)]));
        Self {
            leaves: all,
            msrs: msrs.iter().copied().collect(),
        }
    }
    /// Changes one leaf.
    pub fn change(&mut self, leaf: u32, change: impl FnOnce(&mut CpuidResult)) -> &mut Self {
        change(self.leaves.get_mut(&leaf).unwrap());
        self
    }
    /// Takes a feature away.
    pub fn withhold(&mut self, feature: Feature) -> &mut Self {
        self.change(SVM_LEAF, |leaf| leaf.edx &= !(1 << feature as u32))
    }
    pub fn set_vm_cr(&mut self, value: u64) -> &mut Self {
        self.msrs.insert(VM_CR, value);
        self
    }
}

/// What QEMU 7.2 says without hardware, with `-cpu max,la57=off`.
pub fn qemu() -> Profile {
    Profile::new(
        b"AuthenticAMD",
        &[
            (1, [0x663, 0x800, 0xf6fa_3203, 0x0783_fbfd]),
            (7, [0, 0x219c_07ab, 0x40_0000 | 1 << 2 | 1 << 3, 0]),
            (0x8000_0000, [0x8000_000a, 0, 0, 0]),
            (0x8000_0001, [0x663, 0, 0x175, 0x2fd3_fbfd]),
            (0x8000_0008, [0x3028, 0x101_0200, 0, 0]),
            (0x8000_000a, [1, 16, 0, 1 << 0 | 1 << 16 | 1 << 28]),
        ],
        &[(VM_CR, 0)],
    )
}

/// Bochs 2.7, model `ryzen`.
pub fn ryzen() -> Profile {
    Profile::new(
        b"AuthenticAMD",
        &[
            (1, [0x0080_0f11, 0x800, 0x7ed8_320b, 0x178b_fbff]),
            (0x8000_0000, [0x8000_001f, 0, 0, 0]),
            (0x8000_0001, [0x0080_0f11, 0, 0x35c2_33ff, 0x2fd3_fbff]),
            (0x8000_0008, [0x3030, 7, 0, 0]),
            (
                0x8000_000a,
                [1, 0x8000, 0, 1 << 0 | 1 << 3 | 1 << 6 | 1 << 10],
            ),
        ],
        &[(VM_CR, 0)],
    )
}

/// After a recent EPYC: everything that is asked for is there, and the firmware has locked VM_CR with SVM on.
pub fn epyc() -> Profile {
    Profile::new(
        b"AuthenticAMD",
        &[
            (1, [0x00a1_0f11, 0x800, 0x7efa_320b, 0x178b_fbff]),
            (0x8000_0000, [0x8000_0028, 0, 0, 0]),
            (0x8000_0001, [0x00a1_0f11, 0, 0x75c2_37ff, 0x2fd3_fbff]),
            (0x8000_0008, [0x3034, 0x791e_f35f, 0, 0]),
            (0x8000_000a, [1, 0x8000, 0, 0x1ebf_bcff]),
        ],
        &[(VM_CR, 1 << LOCK)],
    )
}

/// An Intel CPU. It has no VM_CR.
fn intel() -> Profile {
    Profile::new(
        b"GenuineIntel",
        &[
            (1, [0x806c1, 0, 0x77fa_f3bf, 0]),
            (0x8000_0000, [0x8000_0008, 0, 0, 0]),
            (0x8000_0001, [0, 0, 0x121, 0x2c10_0800]),
            (0x8000_0008, [0x3027, 0, 0, 0]),
        ],
        &[],
    )
}

#[test]
fn what_the_cpu_says_is_kept() {
    let found = Capabilities::discover(&ryzen()).unwrap();
    assert_eq!((found.revision, found.asids), (1, 0x8000));
    assert_eq!((found.physical_bits, found.linear_bits), (48, 48));
    assert_eq!(found.switch, SvmSwitch::On);
    assert!(found.no_execute && found.features.has(Feature::FlushByAsid));
    assert!(!found.features.has(Feature::VmcbClean));
    assert_eq!(found.instructions, Instructions::default());
    let found = Capabilities::discover(&epyc()).unwrap();
    assert_eq!(found.switch, SvmSwitch::On);
    let all = Instructions {
        rdpru: true,
        invlpgb: true,
        mcommit: true,
    };
    assert_eq!(found.instructions, all);
}

#[test]
fn the_bits_of_cr4_follow_the_features() {
    let of = |profile: &Profile| Capabilities::discover(profile).unwrap().cr4;
    // FSGSBASE, OSXSAVE, SMEP, SMAP, PKE and UMIP.
    let features = 1 << 16 | 1 << 18 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 11;
    // PCID is not there without hardware.
    let with_pcid = of(&qemu()) & 1 << 17;
    assert_eq!(of(&qemu()) & !with_pcid, 0x7ff | features);
    let mut old = qemu();
    old.change(0, |leaf| leaf.eax = 1);
    assert_eq!(of(&old) & !with_pcid, 0x7ff | 1 << 18);
    old.change(0, |leaf| leaf.eax = 0);
    assert_eq!(of(&old), 0x7ff);
}

#[test]
fn a_cpu_of_the_other_maker_is_named_and_not_asked_for_the_msr() {
    let error = Capabilities::discover(&intel()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this CPU (GenuineIntel) has no SVM: CPUID.8000_0001H:ECX.SVM[bit 2] is 0; it has VMX (Intel VT-x)"
    );
}

#[test]
fn a_virtual_machine_without_svm_says_so() {
    let mut profile = qemu();
    profile.change(EXTENDED_FEATURES, |leaf| leaf.ecx &= !(1 << 2));
    profile.msrs.clear();
    let text = Capabilities::discover(&profile).unwrap_err().to_string();
    assert!(text.contains("AuthenticAMD") && text.contains("nested SVM"));
    assert!(!text.contains("VMX"));
}

#[test]
fn a_cpu_without_extended_leaves_has_no_svm() {
    let mut profile = intel();
    profile.change(0x8000_0000, |leaf| leaf.eax = 0x16);
    profile.change(EXTENDED_FEATURES, |leaf| leaf.ecx = !0);
    let error = Capabilities::discover(&profile).unwrap_err();
    assert!(matches!(error, SvmUnavailable::NoSvm { vmx: true, .. }));
}

#[test]
fn without_the_leaf_nothing_is_guessed() {
    let mut profile = qemu();
    profile.change(0x8000_0000, |leaf| leaf.eax = 0x8000_0008);
    profile.msrs.clear();
    let error = Capabilities::discover(&profile).unwrap_err();
    assert_eq!(
        error,
        SvmUnavailable::NoLeaf {
            highest: 0x8000_0008
        }
    );
    assert!(error.to_string().contains("8000_000AH"));
}

#[test]
fn vm_cr_decides() {
    let with = |value| Capabilities::discover(qemu().set_vm_cr(value)).map(|found| found.switch);
    assert_eq!(with(0), Ok(SvmSwitch::On));
    // Locked, and on; other bits mean nothing here.
    assert_eq!(with(1 << LOCK | 7), Ok(SvmSwitch::On));
    assert_eq!(
        with(1 << SVMDIS | 2),
        Ok(SvmSwitch::Unlocked { to_write: 2 })
    );
    let locked = 1 << SVMDIS | 1 << LOCK;
    assert_eq!(
        with(locked),
        Err(SvmUnavailable::LockedOff { has_key: false })
    );
    let error = Capabilities::discover(epyc().set_vm_cr(locked)).unwrap_err();
    assert_eq!(error, SvmUnavailable::LockedOff { has_key: true });
    assert!(error.to_string().contains("SVMDIS (bit 4)"));
    assert!(is_switched_off(locked) && !is_switched_off(1 << LOCK));
}
