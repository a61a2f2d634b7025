use super::super::fake::{FakeVmcs, Profile, haswell, lynnfield};
use super::super::fields::Field16;
use super::*;
use crate::register_bits::CR4_VMXE;

pub fn capabilities(profile: &Profile) -> Capabilities {
    Capabilities::discover(profile).unwrap()
}

/// A 64-bit kernel's state, as a host's.
pub fn host() -> HostState {
    use FieldNatural as N;
    HostState([
        (N::HostCr0.into(), 0x8001_0033),
        (N::HostCr3.into(), 0x1000),
        (N::HostCr4.into(), 0x26a0),
        (Field16::HostCsSelector.into(), 0x8),
        (Field16::HostSsSelector.into(), 0x10),
        (Field16::HostDsSelector.into(), 0),
        (Field16::HostEsSelector.into(), 0),
        (Field16::HostFsSelector.into(), 0),
        (Field16::HostGsSelector.into(), 0),
        (Field16::HostTrSelector.into(), 0x18),
        (N::HostFsBase.into(), 0),
        (N::HostGsBase.into(), 0xffff_ffff_8010_0000),
        (N::HostTrBase.into(), 0xffff_ffff_8000_2000),
        (N::HostGdtrBase.into(), 0xffff_ffff_8000_1000),
        (N::HostIdtrBase.into(), 0xffff_ffff_8000_3000),
        (Field64::HostEfer.into(), EFER_LME | EFER_LMA | EFER_NXE),
        (Field64::HostPat.into(), PAT_RESET),
        (Field32::HostSysenterCs.into(), 0),
        (N::HostSysenterEsp.into(), 0),
        (N::HostSysenterEip.into(), 0),
        (N::HostRip.into(), 0xffff_ffff_8001_0000),
    ])
}

pub const START: Start64 = Start64 {
    rip: 0x40_1000,
    rsp: 0x7000,
    cr3: 0x2000,
};

/// Has every guest field not 0, so that what is not written is found.
fn dirty() -> FakeVmcs {
    let mut vmcs = FakeVmcs::new();
    for field in GUEST_STATE_FIELDS {
        vmcs.set(field, 0xabcd);
    }
    vmcs
}

#[test]
fn a_64_bit_start_writes_all_of_the_guest() {
    let capabilities = capabilities(&haswell());
    let [mut first, mut second] = [FakeVmcs::new(), dirty()];
    START.write(&capabilities, &mut first).unwrap();
    START.write(&capabilities, &mut second).unwrap();
    // Read shadows and entry controls are for others to write.
    for field in GUEST_STATE_FIELDS {
        let others = [
            FieldNatural::Cr0ReadShadow.into(),
            FieldNatural::Cr4ReadShadow.into(),
            Field32::EntryControls.into(),
        ];
        if others.contains(&field) {
            assert_eq!(second.get(field), 0xabcd, "{field}");
        } else {
            assert_eq!(second.get(field), first.get(field), "{field}");
        }
    }
    for (field, value) in [
        (Field::from(FieldNatural::GuestRip), 0x40_1000),
        (FieldNatural::GuestRsp.into(), 0x7000),
        (FieldNatural::GuestCr3.into(), 0x2000),
        (FieldNatural::GuestDr7.into(), 0x400),
        (FieldNatural::GuestRflags.into(), 2),
        (FieldNatural::GuestGdtrBase.into(), 0),
        (Field32::GuestIdtrLimit.into(), 0xffff),
        (Field32::GuestActivityState.into(), 0),
        (Field64::GuestEfer.into(), 0xd01),
        (Field64::GuestPat.into(), PAT_RESET),
        (Field16::GuestCsSelector.into(), 8),
        (Field16::GuestSsSelector.into(), 16),
        (Field16::GuestTrSelector.into(), 0),
        (Field32::GuestTrLimit.into(), 0x67),
        (Field32::GuestLdtrAccessRights.into(), 1 << 16),
    ] {
        assert_eq!(first.get(field), value, "{field}");
    }
}

#[test]
fn the_host_state_is_every_field_that_an_exit_loads() {
    let mut vmcs = FakeVmcs::new();
    host().write(&mut vmcs).unwrap();
    let written: Vec<Field> = vmcs.written().collect();
    let not_written = [
        "host RSP",
        "host IA32_PERF_GLOBAL_CTRL",
        "host IA32_PKRS",
        "host IA32_S_CET",
        "host SSP",
        "host IA32_INTERRUPT_SSP_TABLE_ADDR",
    ];
    for field in Field::all().filter(|f| f.field_type() == FieldType::Host) {
        let expected = !not_written.contains(&field.name()) && !field.name().contains("FRED");
        assert_eq!(written.contains(&field), expected, "{field}");
    }
    for (field, value) in host().0 {
        assert_eq!(vmcs.get(field), value, "{field}");
    }
}

#[test]
fn a_write_that_fails_is_an_error() {
    let mut vmcs = FakeVmcs::new();
    vmcs.remove(Field64::GuestPat).remove(Field64::HostEfer);
    let error = START.write(&capabilities(&haswell()), &mut vmcs);
    assert_eq!(error.unwrap_err().field, Field64::GuestPat.into());
    let error = host().write(&mut vmcs).unwrap_err();
    assert_eq!(error.field, Field64::HostEfer.into());
}

#[test]
fn a_64_bit_start_has_what_vmx_operation_fixes() {
    for profile in [haswell(), lynnfield()] {
        let capabilities = capabilities(&profile);
        let mut vmcs = FakeVmcs::new();
        START.write(&capabilities, &mut vmcs).unwrap();
        let (cr0, cr4) = (
            vmcs.get(FieldNatural::GuestCr0),
            vmcs.get(FieldNatural::GuestCr4),
        );
        assert_eq!(capabilities.cr0.wrong(cr0), 0);
        assert_eq!(capabilities.cr4.wrong(cr4), 0);
        assert_eq!(cr4 & CR4_VMXE, CR4_VMXE);
    }
}
