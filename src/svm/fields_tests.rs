use super::super::field::VMCB_SIZE;
use super::super::vmcb::SAVE_AREA;
use super::*;
use std::collections::BTreeMap;

/// The same areas from another source, which says no offset: the structures `vmcb_control_area` and `vmcb_save_area` of Linux 6
/// (`arch/x86/include/asm/svm.h`), member after member, each with its size in bytes. Ours stands beside it; a member that
/// is reserved, or that we take as a part of a wider field, has none.
const CONTROL: &[(u16, &str)] = &[
    (4, "intercepts of control registers"),
    (4, "intercepts of debug registers"),
    (4, "intercepts of exceptions"),
    (4, "intercept vector 3"),
    (4, "intercept vector 4"),
    (4, "intercept vector 5"),
    (4 * (15 - 6), ""),
    (2, "pause filter threshold"),
    (2, "pause filter count"),
    (8, "address of the I/O permission map"),
    (8, "address of the MSR permission map"),
    (8, "TSC offset"),
    (4, "ASID"),
    (1, "TLB control"),
    (3, ""),
    // int_ctl and int_vector.
    (8, "virtual interrupts"),
    // int_state and 4 reserved bytes.
    (8, "interrupt shadow"),
    (8, "exit code"),
    (8, "exit information 1"),
    (8, "exit information 2"),
    // exit_int_info and exit_int_info_err.
    (8, "exit interruption information"),
    (8, "nested paging control"),
    (8, "AVIC APIC base address"),
    (8, "address of the GHCB"),
    // event_inj and event_inj_err.
    (8, "event injection"),
    (8, "nested CR3"),
    (8, "LBR virtualization control"),
    (4, "clean bits"),
    (4, ""),
    (8, "next RIP"),
    // insn_len, and insn_bytes in part.
    (8, "guest instruction bytes, with their number first"),
    (8, "guest instruction bytes, the rest"),
    (8, "AVIC backing page"),
    (8, ""),
    (8, "AVIC logical table"),
    (8, "AVIC physical table"),
    (8, ""),
    (8, "address of the VMSA"),
    (16 + 2 + 22 + 8 + 8 + 664, ""),
    // The host's to use.
    (8, "CR0 as the guest sees it"),
    (8, "CR4 as the guest sees it"),
    (16, ""),
];

const SAVE: &[(u16, &str)] = &[
    (2, "ES selector"),
    (2, "ES attributes"),
    (4, "ES limit"),
    (8, "ES base"),
    (2, "CS selector"),
    (2, "CS attributes"),
    (4, "CS limit"),
    (8, "CS base"),
    (2, "SS selector"),
    (2, "SS attributes"),
    (4, "SS limit"),
    (8, "SS base"),
    (2, "DS selector"),
    (2, "DS attributes"),
    (4, "DS limit"),
    (8, "DS base"),
    (2, "FS selector"),
    (2, "FS attributes"),
    (4, "FS limit"),
    (8, "FS base"),
    (2, "GS selector"),
    (2, "GS attributes"),
    (4, "GS limit"),
    (8, "GS base"),
    (4, ""),
    (4, "GDTR limit"),
    (8, "GDTR base"),
    (2, "LDTR selector"),
    (2, "LDTR attributes"),
    (4, "LDTR limit"),
    (8, "LDTR base"),
    (4, ""),
    (4, "IDTR limit"),
    (8, "IDTR base"),
    (2, "TR selector"),
    (2, "TR attributes"),
    (4, "TR limit"),
    (8, "TR base"),
    // 42 reserved bytes, and vmpl.
    (43, ""),
    (1, "CPL"),
    (4, ""),
    (8, "EFER"),
    (112, ""),
    (8, "CR4"),
    (8, "CR3"),
    (8, "CR0"),
    (8, "DR7"),
    (8, "DR6"),
    (8, "RFLAGS"),
    (8, "RIP"),
    (88, ""),
    (8, "RSP"),
    (8, "S_CET"),
    (8, "SSP"),
    (8, "ISST_ADDR"),
    (8, "RAX"),
    (8, "STAR"),
    (8, "LSTAR"),
    (8, "CSTAR"),
    (8, "SFMASK"),
    (8, "KernelGsBase"),
    (8, "SYSENTER_CS"),
    (8, "SYSENTER_ESP"),
    (8, "SYSENTER_EIP"),
    (8, "CR2"),
    (32, ""),
    (8, "PAT"),
    (8, "DBGCTL"),
    (8, "last branch from"),
    (8, "last branch to"),
    (8, "last exception from"),
    (8, "last exception to"),
    (72, ""),
    (8, "SPEC_CTRL"),
];

/// Where each member is.
fn laid_out() -> BTreeMap<&'static str, (u16, u16)> {
    let mut places = BTreeMap::new();
    let mut at = 0;
    for (bytes, name) in CONTROL.iter().chain(SAVE) {
        if !name.is_empty() {
            assert_eq!(places.insert(*name, (at, *bytes)), None, "{name}");
        }
        at += bytes;
    }
    places
}

#[test]
fn the_second_source_is_as_long_as_it_says() {
    let size = |area: &[(u16, &str)]| area.iter().map(|(bytes, _)| *bytes as usize).sum::<usize>();
    // EXPECTED_VMCB_CONTROL_AREA_SIZE and EXPECTED_VMCB_SAVE_AREA_SIZE there.
    assert_eq!((size(CONTROL), size(SAVE)), (SAVE_AREA, 744));
}

#[test]
fn every_field_is_where_the_second_source_has_it() {
    let mut places = laid_out();
    for named in FIELDS {
        let place = places.remove(named.name);
        assert_eq!(place, Some((named.offset, named.bytes)), "{}", named.name);
    }
    assert!(places.is_empty(), "{places:?} have no field");
}

#[test]
fn fields_do_not_overlap() {
    let mut end = 0;
    for named in FIELDS {
        assert!(named.offset >= end, "{}", named.name);
        end = named.offset + named.bytes;
    }
    assert!(end as usize <= VMCB_SIZE);
}
