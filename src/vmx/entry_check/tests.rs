use super::super::control_choice::choose_controls;
use super::super::controls::{EntryControl, ExitControl, Pin, Primary, Secondary};
use super::super::event::{inject, interrupted_event, reinject};
use super::super::exit::GuestStateFault;
use super::super::fake::{FakeVmcs, Profile, haswell, lynnfield, tigerlake, westmere};
use super::super::fields::{Field16, Field32, Field64, FieldNatural};
use super::super::segments::write_segment;
use super::super::start_state::tests::{START, host};
use super::*;
use crate::register_bits::{EFER_LMA, EFER_LME, RFLAGS_VM};
use crate::virt::event::{Event, has_error_code};
use crate::virt::{AccessRights, Segment, SegmentRegister};

/// A VMCS that passes every check, as the hypervisor sets one up.
fn valid(capabilities: &Capabilities) -> FakeVmcs {
    let mut vmcs = FakeVmcs::new();
    let mut controls = choose_controls(capabilities).unwrap();
    controls.set(EntryControl::Ia32eModeGuest, true);
    controls.write(&mut vmcs).unwrap();
    START.write(capabilities, &mut vmcs).unwrap();
    host().write(&mut vmcs).unwrap();
    vmcs.set(Field64::VmcsLinkPointer, u64::MAX)
        .set(Field64::IoBitmapA, 0x1_0000)
        .set(Field64::IoBitmapB, 0x1_1000)
        .set(Field64::MsrBitmaps, 0x1_2000)
        .set(Field64::EptPointer, 0x1_3000 | 3 << 3 | 6)
        .set(Field16::Vpid, 1);
    vmcs
}

/// The same in flat 32-bit protected mode without paging.
fn flat(capabilities: &Capabilities) -> FakeVmcs {
    let mut vmcs = valid(capabilities);
    let entry = vmcs.get(Field32::EntryControls) & !EntryControl::Ia32eModeGuest.control().mask();
    vmcs.set(Field32::EntryControls, entry)
        .set(FieldNatural::GuestCr0, 0x31)
        .set(FieldNatural::GuestCr4, 0x2000)
        .set(Field64::GuestEfer, 0)
        .set(Field32::GuestCsAccessRights, 0xc09b);
    vmcs
}

/// The same in real mode, as after a reset.
fn real_mode(capabilities: &Capabilities) -> FakeVmcs {
    let mut vmcs = flat(capabilities);
    for (register, access) in SegmentRegister::ALL
        .into_iter()
        .zip([0x93, 0x9b, 0x93, 0x93, 0x93, 0x93, 0x82, 0x8b])
    {
        let segment = Segment {
            limit: 0xffff,
            ..Segment::flat(0, AccessRights(access))
        };
        write_segment(&mut vmcs, register, &segment).unwrap();
    }
    vmcs.set(FieldNatural::GuestCr0, 0x30)
        .set(Field16::GuestCsSelector, 0xf000)
        .set(FieldNatural::GuestCsBase, 0xffff_0000)
        .set(FieldNatural::GuestRip, 0xfff0);
    vmcs
}

fn discover(profile: &Profile) -> Capabilities {
    Capabilities::discover(profile).unwrap()
}

fn rules(group: CheckGroup, vmcs: &FakeVmcs, capabilities: &Capabilities) -> Vec<(u32, String)> {
    let failed = failed_checks(group, vmcs, capabilities).unwrap();
    assert_eq!(failed.count(), failed.iter().count());
    let name = |check: &FailedCheck| (check.field.encoding(), check.rule.to_string());
    failed.iter().map(name).collect()
}

const GROUPS: [CheckGroup; 3] = [
    CheckGroup::Controls,
    CheckGroup::HostState,
    CheckGroup::GuestState,
];

#[test]
fn what_we_set_up_passes_every_check() {
    for profile in [haswell(), lynnfield(), tigerlake(), westmere()] {
        let capabilities = discover(&profile);
        let vmcs = valid(&capabilities);
        for group in GROUPS {
            assert_eq!(rules(group, &vmcs, &capabilities), []);
        }
    }
    let capabilities = discover(&haswell());
    for vmcs in [flat(&capabilities), real_mode(&capabilities)] {
        for group in GROUPS {
            assert_eq!(rules(group, &vmcs, &capabilities), []);
        }
    }
}

#[test]
fn an_unpaged_guest_fails_where_guests_are_restricted() {
    let capabilities = discover(&lynnfield());
    let vmcs = flat(&capabilities);
    let failed = failed_checks(CheckGroup::GuestState, &vmcs, &capabilities).unwrap();
    assert_eq!(
        failed.to_string(),
        "guest CR0 (0x6800) is 0x31: must have the bits that VMX operation fixes (IA32_VMX_CR0_FIXED0, _FIXED1)\n"
    );
}

/// Sets one field of a valid VMCS to a bad value and wants exactly one rule broken, by that very field.
struct Mutations {
    group: CheckGroup,
    capabilities: Capabilities,
    base: FakeVmcs,
}

impl Mutations {
    fn new(group: CheckGroup, capabilities: Capabilities, base: FakeVmcs) -> Self {
        Self {
            group,
            capabilities,
            base,
        }
    }
    #[track_caller]
    fn breaks(&self, field: impl Into<Field>, bad: u64, rule: &str) {
        let field = field.into();
        self.breaks_with(&[(field, bad)], field, rule);
    }
    #[track_caller]
    fn breaks_with(&self, bad: &[(Field, u64)], field: impl Into<Field>, rule: &str) {
        let mut vmcs = self.base.clone();
        for (field, value) in bad {
            vmcs.set(*field, *value);
        }
        let broken = rules(self.group, &vmcs, &self.capabilities);
        let [(encoding, text)] = broken.as_slice() else {
            panic!("{bad:x?} breaks {broken:?}");
        };
        assert_eq!(*encoding, field.into().encoding());
        assert!(text.contains(rule), "{text}");
    }
    #[track_caller]
    fn passes(&self, good: &[(Field, u64)]) {
        let mut vmcs = self.base.clone();
        for (field, value) in good {
            vmcs.set(*field, *value);
        }
        assert_eq!(rules(self.group, &vmcs, &self.capabilities), []);
    }
    /// The value of `field` with `bits` flipped.
    fn flipped(&self, field: impl Into<Field>, bits: u64) -> u64 {
        self.base.get(field) ^ bits
    }
}

fn long_mode(group: CheckGroup) -> Mutations {
    let capabilities = discover(&haswell());
    Mutations::new(group, capabilities, valid(&capabilities))
}

fn restricted(group: CheckGroup) -> Mutations {
    let capabilities = discover(&lynnfield());
    Mutations::new(group, capabilities, valid(&capabilities))
}

const WIDE: u64 = 1 << 40;
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

#[test]
fn controls() {
    let m = long_mode(CheckGroup::Controls);
    const PIN: Field32 = Field32::PinBasedControls;
    const PRIMARY: Field32 = Field32::PrimaryProcessorBasedControls;
    const SECONDARY: Field32 = Field32::SecondaryProcessorBasedControls;
    m.breaks(PIN, m.flipped(PIN, 1 << 1), "must be 1");
    m.breaks(PIN, m.flipped(PIN, 1 << 8), "must be 0");
    m.breaks(PRIMARY, m.flipped(PRIMARY, 1 << 26), "must be 1");
    m.breaks(SECONDARY, m.flipped(SECONDARY, 1 << 31), "must be 0");
    m.breaks(
        Field32::ExitControls,
        m.flipped(Field32::ExitControls, 1),
        "must be 1",
    );
    m.breaks(
        Field32::EntryControls,
        m.flipped(Field32::EntryControls, 1),
        "must be 1",
    );
    m.breaks(Field32::Cr3TargetCount, 5, "number of CR3-target values");

    let bit = |control: Control| control.mask();
    let nmi = bit(Pin::NmiExiting.into());
    m.breaks(PIN, m.flipped(PIN, nmi), "needs \"NMI exiting\"");
    let window = bit(Primary::NmiWindowExiting.into());
    m.breaks_with(
        &[
            (PIN.into(), m.flipped(PIN, bit(Pin::VirtualNmis.into()))),
            (PRIMARY.into(), m.flipped(PRIMARY, window)),
        ],
        PRIMARY,
        "needs \"virtual NMIs\"",
    );
    let ept = bit(Secondary::EnableEpt.into());
    m.breaks(SECONDARY, m.flipped(SECONDARY, ept), "needs \"enable EPT\"");

    m.breaks(Field64::IoBitmapA, 0x1_0001, "bits 11:0");
    m.breaks(Field64::IoBitmapB, WIDE, "physical-address width");
    m.breaks(Field64::MsrBitmaps, 0x800, "bits 11:0");
    m.breaks(Field16::Vpid, 0, "must not be 0");

    const EPTP: Field64 = Field64::EptPointer;
    m.breaks(EPTP, m.flipped(EPTP, 2), "memory type");
    m.breaks(EPTP, m.flipped(EPTP, 1), "memory type");
    m.breaks(EPTP, m.flipped(EPTP, 1 << 3), "page-walk length");
    m.breaks(EPTP, m.flipped(EPTP, 1 << 7), "bits 11:7 must be 0");
    m.breaks(EPTP, m.flipped(EPTP, 1 << 8), "bits 11:7 must be 0");
    m.breaks(EPTP, m.flipped(EPTP, WIDE), "physical-address width");
    m.passes(&[(EPTP.into(), m.flipped(EPTP, 1 << 6))]);
    let old = restricted(CheckGroup::Controls);
    old.breaks(EPTP, old.flipped(EPTP, 1 << 6), "accessed and dirty");

    let timer = bit(Pin::ActivatePreemptionTimer.into());
    m.breaks_with(
        &[(PIN.into(), m.flipped(PIN, timer))],
        Field32::ExitControls,
        "needs \"activate VMX-preemption timer\"",
    );
    m.breaks_with(
        &[
            (Field32::ExitMsrLoadCount.into(), 1),
            (Field64::ExitMsrLoadAddress.into(), 8),
        ],
        Field64::ExitMsrLoadAddress,
        "bits 3:0",
    );
    m.breaks_with(
        &[
            (Field32::EntryMsrLoadCount.into(), 2),
            (Field64::EntryMsrLoadAddress.into(), WIDE - 16),
        ],
        Field32::EntryMsrLoadCount,
        "must end within",
    );
    m.passes(&[
        (Field32::ExitMsrStoreCount.into(), 1),
        (Field64::ExitMsrStoreAddress.into(), WIDE - 16),
    ]);
}

#[test]
fn pml_needs_its_page() {
    let capabilities = discover(&tigerlake());
    let base = valid(&capabilities);
    let m = Mutations::new(CheckGroup::Controls, capabilities, base);
    const SECONDARY: Field32 = Field32::SecondaryProcessorBasedControls;
    let off = (SECONDARY.into(), m.flipped(SECONDARY, 1 << 17));
    let page = |address| (Field::from(Field64::PmlAddress), address);
    m.passes(&[page(0x2_0000)]);
    m.passes(&[off, page(0x2_0008)]);
    m.breaks_with(&[page(0x2_0008)], Field64::PmlAddress, "bits 11:0");
}

#[test]
fn injected_events() {
    let m = long_mode(CheckGroup::Controls);
    const INFO: Field32 = Field32::EntryInterruptionInformation;
    m.breaks(INFO, 0x8000_0100, "type is reserved");
    m.breaks(INFO, 0x8000_0203, "vector does not go with");
    m.breaks(INFO, 0x8000_0320, "vector does not go with");
    m.breaks(INFO, 0x8000_030e, "deliver error code");
    m.breaks(INFO, 0x8000_0b06, "deliver error code");
    m.breaks(INFO, 0x8000_0820, "deliver error code");
    m.breaks(INFO, 0x8000_1306, "bits 30:12 must be 0");
    m.breaks_with(
        &[
            (INFO.into(), 0x8000_0b0e),
            (Field32::EntryExceptionErrorCode.into(), 0x1_0000),
        ],
        Field32::EntryExceptionErrorCode,
        "bits 31:16",
    );
    m.breaks_with(
        &[
            (INFO.into(), 0x8000_0603),
            (Field32::EntryInstructionLength.into(), 16),
        ],
        Field32::EntryInstructionLength,
        "1 to 15",
    );
    // Not valid, so not checked.
    m.passes(&[(INFO.into(), 0x7fff_ffff)]);
}

#[test]
fn every_event_that_can_be_made_can_be_injected() {
    let capabilities = discover(&haswell());
    let mut events = vec![
        Event::NMI,
        Event::DEBUG,
        Event::INVALID_OPCODE,
        Event::DOUBLE_FAULT,
        Event::STACK_FAULT,
        Event::GENERAL_PROTECTION,
        Event::ALIGNMENT_CHECK,
        Event::page_fault(0xffff),
        Event::breakpoint(1).unwrap(),
        Event::int1(15).unwrap(),
    ];
    // What was interrupted: interrupts, INT n and INTO, and exceptions.
    let exceptions = (0..32).filter(|vector| !(2..=4).contains(vector));
    let exceptions = exceptions.map(|vector| {
        let has_code = has_error_code(vector as u8);
        0x8000_0300 | u64::from(has_code) << 11 | vector
    });
    for information in exceptions.chain([0x8000_0020, 0x8000_0480, 0x8000_0604]) {
        let mut vmcs = valid(&capabilities);
        vmcs.set(Field32::IdtVectoringInformation, information)
            .set(Field32::ExitInstructionLength, 2);
        events.extend(interrupted_event(&vmcs).unwrap());
    }
    assert_eq!(events.len(), 10 + 29 + 3);
    for base in [valid(&capabilities), real_mode(&capabilities)] {
        for event in &events {
            let mut vmcs = base.clone();
            vmcs.set(FieldNatural::GuestRflags, 0x202);
            // In real mode nothing was interrupted that had an error code.
            if base.get(FieldNatural::GuestCr0) & 1 == 0 && event.error_code().is_some() {
                vmcs.remove(Field32::EntryExceptionErrorCode);
            }
            inject(&mut vmcs, *event).unwrap();
            for group in GROUPS {
                assert_eq!(rules(group, &vmcs, &capabilities), [], "{event:?}");
            }
        }
    }
}

#[test]
fn host_state() {
    let m = long_mode(CheckGroup::HostState);
    m.breaks(FieldNatural::HostCr0, 0x8001_0011, "VMX operation fixes");
    m.breaks(
        FieldNatural::HostCr0,
        1 << 32 | 0x8000_0021,
        "VMX operation fixes",
    );
    m.breaks(FieldNatural::HostCr4, 0x06a0, "VMX operation fixes");
    m.breaks(FieldNatural::HostCr4, 0x2680, "PAE");
    m.breaks(FieldNatural::HostCr3, WIDE, "physical-address width");
    m.breaks(Field64::HostPat, 2, "8 bytes");
    m.breaks(Field64::HostEfer, 0xd02, "bits 63:12, 9, 7:1 must be 0");
    m.breaks(Field64::HostEfer, EFER_LME, "host address-space size");
    for field in [
        FieldNatural::HostSysenterEsp,
        FieldNatural::HostSysenterEip,
        FieldNatural::HostFsBase,
        FieldNatural::HostGsBase,
        FieldNatural::HostTrBase,
        FieldNatural::HostGdtrBase,
        FieldNatural::HostIdtrBase,
        FieldNatural::HostRip,
    ] {
        m.breaks(field, NOT_CANONICAL, "canonical");
        m.passes(&[(field.into(), !0 << 47)]);
    }
    for field in [
        Field16::HostCsSelector,
        Field16::HostSsSelector,
        Field16::HostDsSelector,
        Field16::HostEsSelector,
        Field16::HostFsSelector,
        Field16::HostGsSelector,
        Field16::HostTrSelector,
    ] {
        m.breaks(field, 0xb, "RPL and TI");
        m.breaks(field, 0xc, "RPL and TI");
    }
    m.breaks(Field16::HostCsSelector, 0, "must not be 0");
    m.breaks(Field16::HostTrSelector, 0, "must not be 0");
    m.passes(&[(Field16::HostSsSelector.into(), 0)]);

    const EXIT: Field32 = Field32::ExitControls;
    let mut vmcs = m.base.clone();
    let size = ExitControl::HostAddressSpaceSize.control().mask();
    vmcs.set(EXIT, m.flipped(EXIT, size))
        .set(Field16::HostSsSelector, 0);
    let broken = rules(CheckGroup::HostState, &vmcs, &m.capabilities);
    assert_eq!(broken.len(), 4, "{broken:?}");
    assert!(
        broken
            .iter()
            .all(|(_, rule)| rule.contains("host address-space size"))
    );
}

#[test]
fn guest_control_registers_and_msrs() {
    let m = long_mode(CheckGroup::GuestState);
    const CR0: FieldNatural = FieldNatural::GuestCr0;
    const CR4: FieldNatural = FieldNatural::GuestCr4;
    m.breaks(CR0, m.flipped(CR0, 1 << 5), "VMX operation fixes");
    m.breaks(CR0, m.flipped(CR0, 1), "PG must be 0 where PE is 0");
    m.breaks(CR0, m.flipped(CR0, 1 << 31), "PG must be 1 with");
    m.passes(&[(CR0.into(), m.flipped(CR0, 3 << 29 | 1 << 4))]);
    m.breaks(CR4, m.flipped(CR4, 1 << 13), "VMX operation fixes");
    m.breaks(CR4, m.flipped(CR4, 1 << 23), "VMX operation fixes");
    m.breaks(CR4, m.flipped(CR4, 1 << 5), "PAE must be 1");
    m.breaks(FieldNatural::GuestCr3, WIDE, "physical-address width");
    m.breaks(FieldNatural::GuestDr7, 1 << 32 | 0x400, "63:32");
    m.breaks(Field64::GuestDebugctl, 1 << 3, "bits 63:16, 5:3 must be 0");
    m.passes(&[(Field64::GuestDebugctl.into(), 3)]);
    m.breaks(FieldNatural::GuestSysenterEsp, NOT_CANONICAL, "canonical");
    m.breaks(FieldNatural::GuestSysenterEip, NOT_CANONICAL, "canonical");
    m.breaks(Field64::GuestPat, 3 << 56, "8 bytes");
    m.breaks(Field64::GuestEfer, EFER_LMA | EFER_LME | 2, "7:1 must be 0");
    m.breaks(Field64::GuestEfer, EFER_LMA, "LMA must equal LME");
    let mut vmcs = m.base.clone();
    vmcs.set(Field64::GuestEfer, EFER_LME);
    let broken = rules(CheckGroup::GuestState, &vmcs, &m.capabilities);
    assert!(
        broken
            .iter()
            .any(|(_, rule)| rule.contains("IA-32e mode guest"))
    );

    let base = flat(&m.capabilities);
    let flat = Mutations::new(CheckGroup::GuestState, m.capabilities, base);
    flat.breaks(CR4, flat.flipped(CR4, 1 << 17), "PCIDE");
}

#[test]
fn guest_code_segment() {
    let m = long_mode(CheckGroup::GuestState);
    const CS: Field32 = Field32::GuestCsAccessRights;
    m.breaks(CS, 0xa093 ^ 1, "accessed code");
    m.passes(&[(CS.into(), 0xa093)]);
    let old = restricted(CheckGroup::GuestState);
    old.breaks(CS, 0xa093, "accessed code");
    m.breaks(CS, 0xa0fb, "DPL");
    m.breaks(CS, 0xa0ff, "DPL");
    m.breaks(CS, 0xa08b, "S must be 1");
    m.breaks(CS, 0xa01b, "P must be 1");
    m.breaks(CS, 0xa19b, "bits 31:17, 11:8 must be 0");
    m.breaks(CS, 0xe09b, "D/B must be 0");
    m.breaks(CS, 0x209b, "G must be 1");
    m.breaks_with(
        &[(Field32::GuestCsLimit.into(), 0xffff_f000)],
        CS,
        "G must be 0",
    );
    m.breaks(FieldNatural::GuestCsBase, 1 << 32, "63:32");
}

#[test]
fn guest_data_segments() {
    let m = long_mode(CheckGroup::GuestState);
    let old = restricted(CheckGroup::GuestState);
    const SS: Field32 = Field32::GuestSsAccessRights;
    m.breaks(SS, 0xc091, "accessed writable data");
    old.breaks_with(
        &[
            (SS.into(), 0xc0f3),
            (Field32::GuestCsAccessRights.into(), 0xa0fb),
        ],
        SS,
        "equal the RPL",
    );
    old.breaks_with(
        &[
            (Field16::GuestSsSelector.into(), 0x13),
            (SS.into(), 0xc0f3),
            (Field32::GuestCsAccessRights.into(), 0xa0fb),
        ],
        Field16::GuestSsSelector,
        "RPL must equal the RPL of CS",
    );
    m.breaks_with(
        &[
            (Field32::GuestCsAccessRights.into(), 0xa093),
            (SS.into(), 0xc0f3),
        ],
        SS,
        "where the type of CS is 3",
    );
    for (access, limit, base, selector) in [
        (
            Field32::GuestDsAccessRights,
            Field32::GuestDsLimit,
            FieldNatural::GuestDsBase,
            Field16::GuestDsSelector,
        ),
        (
            Field32::GuestEsAccessRights,
            Field32::GuestEsLimit,
            FieldNatural::GuestEsBase,
            Field16::GuestEsSelector,
        ),
        (
            Field32::GuestFsAccessRights,
            Field32::GuestFsLimit,
            FieldNatural::GuestFsBase,
            Field16::GuestFsSelector,
        ),
        (
            Field32::GuestGsAccessRights,
            Field32::GuestGsLimit,
            FieldNatural::GuestGsBase,
            Field16::GuestGsSelector,
        ),
    ] {
        m.breaks(access, 0xc092, "accessed");
        m.breaks(access, 0xc099, "readable");
        m.breaks(access, 0xc083, "S must be 1");
        m.breaks(access, 0xc013, "P must be 1");
        m.breaks(access, 0xe_c093, "31:17");
        m.breaks_with(&[(limit.into(), 0xfff_fffe)], access, "G must be 0");
        m.passes(&[(access.into(), 1 << 16)]);
        old.breaks_with(&[(selector.into(), 0x13)], access, "below the RPL");
        m.passes(&[(selector.into(), 0x13)]);
        if matches!(base, FieldNatural::GuestFsBase | FieldNatural::GuestGsBase) {
            m.breaks(base, NOT_CANONICAL, "canonical");
            m.passes(&[(base.into(), 1 << 32)]);
        } else {
            m.breaks(base, 1 << 32, "63:32");
        }
    }
}

#[test]
fn guest_system_segments() {
    let m = long_mode(CheckGroup::GuestState);
    const TR: Field32 = Field32::GuestTrAccessRights;
    m.breaks(TR, 0x0083, "busy TSS");
    m.breaks(TR, 0x0089, "busy TSS");
    m.breaks(TR, 0x009b, "S must be 0");
    m.breaks(TR, 0x1_008b, "unusable");
    m.breaks(TR, 0x000b, "P must be 1");
    m.breaks(Field16::GuestTrSelector, 4, "TI must be 0");
    m.breaks(FieldNatural::GuestTrBase, NOT_CANONICAL, "canonical");
    const LDTR: Field32 = Field32::GuestLdtrAccessRights;
    m.passes(&[(LDTR.into(), 0x82)]);
    m.breaks(LDTR, 0x83, "LDT");
    m.breaks(LDTR, 0x92, "S must be 0");
    m.breaks_with(
        &[(LDTR.into(), 0x82), (Field16::GuestLdtrSelector.into(), 4)],
        Field16::GuestLdtrSelector,
        "TI must be 0",
    );
    // Nothing is wanted of an LDTR that cannot be used.
    m.passes(&[
        (Field16::GuestLdtrSelector.into(), 4),
        (FieldNatural::GuestLdtrBase.into(), NOT_CANONICAL),
    ]);
    for base in [FieldNatural::GuestGdtrBase, FieldNatural::GuestIdtrBase] {
        m.breaks(base, NOT_CANONICAL, "canonical");
    }
    for limit in [Field32::GuestGdtrLimit, Field32::GuestIdtrLimit] {
        m.breaks(limit, 0x1_0000, "31:16");
    }
}

#[test]
fn virtual_8086_mode() {
    let capabilities = discover(&haswell());
    let mut base = flat(&capabilities);
    base.set(FieldNatural::GuestRflags, RFLAGS_VM | 2);
    let segment = Segment {
        selector: 0x123,
        base: 0x1230,
        limit: 0xffff,
        access: AccessRights(0xf3),
    };
    for register in &SegmentRegister::ALL[..6] {
        write_segment(&mut base, *register, &segment).unwrap();
    }
    let m = Mutations::new(CheckGroup::GuestState, capabilities, base);
    m.passes(&[]);
    m.breaks(FieldNatural::GuestDsBase, 0x1234, "16 times");
    m.breaks(Field32::GuestGsLimit, 0xfff, "0xffff");
    m.breaks(Field32::GuestCsAccessRights, 0xfb, "0xf3");
    m.breaks_with(
        &[(FieldNatural::GuestCr0.into(), 0x30)],
        FieldNatural::GuestRflags,
        "VM must be 0",
    );
}

#[test]
fn guest_rip_and_rflags() {
    let m = long_mode(CheckGroup::GuestState);
    const RIP: FieldNatural = FieldNatural::GuestRip;
    const RFLAGS: FieldNatural = FieldNatural::GuestRflags;
    m.breaks(RIP, 1 << 50, "identical");
    // The first address that is not canonical faults in the guest, not at the entry.
    m.passes(&[(RIP.into(), NOT_CANONICAL)]);
    m.breaks_with(
        &[
            (Field32::GuestCsAccessRights.into(), 0xc09b),
            (RIP.into(), 1 << 32),
        ],
        RIP,
        "outside 64-bit mode",
    );
    m.breaks(RFLAGS, 0, "bit 1 must be 1");
    for bit in [3, 5, 15, 22, 63] {
        m.breaks(RFLAGS, 2 | 1 << bit, "bits 63:22, 15, 5, 3 must be 0");
    }
    m.breaks_with(
        &[(Field32::EntryInterruptionInformation.into(), 0x8000_0020)],
        RFLAGS,
        "IF must be 1",
    );
}

#[test]
fn guest_activity_and_interruptibility() {
    let m = long_mode(CheckGroup::GuestState);
    const ACTIVITY: Field32 = Field32::GuestActivityState;
    const BLOCKING: Field32 = Field32::GuestInterruptibilityState;
    const INFO: Field32 = Field32::EntryInterruptionInformation;
    let interruptible = (FieldNatural::GuestRflags.into(), 0x202);
    m.passes(&[(ACTIVITY.into(), 1)]);
    m.breaks(ACTIVITY, 4, "does not support");
    m.breaks_with(
        &[
            (ACTIVITY.into(), 1),
            (Field32::GuestSsAccessRights.into(), 0xc0f3),
            (Field32::GuestCsAccessRights.into(), 0xa0fb),
        ],
        ACTIVITY,
        "DPL of SS",
    );
    m.breaks_with(
        &[interruptible, (ACTIVITY.into(), 1), (BLOCKING.into(), 1)],
        ACTIVITY,
        "must be active",
    );
    let general_protection = (INFO.into(), 0x8000_0b0d);
    m.breaks_with(
        &[(ACTIVITY.into(), 1), general_protection],
        ACTIVITY,
        "cannot be delivered",
    );
    m.passes(&[
        interruptible,
        (ACTIVITY.into(), 1),
        (INFO.into(), 0x8000_0020),
    ]);
    m.breaks_with(
        &[
            interruptible,
            (ACTIVITY.into(), 2),
            (INFO.into(), 0x8000_0020),
        ],
        ACTIVITY,
        "cannot be delivered",
    );

    m.breaks(BLOCKING, 1 << 5, "31:5");
    m.breaks_with(&[interruptible, (BLOCKING.into(), 3)], BLOCKING, "both");
    m.breaks(BLOCKING, 1, "RFLAGS.IF is 0");
    m.breaks(BLOCKING, 4, "SMI");
    m.passes(&[(BLOCKING.into(), 8)]);
    m.breaks_with(
        &[
            interruptible,
            (BLOCKING.into(), 2),
            (INFO.into(), 0x8000_0020),
        ],
        BLOCKING,
        "inject an external interrupt",
    );
    let nmi = (INFO.into(), 0x8000_0202);
    m.breaks_with(&[(BLOCKING.into(), 2), nmi], BLOCKING, "inject an NMI");
    m.breaks_with(&[(BLOCKING.into(), 8), nmi], BLOCKING, "virtual NMIs");
}

#[test]
fn guest_pending_debug_exceptions() {
    let m = long_mode(CheckGroup::GuestState);
    const PENDING: FieldNatural = FieldNatural::GuestPendingDebugExceptions;
    m.breaks(PENDING, 1 << 4, "bits 63:17, 15, 13, 10:4 must be 0");
    m.breaks(PENDING, 1 << 13, "15, 13");
    m.passes(&[(PENDING.into(), 0x500f)]);
    let mov_ss = (Field::from(Field32::GuestInterruptibilityState), 2);
    let single_step = (FieldNatural::GuestRflags.into(), 0x102);
    let branches = (Field64::GuestDebugctl.into(), 2);
    m.breaks_with(&[mov_ss, single_step], PENDING, "BS must be 1");
    m.passes(&[mov_ss, single_step, (PENDING.into(), 1 << 14)]);
    m.passes(&[mov_ss, single_step, branches]);
    m.breaks_with(
        &[mov_ss, (PENDING.into(), 1 << 14)],
        PENDING,
        "BS must be 1",
    );
}

#[test]
fn guest_link_pointer_and_pdptes() {
    let m = long_mode(CheckGroup::GuestState);
    m.breaks(Field64::VmcsLinkPointer, 0, "all ones");
    // In IA-32e mode the PDPTEs are not loaded.
    m.passes(&[(Field64::GuestPdpte0.into(), 3)]);
    let mut base = flat(&m.capabilities);
    base.set(FieldNatural::GuestCr0, 0x8000_0031)
        .set(FieldNatural::GuestCr4, 0x2020);
    let pae = Mutations::new(CheckGroup::GuestState, m.capabilities, base);
    pae.passes(&[(Field64::GuestPdpte0.into(), 0x1001)]);
    pae.passes(&[(Field64::GuestPdpte0.into(), 0x1006)]);
    pae.breaks(
        Field64::GuestPdpte3,
        0x1003,
        "bits 63:40, 8:5, 2:1 must be 0",
    );
    pae.breaks(Field64::GuestPdpte1, WIDE | 1, "63:40");
}

#[test]
fn a_failure_leads_to_its_group() {
    use EntryFailure::{InvalidGuestState, MachineCheck};
    let group = |number| CheckGroup::of_instruction(VmFail::from_number(number));
    assert_eq!(group(7), Some(CheckGroup::Controls));
    assert_eq!(group(8), Some(CheckGroup::HostState));
    assert_eq!(group(5), None);
    let invalid = InvalidGuestState(GuestStateFault::Unspecified);
    assert_eq!(CheckGroup::of_entry(invalid), Some(CheckGroup::GuestState));
    assert_eq!(CheckGroup::of_entry(MachineCheck), None);
}

#[test]
fn more_failures_than_fit_are_counted() {
    let capabilities = discover(&haswell());
    let mut vmcs = valid(&capabilities);
    for field in Field::all().filter(|f| f.name().contains("access rights")) {
        vmcs.set(field, 0);
    }
    let failed = failed_checks(CheckGroup::GuestState, &vmcs, &capabilities).unwrap();
    assert!(failed.count() > FailedChecks::NAMED);
    assert_eq!(failed.iter().count(), FailedChecks::NAMED);
    let more = failed.count() - FailedChecks::NAMED;
    assert!(failed.to_string().ends_with(&format!("and {more} more\n")));
}

#[test]
fn a_vmcs_that_cannot_be_read_is_an_error() {
    let capabilities = discover(&haswell());
    let mut vmcs = valid(&capabilities);
    vmcs.clear_current();
    for group in GROUPS {
        assert!(failed_checks(group, &vmcs, &capabilities).is_err());
    }
}

#[test]
fn canonical_and_physical_addresses() {
    assert!(is_canonical(0x7fff_ffff_ffff, 48) && !is_canonical(1 << 47, 48));
    assert!(is_canonical(!0 << 47, 48) && is_canonical(1 << 47, 57));
    assert!(is_canonical(1 << 63, 64));
    assert!(is_physical((1 << 36) - 1, 36) && !is_physical(1 << 36, 36));
    assert!(is_physical(u64::MAX, 64));
}

#[test]
fn no_vmcs_makes_checks_or_dump_panic() {
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // Mostly extremes, where arithmetic goes wrong.
        match seed >> 61 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (seed >> 32 & 63),
            3 => !(1 << (seed >> 32 & 63)),
            _ => seed.rotate_right(16),
        }
    };
    for profile in [haswell(), lynnfield(), tigerlake()] {
        let mut capabilities = discover(&profile);
        for _ in 0..100 {
            let mut vmcs = FakeVmcs::new();
            for field in Field::all() {
                let width = match field {
                    Field::Bits16(_) => 0xffff,
                    Field::Bits32(_) => 0xffff_ffff,
                    Field::Bits64(_) | Field::Natural(_) => u64::MAX,
                };
                vmcs.set(field, random() & width);
            }
            capabilities.linear_bits = random() as u8;
            capabilities.physical_bits = random() as u8;
            let mut text = String::new();
            for group in GROUPS {
                let failed = failed_checks(group, &vmcs, &capabilities).unwrap();
                text.push_str(&failed.to_string());
            }
            super::super::dump::dump_vmcs(&vmcs, &mut text).unwrap();
            assert!(text.contains("VMCS"));
            let _ = interrupted_event(&vmcs).map(|event| event.map(|e| reinject(&mut vmcs, e)));
            super::super::advance::advance_rip(&mut vmcs).unwrap();
        }
    }
}
