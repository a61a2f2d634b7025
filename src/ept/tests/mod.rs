//! Tests of spaces as a whole: against a model of what memory holds, on CPUs that cache what they may.

/// Makes a test for each format of each of these.
macro_rules! over_both {
    ($($test:ident),* $(,)?) => {
        mod over_ept {
            $(#[test] fn $test() { super::$test::<crate::ept::Ept>() })*
        }
        mod over_npt {
            $(#[test] fn $test() { super::$test::<crate::ept::Npt>() })*
        }
    };
}

mod bad_input;
mod generations;
mod gib;
mod life;
mod templates;
pub(in crate::ept) mod tlb;

use crate::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::tests::tlb::Cpu;
use crate::ept::*;
use crate::frames::arena::Arena;
use crate::frames::{Frame, FrameAllocator, FrameRef, PhysMem};
use crate::paging::{MemoryType, Rights};
use std::sync::atomic::Ordering::SeqCst;

const BASE: u64 = 0x100_0000;
const HOST_PAGES: u64 = 4;
/// The module's bytes end in the middle of a page.
pub(in crate::ept) const HOST_LEN: u64 = 2 * PAGE_SIZE + 0x234;

pub(in crate::ept) const RAM: u64 = 0;
pub(in crate::ept) const HIGH: u64 = 0x20_0000 - 2 * PAGE_SIZE;
pub(in crate::ept) const MODULE: u64 = 0x4000_0000;
pub(in crate::ept) const SHARED: u64 = 0x8000_0000;
pub(in crate::ept) const ROM: u64 = 0xc000_0000;
pub(in crate::ept) const MMIO: u64 = 0xd000_0000;
pub(in crate::ept) const DEVICE: u64 = 0xe000_0000;
const DEVICE_HOST: u64 = 0xfee0_0000;

pub(in crate::ept) fn gpas(start: u64, len: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa::new(start), len).unwrap()
}

pub(in crate::ept) fn hpas(start: u64, len: u64) -> AddrRange<Hpa> {
    AddrRange::new(Hpa::new(start), len).unwrap()
}

/// A device that no guest touches.
pub(in crate::ept) fn device(start: u64, len: u64) -> DeviceRange {
    // SAFETY: no guest of these tests touches what the addresses lead to.
    unsafe { DeviceRange::new(hpas(start, len)) }
}

/// Host bytes that are never read.
pub(in crate::ept) fn host_bytes(start: u64, len: u64) -> HostBytes {
    // SAFETY: the regions made of them are refused or never touched, so nothing is ever read.
    unsafe { HostBytes::new(hpas(start, len)) }
}

/// What tests must know of a format.
pub(in crate::ept) trait TestFormat: Nested {
    /// A CPU that is, as far as these tables can differ, like this one.
    fn capability(like: EptCapability) -> impl Capability<Format = Self>;
    /// Whether a CPU marks what it uses in the tables.
    fn marks(pointer: Eptp) -> bool;
    /// What the CPU tells of an access that these rights do not allow.
    fn violation(gpa: Gpa, access: Access, rights: Rights) -> Violation;
}

impl TestFormat for Ept {
    fn capability(like: EptCapability) -> impl Capability<Format = Self> {
        like
    }
    fn marks(pointer: Eptp) -> bool {
        pointer.accessed_dirty()
    }
    fn violation(gpa: Gpa, access: Access, rights: Rights) -> Violation {
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        let qualification = bit(access.read, 0)
            | bit(access.write, 1)
            | bit(access.fetch, 2)
            | bit(rights.contains(Rights::READ), 3)
            | bit(rights.contains(Rights::WRITE), 4)
            | bit(rights.contains(Rights::EXECUTE), 5)
            | 0x180;
        // SAFETY: the guest leaves the CPU by it.
        unsafe { Violation::at_exit(qualification, gpa) }
    }
}

impl TestFormat for Npt {
    fn capability(like: EptCapability) -> impl Capability<Format = Self> {
        NptCapability {
            pages_1g: like.pages_1g,
            physical_bits: like.physical_bits,
        }
    }
    fn marks(_: Eptp) -> bool {
        true
    }
    fn violation(gpa: Gpa, access: Access, rights: Rights) -> Violation {
        Violation::told(
            gpa,
            access,
            Cause::Translation,
            rights != Rights::NONE,
            false,
        )
    }
}

pub(in crate::ept) fn all_capabilities() -> EptCapability {
    EptCapability::typical()
}

/// An allocator of `frames` frames with the module's bytes behind them.
pub(in crate::ept) fn memory(frames: u64) -> (FrameAllocator<Arena>, HostBytes) {
    let arena = Arena::new(BASE, frames + HOST_PAGES);
    let host = Hpa::new(BASE + frames * PAGE_SIZE);
    let reserved = AddrRange::new(host, HOST_PAGES * PAGE_SIZE).unwrap();
    for i in 0..HOST_PAGES * PAGE_SIZE {
        // SAFETY: inside the new arena.
        unsafe { arena.ptr(Hpa::new(host.as_u64() + i)).write(host_byte(i)) };
    }
    let usable = arena.range();
    // SAFETY: the arena is new, and the host's bytes are reserved.
    let frames = unsafe { FrameAllocator::new(arena, [usable], [reserved]) }.unwrap();
    // SAFETY: the bytes are in the arena and nobody writes them any more.
    (frames, unsafe {
        HostBytes::new(AddrRange::new(host, HOST_LEN).unwrap())
    })
}

pub(in crate::ept) fn host_byte(i: u64) -> u8 {
    (i % 251) as u8 | 1
}

pub(in crate::ept) fn add_regions<F: TestFormat>(space: &mut Space<'_, Arena, F>, host: HostBytes) {
    let module = HOST_PAGES * PAGE_SIZE;
    for region in [
        Region::new(gpas(RAM, 16 * PAGE_SIZE), RegionKind::Ram).with_tag(1),
        Region::new(gpas(HIGH, 4 * PAGE_SIZE), RegionKind::Ram)
            .with_execute(false)
            .with_tag(2),
        Region::new(gpas(MODULE, module), RegionKind::CopyOnWrite(host)).with_tag(3),
        Region::new(gpas(SHARED, module), RegionKind::ReadOnly(host)).with_tag(4),
        Region::new(gpas(ROM, 2 * PAGE_SIZE), RegionKind::Rom).with_tag(5),
        Region::new(gpas(MMIO, PAGE_SIZE), RegionKind::Mmio).with_tag(6),
    ] {
        space.map(region).unwrap();
    }
}

pub(in crate::ept) fn add_device<F: TestFormat>(space: &mut Space<'_, Arena, F>) {
    // SAFETY: the model CPU never touches what the address leads to.
    let device =
        unsafe { DeviceRange::new(AddrRange::new(Hpa::new(DEVICE_HOST), PAGE_SIZE).unwrap()) };
    space
        .map(Region::new(gpas(DEVICE, PAGE_SIZE), RegionKind::PassThrough(device)).with_tag(7))
        .unwrap();
}

pub(in crate::ept) fn violation(gpa: u64, access: Access) -> Violation {
    Violation::new(Gpa::new(gpa), access)
}

pub(in crate::ept) fn read<F: TestFormat>(
    space: &Space<'_, Arena, F>,
    gpa: u64,
    len: usize,
) -> Vec<u8> {
    let mut bytes = vec![0xcc; len];
    space.read(Gpa::new(gpa), &mut bytes).unwrap();
    bytes
}

pub(in crate::ept) fn finish<F: TestFormat>(space: Space<'_, Arena, F>, cpu: &mut Cpu<F>) {
    let mut ending = space.end();
    while !ending.step(cpu, 7) {}
}

/// Gives a test what it needs, and checks afterwards that all frames have come back.
fn with_space<F: TestFormat>(
    frames: u64,
    test: impl FnOnce(&Spaces<'_, Arena, F>, &mut Space<'_, Arena, F>, &mut Cpu<F>),
) {
    let (frames, host) = memory(frames);
    let spaces = Spaces::new(&frames, F::capability(all_capabilities())).unwrap();
    let mut space = spaces.create(36).unwrap();
    add_regions(&mut space, host);
    let mut cpu = Cpu::new(0);
    test(&spaces, &mut space, &mut cpu);
    assert_eq!(spaces.audit([&space]), Ok(0));
    finish(space, &mut cpu);
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn retry<F: TestFormat>(space: &mut Space<'_, Arena, F>, gpa: u64, access: Access) -> Fill {
    match space.resolve(&violation(gpa, access)).unwrap() {
        Resolution::Retry(fill) => fill,
        other => panic!("{other:?}"),
    }
}

fn refused<F: TestFormat>(space: &mut Space<'_, Arena, F>, gpa: u64, access: Access) -> Reason {
    let census = space.census().unwrap();
    let error = space.resolve(&violation(gpa, access)).unwrap_err();
    assert_eq!(space.census().unwrap(), census);
    assert_eq!(error.violation.gpa(), Gpa::new(gpa));
    error.reason
}

fn ram_reads_as_zero_and_is_filled_by_the_first_write<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, cpu| {
        let used = spaces.frames().statistics().used;
        assert_eq!(retry(space, 0x1008, Access::READ), Fill::ZeroShared);
        assert_eq!(retry(space, 0x2fff, Access::FETCH), Fill::ZeroShared);
        // Three tables and no frame.
        assert_eq!(spaces.frames().statistics().used, used + 3);
        assert_eq!(retry(space, 0x1008, Access::READ), Fill::Present);
        assert_eq!(retry(space, 0x1010, Access::WRITE), Fill::Zeroed);
        assert_eq!(retry(space, 0x1010, Access::WRITE), Fill::Present);
        assert_eq!(retry(space, 0x3000, Access::WRITE), Fill::Zeroed);
        assert_eq!(spaces.frames().statistics().used, used + 5);
        let census = space.census().unwrap();
        assert_eq!(
            (census.zero, census.filled, census.copied, census.tables),
            (1, 2, 0, 4)
        );
        assert_eq!(
            (census.mapped(), census.private_bytes()),
            (3, 6 * PAGE_SIZE)
        );
        let faults = space.faults();
        assert_eq!(
            (faults.zero_shared, faults.filled, faults.spurious),
            (2, 2, 2)
        );
        // Read and write at once, as a page walk does, is a write.
        let walk = Violation::decode(0x83, Gpa::new(0x4000));
        assert_eq!(space.resolve(&walk), Ok(Resolution::Retry(Fill::Zeroed)));
        let walk = Violation::decode(0x82, Gpa::new(0x7000));
        assert_eq!(space.resolve(&walk), Ok(Resolution::Retry(Fill::Zeroed)));
        let _ = space.enter(cpu);
    });
}

fn filled_frames_are_zero_whoever_had_them<F: TestFormat>() {
    with_space::<F>(32, |spaces, space, _| {
        let frames = spaces.frames();
        let dirty: Vec<_> = std::iter::from_fn(|| frames.alloc().ok()).collect();
        for frame in dirty {
            // SAFETY: the test's own frame.
            unsafe { frames.write(&frame, 0, &[0xee; 4096]) }.unwrap();
            frames.release(frame);
        }
        for page in 0..4 {
            retry(space, page * PAGE_SIZE, Access::WRITE);
            assert_eq!(read(space, page * PAGE_SIZE, 4096), [0; 4096]);
        }
    });
}

fn host_bytes_are_shared_until_written_and_nothing_behind_them_is_seen<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        let expected: Vec<u8> = (0..HOST_PAGES * PAGE_SIZE)
            .map(|i| if i < HOST_LEN { host_byte(i) } else { 0 })
            .collect();
        for start in [MODULE, SHARED] {
            // Untouched, mapped, and partly written it reads the same.
            assert_eq!(read(space, start, expected.len()), expected);
            assert_eq!(retry(space, start, Access::READ), Fill::HostMapped);
            assert_eq!(
                retry(space, start + 2 * PAGE_SIZE, Access::READ),
                Fill::Copied
            );
            assert_eq!(
                retry(space, start + 3 * PAGE_SIZE, Access::READ),
                Fill::ZeroShared
            );
            assert_eq!(read(space, start, expected.len()), expected);
        }
        let used = spaces.frames().statistics().used;
        assert_eq!(retry(space, MODULE, Access::WRITE), Fill::Copied);
        assert_eq!(
            retry(space, MODULE + PAGE_SIZE, Access::WRITE),
            Fill::Copied
        );
        assert_eq!(
            retry(space, MODULE + 2 * PAGE_SIZE, Access::WRITE),
            Fill::TakenOver
        );
        assert_eq!(
            retry(space, MODULE + 3 * PAGE_SIZE, Access::WRITE),
            Fill::Zeroed
        );
        assert_eq!(spaces.frames().statistics().used, used + 3);
        assert_eq!(read(space, MODULE, expected.len()), expected);
        space.write(Gpa::new(MODULE + 5), b"mine").unwrap();
        assert_eq!(
            read(space, MODULE + 4, 6),
            [host_byte(4), b'm', b'i', b'n', b'e', host_byte(9)]
        );
        assert_eq!(read(space, SHARED, expected.len()), expected);
        assert_eq!(
            refused(space, SHARED + 8, Access::WRITE),
            Reason::Denied { tag: 4 }
        );
    });
}

fn host_bytes_next_to_a_touched_page_are_mapped_too<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        let arena_end = spaces.frames().mem().range();
        let start = Hpa::new(arena_end.last().unwrap().as_u64() + 1 - HOST_PAGES * PAGE_SIZE);
        let bytes = AddrRange::new(start, HOST_PAGES * PAGE_SIZE).unwrap();
        // SAFETY: the host's bytes of the arena, which nobody writes.
        let bytes = unsafe { HostBytes::new(bytes) };
        // Its pages lie on both sides of a multiple of 16 pages.
        let base = 0x5000_0000 - 2 * PAGE_SIZE;
        space
            .map(Region::new(
                gpas(base, 5 * PAGE_SIZE),
                RegionKind::CopyOnWrite(bytes),
            ))
            .unwrap();
        let used = spaces.frames().statistics().used;
        space.write(Gpa::new(base), b"own").unwrap();
        assert_eq!(
            retry(space, base + PAGE_SIZE, Access::READ),
            Fill::HostMapped
        );
        assert_eq!(
            retry(space, base + 3 * PAGE_SIZE, Access::READ),
            Fill::HostMapped
        );
        // The neighbour is there without a violation; what was written stays, and zeroes are not mapped ahead.
        let census = space.census().unwrap();
        assert_eq!((census.host, census.copied, census.zero), (3, 1, 0));
        assert_eq!(
            retry(space, base + 2 * PAGE_SIZE, Access::READ),
            Fill::Present
        );
        assert_eq!(read(space, base, 4), [b'o', b'w', b'n', host_byte(3)]);
        assert_eq!(
            read(space, base + 2 * PAGE_SIZE, 1),
            [host_byte(2 * PAGE_SIZE)]
        );
        // Tables and the one page that was written.
        assert_eq!(spaces.frames().statistics().used, used + 1 + 4);
        assert_eq!(
            retry(space, base + 2 * PAGE_SIZE, Access::WRITE),
            Fill::Copied
        );
    });
}

fn what_regions_do_not_allow_is_refused_and_nothing_changes<F: TestFormat>() {
    with_space::<F>(64, |_, space, _| {
        let both = Access {
            read: true,
            write: true,
            fetch: false,
        };
        for (gpa, access, reason) in [
            (16 * PAGE_SIZE, Access::READ, Reason::NoRegion),
            (16 * PAGE_SIZE, Access::WRITE, Reason::NoRegion),
            (16 * PAGE_SIZE, Access::FETCH, Reason::NoRegion),
            ((1 << 36) - 1, Access::READ, Reason::NoRegion),
            (1 << 50, Access::WRITE, Reason::NoRegion),
            (u64::MAX, Access::READ, Reason::NoRegion),
            (HIGH, Access::FETCH, Reason::Protected { tag: 2 }),
            (SHARED, both, Reason::Denied { tag: 4 }),
            (ROM, Access::WRITE, Reason::Denied { tag: 5 }),
            (MMIO, Access::FETCH, Reason::NotMemory { tag: 6 }),
        ] {
            assert_eq!(refused(space, gpa, access), reason, "{gpa:#x} {access}");
        }
        // Guest page tables in memory that is read-only, on a CPU that sets accessed and dirty: no livelock.
        let walk = Violation::decode(0x83, Gpa::new(ROM));
        assert_eq!(
            space.resolve(&walk).unwrap_err().reason,
            Reason::Denied { tag: 5 }
        );
        let walk = Violation::decode(0x81, Gpa::new(MMIO));
        assert_eq!(
            space.resolve(&walk).unwrap_err().reason,
            Reason::NotMemory { tag: 6 }
        );
        let verification = Violation::decode(0x8181, Gpa::new(RAM));
        assert_eq!(
            space.resolve(&verification).unwrap_err().reason,
            Reason::Denied { tag: 1 }
        );
        let (tag, offset) = (6, 0x123);
        let mmio = space.resolve(&violation(MMIO + offset, Access::WRITE));
        assert_eq!(mmio, Ok(Resolution::Mmio { tag, offset }));
        assert_eq!(space.faults().mmio, 1);
        let text = space
            .resolve(&violation(1 << 35, Access::WRITE))
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("write at GPA 0x800000000, EPT allowed ----: nothing"),
            "{text}"
        );
    });
}

#[test]
fn no_execute_is_in_the_leaf() {
    with_space::<Ept>(64, |spaces, space, cpu| {
        retry(space, HIGH, Access::WRITE);
        retry(space, RAM, Access::WRITE);
        let eptp = space.enter(cpu).eptp();
        let mem = spaces.frames().mem();
        let fetch = |cpu: &mut Cpu, gpa| cpu.access(eptp, mem, gpa, gpa, Access::FETCH);
        assert!(fetch(cpu, RAM).is_ok());
        let violation = fetch(cpu, HIGH).unwrap_err();
        let allowed = violation.allowed();
        assert!(allowed.write && !allowed.execute);
    });
}

fn a_device_is_mapped_as_it_is<F: TestFormat>() {
    with_space::<F>(64, |_, space, _| {
        add_device(space);
        assert_eq!(retry(space, DEVICE + 8, Access::READ), Fill::HostMapped);
        let (at, size, origin) = space.query(Gpa::new(DEVICE + 8)).unwrap().unwrap();
        assert_eq!(
            (at, size, origin),
            (Hpa::new(DEVICE_HOST + 8), PageSize::Size4K, Origin::Host)
        );
        assert_eq!(retry(space, DEVICE + 8, Access::WRITE), Fill::Present);
        let mut byte = [0];
        let not_memory = Reason::NotMemory { tag: 7 };
        assert_eq!(
            space.read(Gpa::new(DEVICE), &mut byte).unwrap_err().reason,
            not_memory
        );
        assert_eq!(
            space.load(Gpa::new(DEVICE), &byte).unwrap_err().reason,
            not_memory
        );
        assert!(matches!(
            space.fork().err(),
            Some(EditError::PassThrough(_))
        ));
        assert!(matches!(
            space.discard(gpas(DEVICE, PAGE_SIZE)),
            Err(EditError::NotMemory(_))
        ));
        space.unmap(gpas(DEVICE, PAGE_SIZE)).unwrap();
        assert_eq!(space.query(Gpa::new(DEVICE)), Ok(None));
        assert_eq!(refused(space, DEVICE, Access::READ), Reason::NoRegion);
    });
}

fn managed_memory_cannot_be_given_away_as_host_memory<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        let managed = spaces.frames().ranges().next().unwrap();
        let page = AddrRange::new(managed.start(), PAGE_SIZE).unwrap();
        // SAFETY: refused, so never used.
        let (bytes, device) = unsafe { (HostBytes::new(page), DeviceRange::new(page)) };
        for kind in [
            RegionKind::CopyOnWrite(bytes),
            RegionKind::ReadOnly(bytes),
            RegionKind::PassThrough(device),
        ] {
            let region = Region::new(gpas(0x1_0000_0000, PAGE_SIZE), kind);
            assert_eq!(space.map(region), Err(RegionError::HostManaged(page)));
        }
    });
}

#[test]
fn memory_types_that_cannot_be_are_refused() {
    let (frames, _) = memory(16);
    let uncached = MtrrRegisters {
        capability: 0,
        default: 1 << 11,
        fixed: [0; 11],
        variable: &VariableRegisters::new(),
    };
    let through = MtrrRegisters {
        default: 1 << 11 | 4,
        ..uncached
    };
    let device = AddrRange::new(Hpa::new(DEVICE_HOST), PAGE_SIZE).unwrap();
    // SAFETY: nothing is ever accessed there.
    let device = RegionKind::PassThrough(unsafe { DeviceRange::new(device) });
    let add = |mtrrs: Option<&MtrrRegisters<'_>>, kind, memory_type| {
        let mut spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        if let Some(mtrrs) = mtrrs {
            spaces = spaces.with_mtrrs(Mtrrs::decode(mtrrs, 40));
        }
        let mut space = spaces.create(36).unwrap();
        let range = gpas(0, PAGE_SIZE);
        let done = space.map(Region {
            memory_type,
            ..Region::new(range, kind)
        });
        finish(space, &mut Cpu::new(0));
        drop(spaces);
        assert!(done.is_ok() || done == Err(RegionError::MemoryType { range, memory_type }));
        done.is_ok()
    };
    for memory_type in [
        MemoryType::Uncacheable,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
    ] {
        assert!(
            !add(None, RegionKind::Ram, memory_type)
                && !add(Some(&through), RegionKind::Rom, memory_type)
        );
    }
    assert!(add(None, RegionKind::Ram, MemoryType::WriteBack));
    assert!(
        add(None, device, MemoryType::Uncacheable) && add(None, device, MemoryType::WriteCombining)
    );
    assert!(!add(Some(&uncached), device, MemoryType::WriteCombining));
    assert!(
        !add(None, device, MemoryType::WriteBack)
            && !add(Some(&uncached), device, MemoryType::WriteBack)
    );
    assert!(add(Some(&through), device, MemoryType::WriteThrough));
    assert!(!add(Some(&through), device, MemoryType::WriteProtected));
    // Bytes of the host are as the machine has them, and must be write-back.
    let bytes = AddrRange::new(Hpa::new(DEVICE_HOST), PAGE_SIZE).unwrap();
    // SAFETY: nothing is ever accessed there.
    let bytes = RegionKind::CopyOnWrite(unsafe { HostBytes::new(bytes) });
    let back = MtrrRegisters {
        default: 1 << 11 | 6,
        ..uncached
    };
    for (mtrrs, allowed) in [(None, true), (Some(&back), true), (Some(&through), false)] {
        assert_eq!(add(mtrrs, bytes, MemoryType::WriteBack), allowed);
        assert!(!add(mtrrs, bytes, MemoryType::WriteThrough));
    }
    assert_eq!(frames.statistics().used, 0);
}

fn copying_checks_the_whole_range_before_a_byte_moves<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        let end = 16 * PAGE_SIZE;
        let used = spaces.frames().statistics().used;
        let none = |gpa: u64| AccessError {
            gpa: Gpa::new(gpa),
            reason: Reason::NoRegion,
        };
        let mut bytes = [0xcc; 8];
        assert_eq!(space.write(Gpa::new(end - 4), &bytes), Err(none(end)));
        assert_eq!(space.read(Gpa::new(end - 4), &mut bytes), Err(none(end)));
        assert_eq!(bytes, [0xcc; 8]);
        assert_eq!(
            space.read(Gpa::new(u64::MAX - 3), &mut bytes),
            Err(none(u64::MAX - 3))
        );
        assert_eq!(
            space.read(Gpa::new(u64::MAX - 7), &mut bytes),
            Err(none(u64::MAX - 7))
        );
        assert_eq!(space.write(Gpa::new(1 << 50), &[]), Ok(()));
        assert!(space.write(Gpa::new(1 << 50), &[1]).is_err());
        assert_eq!(
            space.write(Gpa::new(ROM), &[1]).unwrap_err().reason,
            Reason::Denied { tag: 5 }
        );
        assert_eq!(
            space.read(Gpa::new(MMIO), &mut bytes).unwrap_err().reason,
            Reason::NotMemory { tag: 6 }
        );
        // Nothing was filled by any of that.
        assert_eq!(spaces.frames().statistics().used, used);
        space.write(Gpa::new(end - 8), &bytes).unwrap();
        space.load(Gpa::new(ROM + PAGE_SIZE - 4), &bytes).unwrap();
        assert_eq!(
            read(space, ROM + PAGE_SIZE - 5, 10),
            [0, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0]
        );
        // What the loader wrote is not the guest's to write, also after it was mapped.
        assert_eq!(
            refused(space, ROM, Access::WRITE),
            Reason::Denied { tag: 5 }
        );
        assert_eq!(retry(space, ROM, Access::READ), Fill::Present);
        space.load(Gpa::new(ROM), &[7]).unwrap();
        assert_eq!(
            refused(space, ROM, Access::WRITE),
            Reason::Denied { tag: 5 }
        );
        assert_eq!(read(space, ROM, 1), [7]);
    });
}

fn a_fork_shares_all_and_copies_what_either_writes<F: TestFormat>() {
    with_space::<F>(256, |spaces, space, cpu| {
        for page in 0..8 {
            space
                .write(Gpa::new(page * PAGE_SIZE), &[page as u8 + 1; 16])
                .unwrap();
        }
        retry(space, 9 * PAGE_SIZE, Access::READ);
        let used = spaces.frames().statistics().used;
        let mut fork = space.fork().unwrap();
        assert_eq!(spaces.frames().statistics().used, used + 1);
        assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
        assert_eq!(fork.census().unwrap().private, 1);
        // Reading what is mapped copies nothing.
        assert_eq!(retry(&mut fork, 0x10, Access::READ), Fill::Present);
        assert_eq!(spaces.frames().statistics().used, used + 1);
        // The first write copies three tables and the page, the next only the page.
        assert_eq!(retry(&mut fork, 0x10, Access::WRITE), Fill::Copied);
        assert_eq!(spaces.frames().statistics().used, used + 5);
        assert_eq!(retry(&mut fork, 0x1010, Access::WRITE), Fill::Copied);
        assert_eq!(spaces.frames().statistics().used, used + 6);
        fork.write(Gpa::new(0), &[0xf0; 16]).unwrap();
        space.write(Gpa::new(0), &[0xa0; 16]).unwrap();
        assert_eq!(
            (read(space, 0, 1), read(&fork, 0, 1)),
            (vec![0xa0], vec![0xf0])
        );
        assert_eq!(
            (read(space, 0x1000, 1), read(&fork, 0x1000, 1)),
            (vec![2], vec![2])
        );
        // The old page 0 was the first's alone when it wrote: no copy was made for it.
        assert_eq!(
            space.faults(),
            Faults {
                filled: 0,
                zero_shared: 1,
                ..Default::default()
            }
        );
        let grandchild = fork.fork().unwrap();
        assert_eq!(spaces.audit([&*space, &fork, &grandchild]), Ok(0));
        finish(fork, cpu);
        assert_eq!(read(&grandchild, 0, 1), [0xf0]);
        assert_eq!(spaces.audit([&*space, &grandchild]), Ok(0));
        finish(grandchild, cpu);
        // All tables and pages are the first's alone again: writing takes over and copies nothing.
        let used = spaces.frames().statistics().used;
        for page in 0..8 {
            let fill = retry(space, page * PAGE_SIZE, Access::WRITE);
            assert!(matches!(fill, Fill::TakenOver | Fill::Present), "{fill:?}");
        }
        assert_eq!(spaces.frames().statistics().used, used);
    });
}

fn discarded_memory_is_as_before_the_first_touch<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        let used = spaces.frames().statistics().used;
        space.write(Gpa::new(0x1ffc), &[1; 8]).unwrap();
        space.write(Gpa::new(MODULE), &[9]).unwrap();
        assert!(matches!(
            space.discard(gpas(15 * PAGE_SIZE, 2 * PAGE_SIZE)),
            Err(EditError::NotMemory(_))
        ));
        assert!(matches!(
            space.discard(gpas(0x10, PAGE_SIZE)),
            Err(EditError::Region(RegionError::Unaligned(_)))
        ));
        space.discard(gpas(0x1000, PAGE_SIZE)).unwrap();
        assert_eq!(read(space, 0x1ffc, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
        space.discard(gpas(MODULE, PAGE_SIZE)).unwrap();
        assert_eq!(read(space, MODULE, 1), [host_byte(0)]);
        space.discard(gpas(0, 16 * PAGE_SIZE)).unwrap();
        space.discard(gpas(0, 16 * PAGE_SIZE)).unwrap();
        // Emptied tables went too: the guest has never run, so nothing had to wait.
        assert_eq!(
            (
                spaces.frames().statistics().used,
                space.tree.debt.retired.frames()
            ),
            (used, 0)
        );
        space.unmap(gpas(0, 16 * PAGE_SIZE)).unwrap();
    });
}

fn protection_holds_for_what_is_mapped_and_what_is_not<F: TestFormat>() {
    with_space::<F>(128, |_, space, cpu| {
        let page = |n: u64| gpas(n * PAGE_SIZE, PAGE_SIZE);
        space.write(Gpa::new(0x3000), b"three").unwrap();
        space.write(Gpa::new(0x4000), b"four").unwrap();
        cpu.run(space, 0x3000, 0x3000, Access::WRITE).unwrap();
        space
            .protect(gpas(0x3000, 2 * PAGE_SIZE), false, true)
            .unwrap();
        space.protect(page(4), false, false).unwrap();
        space.protect(page(5), true, false).unwrap();
        let denied = Reason::Protected { tag: 1 };
        for (gpa, access, allowed) in [
            (0x2000, Access::WRITE, true),
            (0x3000, Access::READ, true),
            (0x3000, Access::FETCH, true),
            (0x3000, Access::WRITE, false),
            (0x4000, Access::FETCH, false),
            (0x4000, Access::WRITE, false),
            (0x5000, Access::WRITE, true),
            (0x5000, Access::FETCH, false),
            (0x6000, Access::WRITE, true),
        ] {
            let result = cpu
                .run(space, gpa, gpa, access)
                .map_err(|error| error.reason);
            assert_eq!(result.is_ok(), allowed, "{gpa:#x} {access}: {result:?}");
            assert!(allowed || result == Err(denied));
        }
        assert_eq!(
            space.write(Gpa::new(0x2fff), b"xx").unwrap_err(),
            AccessError {
                gpa: Gpa::new(0x3000),
                reason: denied
            }
        );
        assert_eq!(read(space, 0x3000, 5), b"three");
        space.load(Gpa::new(0x3000), b"THREE").unwrap();
        assert!(cpu.run(space, 0x3000, 0x3000, Access::WRITE).is_err());
        space
            .protect(gpas(0x3000, 3 * PAGE_SIZE), true, true)
            .unwrap();
        for access in [Access::WRITE, Access::FETCH] {
            for page in 3..6 {
                cpu.run(space, page << 12, page << 12, access).unwrap();
            }
        }
        assert_eq!(
            (read(space, 0x3000, 5), read(space, 0x4000, 4)),
            (b"THREE".into(), b"four".into())
        );
    });
}

fn a_cut_module_still_shows_its_bytes<F: TestFormat>() {
    with_space::<F>(128, |_, space, _| {
        let all = read(space, MODULE, 4 * PAGE_SIZE as usize);
        space
            .protect(gpas(MODULE + PAGE_SIZE, PAGE_SIZE), false, true)
            .unwrap();
        space
            .protect(gpas(MODULE + 3 * PAGE_SIZE, PAGE_SIZE), false, false)
            .unwrap();
        assert_eq!(read(space, MODULE, all.len()), all);
        for page in 0..4 {
            let gpa = MODULE + page * PAGE_SIZE;
            assert_eq!(
                space.resolve(&violation(gpa, Access::WRITE)).is_ok(),
                page % 2 == 0
            );
            retry(space, gpa, Access::READ);
        }
        assert_eq!(read(space, MODULE, all.len()), all);
    });
}

fn protection_that_cannot_be_changes_nothing<F: TestFormat>() {
    with_space::<F>(128, |spaces, space, cpu| {
        space.write(Gpa::new(0x1000), b"kept").unwrap();
        let fork = space.fork().unwrap();
        let before: Vec<Region> = space.regions().copied().collect();
        spaces.frames().allowance.store(2, SeqCst);
        let short = space.protect(gpas(0x1000, PAGE_SIZE), false, false);
        spaces.frames().allowance.store(u64::MAX, SeqCst);
        assert_eq!(short, Err(EditError::Tables(Reason::OutOfFrames)));
        for range in [gpas(0x800, PAGE_SIZE), gpas(0x1000, 0x800)] {
            let unaligned = EditError::Region(RegionError::Unaligned(range));
            assert_eq!(space.protect(range, false, false), Err(unaligned));
        }
        for range in [
            gpas(15 * PAGE_SIZE, 2 * PAGE_SIZE),
            gpas(MMIO, PAGE_SIZE),
            gpas(0x5000_0000, PAGE_SIZE),
        ] {
            assert_eq!(
                space.protect(range, false, false),
                Err(EditError::NotMemory(range))
            );
        }
        assert!(before.iter().eq(space.regions()));
        assert_eq!(retry(space, 0x1000, Access::WRITE), Fill::Copied);
        finish(fork, cpu);
        // Every other page, until no more regions fit.
        let cut = |space: &mut Space<'_, Arena, F>, page: u64| {
            space.protect(gpas(page * PAGE_SIZE, PAGE_SIZE), false, true)
        };
        let failed = (0..16)
            .step_by(2)
            .chain([HIGH / PAGE_SIZE, HIGH / PAGE_SIZE + 2])
            .chain((0..2).map(|i| (ROM >> 12) + i));
        let results: Vec<_> = failed.map(|page| cut(space, page)).collect();
        assert!(results.iter().all(|result| matches!(
            result,
            Ok(()) | Err(EditError::Region(RegionError::TooMany))
        )));
        assert!(space.regions().count() <= MAX_REGIONS);
    });
}

fn freed_frames_wait_until_every_cpu_that_ran_the_guest_has_paid<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, cpu| {
        let mut other = Cpu::new(1);
        let mut idle = Cpu::<F>::new(2);
        cpu.run(space, 0, 0, Access::WRITE).unwrap();
        other.run(space, 0, 0, Access::READ).unwrap();
        let used = spaces.frames().statistics().used;
        space.discard(gpas(0, PAGE_SIZE)).unwrap();
        // The page and its three tables.
        assert_eq!(
            (
                space.tree.debt.retired.frames(),
                spaces.frames().statistics().used
            ),
            (4, used)
        );
        let _ = space.enter(cpu);
        assert_eq!((space.tree.debt.retired.frames(), cpu.flushes), (4, 1));
        let _ = space.enter(&mut idle);
        let _ = space.enter(cpu);
        assert_eq!(
            (space.tree.debt.retired.frames(), cpu.flushes, idle.flushes),
            (4, 1, 0)
        );
        let _ = space.enter(&mut other);
        assert_eq!((space.tree.debt.retired.frames(), other.flushes), (0, 1));
        assert_eq!(
            (spaces.frames().statistics().used, space.invalidations()),
            (used - 4, 2)
        );
        // A first mapping and added permission owe nothing.
        cpu.run(space, 0x1000, 0x1000, Access::WRITE).unwrap();
        assert_eq!(cpu.flushes, 1);
        // The zero page replaced does.
        cpu.run(space, 0x2000, 0x2000, Access::READ).unwrap();
        cpu.run(space, 0x2000, 0x2000, Access::WRITE).unwrap();
        assert_eq!(cpu.flushes, 2);
        let fork = space.fork().unwrap();
        let mut ending = std::mem::replace(space, fork).end();
        assert!(!ending.step(cpu, 1000));
        assert!(!ending.step(&mut idle, 1000));
        assert!(ending.step(&mut other, 100_000));
    });
}

#[test]
fn the_end_takes_bounded_steps_and_gives_back_what_was_held_alone() {
    let (frames, host) = memory(128);
    let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
    let mut space = spaces.create(36).unwrap();
    add_regions(&mut space, host);
    for page in 0..16 {
        retry(&mut space, page * PAGE_SIZE, Access::WRITE);
    }
    let fork = space.fork().unwrap();
    let used = frames.statistics().used;
    let mut cpu = Cpu::<Ept>::new(0);
    let mut ending = space.end();
    let mut steps = |ending: &mut Ending<'_, Arena>, entries| {
        let mut steps = 1;
        while !ending.step(&mut cpu, entries) {
            steps += 1;
        }
        steps
    };
    // The one entry of its root that can be in use, the root, and nothing that the fork shares.
    assert_eq!(steps(&mut ending, 1), 2);
    assert_eq!(frames.statistics().used, used - 1);
    assert_eq!(spaces.audit([&fork]), Ok(0));
    // One table of each level, by eights, and the tables: the last region ends in the fourth GiB. Of ten entries are two eights.
    let looked_at: u64 = [1, 1, 64, 64].map(|eights| eights + 1).iter().sum();
    assert_eq!(steps(&mut fork.end(), 10), looked_at.div_ceil(2));
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

/// Has the leaf of `gpa` lead to another frame. Returns the one that it led to.
fn map_instead<F: TestFormat>(space: &Space<'_, Arena, F>, gpa: u64, frame: Hpa) -> Hpa {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let top = space.tree.view(space.frames);
    let leaf = top.find(Gpa::new(gpa), |_| true).word;
    let bits = leaf.load(SeqCst);
    leaf.store(bits & !ADDRESS | frame.as_u64(), SeqCst);
    Hpa::new(bits & ADDRESS)
}

fn the_audit_finds_what_is_wrong<F: TestFormat>() {
    with_space::<F>(64, |spaces, space, _| {
        retry(space, 0, Access::WRITE);
        let (page, _, _) = space.query(Gpa::new(0)).unwrap().unwrap();
        // SAFETY: the page stays mapped.
        let extra = unsafe { FrameRef::from_raw(page) };
        let extra = spaces.frames().share(&extra).unwrap();
        let shared = Flaw::SharedWritable {
            gpa: Gpa::new(0),
            frame: page,
        };
        assert_eq!(spaces.audit([&*space]), Err(shared));
        spaces.frames().release(extra);
        let held = spaces.frames().alloc().unwrap();
        assert_eq!(spaces.audit([&*space]), Ok(1));
        // A frame of the host's in a leaf has the right count; the host's are one fewer then.
        let own = map_instead(space, RAM, held.address());
        // SAFETY: it is not mapped any more.
        let own = unsafe { Frame::from_raw(own) };
        spaces.frames().release(own);
        assert_eq!(spaces.audit([&*space]), Ok(0));
        let own = spaces.frames().alloc().unwrap().into_raw();
        assert_eq!(own, page);
        map_instead(space, RAM, own);
        assert_eq!(spaces.audit([&*space]), Ok(1));
        spaces.frames().release(held);
        retry(space, 0x1000, Access::READ);
        let zero = spaces.zero.address();
        let extra = spaces.frames().share(&spaces.zero).unwrap();
        assert!(
            matches!(spaces.audit([&*space]), Err(Flaw::Miscount(miscount)) if miscount.frame == zero)
        );
        spaces.frames().release(extra);
        let fork = space.fork().unwrap();
        // A space that is left out shows as references that nobody accounts for.
        assert!(matches!(spaces.audit([&*space]), Err(Flaw::Miscount(_))));
        finish(fork, &mut Cpu::new(3));
        // A leaf outside its region.
        let ram = *space.region_at(Gpa::new(RAM)).unwrap();
        let others = space.regions.without(ram.range).unwrap();
        let whole = *space.regions;
        *space.regions.change().unwrap() = others;
        assert_eq!(
            space.census(),
            Err(Flaw::Region {
                gpa: Gpa::new(0),
                frame: page
            })
        );
        space
            .regions
            .change()
            .unwrap()
            .add(Region {
                execute: false,
                ..ram
            })
            .unwrap();
        assert!(space.census().is_err());
        *space.regions.change().unwrap() = others;
        space
            .regions
            .change()
            .unwrap()
            .add(Region {
                memory_type: MemoryType::WriteThrough,
                ..ram
            })
            .unwrap();
        assert!(space.census().is_err());
        *space.regions.change().unwrap() = whole;
    });
}

fn running_out_of_frames_anywhere_changes_nothing_and_loses_nothing<F: TestFormat>() {
    for access in [Access::READ, Access::WRITE] {
        for (gpa, prepared) in [
            (0x1000, 0),
            (0x1000, 1),
            (0x1000, 2),
            (MODULE, 0),
            (MODULE, 1),
            (MODULE, 2),
            (HIGH, 2),
        ] {
            for allowed in 0.. {
                let mut done = false;
                with_space::<F>(256, |spaces, space, cpu| {
                    space.write(Gpa::new(0x2000), b"kept").unwrap();
                    if prepared >= 1 {
                        space.write(Gpa::new(gpa), b"before").unwrap();
                    }
                    let fork = (prepared == 2).then(|| space.fork().unwrap());
                    let before = read(space, gpa, 16);
                    let used = spaces.frames().statistics().used;
                    let held: Vec<&Space<'_, _, F>> = fork.iter().collect();
                    spaces.frames().allowance.store(allowed, SeqCst);
                    let result = space.resolve(&violation(gpa, access));
                    spaces.frames().allowance.store(u64::MAX, SeqCst);
                    match result {
                        Ok(_) => done = true,
                        Err(error) => {
                            assert_eq!(error.reason, Reason::OutOfFrames);
                            assert_eq!(spaces.frames().statistics().used, used);
                        }
                    }
                    assert_eq!(read(space, gpa, 16), before);
                    assert_eq!(read(space, 0x2000, 4), b"kept");
                    let all: Vec<&Space<'_, _, F>> = held.into_iter().chain([&*space]).collect();
                    assert_eq!(spaces.audit(all), Ok(0));
                    if let Some(fork) = fork {
                        finish(fork, cpu);
                    }
                });
                if done {
                    break;
                }
                assert!(allowed < 6);
            }
        }
    }
}

over_both! {
    ram_reads_as_zero_and_is_filled_by_the_first_write,
    filled_frames_are_zero_whoever_had_them,
    host_bytes_are_shared_until_written_and_nothing_behind_them_is_seen,
    host_bytes_next_to_a_touched_page_are_mapped_too,
    what_regions_do_not_allow_is_refused_and_nothing_changes,
    a_device_is_mapped_as_it_is,
    managed_memory_cannot_be_given_away_as_host_memory,
    copying_checks_the_whole_range_before_a_byte_moves,
    a_fork_shares_all_and_copies_what_either_writes,
    discarded_memory_is_as_before_the_first_touch,
    protection_holds_for_what_is_mapped_and_what_is_not,
    a_cut_module_still_shows_its_bytes,
    protection_that_cannot_be_changes_nothing,
    freed_frames_wait_until_every_cpu_that_ran_the_guest_has_paid,
    the_audit_finds_what_is_wrong,
    running_out_of_frames_anywhere_changes_nothing_and_loses_nothing,
}
