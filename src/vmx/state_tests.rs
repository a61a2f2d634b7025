use super::super::fake::{FakeVmcs, Profile, haswell, lynnfield};
use super::super::fields::{Field, FieldType};
use super::super::register_bits::CR4_VMXE;
use super::*;

pub fn capabilities(profile: &Profile) -> Capabilities {
    Capabilities::discover(profile).unwrap()
}

/// A 64-bit kernel's state, as a host's.
pub fn host() -> HostState {
    HostState {
        cr0: 0x8001_0033,
        cr3: 0x1000,
        cr4: 0x26a0,
        cs: 0x8,
        ss: 0x10,
        tr: 0x18,
        gs_base: 0xffff_ffff_8010_0000,
        tr_base: 0xffff_ffff_8000_2000,
        gdtr_base: 0xffff_ffff_8000_1000,
        idtr_base: 0xffff_ffff_8000_3000,
        pat: PAT_RESET,
        efer: EFER_LME | EFER_LMA | EFER_NXE,
        rsp: 0xffff_ffff_8000_8000,
        rip: 0xffff_ffff_8001_0000,
        ..HostState::default()
    }
}

pub const START: Start64 = Start64 {
    rip: 0x40_1000,
    rsp: 0x7000,
    cr3: 0x2000,
};

/// Different in every field from the state of any preset.
fn peculiar() -> GuestState {
    let mut segments = [Segment::UNUSABLE; 8];
    for (n, segment) in (1..).zip(&mut segments) {
        *segment = Segment {
            selector: n,
            base: u64::from(n) << 32,
            limit: u32::from(n) << 12,
            access: AccessRights(u32::from(n)),
        };
    }
    GuestState {
        cr0: 1,
        cr3: 2,
        cr4: 3,
        dr7: 4,
        rsp: 5,
        rip: 6,
        rflags: 7,
        segments,
        gdtr: DescriptorTable { base: 8, limit: 9 },
        idtr: DescriptorTable {
            base: 10,
            limit: 11,
        },
        debugctl: 12,
        pat: 13,
        efer: 14,
        sysenter_cs: 15,
        sysenter_esp: 16,
        sysenter_eip: 17,
        activity: ActivityState::WaitForSipi,
        interruptibility: 18,
        pending_debug: 19,
        pdptes: [20, 21, 22, 23],
    }
}

#[test]
fn guest_state_comes_back_as_it_was_written() {
    let mut vmcs = FakeVmcs::new();
    let state = peculiar();
    state.write(&mut vmcs).unwrap();
    assert_eq!(GuestState::read(&vmcs), Ok(state));
    assert_eq!(state.segment(SegmentRegister::Tr).selector, 8);
}

#[test]
fn guest_state_is_written_completely() {
    let mut vmcs = FakeVmcs::new();
    vmcs.set(Field32::EntryInterruptionInformation, 0x8000_0b0e);
    peculiar().write(&mut vmcs).unwrap();
    let written: Vec<Field> = vmcs.written().collect();
    // What only features load that no entry of ours turns on.
    let not_loaded = [
        "guest interrupt status",
        "PML index",
        "guest UINV",
        "guest SMBASE",
        "VMX-preemption timer value",
        "guest IA32_PERF_GLOBAL_CTRL",
        "guest IA32_BNDCFGS",
        "guest IA32_RTIT_CTL",
        "guest IA32_LBR_CTL",
        "guest IA32_PKRS",
        "guest IA32_S_CET",
        "guest SSP",
        "guest IA32_INTERRUPT_SSP_TABLE_ADDR",
    ];
    for field in Field::all().filter(|f| f.field_type() == FieldType::Guest) {
        let expected = !not_loaded.contains(&field.name()) && !field.name().contains("FRED");
        assert_eq!(written.contains(&field), expected, "{field}");
    }
    assert_eq!(vmcs.get(Field64::VmcsLinkPointer), u64::MAX);
    assert_eq!(vmcs.get(Field32::EntryInterruptionInformation), 0);
}

#[test]
fn host_state_is_written_completely() {
    let mut vmcs = FakeVmcs::new();
    let state = host();
    state.write(&mut vmcs).unwrap();
    let written: Vec<Field> = vmcs.written().collect();
    let not_loaded = [
        "host IA32_PERF_GLOBAL_CTRL",
        "host IA32_PKRS",
        "host IA32_S_CET",
        "host SSP",
        "host IA32_INTERRUPT_SSP_TABLE_ADDR",
    ];
    for field in Field::all().filter(|f| f.field_type() == FieldType::Host) {
        let expected = !not_loaded.contains(&field.name()) && !field.name().contains("FRED");
        assert_eq!(written.contains(&field), expected, "{field}");
    }
    // Every bit of CR3 is kept.
    let cr3 = u64::MAX;
    HostState { cr3, ..state }.write(&mut vmcs).unwrap();
    assert_eq!(vmcs.get(FieldNatural::HostCr3), cr3);
    for (field, value) in [
        (Field::from(Field16::HostCsSelector), 0x8),
        (Field16::HostSsSelector.into(), 0x10),
        (Field16::HostTrSelector.into(), 0x18),
        (FieldNatural::HostCr0.into(), state.cr0),
        (FieldNatural::HostCr4.into(), state.cr4),
        (FieldNatural::HostGsBase.into(), state.gs_base),
        (FieldNatural::HostTrBase.into(), state.tr_base),
        (FieldNatural::HostGdtrBase.into(), state.gdtr_base),
        (FieldNatural::HostIdtrBase.into(), state.idtr_base),
        (FieldNatural::HostRsp.into(), state.rsp),
        (FieldNatural::HostRip.into(), state.rip),
        (Field64::HostPat.into(), state.pat),
        (Field64::HostEfer.into(), state.efer),
    ] {
        assert_eq!(vmcs.get(field), value, "{field}");
    }
}

#[test]
fn a_write_that_fails_is_an_error() {
    let mut vmcs = FakeVmcs::new();
    vmcs.remove(Field64::GuestPat);
    let error = peculiar().write(&mut vmcs).unwrap_err();
    assert_eq!(error.field, Field64::GuestPat.into());
    vmcs.remove(Field64::HostEfer);
    let error = host().write(&mut vmcs).unwrap_err();
    assert_eq!(error.field, Field64::HostEfer.into());
}

#[test]
fn a_64_bit_start_has_what_vmx_operation_fixes() {
    for profile in [haswell(), lynnfield()] {
        let capabilities = capabilities(&profile);
        let state = GuestState::long_mode(START, &capabilities);
        assert_eq!(capabilities.cr0.check(state.cr0), Ok(()));
        assert_eq!(capabilities.cr4.check(state.cr4), Ok(()));
        assert_eq!(state.cr4 & CR4_VMXE, CR4_VMXE);
        assert!(state.is_ia32e());
        assert_eq!(
            (state.rip, state.rsp, state.cr3),
            (0x40_1000, 0x7000, 0x2000)
        );
        let tr = state.segment(SegmentRegister::Tr);
        assert_eq!((tr.selector, tr.limit), (0, 0x67));
    }
}

#[test]
fn presets_without_paging_are_those_of_an_unrestricted_guest() {
    let capabilities = capabilities(&haswell());
    let flat = GuestState::flat_32_bit(0x10_0000, &capabilities);
    assert_eq!(flat.cr0 & (CR0_PE | CR0_PG), CR0_PE);
    assert!(!flat.is_ia32e());
    let reset = GuestState::after_reset(&capabilities);
    assert_eq!(reset.cr0 & (CR0_PE | CR0_PG), 0);
    assert_eq!(
        reset.segment(SegmentRegister::Cs).base + reset.rip,
        0xffff_fff0
    );
    assert!(capabilities.cr0.check(reset.cr0).is_err());
}

#[test]
fn activity_states_have_their_numbers() {
    for number in 0..6 {
        assert_eq!(ActivityState::from_number(number).number(), number);
    }
    assert_eq!(ActivityState::Shutdown.number(), 2);
    assert_eq!(ActivityState::from_number(3), ActivityState::WaitForSipi);
}
