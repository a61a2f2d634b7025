//! Bad input to a space: each an error, with nothing changed.

use crate::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE};
use crate::ept::tests::tlb::Cpu;
use crate::ept::tests::{
    HIGH, MODULE, RAM, TestFormat, add_regions, all_capabilities, device, finish, gpas, host_bytes,
    hpas, memory, read, violation,
};
use crate::ept::*;
use crate::frames::arena::Arena;
use crate::paging::{Entry, Ept, Fault, Format};

const MMIO: u64 = 0xd000_0000;
const DEVICE: u64 = 0xe000_0000;

/// Each kind of region with host addresses behind it.
fn kinds(start: u64, len: u64) -> [RegionKind; 3] {
    [
        RegionKind::CopyOnWrite(host_bytes(start, len)),
        RegionKind::ReadOnly(host_bytes(start, len)),
        RegionKind::PassThrough(device(start, len)),
    ]
}

/// Everything that a space can tell of itself.
#[derive(Debug, PartialEq)]
struct State {
    regions: Vec<Region>,
    census: Census,
    faults: Faults,
    used: u64,
    retired: u64,
    invalidations: u64,
    written: Vec<u8>,
}

fn state<F: TestFormat>(space: &Space<'_, Arena, F>) -> State {
    State {
        regions: space.regions().copied().collect(),
        census: space.census().unwrap(),
        faults: space.faults(),
        used: space.frames.statistics().used,
        retired: space.tree.debt.retired.frames(),
        invalidations: space.invalidations(),
        written: read(space, RAM, PAGE_SIZE as usize),
    }
}

/// A space with regions of all kinds, in which something was touched.
fn with_space<F: TestFormat>(test: impl FnOnce(&Spaces<'_, Arena, F>, &mut Space<'_, Arena, F>)) {
    let (frames, host) = memory(64);
    let spaces = Spaces::new(&frames, F::capability(all_capabilities())).unwrap();
    let mut space = spaces.create(36).unwrap();
    add_regions(&mut space, host);
    let through = RegionKind::PassThrough(device(0xfee0_0000, 2 * PAGE_SIZE));
    space
        .map(Region::new(gpas(DEVICE, 2 * PAGE_SIZE), through).with_tag(7))
        .unwrap();
    let mut cpu = Cpu::new(0);
    for (gpa, access) in [
        (RAM, Access::WRITE),
        (RAM + 2 * PAGE_SIZE, Access::READ),
        (MODULE, Access::READ),
        (DEVICE, Access::WRITE),
    ] {
        cpu.run(&mut space, gpa, gpa, access).unwrap();
    }
    test(&spaces, &mut space);
    assert_eq!(spaces.audit([&space]), Ok(0));
    finish(space, &mut cpu);
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn map_fails<F: TestFormat>(space: &mut Space<'_, Arena, F>, region: Region) -> RegionError {
    let before = state(space);
    let error = space.map(region).unwrap_err();
    assert_eq!(state(space), before);
    error
}

fn edit_fails<F: TestFormat>(
    space: &mut Space<'_, Arena, F>,
    edit: impl FnOnce(&mut Space<'_, Arena, F>) -> Result<(), EditError>,
) -> EditError {
    let before = state(space);
    let error = edit(space).unwrap_err();
    assert_eq!(state(space), before);
    error
}

fn regions_that_cannot_be<F: TestFormat>() {
    with_space::<F>(|_, space| {
        let ram = |start, len| Region::new(gpas(start, len), RegionKind::Ram);
        let end = 1 << 36;
        let wide = |start, len| RegionError::TooWide {
            range: gpas(start, len),
            width: 36,
        };
        for (region, error) in [
            (
                ram(0x5000_0000, 0),
                RegionError::Empty(Gpa::new(0x5000_0000)),
            ),
            (
                ram(0x5000_0800, PAGE_SIZE),
                RegionError::Unaligned(gpas(0x5000_0800, PAGE_SIZE)),
            ),
            (
                ram(0x5000_0000, 0x800),
                RegionError::Unaligned(gpas(0x5000_0000, 0x800)),
            ),
            (ram(end, PAGE_SIZE), wide(end, PAGE_SIZE)),
            (
                ram(end - PAGE_SIZE, 2 * PAGE_SIZE),
                wide(end - PAGE_SIZE, 2 * PAGE_SIZE),
            ),
            (
                ram(u64::MAX - 0xfff, PAGE_SIZE),
                wide(u64::MAX - 0xfff, PAGE_SIZE),
            ),
            (
                ram(0x5000_0000, u64::MAX - 0x5000_0fff),
                wide(0x5000_0000, u64::MAX - 0x5000_0fff),
            ),
        ] {
            assert_eq!(map_fails(space, region), error);
        }
        // One that wraps cannot even be said.
        assert_eq!(AddrRange::new(Gpa::new(u64::MAX - 0xfff), 0x1001), None);
        for (start, len) in [
            (RAM, PAGE_SIZE),
            (15 * PAGE_SIZE, 2 * PAGE_SIZE),
            (HIGH - PAGE_SIZE, 8 * PAGE_SIZE),
            (MMIO, PAGE_SIZE),
            (DEVICE - PAGE_SIZE, 2 * PAGE_SIZE),
            (0, end),
        ] {
            let error = map_fails(space, ram(start, len));
            assert!(matches!(error, RegionError::Overlaps { .. }), "{error}");
        }
        assert_eq!(space.map(ram(end - PAGE_SIZE, PAGE_SIZE)), Ok(()));
    });
}

/// Host memory that a region refers to must not be managed: its frames are handed out to others. RAM is made of managed
/// frames, and no caller can say which.
fn host_ranges_that_cannot_be_given_away<F: TestFormat>() {
    with_space::<F>(|spaces, space| {
        let managed = spaces.frames().ranges().next().unwrap();
        let (first, last) = (managed.start().as_u64(), managed.last().unwrap().as_u64());
        let arena = spaces.frames().mem().range().start().as_u64();
        let at = |len, kind| Region::new(gpas(0x1_0000_0000, len), kind);
        for (start, len) in [
            (first, PAGE_SIZE),
            (last - 0xfff, PAGE_SIZE),
            // Partly managed.
            (last - 0xfff, 2 * PAGE_SIZE),
            (0, 1 << 30),
            // The counts of the frames.
            (arena, PAGE_SIZE),
        ] {
            for kind in kinds(start, len) {
                let error = RegionError::HostManaged(hpas(start, len));
                assert_eq!(map_fails(space, at(len, kind)), error);
            }
        }
        // What no entry can refer to.
        for (start, len) in [(1 << 52, PAGE_SIZE), ((1 << 52) - PAGE_SIZE, 2 * PAGE_SIZE)] {
            for kind in kinds(start, len) {
                let range = hpas(start, len);
                let error = RegionError::HostTooWide { range, width: 52 };
                assert_eq!(map_fails(space, at(len, kind)), error);
            }
        }
        let through = RegionKind::PassThrough(device(0xfec0_0000, PAGE_SIZE));
        let size = RegionError::HostRange(hpas(0xfec0_0000, PAGE_SIZE));
        assert_eq!(map_fails(space, at(2 * PAGE_SIZE, through)), size);
        // What is not managed is what these regions are for.
        assert_eq!(space.map(at(PAGE_SIZE, through)), Ok(()));
    });
}

#[test]
fn what_the_cpu_cannot_address_is_refused() {
    let (frames, host) = memory(64);
    let capability = EptCapability {
        physical_bits: 36,
        ..all_capabilities()
    };
    let spaces = Spaces::new(&frames, capability).unwrap();
    let mut space = spaces.create(48).unwrap();
    assert_eq!(space.width(), 36, "a guest's addresses are no wider");
    add_regions(&mut space, host);
    let at = |len, kind| Region::new(gpas(8 << 32, len), kind);
    let end = 1 << 36;
    for (start, len) in [
        (end, PAGE_SIZE),
        (end - PAGE_SIZE, 2 * PAGE_SIZE),
        (1 << 51, PAGE_SIZE),
    ] {
        let range = hpas(start, len);
        let error = RegionError::HostTooWide { range, width: 36 };
        for kind in kinds(start, len) {
            assert_eq!(map_fails(&mut space, at(len, kind)), error);
        }
        let identity = space.identity_map_range(device(start, len));
        assert_eq!(identity, Err(error));
    }
    for kind in kinds(end - PAGE_SIZE, PAGE_SIZE) {
        assert_eq!(space.map(at(PAGE_SIZE, kind)), Ok(()));
        space.unmap(gpas(8 << 32, PAGE_SIZE)).unwrap();
    }
    assert_eq!(
        space.identity_map_range(device(end - PAGE_SIZE, PAGE_SIZE)),
        Ok(())
    );
    finish(space, &mut Cpu::new(0));
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn what_is_not_there_cannot_be_unmapped_or_protected<F: TestFormat>() {
    with_space::<F>(|_, space| {
        let none = |range| EditError::Region(RegionError::NoSuchRegion(range));
        let part = gpas(RAM + 2 * PAGE_SIZE, 3 * PAGE_SIZE);
        space.unmap(part).unwrap();
        // Twice; partly twice; from a hole into a region and out of one.
        for range in [
            part,
            gpas(RAM + 4 * PAGE_SIZE, 2 * PAGE_SIZE),
            gpas(RAM, 3 * PAGE_SIZE),
            gpas(15 * PAGE_SIZE, 2 * PAGE_SIZE),
            gpas(0x5000_0000, PAGE_SIZE),
            gpas(1 << 40, PAGE_SIZE),
            gpas(0, 1 << 50),
            gpas(u64::MAX - 0xfff, PAGE_SIZE),
        ] {
            assert_eq!(edit_fails(space, |space| space.unmap(range)), none(range));
            for (write, execute) in [(false, false), (true, true)] {
                let error = edit_fails(space, |space| space.protect(range, write, execute));
                assert_eq!(error, EditError::NotMemory(range));
            }
            let error = edit_fails(space, |space| space.discard(range));
            assert_eq!(error, EditError::NotMemory(range));
        }
        for range in [gpas(RAM + 0x800, PAGE_SIZE), gpas(RAM, 0x800)] {
            let unaligned = EditError::Region(RegionError::Unaligned(range));
            assert_eq!(edit_fails(space, |space| space.unmap(range)), unaligned);
            let merged = edit_fails(space, |space| space.merge(range).map(drop));
            assert_eq!(merged, unaligned);
            let error = edit_fails(space, |space| space.protect(range, false, false));
            assert_eq!(error, unaligned);
            assert_eq!(edit_fails(space, |space| space.discard(range)), unaligned);
        }
        let empty = EditError::Region(RegionError::Empty(Gpa::new(RAM)));
        assert_eq!(edit_fails(space, |s| s.unmap(gpas(RAM, 0))), empty);
        let error = edit_fails(space, |s| s.protect(gpas(RAM, 0), false, false));
        assert_eq!(error, empty);
        // What is left is there, and what was taken away is not.
        let gone = space.resolve(&violation(part.start().as_u64(), Access::READ));
        assert_eq!(gone.unwrap_err().reason, Reason::NoRegion);
        assert!(
            space
                .resolve(&violation(RAM + 5 * PAGE_SIZE, Access::WRITE))
                .is_ok()
        );
        space
            .map(Region::new(part, RegionKind::Ram).with_tag(1))
            .unwrap();
        assert_eq!(
            space.region_at(Gpa::new(RAM)).unwrap().range,
            gpas(RAM, 16 * PAGE_SIZE)
        );
    });
}

#[test]
fn a_fork_that_is_refused_a_change_is_reset_as_before() {
    let (frames, host) = memory(64);
    let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
    let mut first = spaces.create(36).unwrap();
    add_regions(&mut first, host);
    let template = first
        .freeze()
        .unwrap_or_else(|(error, _)| panic!("{error}"));
    let mut fork = template.fork().unwrap();
    fork.write(Gpa::new(RAM), b"new").unwrap();
    let hole = gpas(0x5000_0000, PAGE_SIZE);
    let overlapping = Region::new(gpas(RAM, PAGE_SIZE), RegionKind::Ram);
    map_fails(&mut fork, overlapping);
    edit_fails(&mut fork, |fork| fork.unmap(hole));
    edit_fails(&mut fork, |fork| fork.protect(hole, false, true));
    edit_fails(&mut fork, |fork| fork.discard(gpas(RAM, 0x800)));
    let restored = fork.reset(&template, Reset::Warm).unwrap();
    assert!(!restored.cold);
    assert_eq!(read(&fork, RAM, 3), [0; 3]);
    let mut cpu = Cpu::new(0);
    finish(fork, &mut cpu);
    let mut ending = template.end();
    while !ending.step(&mut cpu, 100) {}
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn a_device_can_be_unmapped_in_parts<F: TestFormat>() {
    with_space::<F>(|_, space| {
        space.unmap(gpas(DEVICE, PAGE_SIZE)).unwrap();
        assert_eq!(space.query(Gpa::new(DEVICE)), Ok(None));
        let second = violation(DEVICE + PAGE_SIZE + 8, Access::READ);
        assert_eq!(
            space.resolve(&second),
            Ok(Resolution::Retry(Fill::HostMapped))
        );
        let (at, ..) = space.query(second.gpa()).unwrap().unwrap();
        assert_eq!(at, Hpa::new(0xfee0_1008));
    });
}

fn an_identity_mapped_device_is_where_it_is_in_the_host<F: TestFormat>() {
    with_space::<F>(|_, space| {
        space
            .identity_map_range(device(0xfec0_0000, PAGE_SIZE))
            .unwrap();
        let touched = violation(0xfec0_0123, Access::WRITE);
        assert_eq!(
            space.resolve(&touched),
            Ok(Resolution::Retry(Fill::HostMapped))
        );
        let (at, _, origin) = space.query(touched.gpa()).unwrap().unwrap();
        assert_eq!((at, origin), (Hpa::new(0xfec0_0123), Origin::Host));
        let again = space.identity_map_range(device(0xfec0_0000, PAGE_SIZE));
        assert!(matches!(again, Err(RegionError::Overlaps { .. })));
        let beyond = space.identity_map_range(device(1 << 36, PAGE_SIZE));
        assert!(matches!(beyond, Err(RegionError::TooWide { .. })));
    });
}

fn dirty_pages_are_those_of_memory<F: TestFormat>() {
    with_space::<F>(|_, space| {
        for range in [
            gpas(MMIO, PAGE_SIZE),
            gpas(DEVICE, PAGE_SIZE),
            gpas(0x5000_0000, PAGE_SIZE),
            gpas(15 * PAGE_SIZE, 2 * PAGE_SIZE),
        ] {
            let error = edit_fails(space, |space| {
                let told = |gpa, _| panic!("{gpa:?} told");
                space.harvest_dirty(range, told).map(drop)
            });
            assert_eq!(error, EditError::NotMemory(range));
        }
        let mut found = vec![];
        let all = gpas(RAM, 16 * PAGE_SIZE);
        space.harvest_dirty(all, |gpa, _| found.push(gpa)).unwrap();
        assert_eq!(found, [Gpa::new(RAM)]);
    });
}

/// A region says whether the guest may write beside that it may read, so that writing alone cannot be said; and an entry
/// that says so is a fault.
#[test]
fn writing_without_reading_cannot_be() {
    with_space::<Ept>(|_, space| {
        space.write(Gpa::new(RAM), &[1]).unwrap();
        for (write, execute) in [(false, false), (true, false), (false, true), (true, true)] {
            space.protect(gpas(RAM, PAGE_SIZE), write, execute).unwrap();
            let _ = space.resolve(&violation(RAM, Access::WRITE));
            for step in space.path(Gpa::new(RAM)) {
                assert_eq!(step.bits & 1, 1, "{step:?}");
            }
        }
        space.protect(gpas(RAM, PAGE_SIZE), true, true).unwrap();
    });
    for level in 1..=4 {
        for bits in [0x1032, 0x1036] {
            let entry = EptEntry::from_bits(bits);
            assert_eq!(Ept::decode(level, entry), Err(Fault::Misconfigured));
        }
    }
}

/// The guest's PAT has no say in how its memory and its devices are cached: "ignore PAT" (bit 6) is set in every leaf, and
/// the memory type (bits 5:3) is that of the region (SDM "Memory Type Used for Translated Guest-Physical Addresses").
#[test]
fn the_memory_type_is_the_regions_whatever_the_guests_pat_says() {
    with_space::<Ept>(|_, space| {
        let combining = Region::new(
            gpas(0x1_0000_0000, PAGE_SIZE),
            RegionKind::PassThrough(device(0xfec0_0000, PAGE_SIZE)),
        );
        let memory_type = MemoryType::WriteCombining;
        space
            .map(Region {
                memory_type,
                ..combining
            })
            .unwrap();
        for (gpa, access, memory_type) in [
            (RAM, Access::WRITE, MemoryType::WriteBack),
            (RAM + 2 * PAGE_SIZE, Access::READ, MemoryType::WriteBack),
            (MODULE, Access::READ, MemoryType::WriteBack),
            (MODULE + PAGE_SIZE, Access::WRITE, MemoryType::WriteBack),
            (DEVICE, Access::WRITE, MemoryType::Uncacheable),
            (0x1_0000_0000, Access::READ, MemoryType::WriteCombining),
        ] {
            let _ = space.resolve(&violation(gpa, access)).unwrap();
            let leaf = space.path(Gpa::new(gpa)).last().unwrap().bits;
            assert_eq!(leaf >> 6 & 1, 1, "the guest's PAT counts at {gpa:#x}");
            assert_eq!(leaf >> 3 & 7, memory_type as u64, "{gpa:#x}");
        }
    });
}

over_both! {
    regions_that_cannot_be,
    host_ranges_that_cannot_be_given_away,
    what_is_not_there_cannot_be_unmapped_or_protected,
    a_device_can_be_unmapped_in_parts,
    an_identity_mapped_device_is_where_it_is_in_the_host,
    dirty_pages_are_those_of_memory,
}
