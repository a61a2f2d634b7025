use std::cell::Cell;

use super::*;

const EVERYTHING: Enabled = Enabled {
    rdtscp: true,
    invpcid: true,
    unrestricted: true,
};
const CR4_OSXSAVE: u64 = 1 << 18;
const LIVE: Live = Live {
    cr4: 0,
    xcr0: 1,
    generation: 3,
    fork: 0x8765_4321,
};

fn regs(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// A CPU of the future that has every feature there ever was, and leaf numbers beyond ours.
fn everything(leaf: u32, subleaf: u32) -> CpuidResult {
    match (leaf, subleaf) {
        (0, _) => regs(
            0x24,
            u32::from_le_bytes(*b"Genu"),
            u32::from_le_bytes(*b"ntel"),
            u32::from_le_bytes(*b"ineI"),
        ),
        (4, 0) => regs(0xfc00_4121, 0x2c0_003f, 63, 0),
        (4, 1..) => regs(0, 0, 0, 0),
        (0xd, 0) => regs(0x2ff, 0xa80, 0xa88, 0),
        (0xd, 1) => regs(0xf, 0x9999, 0x1900, 0),
        (0xd, 2) => regs(256, 576, 0, 0),
        (0xd, 3) => regs(64, 960, 0, 0),
        (0xd, 4) => regs(64, 1024, 0, 0),
        (0xd, 5) => regs(64, 1088, 0, 0),
        (0xd, 6) => regs(512, 1152, 0, 0),
        (0xd, 7) => regs(1024, 1664, 0, 0),
        (0xd, 9) => regs(8, 2688, 0, 0),
        (0x8000_0000, _) => regs(0x8000_0020, 0, 0, 0),
        _ => regs(!0, !0, !0, !0),
    }
}

/// The same without some bits: (leaf, register, bit).
fn without(bits: &'static [(u32, usize, usize)]) -> impl Fn(u32, u32) -> CpuidResult {
    move |leaf, subleaf| {
        let mut answer = everything(leaf, subleaf);
        for &(_, register, bit) in bits.iter().filter(|(of, ..)| *of == leaf) {
            let word = match register {
                0 => &mut answer.eax,
                1 => &mut answer.ebx,
                2 => &mut answer.ecx,
                _ => &mut answer.edx,
            };
            word.set_bit(bit, false);
        }
        answer
    }
}

/// A CPU before XSAVE.
fn old(leaf: u32, _: u32) -> CpuidResult {
    match leaf {
        0 => regs(0xb, 1, 2, 3),
        1 => regs(0x206c2, 0x0400_0800, 0x029e_e3ff, 0xbfeb_fbff),
        0xb => regs(1, 2, 0x100, 7),
        0x8000_0000 => regs(0x8000_0008, 0, 0, 0),
        0x8000_0001 => regs(0, 0, 1, 0x2810_0800),
        0x8000_0008 => regs(0x3028, 0, 0, 0),
        _ => regs(0, 0, 0, 0),
    }
}

fn table() -> CpuidTable {
    CpuidTable::new(&everything, EVERYTHING)
}
fn ask(table: &CpuidTable, leaf: u64, subleaf: u64) -> CpuidResult {
    table.answer(leaf, subleaf, || LIVE)
}

#[test]
fn forbidden_features_stay_off_on_a_cpu_that_has_all() {
    let table = table();
    let leaf_1 = ask(&table, 1, 0);
    for (bit, name) in [
        (2, "DTES64"),
        (3, "MONITOR"),
        (5, "VMX"),
        (6, "SMX"),
        (15, "PDCM"),
        (21, "x2APIC"),
        (24, "deadline"),
    ] {
        assert!(!leaf_1.ecx.get_bit(bit), "{name}");
    }
    for (bit, name) in [
        (7, "MCE"),
        (9, "APIC"),
        (12, "MTRR"),
        (14, "MCA"),
        (21, "DS"),
        (22, "ACPI"),
        (28, "HTT"),
        (29, "TM"),
    ] {
        assert!(!leaf_1.edx.get_bit(bit), "{name}");
    }
    assert_eq!(leaf_1.ebx >> 16, 1, "one processor, APIC ID 0");
    let leaf_7 = ask(&table, 7, 0);
    for (bit, name) in [
        (1, "TSC_ADJUST"),
        (2, "SGX"),
        (4, "HLE"),
        (11, "RTM"),
        (14, "MPX"),
        (25, "PT"),
    ] {
        assert!(!leaf_7.ebx.get_bit(bit), "{name}");
    }
    for (bit, name) in [
        (3, "PKU"),
        (4, "OSPKE"),
        (5, "WAITPKG"),
        (7, "CET_SS"),
        (16, "LA57"),
        (30, "SGX_LC"),
        (31, "PKS"),
    ] {
        assert!(!leaf_7.ecx.get_bit(bit), "{name}");
    }
    for (bit, name) in [
        (5, "UINTR"),
        (20, "CET_IBT"),
        (22, "AMX"),
        (26, "IBRS"),
        (29, "ARCH_CAPABILITIES"),
    ] {
        assert!(!leaf_7.edx.get_bit(bit), "{name}");
    }
    assert_eq!((leaf_7.eax, ask(&table, 7, 1)), (0, ZERO));
    // XSAVEC, XGETBV with ECX = 1, XSAVES.
    assert_eq!(ask(&table, 0xd, 1), regs(1, 0, 0, 0));
    for leaf in [3, 5, 6, 8, 9, 0xa, 0xb, 0xc, 0x8000_0005] {
        assert_eq!(ask(&table, leaf, 0), ZERO, "{leaf:#x}");
    }
}

#[test]
fn the_hypervisor_shows_itself() {
    let table = table();
    assert!(ask(&table, 1, 0).ecx.get_bit(HYPERVISOR_BIT));
    let vendor = ask(&table, 0x4000_0000, 0);
    assert_eq!(vendor.eax, 0x4000_0002);
    let name = [vendor.ebx, vendor.ecx, vendor.edx]
        .map(u32::to_le_bytes)
        .concat();
    assert_eq!(name, b"OffshootHVM ");
    assert_eq!(
        ask(&table, 0x4000_0001, 0),
        regs(abi::VERSION, abi::CPUID_MAY_LEAVE_PAGING, 0, 0)
    );
    let restricted = CpuidTable::new(&everything, Enabled::default());
    assert_eq!(
        ask(&restricted, 0x4000_0001, 0),
        regs(abi::VERSION, 0, 0, 0)
    );
    assert_eq!(ask(&table, 0x4000_0002, 0), regs(3, 0x8765_4321, 0, 0));
    assert_eq!(ask(&table, 0x4000_0003, 0), ZERO);
}

#[test]
fn osxsave_is_the_guests_not_the_hosts() {
    let table = table();
    let osxsave = |cr4| {
        table
            .answer(1, 0, || Live { cr4, ..LIVE })
            .ecx
            .get_bit(OSXSAVE_BIT)
    };
    assert!(!osxsave(!CR4_OSXSAVE));
    assert!(osxsave(CR4_OSXSAVE));
    let none = CpuidTable::new(&old, EVERYTHING);
    assert!(
        !none
            .answer(1, 0, || Live {
                cr4: !0,
                xcr0: !0,
                ..LIVE
            })
            .ecx
            .get_bit(OSXSAVE_BIT)
    );
}

#[test]
fn unknown_leaves_give_the_highest_basic_leaf_and_nothing_of_the_host() {
    let table = table();
    let highest = ask(&table, 0xd, 0);
    assert_ne!(highest, ZERO);
    for leaf in [
        0xe,
        0x14,
        0x24,
        0x25,
        0x2000_0000,
        0x3fff_ffff,
        0x5000_0000,
        0x8000_0009,
        0x8000_0020,
        0xc000_0000,
        0xffff_ffff,
    ] {
        assert_eq!(ask(&table, leaf, 0), highest, "{leaf:#x}");
    }
    assert_eq!(ask(&table, 0xffff_ffff, 1), ask(&table, 0xd, 1));
    assert_eq!(ask(&table, 0, 0).eax, 0xd);
    assert_eq!(ask(&table, 0x8000_0000, 0).eax, 0x8000_0008);
    // The highest leaf of an old CPU is its topology leaf, which is empty here.
    let old = CpuidTable::new(&old, EVERYTHING);
    assert_eq!((ask(&old, 0xd, 0), ask(&old, 0, 0).eax), (ZERO, 0xb));
}

#[test]
fn only_the_lower_halves_of_rax_and_rcx_count() {
    let table = table();
    let high = 0xdead_beef << 32;
    for leaf in [0, 1, 4, 7, 0xd, 0x4000_0000, 0x8000_0008] {
        for subleaf in [0, 1, 2, 7] {
            assert_eq!(
                ask(&table, leaf, subleaf),
                ask(&table, leaf | high, subleaf | high)
            );
        }
    }
    assert_ne!(ask(&table, 0xd, 2), ZERO);
}

#[test]
fn the_xsave_area_follows_the_current_xcr0() {
    let table = table();
    let sizes = |xcr0| {
        let answer = table.answer(0xd, 0, || Live { xcr0, ..LIVE });
        (answer.eax, answer.ebx, answer.ecx, answer.edx)
    };
    assert_eq!(sizes(0x1), (0xe7, 576, 2688, 0));
    assert_eq!(sizes(0x3), (0xe7, 576, 2688, 0));
    assert_eq!(sizes(0x7), (0xe7, 832, 2688, 0));
    assert_eq!(sizes(0xe7), (0xe7, 2688, 2688, 0));
    // PKRU and MPX are never part of it, not even where the host has them.
    assert_eq!(sizes(0x2ff), sizes(0xe7));
    for subleaf in [3, 4, 8, 9, 10, 63, 64, 0xffff_ffff] {
        assert_eq!(ask(&table, 0xd, subleaf), ZERO, "{subleaf}");
    }
    assert_eq!(ask(&table, 0xd, 7), regs(1024, 1664, 0, 0));
}

#[test]
fn what_depends_on_a_missing_feature_goes_with_it() {
    let no_avx = CpuidTable::new(&without(&[(1, 2, 28)]), EVERYTHING);
    assert_eq!(no_avx.features().xcr0, 3);
    assert!(!ask(&no_avx, 1, 0).ecx.get_bit(12), "FMA");
    assert!(!ask(&no_avx, 7, 0).ebx.get_bit(5), "AVX2");
    assert!(!ask(&no_avx, 7, 0).ebx.get_bit(16), "AVX512F");

    let no_zmm_state = CpuidTable::new(&without(&[(0xd, 0, 6)]), EVERYTHING);
    assert_eq!(no_zmm_state.features().xcr0, 7);
    let leaf_7 = ask(&no_zmm_state, 7, 0);
    assert!(leaf_7.ebx.get_bit(5) && !leaf_7.ebx.get_bit(31) && !leaf_7.edx.get_bit(23));

    let no_erms = CpuidTable::new(&without(&[(7, 1, 9)]), EVERYTHING);
    assert!(!ask(&no_erms, 7, 0).edx.get_bit(4), "FSRM without ERMS");
    assert!(ask(&table(), 7, 0).edx.get_bit(4));

    let no_xsave = CpuidTable::new(&without(&[(1, 2, 26)]), EVERYTHING);
    assert_eq!(
        (no_xsave.features().xcr0, ask(&no_xsave, 0xd, 0)),
        (0, ZERO)
    );
    assert!(!ask(&no_xsave, 1, 0).ecx.get_bit(28), "AVX");
    assert_eq!(no_xsave.features().cr4 & CR4_OSXSAVE, 0);
}

#[test]
fn instructions_without_their_control_are_not_offered() {
    let none = CpuidTable::new(&everything, Enabled::default());
    assert!(!ask(&none, 7, 0).ebx.get_bit(10) && !ask(&none, 7, 0).ecx.get_bit(22));
    assert!(!ask(&none, 0x8000_0001, 0).edx.get_bit(27) && !none.features().tsc_aux);
    assert!(ask(&table(), 7, 0).ebx.get_bit(10) && table().features().tsc_aux);
}

#[test]
fn caches_are_shared_with_nobody() {
    let cache = ask(&table(), 4, 0);
    assert_eq!((cache.eax >> 14, cache.eax & 0x3fff), (0, 0x121));
    assert_eq!((cache.ebx, cache.ecx), (0x2c0_003f, 63));
    assert_eq!(ask(&table(), 4, 1), ZERO);
    assert_eq!(ask(&table(), 4, 0xffff_ffff), ZERO);
}

#[test]
fn features_for_control_registers() {
    let features = table().features();
    assert_eq!(
        (
            features.physical_bits,
            features.no_execute,
            features.gib_pages
        ),
        (52, true, true)
    );
    // VMXE, SMXE, LA57, MCE, key locker, PKE, CET, PKS.
    for bit in [6, 12, 13, 14, 15, 19, 22, 23, 24, 25, 32, 63] {
        assert!(!features.cr4.get_bit(bit), "{bit}");
    }
    assert_eq!(features.cr4, 0x0037_0fbf);
    let old = CpuidTable::new(&old, EVERYTHING).features();
    assert_eq!((old.physical_bits, old.xcr0, old.gib_pages), (40, 0, false));
    assert!(
        !old.cr4.get_bit(20) && old.cr4.get_bit(17),
        "PCID but no SMEP"
    );
}

#[test]
fn most_answers_do_not_ask_for_live_state() {
    let asked = Cell::new(0);
    let live = || {
        asked.set(asked.get() + 1);
        LIVE
    };
    for leaf in [0, 2, 3, 4, 7, 0x4000_0000, 0x8000_0008] {
        table().answer(leaf, 0, live);
    }
    assert_eq!(asked.get(), 0);
    table().answer(1, 0, live);
    table().answer(0xd, 0, live);
    assert_eq!(asked.get(), 2);
}

#[test]
fn the_cpu_under_the_test_gives_a_table_without_panic() {
    let host = |leaf, subleaf| core::arch::x86_64::__cpuid_count(leaf, subleaf);
    let table = CpuidTable::new(&host, EVERYTHING);
    for leaf in (0..0x40)
        .chain(0x8000_0000..0x8000_0040)
        .chain(0x4000_0000..0x4000_0004)
    {
        for subleaf in (0..70).chain([u64::from(u32::MAX)]) {
            ask(&table, leaf, subleaf);
        }
    }
    assert_eq!(ask(&table, 0, 0).ebx, host(0, 0).ebx);
}
