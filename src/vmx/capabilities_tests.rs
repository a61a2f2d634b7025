use std::cell::RefCell;
use std::collections::BTreeMap;

use super::super::controls::{Primary, Tertiary};
use super::*;
use core::arch::x86_64::CpuidResult;

/// A recorded CPU. As a real one, it faults at an MSR that it lacks: here, the test fails.
#[derive(Clone)]
pub struct Profile {
    leaves: BTreeMap<u32, CpuidResult>,
    msrs: BTreeMap<u32, u64>,
    asked: RefCell<Vec<u32>>,
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
        self.asked.borrow_mut().push(index);
        match self.msrs.get(&index) {
            Some(value) => *value,
            None => panic!("#GP: RDMSR of {index:#x}, which this CPU does not have"),
        }
    }
}

impl Profile {
    fn new(vendor: &[u8; 12], features_ecx: u32, msrs: &[(u32, u64)]) -> Self {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
        let leaves = [
            (0, leaf(0xb, word(0), word(8), word(4))),
            (1, leaf(0x206c2, 0, features_ecx, 0)),
            (0x8000_0000, leaf(0x8000_0008, 0, 0, 0)),
            (0x8000_0008, leaf(0x3028, 0, 0, 0)),
        ];
        Self {
            leaves: leaves.into(),
            msrs: msrs.iter().copied().collect(),
            asked: RefCell::default(),
        }
    }
    pub fn set_msr_bit(&mut self, index: u32, bit: usize) -> &mut Self {
        self.msrs.get_mut(&index).unwrap().set_bit(bit, true);
        self
    }
    pub fn clear_msr_bit(&mut self, index: u32, bit: usize) -> &mut Self {
        self.msrs.get_mut(&index).unwrap().set_bit(bit, false);
        self
    }
    /// Takes the TRUE MSRs away.
    pub fn without_true_controls(&mut self) -> &mut Self {
        self.clear_msr_bit(0x480, 55);
        for index in 0x48d..=0x490 {
            self.msrs.remove(&index);
        }
        self
    }
    /// Takes the 1-setting of `control` away.
    pub fn withhold(&mut self, control: Control) -> &mut Self {
        let indexes: &[u32] = match control.word() {
            ControlWord::Pin => &[0x481, 0x48d],
            ControlWord::Primary => &[0x482, 0x48e],
            ControlWord::Secondary => &[0x48b],
            ControlWord::Exit => &[0x483, 0x48f],
            ControlWord::Entry => &[0x484, 0x490],
            other => panic!("{other:?} has no halves"),
        };
        for index in indexes {
            self.clear_msr_bit(*index, 32 + usize::from(control.bit()));
        }
        self
    }
}

const VMX: u32 = 1 << 5;
const HYPERVISOR: u32 = 1 << 31;

/// A Westmere-class machine as it was read out: unrestricted guest, no VM functions.
pub fn westmere() -> Profile {
    Profile::new(
        b"GenuineIntel",
        VMX,
        &[
            (0x3a, 5),
            (0x480, 0x00da_0400_0000_000f),
            (0x481, 0x0000_007f_0000_0016),
            (0x482, 0xfff9_fffe_0401_e172),
            (0x483, 0x007f_ffff_0003_6dff),
            (0x484, 0x0000_ffff_0000_11ff),
            (0x485, 0x0000_0000_0004_01e7),
            (0x486, 0x8000_0021),
            (0x487, 0xffff_ffff),
            (0x488, 0x2000),
            (0x489, 0x2_67ff),
            (0x48a, 0x2a),
            (0x48b, 0x0000_00ff_0000_0000),
            (0x48c, 0x0000_0f01_0611_4141),
            (0x48d, 0x0000_007f_0000_0016),
            (0x48e, 0xfff9_fffe_0400_6172),
            (0x48f, 0x007f_ffff_0003_6dfb),
            (0x490, 0x0000_ffff_0000_11fb),
        ],
    )
}

/// As Bochs 2.7 models it, and as read out there. Its Haswell has VM functions, INVPCID, EPT accessed and dirty flags
/// and 1 GiB pages.
pub fn haswell() -> Profile {
    Profile::new(
        b"GenuineIntel",
        0x77fa_f3bf,
        &[
            (0x3a, 5),
            (0x480, 0x00d8_1000_0000_002b),
            (0x481, 0x0000_007f_0000_0016),
            (0x482, 0xf7f9_fffe_0401_e172),
            (0x483, 0x007f_ffff_0003_6dff),
            (0x484, 0x0000_ffff_0000_11ff),
            (0x485, 0x2004_01e0),
            (0x486, 0x8000_0021),
            (0x487, 0xffff_ffff),
            (0x488, 0x2000),
            (0x489, 0x17_27ff),
            (0x48a, 0x34),
            (0x48b, 0x0004_7fff_0000_0000),
            (0x48c, 0x0000_0f01_0633_4141),
            (0x48d, 0x0000_007f_0000_0016),
            (0x48e, 0xf7f9_fffe_0400_6172),
            (0x48f, 0x007f_ffff_0003_6dfb),
            (0x490, 0x0000_ffff_0000_11fb),
            (0x491, 1),
        ],
    )
}

/// Its Lynnfield: EPT without unrestricted guest.
pub fn lynnfield() -> Profile {
    let mut profile = haswell();
    profile.msrs.extend([
        (0x485, 0x0004_01e0),
        (0x489, 0x67ff),
        (0x48b, 0x0000_007f_0000_0000),
        (0x48c, 0x0000_0f01_0611_4141),
    ]);
    profile.msrs.remove(&0x491);
    profile
}

/// Its Penryn: secondary controls, but no EPT, no preemption timer, nothing that loads PAT or EFER.
pub fn penryn() -> Profile {
    let mut profile = lynnfield();
    profile.msrs.extend([
        (0x481, 0x0000_003f_0000_0016),
        (0x483, 0x0003_ffff_0003_6dff),
        (0x484, 0x0000_3fff_0000_11ff),
        (0x489, 0x4_67ff),
        (0x48b, 0x0000_0041_0000_0000),
        (0x48d, 0x0000_003f_0000_0016),
        (0x48f, 0x0003_ffff_0003_6dfb),
        (0x490, 0x0000_3fff_0000_11fb),
    ]);
    profile.msrs.remove(&0x48c);
    profile
}

/// Its Tiger Lake: PML, XSAVES, CET, and any error code with any exception.
pub fn tigerlake() -> Profile {
    let mut profile = haswell();
    profile.msrs.extend([
        (0x480, 0x01d8_1000_0000_0004),
        (0x482, 0xfff9_fffe_0401_e172),
        (0x483, 0x107f_ffff_0003_6dff),
        (0x484, 0x0010_ffff_0000_11ff),
        (0x485, 0x6004_01e0),
        (0x489, 0xf7_2fff),
        (0x48b, 0x0297_7fff_0000_0000),
        (0x48c, 0x0000_0f01_06b3_4141),
        (0x48e, 0xfff9_fffe_0400_6172),
        (0x48f, 0x107f_ffff_0003_6dfb),
        (0x490, 0x0010_ffff_0000_11fb),
    ]);
    profile
}

#[test]
fn a_cpu_without_vmx_is_not_asked_for_an_msr() {
    // The Ryzen of Bochs 2.7.
    let mut amd = Profile::new(b"AuthenticAMD", 0x76d8_320b, &[]);
    let svm = CpuidResult {
        eax: 0,
        ebx: 0,
        ecx: 1 << 2,
        edx: 0,
    };
    amd.leaves.insert(0x8000_0001, svm);
    let error = Capabilities::discover(&amd).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this CPU (AuthenticAMD) has no VMX: CPUID.01H:ECX.VMX[bit 5] is 0; it has SVM (AMD-V), which is not supported"
    );

    let emulated = Profile::new(b"GenuineIntel", HYPERVISOR, &[]);
    let error = Capabilities::discover(&emulated).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this CPU (GenuineIntel) has no VMX: CPUID.01H:ECX.VMX[bit 5] is 0; this is a virtual machine, whose host \
         must offer nested VMX"
    );
    assert!(amd.asked.borrow().is_empty() && emulated.asked.borrow().is_empty());
}

#[test]
fn a_cpu_without_extended_leaves_does_not_seem_to_have_svm() {
    let mut old = Profile::new(b"GenuineIntel", 0, &[]);
    let junk = CpuidResult {
        eax: 0x7280_0203,
        ebx: !0,
        ecx: !0,
        edx: !0,
    };
    old.leaves.insert(0x8000_0000, junk);
    old.leaves.insert(0x8000_0001, junk);
    let error = Capabilities::discover(&old).unwrap_err();
    assert!(matches!(error, VmxUnavailable::NoVmx { svm: false, .. }));
}

#[test]
fn feature_control_in_all_its_states() {
    let discover = |value| {
        let mut profile = westmere();
        profile.msrs.insert(0x3a, value);
        Capabilities::discover(&profile).map(|c| c.feature_control)
    };
    assert_eq!(discover(0b101), Ok(FeatureControl::LockedOn));
    assert_eq!(
        discover(0),
        Ok(FeatureControl::Unlocked { to_write: 0b101 })
    );
    // Other bits the firmware has left (here: LMCE) stay.
    assert_eq!(
        discover(1 << 20),
        Ok(FeatureControl::Unlocked {
            to_write: 1 << 20 | 0b101
        })
    );
    assert_eq!(
        discover(0b001),
        Err(VmxUnavailable::LockedOff { inside_smx: false })
    );
    let error = discover(0b011).unwrap_err();
    assert_eq!(error, VmxUnavailable::LockedOff { inside_smx: true });
    assert!(error.to_string().contains("firmware"));
}

#[test]
fn only_msrs_that_exist_are_read() {
    // The profile itself fails the test at any other.
    for (profile, absent) in [
        (penryn(), vec![0x48c, 0x491, 0x492, 0x493]),
        (westmere(), vec![0x491, 0x492, 0x493]),
        (haswell(), vec![0x492, 0x493]),
    ] {
        Capabilities::discover(&profile).unwrap();
        for index in absent {
            assert!(!profile.asked.borrow().contains(&index), "{index:#x}");
        }
    }
    let mut first = penryn();
    first.without_true_controls().clear_msr_bit(0x482, 63);
    first.msrs.remove(&0x48b);
    let capabilities = Capabilities::discover(&first).unwrap();
    assert_eq!(
        capabilities.allowed(ControlWord::Secondary),
        AllowedSettings::default()
    );
    // Without the TRUE MSRs, default-1 controls have to be 1.
    assert!(capabilities.forces(Primary::Cr3LoadExiting));
    assert!(
        !Capabilities::discover(&penryn())
            .unwrap()
            .forces(Primary::Cr3LoadExiting)
    );
}

#[test]
fn tertiary_and_secondary_exit_controls_where_they_are_activated() {
    let mut modern = haswell();
    modern
        .set_msr_bit(0x48e, 32 + 17)
        .set_msr_bit(0x48f, 32 + 31);
    modern.msrs.insert(0x492, 1 << 7 | 1 << 40);
    modern.msrs.insert(0x493, 1 << 3);
    let capabilities = Capabilities::discover(&modern).unwrap();
    assert!(capabilities.offers(Tertiary::VirtualizeSpecCtrl));
    assert!(capabilities.offers(Control::new(ControlWord::Tertiary, 40)));
    assert!(!capabilities.offers(Tertiary::EnableHlat));
    assert!(capabilities.offers(Control::new(ControlWord::SecondaryExit, 3)));
    assert!(!capabilities.forces(Tertiary::VirtualizeSpecCtrl));
}

#[test]
fn what_a_haswell_says() {
    let capabilities = Capabilities::discover(&haswell()).unwrap();
    assert_eq!(capabilities.basic.revision(), 0x2b);
    assert_eq!(capabilities.misc.preemption_timer_value(7), 7);
    assert_eq!(
        (capabilities.physical_bits, capabilities.linear_bits),
        (40, 48)
    );
    assert!(capabilities.ept.accessed_dirty && capabilities.ept.pages_1g);
    assert!(!capabilities.basic.any_error_code());
    assert_eq!(capabilities.cr4.wrong(0x2000), 0);
    assert_eq!(capabilities.cr4.wrong(0), 0x2000);
    let westmere = Capabilities::discover(&westmere()).unwrap();
    assert!(!westmere.ept.accessed_dirty && westmere.ept.pages_2m);
    assert_eq!(westmere.misc.preemption_timer_value(7 << 7), 7);
    let tigerlake = Capabilities::discover(&tigerlake()).unwrap();
    assert!(tigerlake.offers(Secondary::EnablePml) && tigerlake.basic.any_error_code());
}
