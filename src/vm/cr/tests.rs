use super::*;
use crate::virt::AccessRights;

const FEATURES: Features = Features {
    cr4: 0x0037_0fbf,
    xcr0: 7,
    physical_bits: 39,
    beyond_physical: 0,
    no_execute: true,
    gib_pages: true,
    wide_4_mib_pages: true,
    tsc_aux: true,
};
const UNRESTRICTED: Limits = Limits {
    cr0: FixedBits {
        fixed0: PE | NE | PG,
        fixed1: 0xffff_ffff,
    },
    cr4: FixedBits {
        fixed0: VMXE,
        fixed1: 0x0037_2fff,
    },
    unrestricted: true,
    features: FEATURES,
};
const RESTRICTED: Limits = Limits {
    unrestricted: false,
    ..UNRESTRICTED
};
const LONG: ControlRegisters = ControlRegisters {
    cr0: PG | PE | ET | NE | WP,
    cr3: 0x1000,
    cr4: PAE | PGE,
    efer: LME | LMA,
};
const REAL: ControlRegisters = ControlRegisters {
    cr0: ET,
    cr3: 0,
    cr4: 0,
    efer: 0,
};
const CODE64: Segments = Segments {
    cs: AccessRights::CODE64,
    tr_16_bit: false,
};
const CODE32: Segments = Segments {
    cs: AccessRights::CODE32,
    tr_16_bit: false,
};

fn cr0(now: ControlRegisters, segments: Segments, value: u64) -> Result<Change, CrFault> {
    write(now, segments, CrWrite::Cr0(value), &UNRESTRICTED)
}
fn cr4(now: ControlRegisters, value: u64) -> Result<Change, CrFault> {
    write(now, CODE64, CrWrite::Cr4(value), &UNRESTRICTED)
}

/// What VM entry checks of control registers (SDM "Checks on Guest Control Registers, Debug Registers, and MSRs",
/// 28.3.1.1).
fn enters(change: &Change, limits: &Limits) {
    let ControlRegisters { cr0, cr4, efer, .. } = change.registers;
    let (real_cr0, real_cr4) = (limits.real_cr0(cr0), limits.real_cr4(cr4));
    let fixed = if limits.unrestricted {
        limits.cr0.for_unrestricted_guest()
    } else {
        limits.cr0
    };
    assert_eq!(fixed.wrong(real_cr0), 0);
    assert_eq!(limits.cr4.wrong(real_cr4), 0);
    assert!(real_cr0 & PG == 0 || real_cr0 & PE != 0);
    assert!(efer & LMA == 0 || real_cr0 & PG != 0 && real_cr4 & PAE != 0);
    assert!(efer & LMA != 0 || real_cr4 & PCIDE == 0);
    assert_eq!(efer & LMA != 0, efer & LME != 0 && real_cr0 & PG != 0);
    // The guest sees what it has written.
    assert_eq!(limits.masks().visible_cr0(real_cr0, cr0), cr0);
    assert_eq!(limits.masks().visible_cr4(real_cr4, cr4), cr4);
    assert_eq!(cr4 & VMXE, 0);
    // A machine check must reach the host, whatever the guest wants.
    assert_eq!(real_cr4 & MCE, MCE);
    assert_eq!(limits.cr4_mask() & MCE, MCE);
}

#[test]
fn every_bit_of_cr0() {
    for bit in 0..64 {
        let result = cr0(LONG, CODE64, LONG.cr0 ^ 1 << bit);
        match bit {
            0 => assert_eq!(result, Err(CrFault::Gp), "PG without PE"),
            29 => assert_eq!(result, Err(CrFault::Gp), "NW without CD"),
            31 => assert_eq!(result, Err(CrFault::Gp), "paging off in 64-bit mode"),
            32.. => assert_eq!(result, Err(CrFault::Gp), "reserved"),
            1 | 2 | 3 | 5 | 16 | 18 | 30 => {
                assert_eq!(result.unwrap().registers.cr0, LONG.cr0 ^ 1 << bit)
            }
            // Hard-wired, and undefined bits that are ignored.
            _ => assert_eq!(result.unwrap().registers, LONG, "{bit}"),
        }
        if let Ok(change) = result {
            enters(&change, &UNRESTRICTED);
            assert!(!change.flush);
        }
    }
}

#[test]
fn every_bit_of_cr4() {
    for bit in 0..64 {
        let result = cr4(LONG, LONG.cr4 ^ 1 << bit);
        let offered = FEATURES.cr4 >> bit & 1 != 0;
        match result {
            Ok(change) => {
                assert!(offered && bit != 5, "{bit}");
                enters(&change, &UNRESTRICTED);
                assert_eq!(change.flush, matches!(bit, 4 | 7 | 17 | 20), "{bit}");
            }
            Err(fault) => {
                assert_eq!(fault, CrFault::Gp);
                assert!(!offered || bit == 5, "{bit}");
            }
        }
    }
    assert_eq!(cr4(LONG, LONG.cr4 | VMXE), Err(CrFault::Gp));
}

#[test]
fn the_way_into_ia_32e_mode_and_out() {
    let protected = cr0(REAL, CODE32, PE).unwrap().registers;
    assert_eq!(cr0(REAL, CODE32, PG), Err(CrFault::Gp));
    let enabled = ControlRegisters {
        efer: LME,
        ..protected
    };
    assert_eq!(
        cr0(enabled, CODE32, PE | PG),
        Err(CrFault::Gp),
        "without PAE"
    );
    let pae = cr4(enabled, PAE).unwrap().registers;
    assert_eq!(cr0(pae, CODE64, PE | PG), Err(CrFault::Gp), "with CS.L");
    let tss16 = Segments {
        cs: AccessRights::CODE32,
        tr_16_bit: true,
    };
    assert_eq!(
        cr0(pae, tss16, PE | PG),
        Err(CrFault::Gp),
        "with a 16-bit TSS"
    );
    let long = cr0(pae, CODE32, PE | PG).unwrap();
    assert_eq!(long.registers.efer, LME | LMA);
    assert!(long.flush && !long.load_pdptes);
    enters(&long, &UNRESTRICTED);

    assert_eq!(
        cr0(long.registers, CODE64, PE),
        Err(CrFault::Gp),
        "from 64-bit mode"
    );
    let out = cr0(long.registers, CODE32, PE).unwrap();
    assert_eq!(out.registers.efer, LME);
    assert!(out.flush);
    let pcids = cr4(
        ControlRegisters {
            cr3: 0,
            ..long.registers
        },
        PAE | PCIDE,
    )
    .unwrap();
    assert!(pcids.flush);
    assert_eq!(
        cr0(pcids.registers, CODE32, PE),
        Err(CrFault::Gp),
        "with PCIDs"
    );
}

#[test]
fn pcids_need_ia_32e_mode_and_a_clear_cr3() {
    assert_eq!(
        cr4(
            ControlRegisters {
                cr3: 0x1008,
                ..LONG
            },
            PAE | PCIDE
        ),
        Err(CrFault::Gp)
    );
    assert!(cr4(LONG, PAE | PCIDE).is_ok());
    assert_eq!(cr4(REAL, PCIDE), Err(CrFault::Gp));
    let on = ControlRegisters {
        cr3: 0x1008,
        cr4: PAE | PCIDE,
        ..LONG
    };
    assert!(cr4(on, PAE | PCIDE | PSE).is_ok(), "it is on already");
    assert_eq!(cr4(on, PCIDE), Err(CrFault::Gp), "PAE off in IA-32e mode");
}

#[test]
fn cr3() {
    let write = |now, value| write(now, CODE64, CrWrite::Cr3(value), &UNRESTRICTED);
    for bit in 0..64 {
        let expected = if bit < 39 {
            Ok(1 << bit)
        } else {
            Err(CrFault::Gp)
        };
        assert_eq!(
            write(LONG, 1 << bit).map(|change| change.registers.cr3),
            expected
        );
    }
    let pcids = ControlRegisters {
        cr4: LONG.cr4 | PCIDE,
        ..LONG
    };
    let kept = write(pcids, 1 << 63 | 0x5001).unwrap();
    assert_eq!((kept.registers.cr3, kept.flush), (0x5001, false));
    assert!(write(pcids, 0x5001).unwrap().flush);
    assert_eq!(write(pcids, 1 << 62), Err(CrFault::Gp));
    let pae = ControlRegisters { efer: 0, ..LONG };
    assert!(write(pae, 0x20).unwrap().load_pdptes);
    assert!(!write(LONG, 0x2000).unwrap().load_pdptes);
}

#[test]
fn pae_paging_loads_its_pointers() {
    let pae = ControlRegisters {
        cr0: PE | ET,
        cr3: 0x1000,
        cr4: PAE,
        efer: 0,
    };
    let on = cr0(pae, CODE32, PE | PG).unwrap();
    assert!(on.load_pdptes && on.flush);
    assert!(
        write(on.registers, CODE32, CrWrite::Cr4(PAE | PGE), &UNRESTRICTED)
            .unwrap()
            .load_pdptes
    );
    assert!(
        !write(on.registers, CODE32, CrWrite::Cr4(PAE | 4), &UNRESTRICTED)
            .unwrap()
            .load_pdptes
    );
    let two_level = ControlRegisters { cr4: 0, ..pae };
    assert!(!cr0(two_level, CODE32, PE | PG).unwrap().load_pdptes);
}

#[test]
fn without_unrestricted_guest_some_states_are_out_of_reach() {
    let try_cr0 = |value| write(LONG, CODE32, CrWrite::Cr0(value), &RESTRICTED);
    assert_eq!(
        try_cr0(PE),
        Err(CrFault::Unsupported(Unsupported::NoPaging))
    );
    assert_eq!(try_cr0(0), Err(CrFault::Unsupported(Unsupported::RealMode)));
    assert_eq!(
        try_cr0(PG),
        Err(CrFault::Gp),
        "illegal comes before unsupported"
    );
    let change = try_cr0(PE | PG | WP).unwrap();
    enters(&change, &RESTRICTED);
    assert_eq!(
        RESTRICTED.real_cr0(change.registers.cr0) & NE,
        NE,
        "fixed, but hidden"
    );
    assert!(Unsupported::NoPaging.to_string().contains("paging"));
}

#[test]
fn clts_and_lmsw() {
    let ts = ControlRegisters {
        cr0: LONG.cr0 | TS,
        ..LONG
    };
    let clts = write(ts, CODE64, CrWrite::Clts, &UNRESTRICTED).unwrap();
    assert_eq!(clts.registers, LONG);
    let lmsw = |now, word| write(now, CODE64, CrWrite::Lmsw(word), &UNRESTRICTED).unwrap();
    assert_eq!(
        lmsw(LONG, 0xfff0).registers,
        LONG,
        "PE stays, the rest is not MSW"
    );
    assert_eq!(lmsw(LONG, 0xfffe).registers.cr0, LONG.cr0 | MP | EM | TS);
    assert_eq!(lmsw(REAL, 1).registers.cr0, ET | PE);
}

#[test]
fn outside_64_bit_mode_the_upper_half_of_the_register_does_not_count() {
    const STALE: u64 = 0xdead_beef << 32;
    let compatibility = |request| write(LONG, CODE32, request, &UNRESTRICTED).unwrap();
    let off = compatibility(CrWrite::Cr0(STALE | PE));
    assert_eq!(off.registers.cr0, PE | ET);
    enters(&off, &UNRESTRICTED);
    assert_eq!(
        compatibility(CrWrite::Cr3(STALE | 0x5000)).registers.cr3,
        0x5000
    );
    assert_eq!(
        compatibility(CrWrite::Cr4(STALE | PAE)).registers.cr4,
        PAE,
        "32 bits of it"
    );
    let legacy = |request| write(off.registers, CODE32, request, &UNRESTRICTED).unwrap();
    assert_eq!(legacy(CrWrite::Cr4(STALE | PSE)).registers.cr4, PSE);
    assert_eq!(legacy(CrWrite::Cr3(STALE | 0x5000)).registers.cr3, 0x5000);
    // In 64-bit mode it does.
    for request in [CrWrite::Cr0(STALE | LONG.cr0), CrWrite::Cr4(STALE | PAE)] {
        assert_eq!(
            write(LONG, CODE64, request, &UNRESTRICTED),
            Err(CrFault::Gp)
        );
    }
}

#[test]
fn cr8_has_four_bits() {
    assert_eq!(write_cr8(15), Ok(15));
    assert_eq!(write_cr8(16), Err(CrFault::Gp));
    assert_eq!(write_cr8(1 << 63), Err(CrFault::Gp));
}

proptest::proptest! {
    #[test]
    fn whatever_is_written_can_be_entered_or_is_refused(
        writes in proptest::collection::vec((0u8..6, proptest::prelude::any::<u64>(), 0u64..64), 1..40),
        cs_long: bool,
        unrestricted: bool,
    ) {
        let limits = if unrestricted { UNRESTRICTED } else { RESTRICTED };
        let mut now = LONG;
        for (kind, noise, bit) in writes {
            let flipped = |value: u64| value ^ 1 << bit ^ noise & 0x21;
            let request = match kind {
                0 => CrWrite::Cr0(flipped(now.cr0)),
                1 => CrWrite::Cr3(noise & 0x7f_ffff_f000),
                2 => CrWrite::Cr4(flipped(now.cr4)),
                3 => CrWrite::Clts,
                4 => CrWrite::Lmsw(noise as u16),
                _ => CrWrite::Cr0(noise & CR0_DEFINED),
            };
            let segments = Segments { cs: if cs_long { AccessRights::CODE64 } else { AccessRights::CODE32 }, tr_16_bit: false };
            if let Ok(change) = write(now, segments, request, &limits) {
                enters(&change, &limits);
                now = change.registers;
            }
        }
    }
}
