//! Random lives of spaces, against a model of what memory holds, on CPUs that cache what they may.

use crate::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::bomb;
use crate::ept::tests::tlb::Cpu;
use crate::ept::tests::{
    HIGH, HOST_LEN, MODULE, RAM, ROM, SHARED, TestFormat, add_regions, all_capabilities, gpas,
    host_byte, read,
};
use crate::ept::*;
use crate::frames::arena::Arena;
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    /// A guest reads, writes or fetches, through one of two linear addresses.
    Guest {
        space: usize,
        cpu: usize,
        page: usize,
        alias: bool,
        write: Option<u8>,
        fetch: bool,
    },
    /// A guest reads every page of a large block of host bytes.
    ReadBlock {
        space: usize,
        cpu: usize,
    },
    /// The host copies in, across the end of the page, for the guest or to load it.
    Host {
        space: usize,
        page: usize,
        byte: u8,
        load: bool,
    },
    Discard {
        space: usize,
        page: usize,
    },
    Fork {
        space: usize,
    },
    Harvest {
        space: usize,
    },
    Protect {
        space: usize,
        page: usize,
        pages: u64,
        write: bool,
        execute: bool,
    },
    Unmap {
        space: usize,
        page: usize,
    },
    Map {
        space: usize,
        page: usize,
    },
    Merge {
        space: usize,
    },
    End {
        space: usize,
    },
    /// The next allocations beyond so many fail.
    Scarce {
        left: u64,
    },
}

/// RAM that large pages fit in.
const BIG: u64 = 0x1_0000_0000;
/// Host bytes that a large page fits in.
const BLOCK: u64 = 0x2_0000_0000;
const BLOCK_LEN: u64 = 2 << 20;

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        12 => (index(), 0usize..2, index(), any::<bool>(), prop::option::of(any::<u8>()), any::<bool>())
            .prop_map(|(space, cpu, page, alias, write, fetch)| Step::Guest { space, cpu, page, alias, write, fetch }),
        1 => (index(), 0usize..2).prop_map(|(space, cpu)| Step::ReadBlock { space, cpu }),
        3 => (index(), index(), any::<u8>(), any::<bool>())
            .prop_map(|(space, page, byte, load)| Step::Host { space, page, byte, load }),
        1 => (index(), index()).prop_map(|(space, page)| Step::Discard { space, page }),
        2 => index().prop_map(|space| Step::Fork { space }),
        2 => index().prop_map(|space| Step::Harvest { space }),
        3 => (index(), index(), 1u64..3, any::<bool>(), any::<bool>())
            .prop_map(|(space, page, pages, write, execute)| Step::Protect { space, page, pages, write, execute }),
        1 => (index(), index()).prop_map(|(space, page)| Step::Unmap { space, page }),
        2 => (index(), index()).prop_map(|(space, page)| Step::Map { space, page }),
        1 => index().prop_map(|space| Step::Merge { space }),
        1 => index().prop_map(|space| Step::End { space }),
        1 => (0u64..6).prop_map(|left| Step::Scarce { left }),
    ]
}

/// The pages that the steps use.
const PAGES: [u64; 19] = [
    RAM,
    RAM + PAGE_SIZE,
    RAM + 5 * PAGE_SIZE,
    HIGH + PAGE_SIZE,
    HIGH + 2 * PAGE_SIZE,
    MODULE,
    MODULE + 2 * PAGE_SIZE,
    MODULE + 3 * PAGE_SIZE,
    BIG + PAGE_SIZE,
    BIG + 5 * PAGE_SIZE,
    BIG + 0x1f_e000,
    BIG + 0x20_0000,
    RAM + 2 * PAGE_SIZE,
    RAM + 3 * PAGE_SIZE,
    MODULE + PAGE_SIZE,
    ROM,
    SHARED + PAGE_SIZE,
    BLOCK + 3 * PAGE_SIZE,
    BLOCK + 4 * PAGE_SIZE,
];

fn page_address(page: usize) -> u64 {
    PAGES[page % PAGES.len()]
}

/// The host's bytes: those of the module, and the large block.
#[derive(Clone, Copy)]
struct Host {
    module: HostBytes,
    block: HostBytes,
}

/// An allocator of `frames` frames with the host's bytes behind them.
fn memory(frames: u64) -> (FrameAllocator<Arena>, Host) {
    const BASE: u64 = 0x100_0000;
    let at = (BASE + frames * PAGE_SIZE).next_multiple_of(BLOCK_LEN);
    let arena = Arena::new(BASE, (at - BASE + 2 * BLOCK_LEN) / PAGE_SIZE);
    let range = |start, len| AddrRange::new(Hpa::new(start), len).unwrap();
    let (block, module) = (range(at, BLOCK_LEN), range(at + BLOCK_LEN, HOST_LEN));
    for (range, len) in [(block, BLOCK_LEN), (module, 4 * PAGE_SIZE)] {
        for page in (0..len).step_by(PAGE_SIZE as usize) {
            let to = arena.ptr(Hpa::new(range.start().as_u64() + page));
            let bytes: [u8; PAGE_SIZE as usize] =
                core::array::from_fn(|byte| host_byte(page + byte as u64));
            // SAFETY: a page of the new arena.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
    }
    let usable = range(BASE, frames * PAGE_SIZE);
    // SAFETY: the arena is new, and the host's bytes are not in the range; nobody writes them any more.
    unsafe {
        let frames = FrameAllocator::new(arena, [usable], []).unwrap();
        let (module, block) = (HostBytes::new(module), HostBytes::new(block));
        (frames, Host { module, block })
    }
}

/// The region of one page as it was in the beginning.
fn original(gpa: u64, host: Host) -> Region {
    let range = gpas(gpa, PAGE_SIZE);
    let part = |bytes: HostBytes, offset: u64| {
        let bytes = bytes.range();
        let left = bytes.len().saturating_sub(offset).min(PAGE_SIZE);
        let start = Hpa::new(bytes.start().as_u64() + offset);
        // SAFETY: a part of the bytes.
        unsafe { HostBytes::new(AddrRange::new(start, left).unwrap()) }
    };
    let (kind, tag) = match gpa {
        BLOCK.. => (RegionKind::CopyOnWrite(part(host.block, gpa - BLOCK)), 8),
        BIG.. => (RegionKind::Ram, 0),
        ROM.. => (RegionKind::Rom, 5),
        SHARED.. => (RegionKind::ReadOnly(part(host.module, gpa - SHARED)), 4),
        MODULE.. => (RegionKind::CopyOnWrite(part(host.module, gpa - MODULE)), 3),
        HIGH.. => (RegionKind::Ram, 2),
        _ => (RegionKind::Ram, 1),
    };
    Region::new(range, kind)
        .with_tag(tag)
        .with_execute(tag != 2)
}

fn fresh_byte(gpa: u64) -> u8 {
    let host = |start: u64, len: u64| (gpa - start < len).then(|| host_byte(gpa - start));
    let byte = match gpa {
        BLOCK.. => host(BLOCK, BLOCK_LEN),
        ROM.. => None,
        SHARED.. => host(SHARED, HOST_LEN),
        MODULE.. => host(MODULE, HOST_LEN),
        _ => None,
    };
    byte.unwrap_or(0)
}

/// What a space holds where it differs from what it held in the beginning.
#[derive(Clone, Default)]
struct Model {
    bytes: BTreeMap<u64, u8>,
    /// Pages that were written since the last harvest, and pages that somebody tried to write.
    dirty: BTreeSet<u64>,
    tried: BTreeSet<u64>,
    /// Pages that may not be written, and whether those that were protected may be executed.
    protected: BTreeSet<u64>,
    execute: BTreeMap<u64, bool>,
    /// Pages in no region.
    holes: BTreeSet<u64>,
}

impl Model {
    fn may_write(&self, page: u64) -> bool {
        let never = (SHARED..BIG).contains(&page);
        !never && !self.protected.contains(&page)
    }
    fn may_execute(&self, page: u64) -> bool {
        let first = !(HIGH..MODULE).contains(&page);
        self.execute.get(&page).copied().unwrap_or(first)
    }
    fn unmapped(&mut self, page: u64) {
        self.protected.remove(&page);
        self.execute.remove(&page);
    }
}

fn model_byte(model: &Model, gpa: u64) -> u8 {
    model
        .bytes
        .get(&gpa)
        .copied()
        .unwrap_or_else(|| fresh_byte(gpa))
}

/// What CPUs can do, and whether dirty pages are told by their logs.
#[derive(Clone, Copy, Debug)]
struct Kind {
    capability: EptCapability,
    log: bool,
    policy: PagePolicy,
    /// How many pages a violation may map.
    around: u64,
    /// The tables are nested page tables, with what of the capability those leave open.
    nested: bool,
}

/// What a life came to: a difference from the model, or how it went.
#[derive(Debug)]
enum Outcome {
    Wrong(String),
    Fine(Life),
}

/// How a life went.
#[derive(Debug, Default)]
struct Life {
    /// How many INVEPTs and INVVPIDs each CPU executed.
    flushes: [u64; 2],
    /// How many of them were INVVPIDs.
    invvpids: u64,
    /// How often the log of a CPU was full.
    full: u64,
    /// What each harvest told.
    harvests: Vec<Vec<(Gpa, PageSize)>>,
}

impl<F: TestFormat> Cpu<F> {
    /// Hands what it has logged for the space that it ran `before` to that, if it is to run another one now.
    fn switch(
        &mut self,
        before: Option<Eptp>,
        now: Eptp,
        alive: &mut [(Space<'_, Arena, F>, Model)],
    ) {
        let before = before.filter(|before| *before != now);
        if let Some((space, _)) = alive.iter_mut().find(|(s, _)| Some(s.eptp()) == before) {
            self.unload(space);
        }
    }
}

/// Lives through the steps, on two CPUs of which one may leave out one INVEPT.
fn live(steps: &[Step], kind: Kind, skip: Option<(usize, u64)>) -> Outcome {
    bomb::abandon(|| match kind.nested {
        true => try_to_live::<Npt>(steps, kind, skip),
        false => try_to_live::<Ept>(steps, kind, skip),
    })
}

fn try_to_live<F: TestFormat>(steps: &[Step], kind: Kind, skip: Option<(usize, u64)>) -> Outcome {
    let capability = F::capability(kind.capability);
    let features = capability.features();
    let policy = kind.policy.on(features);
    let mut harvests = vec![];
    let (frames, host) = memory(match policy.largest() {
        PageSize::Size4K => 400,
        PageSize::Size2M => 400 + 5 * 512,
        // Two free blocks of 1 GiB.
        _ => 3 << 18,
    });
    let big = policy.largest().bytes().max(2 << 21);
    let spaces = Spaces::new(&frames, capability).unwrap();
    let mut first = spaces.create(36).unwrap();
    add_regions(&mut first, host.module);
    let block = Region::new(gpas(BLOCK, BLOCK_LEN), RegionKind::CopyOnWrite(host.block));
    for region in [
        Region::new(gpas(BIG, big), RegionKind::Ram),
        block.with_tag(8),
    ] {
        first.map(region).unwrap();
    }
    assert_eq!(first.set_page_policy(policy), policy);
    assert_eq!(kind.log && first.log_dirty(), kind.log);
    let scarce = |step: &Step| matches!(step, Step::Scarce { .. });
    let plenty = !steps.iter().any(scarce);
    assert!(first.set_around(kind.around));
    let mut alive: Vec<(Space<'_, Arena, F>, Model)> = vec![(first, Model::default())];
    // Which space each CPU ran last.
    let mut loaded: [Option<Eptp>; 2] = [None; 2];
    let mut cpus = [Cpu::new(0), Cpu::new(1)];
    if let Some((cpu, nth)) = skip {
        cpus[cpu].skip = Some(nth);
    }
    let wrong = |what: String| Outcome::Wrong(what);
    for (number, step) in steps.iter().enumerate() {
        let count = alive.len();
        match *step {
            Step::Guest {
                space,
                cpu,
                page,
                alias,
                write,
                fetch,
            } => {
                let eptp = alive[space % count].0.eptp();
                cpus[cpu].switch(loaded[cpu].replace(eptp), eptp, &mut alive);
                let (space, model) = &mut alive[space % count];
                let gpa = page_address(page) + 0x18;
                let gva = if alias { gpa + (1 << 40) } else { gpa };
                let access = match (write, fetch) {
                    (Some(_), _) => Access::WRITE,
                    (None, true) => Access::FETCH,
                    (None, false) => Access::READ,
                };
                let page = gpa - 0x18;
                let denied = access.write && !model.may_write(page)
                    || access.fetch && !model.may_execute(page);
                if write.is_some() {
                    model.tried.insert(page);
                }
                match cpus[cpu].run(space, gva, gpa, access) {
                    Ok(frame) => {
                        let at = frames.mem().ptr(Hpa::new(frame.as_u64() + 0x18));
                        if cpus[cpu].is_stale(space.eptp(), frames.mem()) {
                            return wrong(format!("stale translation on CPU {cpu} while {step:?}"));
                        }
                        // SAFETY: in the arena; what it is is the question here.
                        unsafe {
                            match write {
                                _ if denied => {
                                    return wrong(format!("{access} of protected {gpa:#x}"));
                                }
                                Some(byte) => {
                                    at.write(byte);
                                    model.bytes.insert(gpa, byte);
                                    model.dirty.insert(gpa - 0x18);
                                }
                                None if at.read() != model_byte(model, gpa) => {
                                    return wrong(format!("read {:#x} at {gpa:#x}", at.read()));
                                }
                                None => {}
                            }
                        }
                    }
                    Err(error) if error.reason == Reason::OutOfFrames => {}
                    Err(Unresolved {
                        reason: Reason::NoRegion,
                        ..
                    }) if model.holes.contains(&(gpa - 0x18)) => {}
                    Err(Unresolved {
                        reason: Reason::Denied { .. } | Reason::Protected { .. },
                        ..
                    }) if denied => {}
                    Err(error) => return wrong(error.to_string()),
                }
            }
            Step::ReadBlock { space, cpu } => {
                let eptp = alive[space % count].0.eptp();
                cpus[cpu].switch(loaded[cpu].replace(eptp), eptp, &mut alive);
                let (space, _) = &mut alive[space % count];
                for page in 0..BLOCK_LEN / PAGE_SIZE {
                    let gpa = BLOCK + page * PAGE_SIZE;
                    // Some may be gone.
                    let _ = cpus[cpu].run(space, gpa, gpa, Access::READ);
                }
            }
            Step::Host {
                space,
                page,
                byte,
                load,
            } => {
                let (space, model) = &mut alive[space % count];
                let gpa = page_address(page) + PAGE_SIZE - 2;
                let pages = [page_address(page), page_address(page) + PAGE_SIZE];
                model.tried.extend(pages);
                let done = if load {
                    space.load(Gpa::new(gpa), &[byte; 4])
                } else {
                    space.write(Gpa::new(gpa), &[byte; 4])
                };
                match done {
                    Ok(()) => {
                        model.bytes.extend((gpa..gpa + 4).map(|gpa| (gpa, byte)));
                        model.dirty.extend(pages);
                    }
                    Err(error) => match error.reason {
                        Reason::OutOfFrames => {}
                        Reason::Denied { .. } | Reason::Protected { .. }
                            if !load && !model.may_write(error.gpa.as_u64() & !0xfff) => {}
                        Reason::NoRegion
                            if model.holes.contains(&(error.gpa.as_u64() & !0xfff)) => {}
                        // The last page of a region.
                        Reason::NoRegion if page_address(page) == MODULE + 3 * PAGE_SIZE => {}
                        _ => return wrong(error.to_string()),
                    },
                }
            }
            Step::Discard { space, page } => {
                let (space, model) = &mut alive[space % count];
                let start = page_address(page);
                match space.discard(gpas(start, PAGE_SIZE)) {
                    Ok(()) => {
                        model.bytes.retain(|gpa, _| gpa - gpa % PAGE_SIZE != start);
                        model.dirty.remove(&start);
                    }
                    Err(EditError::Tables(Reason::OutOfFrames)) => {}
                    Err(EditError::NotMemory(_)) if model.holes.contains(&start) => {}
                    Err(error) => return wrong(error.to_string()),
                }
            }
            Step::Unmap { space, page } => {
                let (space, model) = &mut alive[space % count];
                let start = page_address(page);
                match space.unmap(gpas(start, PAGE_SIZE)) {
                    Ok(()) if model.holes.insert(start) => {
                        model.bytes.retain(|gpa, _| gpa - gpa % PAGE_SIZE != start);
                        model.dirty.remove(&start);
                        model.unmapped(start);
                    }
                    Err(EditError::Region(RegionError::NoSuchRegion(_)))
                        if model.holes.contains(&start) => {}
                    Err(EditError::Tables(Reason::OutOfFrames)) => {}
                    Err(EditError::Region(RegionError::TooMany)) => {}
                    other => return wrong(format!("{other:?}")),
                }
            }
            Step::Map { space, page } => {
                let (space, model) = &mut alive[space % count];
                let start = page_address(page);
                match space.map(original(start, host)) {
                    Ok(()) if model.holes.remove(&start) => {}
                    Err(RegionError::Overlaps { .. }) if !model.holes.contains(&start) => {}
                    Err(RegionError::TooMany | RegionError::Frames(FrameError::OutOfFrames)) => {}
                    other => return wrong(format!("{other:?}")),
                }
            }
            Step::Merge { space } => {
                if let Err(error) = alive[space % count].0.merge(gpas(0, 1 << 36)) {
                    return wrong(error.to_string());
                }
            }
            Step::Fork { space } if count < 5 => {
                let (space, model) = &mut alive[space % count];
                match space.fork() {
                    Ok(fork) => {
                        model.dirty.clear();
                        model.tried.clear();
                        let model = model.clone();
                        alive.push((fork, model));
                    }
                    Err(EditError::Tables(Reason::OutOfFrames)) => {}
                    Err(error) => return wrong(error.to_string()),
                }
            }
            Step::Protect {
                space,
                page,
                pages,
                write,
                execute,
            } => {
                let (space, model) = &mut alive[space % count];
                let start = page_address(page);
                let range = gpas(start, pages * PAGE_SIZE);
                let mut each = (start..start + range.len()).step_by(PAGE_SIZE as usize);
                match space.protect(range, write, execute) {
                    Ok(()) => {
                        for page in each {
                            model.execute.insert(page, execute);
                            if write {
                                model.protected.remove(&page);
                            } else {
                                model.protected.insert(page);
                            }
                        }
                    }
                    Err(EditError::Region(RegionError::TooMany)) => {}
                    Err(EditError::Tables(Reason::OutOfFrames)) => {}
                    Err(EditError::NotMemory(_))
                        if start == MODULE + 3 * PAGE_SIZE
                            || each.any(|page| model.holes.contains(&page)) => {}
                    Err(error) => return wrong(error.to_string()),
                }
            }
            Step::Harvest { space } => {
                let (space, model) = &mut alive[space % count];
                for (cpu, loaded) in cpus.iter_mut().zip(loaded) {
                    if loaded == Some(space.eptp()) {
                        cpu.unload(space);
                    }
                }
                if kind.log {
                    space.log_dirty();
                }
                let mut found = BTreeSet::new();
                let mut told = vec![];
                let memory = space.regions().filter(|region| region.kind.is_memory());
                let memory: Vec<_> = memory.map(|region| region.range).collect();
                for range in memory {
                    let harvested = space.harvest_dirty(range, |gpa, size| {
                        let pages = size.bytes() / PAGE_SIZE;
                        told.push((gpa, size));
                        found.extend((0..pages).map(|page| gpa.as_u64() + page * PAGE_SIZE));
                    });
                    if let Err(error) = harvested {
                        return wrong(error.to_string());
                    }
                }
                // Of a large page more is told than was written.
                let exact = match (features.pages_2m, plenty) {
                    (true, _) => true,
                    (_, true) => found == model.dirty,
                    _ => found.is_subset(&model.tried),
                };
                if !(model.dirty.is_subset(&found) && exact && told.is_sorted()) {
                    let dirty = &model.dirty;
                    return wrong(format!("dirty pages {found:x?} instead of {dirty:x?}"));
                }
                harvests.push(told);
                model.dirty.clear();
                model.tried.clear();
            }
            Step::End { space } if count > 1 => {
                let mut ending = alive.swap_remove(space % count).0.end();
                let [a, b] = &mut cpus;
                while !ending.step(a, 100) && !ending.step(b, 100) {}
            }
            Step::Fork { .. } | Step::End { .. } => {}
            Step::Scarce { left } => {
                frames.allowance.store(left, SeqCst);
                continue;
            }
        }
        frames.allowance.store(u64::MAX, SeqCst);
        // With this many frames it takes its time.
        if policy == PagePolicy::Large1G && number % 8 != 0 {
            continue;
        }
        if let Err(flaw) = spaces.audit(alive.iter().map(|(space, _)| space)) {
            return wrong(flaw.to_string());
        }
    }
    for (space, model) in &alive {
        for page in 0..PAGES.len() {
            let start = page_address(page);
            if model.holes.contains(&start) {
                continue;
            }
            for (i, byte) in read(space, start, PAGE_SIZE as usize)
                .into_iter()
                .enumerate()
            {
                if byte != model_byte(model, start + i as u64) {
                    return wrong(format!("{byte:#x} at {:#x} in the end", start + i as u64));
                }
            }
        }
    }
    let life = Life {
        flushes: [cpus[0].flushes, cpus[1].flushes],
        invvpids: cpus[0].invvpids + cpus[1].invvpids,
        full: cpus[0].full + cpus[1].full,
        harvests,
    };
    for (space, _) in alive {
        let mut ending = space.end();
        let [a, b] = &mut cpus;
        while !ending.step(a, 100) && !ending.step(b, 100) {}
    }
    drop(spaces);
    match frames.statistics().used {
        0 => Outcome::Fine(life),
        used => wrong(format!("{used} frames are lost")),
    }
}

/// CPUs that log dirty pages, mark them, or neither, with small pages; that log and mark them with large ones; that mark them in
/// nested page tables; and such on which no large page may be executed.
fn kinds() -> [Kind; 8] {
    let all = all_capabilities();
    let small = EptCapability {
        pages_2m: false,
        ..all
    };
    let old = EptCapability {
        accessed_dirty: false,
        ..small
    };
    let multihit = EptCapability {
        execute_large: false,
        ..all
    };
    [
        (small, true, false),
        (small, false, false),
        (old, false, false),
        (all, true, false),
        (all, false, false),
        (all, false, true),
        (multihit, true, false),
        (multihit, false, false),
    ]
    .map(|(capability, log, nested)| Kind {
        capability,
        log,
        policy: PagePolicy::Large2M,
        around: 1,
        nested,
    })
}

/// A life that must go well.
fn fine(steps: &[Step], kind: Kind) -> Result<Life, TestCaseError> {
    match live(steps, kind, None) {
        Outcome::Fine(life) => Ok(life),
        Outcome::Wrong(what) => Err(TestCaseError::fail(format!("{kind:?}: {what}"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(96)))]

    /// What a guest reads is what was last written, in any order of everything; nothing stale is ever used, counts are
    /// right after each step, what was written is told as dirty, and all frames come back.
    #[test]
    fn memory_is_what_was_last_written(steps in prop::collection::vec(step(), 1..60), cpu in 0usize..8, around in 0u32..5) {
        fine(&steps, Kind { around: 1 << around, ..kinds()[cpu] })?;
    }

    /// The log, the marks and write protection tell the same pages in the same order, whatever happens in between; and so
    /// do the log and the marks, of either format, where pages are large.
    #[test]
    fn the_three_ways_to_tell_dirty_pages_agree(
        steps in prop::collection::vec(step(), 1..80),
        around in 0u32..5,
    ) {
        let steps: Vec<_> = steps
            .into_iter()
            .filter(|step| !matches!(step, Step::Scarce { .. }))
            .collect();
        let [logged, marked, protected, large_logged, large_marked, nested, ..] =
            kinds().map(|kind| fine(&steps, Kind { around: 1 << around, ..kind }).map(|life| life.harvests));
        let logged = logged?;
        prop_assert_eq!(&logged, &marked?);
        prop_assert_eq!(&logged, &protected?);
        let large_marked = large_marked?;
        prop_assert_eq!(large_logged?, &large_marked[..]);
        prop_assert_eq!(nested?, large_marked);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(12)))]

    /// What a guest reads is what was last written, with pages of 1 GiB too.
    #[test]
    fn memory_in_gibs_is_what_was_last_written(
        steps in prop::collection::vec(step(), 1..60),
        kind in 0usize..3,
    ) {
        let (log, nested) = (kind == 1, kind == 2);
        fine(&steps, Kind { capability: all_capabilities(), log, policy: PagePolicy::Large1G, around: 1, nested })?;
    }
}

/// The log of a CPU fills, pages are written again after they were told, and a fork ends: the same is told without a log.
#[test]
fn a_full_log_loses_nothing() {
    let write = |space, page| Step::Guest {
        space,
        cpu: 0,
        page,
        alias: false,
        write: Some(1),
        fetch: false,
    };
    let mut steps: Vec<_> = (0..12).rev().map(|page| write(0, page)).collect();
    steps.push(Step::Harvest { space: 0 });
    steps.extend((0..12).map(|page| write(0, page * 5 % 12)));
    steps.push(Step::Fork { space: 0 });
    steps.extend([write(0, 3), write(1, 4), Step::End { space: 1 }]);
    // Its tables are its own again, and what was written before the fork is not told.
    steps.extend([write(0, 0), write(0, 8), Step::Harvest { space: 0 }]);
    let [logged, marked, protected, ..] = kinds().map(|kind| fine(&steps, kind).unwrap());
    assert!(logged.full >= 7 && marked.full == 0, "{logged:?}");
    assert_eq!(logged.harvests[0].len(), 12);
    assert_eq!(logged.harvests[1].len(), 3);
    assert_eq!(logged.harvests, marked.harvests);
    assert_eq!(logged.harvests, protected.harvests);
}

/// Every INVEPT is needed: with any single one left out, a CPU ends up with a translation that is stale.
#[test]
fn no_single_invept_can_be_left_out() {
    // Everything that incurs a debt, each step such that something cached becomes stale, and is there to be seen.
    let guest = |space, page, write: Option<u8>| {
        [false, true].map(|alias| Step::Guest {
            space,
            cpu: 0,
            page,
            alias,
            write,
            fetch: false,
        })
    };
    let mut steps = vec![];
    // The zero page replaced.
    steps.extend(guest(0, 0, None));
    steps.extend(guest(0, 0, Some(1)));
    // Host bytes replaced by a copy.
    steps.extend(guest(0, 5, None));
    steps.extend(guest(0, 5, Some(2)));
    // A page removed.
    steps.extend(guest(0, 1, Some(3)));
    steps.push(Step::Discard { space: 0, page: 1 });
    steps.extend(guest(0, 0, None));
    // Writing withdrawn by a fork, then the page copied by the one, and its tables.
    steps.push(Step::Fork { space: 0 });
    steps.extend(guest(0, 0, None));
    steps.extend(guest(0, 0, Some(4)));
    steps.extend(guest(1, 0, None));
    steps.extend(guest(1, 1, None));
    steps.extend(guest(1, 0, Some(5)));
    // What the host writes replaces the zero page too.
    steps.extend(guest(1, 2, None));
    steps.push(Step::Host {
        space: 1,
        page: 2,
        byte: 6,
        load: false,
    });
    steps.extend(guest(1, 2, None));
    // And on another CPU.
    steps.push(Step::Guest {
        space: 1,
        cpu: 1,
        page: 2,
        alias: false,
        write: None,
        fetch: false,
    });
    steps.push(Step::Discard { space: 1, page: 2 });
    steps.push(Step::Guest {
        space: 1,
        cpu: 1,
        page: 2,
        alias: true,
        write: Some(7),
        fetch: false,
    });
    steps.extend(guest(1, 2, None));
    // Pages written again after they were told as dirty, read in between.
    steps.extend(guest(0, 1, Some(8)));
    steps.push(Step::Harvest { space: 0 });
    steps.extend(guest(0, 1, None));
    steps.extend(guest(0, 1, Some(9)));
    steps.push(Step::Harvest { space: 0 });
    steps.extend(guest(0, 1, None));
    // A large page of which a part is given back, and given the same frame again; then it is whole.
    steps.extend(guest(0, 9, Some(10)));
    steps.push(Step::Discard { space: 0, page: 9 });
    steps.extend(guest(0, 9, Some(11)));
    steps.push(Step::Merge { space: 0 });
    steps.extend(guest(0, 9, None));
    // Neighbours add no debt and take none away.
    let around = |kind| [kind, Kind { around: 16, ..kind }];
    for kind in kinds().into_iter().flat_map(around) {
        let life = fine(&steps, kind).unwrap();
        // What a violation has dropped is known of EPT alone.
        assert!((life.invvpids >= 2) != kind.nested, "{life:?}");
        let counts = life.flushes;
        assert!(
            counts[0] >= 9 + u64::from(kind.capability.pages_2m) && counts[1] >= 1,
            "{counts:?}"
        );
        for (cpu, count) in counts.into_iter().enumerate() {
            for nth in 0..count {
                match live(&steps, kind, Some((cpu, nth))) {
                    Outcome::Wrong(what) => {
                        assert!(
                            ["stale", "read", "dirty"]
                                .iter()
                                .any(|word| what.contains(word)),
                            "{what}"
                        )
                    }
                    Outcome::Fine(_) => panic!("flush {nth} on CPU {cpu} was not missed"),
                }
            }
        }
    }
}
