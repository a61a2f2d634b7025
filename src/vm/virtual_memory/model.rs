//! Walks beside a model that follows the manual's text for each mode: tables of any content, in every mode, for every kind
//! of access.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::cpuid::{Features, beyond};
use super::super::loader::MemoryFault;
use super::*;
use crate::virt::control_registers::ControlRegisters;

const WIDTHS: [u8; 6] = [32, 36, 39, 40, 46, 52];
const FRAMES: u64 = 16;

/// Frames 0 to 15, sparse; the rest is nothing.
#[derive(Clone, Debug, PartialEq)]
struct Memory(BTreeMap<u64, u64>);

impl Memory {
    fn word(&self, at: u64) -> Result<u64, ()> {
        if at >= FRAMES << 12 {
            return Err(());
        }
        Ok(self.0.get(&(at & !7)).copied().unwrap_or(0))
    }
    fn put(&mut self, at: u64, bytes: u64, value: u64) {
        let old = self.word(at).unwrap();
        let word = match bytes {
            8 => value,
            _ if at & 4 == 0 => old & !0xffff_ffff | value & 0xffff_ffff,
            _ => old & 0xffff_ffff | value << 32,
        };
        self.0.insert(at & !7, word);
    }
}

impl GuestMemory for Memory {
    type Error = ();
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), ()> {
        for (at, byte) in (from.as_u64()..).zip(into) {
            *byte = (self.word(at)? >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), ()> {
        for (at, byte) in (to.as_u64()..).zip(bytes) {
            let shift = 8 * (at & 7);
            let word = self.word(at)? & !(0xff << shift) | u64::from(*byte) << shift;
            self.0.insert(at & !7, word);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    FourLevel,
    Pae,
    /// With CR4.PSE or not.
    ThirtyTwoBit(bool),
}

/// A guest, its tables along one address, and the address.
#[derive(Clone, Debug)]
struct Case {
    mode: Mode,
    width: u8,
    gib_pages: bool,
    pse36: bool,
    /// NXE, SMEP, SMAP, WP, AC, user.
    bits: [bool; 6],
    linear: u64,
    cr3: u64,
    /// From the root down; the fourth one is used by 4-level tables only.
    entries: [u64; 4],
}

impl Case {
    fn registers(&self) -> ControlRegisters {
        let [nxe, smep, smap, wp, ..] = self.bits;
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        let long = self.mode == Mode::FourLevel;
        ControlRegisters {
            cr0: bit(true, 31) | bit(wp, 16) | 1,
            cr3: self.cr3,
            cr4: bit(self.mode == Mode::ThirtyTwoBit(true), 4)
                | bit(!matches!(self.mode, Mode::ThirtyTwoBit(_)), 5)
                | bit(smep, 20)
                | bit(smap, 21),
            efer: bit(nxe, 11) | bit(long, 10) | bit(long, 8),
        }
    }
    fn privilege(&self) -> Privilege {
        let [_, _, _, _, ac, user] = self.bits;
        let ControlRegisters { cr0, cr4, .. } = self.registers();
        Privilege::new(if user { 3 } else { 0 }, cr0, cr4, u64::from(ac) << 18)
    }
    fn features(&self) -> Features {
        Features {
            cr4: 0,
            xcr0: 0,
            physical_bits: self.width,
            beyond_physical: beyond(self.width),
            no_execute: true,
            gib_pages: self.gib_pages,
            wide_4_mib_pages: self.pse36,
            tsc_aux: false,
        }
    }
    /// The registers that hold the top of PAE paging's tables.
    fn top(&self) -> [u64; 4] {
        let mut top = [0; 4];
        top[(self.linear >> 30) as usize % 4] = self.entries[0] & 0x000f_ffff_ffff_f001;
        top
    }
    /// Puts the entries where the walk of the address comes by, as far as they lead to memory.
    fn memory(&self) -> Memory {
        let mut memory = Memory(BTreeMap::new());
        let (bytes, bits, skip) = match self.mode {
            Mode::FourLevel => (8, 9, 0),
            Mode::Pae => (8, 9, 1),
            Mode::ThirtyTwoBit(_) => (4, 10, 0),
        };
        let levels = match self.mode {
            Mode::FourLevel => 4,
            Mode::Pae => 3,
            Mode::ThirtyTwoBit(_) => 2,
        };
        let mut table = self.cr3;
        for (number, level) in (0..levels).zip((1..=levels).rev()) {
            let entry = self.entries[number as usize];
            if number >= skip {
                let index = self.linear >> (12 + bits * (level - 1)) & ((1 << bits) - 1);
                let at = (table & 0x000f_ffff_ffff_f000) + bytes * index;
                if at >> 12 < FRAMES {
                    memory.put(at, bytes, entry);
                }
            }
            table = if bytes == 4 {
                entry & 0xffff_ffff
            } else {
                entry
            };
        }
        memory
    }
}

fn case() -> impl Strategy<Value = Case> {
    let mode = prop_oneof![
        Just(Mode::FourLevel),
        Just(Mode::Pae),
        Just(Mode::ThirtyTwoBit(true)),
        Just(Mode::ThirtyTwoBit(false)),
    ];
    // Present and of memory, mostly; then some bits of all others, few of the upper ones.
    let entry = (
        0u64..FRAMES,
        any::<u64>(),
        any::<u64>(),
        0u8..8,
        prop_oneof![3 => Just(0u64), 1 => (0u32..64).prop_map(|bit| 1 << bit)],
    )
        .prop_map(|(frame, low, all, kind, one)| {
            let flags = low & 0xf7e | 1;
            match kind {
                0 => all,
                1 => (frame << 12 | flags | 0x80) ^ one,
                2 => flags | (low & 7) << 21 | 0x80 ^ one,
                3 => frame << 12 | flags & !1 | one,
                4 => frame << 12 | 7 | one,
                _ => (frame << 12 | flags & !0x80 | 6) ^ one,
            }
        });
    let linear = (any::<u64>(), any::<bool>()).prop_map(|(linear, any)| {
        if any {
            linear
        } else {
            ((linear << 16) as i64 >> 16) as u64
        }
    });
    (
        mode,
        proptest::sample::select(WIDTHS.to_vec()),
        any::<[bool; 2]>(),
        any::<[bool; 6]>(),
        linear,
        (0u64..FRAMES, any::<u64>()),
        proptest::array::uniform4(entry),
    )
        .prop_map(
            |(mode, width, [gib_pages, pse36], bits, linear, (frame, other), entries)| {
                // LAM bits, PCIDs and what is undefined may stand beside the address.
                let beside = if mode == Mode::FourLevel {
                    3 << 61 | 0xfff
                } else {
                    0xfff
                };
                let wide = mode == Mode::FourLevel;
                Case {
                    mode,
                    width,
                    gib_pages,
                    pse36,
                    bits,
                    linear: if wide || other & 0xf == 0 {
                        linear
                    } else {
                        linear & 0xffff_ffff
                    },
                    cr3: frame << 12 | other & beside,
                    entries,
                }
            },
        )
}

/// What comes of an access.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// It is made there; these entries, of so many bytes, were used, the leaf last.
    Access(u64, Vec<u64>, u64),
    PageFault(u32),
    NonCanonical,
    /// A table is not in memory.
    NoTable(u64),
}

/// The access by the manual's text.
fn by_the_manual(case: &Case, memory: &Memory, how: Use) -> Outcome {
    match walk_by_the_manual(case, memory, how) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

fn walk_by_the_manual(case: &Case, memory: &Memory, how: Use) -> Result<Outcome, Outcome> {
    let [nxe, smep, smap, wp, ac, user] = case.bits;
    let Case {
        linear, width, cr3, ..
    } = *case;
    let width = u32::from(width);
    let pae = !matches!(case.mode, Mode::ThirtyTwoBit(_));
    // 5.7: U/S, W/R and I/D say what the access was, whatever went wrong.
    let mut code = 0;
    if how == Use::Write {
        code |= 2;
    }
    if user {
        code |= 4;
    }
    if how == Use::Fetch && (smep || pae && nxe) {
        code |= 16;
    }
    let not_present = Outcome::PageFault(code);
    let reserved = Outcome::PageFault(code | 1 | 8);
    let bit = |value: u64, bit: u32| value >> bit & 1 != 0;
    let any_bit =
        |value: u64, range: core::ops::RangeInclusive<u32>| range.clone().any(|at| bit(value, at));
    let read = |at: u64, bytes: u64| match (memory.word(at), bytes) {
        (Ok(word), 8) => Ok(word),
        (Ok(word), _) => Ok(if at & 4 == 0 {
            word & 0xffff_ffff
        } else {
            word >> 32
        }),
        (Err(()), _) => Err(Outcome::NoTable(at)),
    };
    let address = |entry: u64, lowest: u32| entry & 0x000f_ffff_ffff_ffff & u64::MAX << lowest;
    let mut used = Vec::new();
    let mut values = Vec::new();
    let page;
    match case.mode {
        Mode::ThirtyTwoBit(pse) => {
            if linear >> 32 != 0 {
                return Err(Outcome::NonCanonical);
            }
            let at = (cr3 & 0xffff_f000) | (linear >> 22) << 2;
            let pde = read(at, 4)?;
            used.push(at);
            values.push(pde);
            if !bit(pde, 0) {
                return Err(not_present);
            }
            if pse && bit(pde, 7) {
                let m = if case.pse36 { width.min(40) } else { 32 };
                if any_bit(pde, m - 19..=21) {
                    return Err(reserved);
                }
                let high = if m > 32 {
                    pde >> 13 & ((1 << (m - 32)) - 1)
                } else {
                    0
                };
                page = high << 32 | pde & 0xffc0_0000 | linear & 0x3f_ffff;
            } else {
                let at = (pde & 0xffff_f000) | (linear >> 12 & 0x3ff) << 2;
                let pte = read(at, 4)?;
                used.push(at);
                values.push(pte);
                if !bit(pte, 0) {
                    return Err(not_present);
                }
                page = pte & 0xffff_f000 | linear & 0xfff;
            }
        }
        Mode::Pae => {
            if linear >> 32 != 0 {
                return Err(Outcome::NonCanonical);
            }
            let pdpte = case.top()[(linear >> 30) as usize];
            if !bit(pdpte, 0) {
                return Err(not_present);
            }
            let bad =
                |entry: u64| width < 63 && any_bit(entry, width..=62) || !nxe && bit(entry, 63);
            let at = address(pdpte, 12) | (linear >> 21 & 0x1ff) << 3;
            let pde = read(at, 8)?;
            used.push(at);
            values.push(pde);
            if !bit(pde, 0) {
                return Err(not_present);
            }
            if bad(pde) || bit(pde, 7) && any_bit(pde, 13..=20) {
                return Err(reserved);
            }
            if bit(pde, 7) {
                page = address(pde, 21) | linear & 0x1f_ffff;
            } else {
                let at = address(pde, 12) | (linear >> 12 & 0x1ff) << 3;
                let pte = read(at, 8)?;
                used.push(at);
                values.push(pte);
                if !bit(pte, 0) {
                    return Err(not_present);
                }
                if bad(pte) {
                    return Err(reserved);
                }
                page = address(pte, 12) | linear & 0xfff;
            }
        }
        Mode::FourLevel => {
            if !(linear >> 47 == 0 || linear >> 47 == 0x1_ffff) {
                return Err(Outcome::NonCanonical);
            }
            let bad =
                |entry: u64| width < 52 && any_bit(entry, width..=51) || !nxe && bit(entry, 63);
            let mut next = |table: u64, shift: u32| {
                let at = address(table, 12) | (linear >> shift & 0x1ff) << 3;
                let entry = read(at, 8)?;
                used.push(at);
                values.push(entry);
                match () {
                    () if !bit(entry, 0) => Err(not_present.clone()),
                    () if bad(entry) => Err(reserved.clone()),
                    () => Ok(entry),
                }
            };
            let pml4e = next(cr3, 39)?;
            if bit(pml4e, 7) {
                return Err(reserved);
            }
            let pdpte = next(pml4e, 30)?;
            if bit(pdpte, 7) {
                if !case.gib_pages || any_bit(pdpte, 13..=29) {
                    return Err(reserved);
                }
                page = address(pdpte, 30) | linear & 0x3fff_ffff;
            } else {
                let pde = next(pdpte, 21)?;
                if bit(pde, 7) {
                    if any_bit(pde, 13..=20) {
                        return Err(reserved);
                    }
                    page = address(pde, 21) | linear & 0x1f_ffff;
                } else {
                    page = address(next(pde, 12)?, 12) | linear & 0xfff;
                }
            }
        }
    }
    // 5.6.1, "Determination of Access Rights".
    let user_address = values.iter().all(|&entry| bit(entry, 2));
    let writable = values.iter().all(|&entry| bit(entry, 1));
    let no_execute = pae && nxe && values.iter().any(|&entry| bit(entry, 63));
    let allowed = match (user, how) {
        (false, Use::Read) => !(user_address && smap && !ac),
        (false, Use::Write) => !(user_address && smap && !ac) && (!wp || writable),
        (false, Use::Fetch) => !(no_execute || user_address && smep),
        (true, Use::Read) => user_address,
        (true, Use::Write) => user_address && writable,
        (true, Use::Fetch) => user_address && !no_execute,
    };
    if !allowed {
        return Err(Outcome::PageFault(code | 1));
    }
    let bytes = if pae { 8 } else { 4 };
    Ok(Outcome::Access(page, used, bytes))
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let features = case.features();
    let top = || Ok::<_, ()>(case.top());
    let translation = Translation::new(&case.registers(), &features, top).unwrap();
    let before = case.memory();
    let at = Gva::new(case.linear);
    for how in [Use::Read, Use::Write, Use::Fetch] {
        let expected = by_the_manual(case, &before, how);
        let mut memory = before.clone();
        let mut guest = GuestVirtual::new(&mut memory, &translation, case.privilege());
        let found = guest.look_up(at, how);
        // The entry by entry walk alone, and with the frequent case before.
        prop_assert_eq!(guest.look_up_exactly(at, how), found);
        let as_model = match found {
            Ok(walked) => Ok(walked.gpa.as_u64()),
            Err(VirtualFault::Page { address, code }) => {
                prop_assert_eq!(address, at);
                Err(Outcome::PageFault(code))
            }
            Err(VirtualFault::NonCanonical(_)) => Err(Outcome::NonCanonical),
            Err(VirtualFault::Memory(MemoryFault { address, .. })) => {
                Err(Outcome::NoTable(address.as_u64()))
            }
        };
        match (&expected, as_model) {
            (Outcome::Access(gpa, ..), Ok(found)) => prop_assert_eq!(*gpa, found),
            (expected, Err(found)) => prop_assert_eq!(expected, &found),
            (expected, Ok(found)) => {
                return Err(TestCaseError::fail(format!(
                    "{expected:x?}, found {found:#x}"
                )));
            }
        }
        if how == Use::Fetch {
            continue;
        }
        // 5.8: accessed in every entry, dirty in the last of a write, and nothing where there is a fault.
        let write = how == Use::Write;
        let done = guest.translate(at, write).is_ok();
        let mut marked = before.clone();
        if let Outcome::Access(_, used, bytes) = &expected {
            prop_assert!(done);
            for (number, &entry) in (1..).zip(used) {
                let word = marked.word(entry).unwrap();
                let old = if *bytes == 4 && entry & 4 != 0 {
                    word >> 32
                } else {
                    word
                };
                let dirty = if write && number == used.len() {
                    0x40
                } else {
                    0
                };
                marked.put(entry, *bytes, old | 0x20 | dirty);
            }
        }
        let words = |memory: &Memory| {
            (0..FRAMES << 9)
                .map(|at| memory.word(at * 8))
                .collect::<Vec<_>>()
        };
        prop_assert_eq!(words(&memory), words(&marked));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]

    #[test]
    fn walks_do_what_the_manual_says(cases in proptest::collection::vec(case(), 64)) {
        for case in &cases {
            check(case)?;
        }
    }
}

/// The model and the generator come by everything that there is.
#[test]
fn the_cases_are_of_every_kind() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut found = BTreeMap::new();
    for _ in 0..20_000 {
        let case = case().new_tree(&mut runner).unwrap().current();
        for how in [Use::Read, Use::Write, Use::Fetch] {
            let kind = match by_the_manual(&case, &case.memory(), how) {
                Outcome::Access(_, used, _) => 100 + used.len() as u32,
                Outcome::PageFault(code) => code,
                Outcome::NonCanonical => 200,
                Outcome::NoTable(_) => 201,
            };
            let mode = match case.mode {
                Mode::FourLevel => 0,
                Mode::Pae => 1,
                Mode::ThirtyTwoBit(pse) => 2 + u8::from(pse),
            };
            *found.entry((mode, kind)).or_insert(0) += 1;
        }
    }
    for mode in 0..4 {
        // Small pages and large ones, each kind of fault.
        let pages: &[u32] = match mode {
            0 => &[102, 103, 104],
            1 | 3 => &[101, 102],
            _ => &[102],
        };
        let reserved: &[u32] = if mode == 2 { &[] } else { &[9, 11, 13, 15] };
        let faults = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 20, 21, 200, 201];
        for kind in pages.iter().chain(reserved).chain(&faults) {
            assert!(found.contains_key(&(mode, *kind)), "mode {mode}: no {kind}");
        }
    }
}
