//! Random lives of templates and their forks, against a model of what memory holds: freezes, forks, resets of both kinds,
//! prefetching, ends in any order and templates of templates, on CPUs that cache what they may, while frames run out.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::bomb;
use crate::ept::tests::tlb::Cpu;
use crate::ept::tests::{
    HIGH, HOST_LEN, MODULE, RAM, TestFormat, add_regions, all_capabilities, gpas, host_byte,
    memory, read,
};
use crate::ept::*;
use crate::frames::PhysMem;
use crate::frames::arena::Arena;
use core::ops::Range;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;

#[derive(Clone, Debug)]
enum Step {
    /// A guest reads or writes, through one of two linear addresses.
    Guest {
        space: usize,
        cpu: usize,
        page: usize,
        alias: bool,
        write: Option<u8>,
    },
    /// The host copies in, across the end of the page.
    Host {
        space: usize,
        page: usize,
        byte: u8,
    },
    /// The host writes where the guest may not.
    Load {
        space: usize,
        byte: u8,
    },
    Discard {
        space: usize,
        page: usize,
    },
    Protect {
        space: usize,
        page: usize,
        write: bool,
    },
    Harvest {
        space: usize,
    },
    AddRegion {
        space: usize,
    },
    /// A page, or the region that was added, is in no region any more.
    Unmap {
        space: usize,
        page: usize,
    },
    /// It is memory again.
    Map {
        space: usize,
        page: usize,
    },
    Merge {
        space: usize,
    },
    Freeze {
        space: usize,
    },
    Fork {
        template: usize,
        prefetched: bool,
    },
    ForkRunning {
        space: usize,
    },
    Reset {
        space: usize,
        how: Reset,
    },
    /// Everything that can go back is reset so often that idle pages go.
    Rest {
        space: usize,
    },
    Remember {
        space: usize,
    },
    End {
        space: usize,
    },
    EndTemplate {
        template: usize,
    },
    /// The next allocations beyond so many fail.
    Scarce {
        left: u64,
    },
}

/// RAM that large pages fit in.
const BIG: u64 = 0x1_0000_0000;
const ROM: u64 = 0xc000_0000;
/// Where a region can be added, under an entry of the top table that nothing else uses.
const EXTRA: u64 = 0x80_0000_0000;

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    let how = prop_oneof![Just(Reset::Warm), Just(Reset::Cold), Just(Reset::Auto)];
    prop_oneof![
        24 => (index(), 0usize..2, index(), any::<bool>(), prop::option::of(any::<u8>()))
            .prop_map(|(space, cpu, page, alias, write)| Step::Guest { space, cpu, page, alias, write }),
        4 => (index(), index(), any::<u8>()).prop_map(|(space, page, byte)| Step::Host { space, page, byte }),
        1 => (index(), any::<u8>()).prop_map(|(space, byte)| Step::Load { space, byte }),
        1 => (index(), index()).prop_map(|(space, page)| Step::Discard { space, page }),
        1 => (index(), index(), any::<bool>()).prop_map(|(space, page, write)| Step::Protect { space, page, write }),
        1 => index().prop_map(|space| Step::Harvest { space }),
        1 => index().prop_map(|space| Step::AddRegion { space }),
        1 => (index(), index()).prop_map(|(space, page)| Step::Unmap { space, page }),
        1 => (index(), index()).prop_map(|(space, page)| Step::Map { space, page }),
        1 => index().prop_map(|space| Step::Merge { space }),
        3 => index().prop_map(|space| Step::Freeze { space }),
        6 => (index(), any::<bool>()).prop_map(|(template, prefetched)| Step::Fork { template, prefetched }),
        1 => index().prop_map(|space| Step::ForkRunning { space }),
        8 => (index(), how).prop_map(|(space, how)| Step::Reset { space, how }),
        1 => index().prop_map(|space| Step::Rest { space }),
        2 => index().prop_map(|space| Step::Remember { space }),
        2 => index().prop_map(|space| Step::End { space }),
        1 => index().prop_map(|template| Step::EndTemplate { template }),
        3 => (0u64..8).prop_map(|left| Step::Scarce { left }),
    ]
}

/// The pages that the steps use.
fn page_address(page: usize) -> u64 {
    let pages = [
        RAM,
        RAM + PAGE_SIZE,
        RAM + 5 * PAGE_SIZE,
        HIGH + PAGE_SIZE,
        HIGH + 2 * PAGE_SIZE,
        MODULE,
        MODULE + 2 * PAGE_SIZE,
        MODULE + 3 * PAGE_SIZE,
        BIG + PAGE_SIZE,
        BIG + 0x1f_e000,
        BIG + 0x20_0000,
    ];
    pages[page % pages.len()]
}

/// Those of them that are RAM, and the region that can be added.
fn removable(page: usize) -> u64 {
    let pages = [0, 1, 2, 3, 4, 8, 9, 10].map(page_address);
    pages.get(page % 9).copied().unwrap_or(EXTRA)
}

fn fresh_byte(gpa: u64) -> u8 {
    if gpa >= MODULE && gpa - MODULE < HOST_LEN {
        host_byte(gpa - MODULE)
    } else {
        0
    }
}

/// What a space holds where it differs from what it held in the beginning.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    bytes: BTreeMap<u64, u8>,
    /// Pages that were written since the last harvest, fork or reset.
    dirty: BTreeSet<u64>,
    protected: Vec<u64>,
    /// Pages in no region.
    holes: BTreeSet<u64>,
    extra: bool,
    /// The number of its template.
    template: Option<usize>,
}

impl Model {
    fn byte(&self, gpa: u64) -> u8 {
        self.bytes
            .get(&gpa)
            .copied()
            .unwrap_or_else(|| fresh_byte(gpa))
    }
    fn write(&mut self, at: Range<u64>, byte: u8) {
        self.dirty.extend(at.clone().map(|gpa| gpa & !0xfff));
        self.bytes.extend(at.map(|gpa| (gpa, byte)));
    }
    /// What a fork holds at first, or after a reset.
    fn of_fork(&self, template: Option<usize>) -> Self {
        Self {
            template,
            dirty: BTreeSet::new(),
            ..self.clone()
        }
    }
    fn may_write(&self, page: u64) -> bool {
        !self.protected.contains(&page)
    }
}

struct Template<'s, F: TestFormat> {
    frozen: FrozenSpace<'s, Arena, F>,
    model: Model,
    number: usize,
    checksum: u64,
}

type Life<'s, F> = (Space<'s, Arena, F>, Model);

#[derive(Debug, Default)]
struct Tally {
    warm: u64,
    cold: u64,
    dropped: u64,
    prefetched: u64,
    deepest: u32,
    /// What each harvest told.
    harvests: Vec<Vec<u64>>,
    /// The numbers of the flushes that resets owed to the first CPU.
    owed: Vec<u64>,
}

fn end<F: TestFormat>(mut ending: Ending<'_, Arena, F>, cpus: &mut [Cpu<F>; 2]) {
    let [a, b] = cpus;
    while !ending.step(a, 100) && !ending.step(b, 100) {}
}

fn holds_what_the_model_says<F: TestFormat>(
    space: &Space<'_, Arena, F>,
    model: &Model,
) -> Result<(), String> {
    for start in (0..11).map(page_address) {
        if model.holes.contains(&start) {
            continue;
        }
        for (i, byte) in (start..).zip(read(space, start, PAGE_SIZE as usize)) {
            if byte != model.byte(i) {
                return Err(format!(
                    "{byte:#x} at {i:#x} instead of {:#x}",
                    model.byte(i)
                ));
            }
        }
    }
    for (gpa, byte) in (ROM..).zip(read(space, ROM, 16)) {
        if byte != model.byte(gpa) {
            return Err(format!("{byte:#x} at {gpa:#x} in ROM"));
        }
    }
    if space.region_at(Gpa::new(EXTRA)).is_some() != model.extra {
        return Err("regions".into());
    }
    Ok(())
}

/// What CPUs can do, and how spaces use it.
#[derive(Clone, Copy, Debug)]
struct Machine {
    capability: EptCapability,
    large: bool,
    /// Whether dirty pages are told by the CPUs' logs.
    log: bool,
    /// Whether somebody asks for dirty pages from the start.
    tracked: bool,
    /// How many pages a violation may map.
    around: u64,
    /// The tables are nested page tables, with what of the capability those leave open.
    nested: bool,
}

impl Machine {
    /// Before a space runs, or is asked for dirty pages.
    fn prepare<F: TestFormat>(&self, space: &mut Space<'_, Arena, F>) {
        assert_eq!(self.log && space.log_dirty(), self.log);
    }
    /// Whether a harvest tells just what was written.
    fn is_exact(&self) -> bool {
        !self.large && (self.tracked || self.capability.accessed_dirty)
    }
}

/// Lives through the steps. All forks are compared with the model after each reset, and all that there is in the end.
fn live(steps: &[Step], machine: Machine, skip: Option<u64>) -> Result<Tally, String> {
    bomb::abandon(|| match machine.nested {
        true => try_to_live::<Npt>(steps, machine, skip),
        false => try_to_live::<Ept>(steps, machine, skip),
    })
}

fn try_to_live<F: TestFormat>(
    steps: &[Step],
    machine: Machine,
    skip: Option<u64>,
) -> Result<Tally, String> {
    let Machine {
        capability, large, ..
    } = machine;
    let plenty = !steps.iter().any(|step| matches!(step, Step::Scarce { .. }));
    let (frames, host) = memory(if large { 900 + 8 * 512 } else { 900 });
    let spaces = Spaces::new(&frames, F::capability(capability)).unwrap();
    let mut first = spaces.create(48).unwrap();
    add_regions(&mut first, host);
    first
        .map(Region::new(gpas(BIG, 2 << 21), RegionKind::Ram))
        .unwrap();
    if large {
        first.set_page_policy(PagePolicy::Large2M);
    }
    assert!(first.set_around(machine.around));
    if machine.tracked {
        first.track_dirty();
    }
    let mut alive: Vec<Life<'_, F>> = vec![(first, Model::default())];
    let mut templates: Vec<Template<'_, F>> = vec![];
    let mut made = 0;
    let mut cpus = [Cpu::new(0), Cpu::new(1)];
    cpus[0].skip = skip;
    let mut tally = Tally::default();
    let scarce = |reason: &Reason| *reason == Reason::OutOfFrames;
    let scarce_edit = |error: &EditError| {
        matches!(
            error,
            EditError::Tables(Reason::OutOfFrames)
                | EditError::Region(RegionError::Frames(_) | RegionError::TooMany)
        )
    };
    for step in steps {
        let count = alive.len();
        let wrong = |what: &dyn std::fmt::Display| Err(format!("{what} while {step:?}"));
        let at = |space: usize| space % count.max(1);
        match *step {
            Step::Guest {
                space,
                cpu,
                page,
                alias,
                write,
            } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                machine.prepare(space);
                let page = page_address(page);
                let gpa = page + 0x18;
                let gva = if alias { gpa + (1 << 40) } else { gpa };
                let access = if write.is_some() {
                    Access::WRITE
                } else {
                    Access::READ
                };
                let done = cpus[cpu].run(space, gva, gpa, access);
                cpus[cpu].unload(space);
                match done {
                    Ok(frame) => {
                        if cpus[cpu].is_stale(space.eptp(), frames.mem()) {
                            return wrong(&"stale translation");
                        }
                        let at = frames.mem().ptr(Hpa::new(frame.as_u64() + 0x18));
                        // SAFETY: in the arena; what it is is the question here.
                        unsafe {
                            match write {
                                Some(_) if !model.may_write(page) => return wrong(&"written"),
                                Some(byte) => {
                                    at.write(byte);
                                    model.write(gpa..gpa + 1, byte);
                                }
                                None if at.read() != model.byte(gpa) => return wrong(&at.read()),
                                None => {}
                            }
                        }
                    }
                    Err(error) if scarce(&error.reason) => {}
                    Err(Unresolved {
                        reason: Reason::Denied { .. } | Reason::Protected { .. },
                        ..
                    }) if write.is_some() && !model.may_write(page) => {}
                    Err(Unresolved {
                        reason: Reason::NoRegion,
                        ..
                    }) if model.holes.contains(&page) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Host { space, page, byte } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let gpa = page_address(page) + PAGE_SIZE - 2;
                match space.write(Gpa::new(gpa), &[byte; 4]) {
                    Ok(()) => model.write(gpa..gpa + 4, byte),
                    Err(error) => match error.reason {
                        Reason::OutOfFrames => {}
                        Reason::Denied { .. } | Reason::Protected { .. }
                            if !model.may_write(error.gpa.as_u64() & !0xfff) => {}
                        Reason::NoRegion if page_address(page) == MODULE + 3 * PAGE_SIZE => {}
                        Reason::NoRegion
                            if model.holes.contains(&(error.gpa.as_u64() & !0xfff)) => {}
                        _ => return wrong(&error),
                    },
                }
            }
            Step::Load { space, byte } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                match space.load(Gpa::new(ROM + 3), &[byte; 2]) {
                    Ok(()) => model.write(ROM + 3..ROM + 5, byte),
                    Err(error) if scarce(&error.reason) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Discard { space, page } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let start = page_address(page);
                match space.discard(gpas(start, PAGE_SIZE)) {
                    Ok(()) => {
                        model.bytes.retain(|gpa, _| gpa - gpa % PAGE_SIZE != start);
                        model.dirty.remove(&start);
                    }
                    Err(error) if scarce_edit(&error) => {}
                    Err(EditError::NotMemory(_)) if model.holes.contains(&start) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Protect { space, page, write } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let start = page_address(page);
                match space.protect(gpas(start, PAGE_SIZE), write, true) {
                    Ok(()) => {
                        model.protected.retain(|page| *page != start);
                        if !write {
                            model.protected.push(start);
                        }
                    }
                    Err(error) if scarce_edit(&error) => {}
                    Err(EditError::NotMemory(_)) if model.holes.contains(&start) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Harvest { space } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                machine.prepare(space);
                let memory = space.regions().filter(|region| region.kind.is_memory());
                let memory: Vec<_> = memory.map(|region| region.range).collect();
                let mut told = vec![];
                for range in memory {
                    let page = |gpa: Gpa, _| told.push(gpa.as_u64());
                    space.harvest_dirty(range, page).unwrap();
                }
                if plenty && machine.is_exact() && !told.iter().eq(&model.dirty) {
                    let dirty = &model.dirty;
                    return wrong(&format_args!("{told:x?} told instead of {dirty:x?}"));
                }
                tally.harvests.push(told);
                model.dirty.clear();
            }
            Step::AddRegion { space } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let region = Region::new(gpas(EXTRA, PAGE_SIZE), RegionKind::Ram);
                match space.map(region) {
                    Ok(()) => {
                        model.extra = true;
                        // It is touched, so that there is a table.
                        if space.write(Gpa::new(EXTRA), &[1]).is_ok() {
                            model.dirty.insert(EXTRA);
                        }
                    }
                    Err(RegionError::Overlaps { .. }) if model.extra => {}
                    Err(RegionError::Frames(_) | RegionError::TooMany) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Unmap { space, page } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let start = removable(page);
                match space.unmap(gpas(start, PAGE_SIZE)) {
                    Ok(()) => {
                        let gone = if start == EXTRA {
                            core::mem::take(&mut model.extra)
                        } else {
                            model.holes.insert(start)
                        };
                        assert!(gone);
                        model.bytes.retain(|gpa, _| gpa - gpa % PAGE_SIZE != start);
                        model.dirty.remove(&start);
                        model.protected.retain(|page| *page != start);
                    }
                    Err(EditError::Region(RegionError::NoSuchRegion(_)))
                        if model.holes.contains(&start) || start == EXTRA && !model.extra => {}
                    Err(error) if scarce_edit(&error) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Map { space, page } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                let start = removable(page);
                if start == EXTRA {
                    continue;
                }
                let tag = match start {
                    BIG.. => 0,
                    HIGH.. => 2,
                    _ => 1,
                };
                let region = Region::new(gpas(start, PAGE_SIZE), RegionKind::Ram).with_tag(tag);
                match space.map(region.with_execute(tag != 2)) {
                    Ok(()) => assert!(model.holes.remove(&start)),
                    Err(RegionError::Overlaps { .. }) if !model.holes.contains(&start) => {}
                    Err(RegionError::Frames(_) | RegionError::TooMany) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Merge { space } if count > 0 => {
                if let Err(error) = alive[at(space)].0.merge(gpas(0, 1 << 40)) {
                    return wrong(&error);
                }
            }
            Step::Freeze { space } if count > 0 && templates.len() < 4 => {
                let (space, model) = alive.swap_remove(at(space));
                let depth = space.generation();
                match space.freeze() {
                    Ok(frozen) => {
                        assert_eq!(frozen.generation(), depth + 1);
                        tally.deepest = tally.deepest.max(depth + 1);
                        let checksum = frozen.checksum().unwrap();
                        made += 1;
                        templates.push(Template {
                            frozen,
                            model,
                            number: made,
                            checksum,
                        });
                    }
                    Err((error, _)) => return wrong(&error),
                }
            }
            Step::Fork {
                template,
                prefetched,
            } if count < 5 && !templates.is_empty() => {
                let len = templates.len();
                let template = &mut templates[template % len];
                let done = if prefetched {
                    template.frozen.fork_prefetched()
                } else {
                    template.frozen.fork().map(|fork| (fork, 0))
                };
                match done {
                    Ok((fork, pages)) => {
                        tally.prefetched += pages;
                        assert!(pages <= template.frozen.working_set());
                        assert_eq!(fork.generation(), template.frozen.generation());
                        alive.push((fork, template.model.of_fork(Some(template.number))));
                    }
                    Err(error) if scarce_edit(&error) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::ForkRunning { space } if count > 0 && count < 5 => {
                let (space, model) = &mut alive[at(space)];
                match space.fork() {
                    Ok(fork) => {
                        model.dirty.clear();
                        let model = model.of_fork(None);
                        alive.push((fork, model));
                    }
                    Err(error) if scarce_edit(&error) => {}
                    Err(error) => return wrong(&error),
                }
            }
            Step::Reset { space, how } if count > 0 => {
                let (space, model) = &mut alive[at(space)];
                if let Some(problem) = reset(space, model, &templates, how, &mut tally) {
                    return wrong(&problem);
                }
                if space.tree.debt.is_owed() {
                    tally.owed.push(cpus[0].flushes);
                }
            }
            Step::Rest { space } if count > 0 => {
                for _ in 0..IDLE + 1 {
                    let (space, model) = &mut alive[at(space)];
                    if let Some(problem) = reset(space, model, &templates, Reset::Auto, &mut tally)
                    {
                        return wrong(&problem);
                    }
                    // The debt is paid, as it would be if the guest ran.
                    let _ = space.enter(&mut cpus[0]);
                }
            }
            Step::Remember { space } if count > 0 => {
                let (space, model) = &alive[at(space)];
                for template in &mut templates {
                    let before = template.frozen.working_set();
                    let done = template.frozen.remember_working_set(space);
                    match done {
                        Ok(pages) => {
                            assert_eq!(model.template, Some(template.number));
                            assert_eq!(pages, template.frozen.working_set());
                        }
                        Err(ResetError::NotAFork) => assert_eq!(model.template, None),
                        Err(ResetError::OtherTemplate) => {
                            assert_ne!(model.template, Some(template.number))
                        }
                        Err(_) => assert_eq!(template.frozen.working_set(), before),
                    }
                }
            }
            Step::End { space } if count > 1 => {
                end(alive.swap_remove(at(space)).0.end(), &mut cpus)
            }
            Step::EndTemplate { template } if !templates.is_empty() => {
                let gone = templates.swap_remove(template % templates.len());
                end(gone.frozen.end(), &mut cpus);
            }
            Step::Scarce { left } => {
                frames.allowance.store(left, SeqCst);
                continue;
            }
            _ => {}
        }
        frames.allowance.store(u64::MAX, SeqCst);
        let all = templates.iter().map(|template| template.frozen.as_space());
        if let Err(flaw) = spaces.audit(all.chain(alive.iter().map(|(space, _)| space))) {
            return wrong(&flaw);
        }
        for (space, _) in &alive {
            let mut logged = BTreeSet::new();
            let mut records = space.tree.log.records().iter(frames.mem());
            if let Some(twice) = records.find(|record| !logged.insert(record.leaf)) {
                return wrong(&format_args!("{:#x} is logged twice", twice.page()));
            }
        }
        for template in &templates {
            if template.frozen.checksum() != Ok(template.checksum) {
                return wrong(&format_args!("template {} has changed", template.number));
            }
        }
    }
    for (space, model) in &alive {
        holds_what_the_model_says(space, model)?;
    }
    for template in &templates {
        holds_what_the_model_says(template.frozen.as_space(), &template.model)?;
    }
    for (space, _) in alive {
        end(space.end(), &mut cpus);
    }
    for template in templates {
        end(template.frozen.end(), &mut cpus);
    }
    drop(spaces);
    match frames.statistics().used {
        0 => Ok(tally),
        used => Err(format!("{used} frames are lost")),
    }
}

/// Resets a space, by its own template if that is there still, and compares it with that. Returns what is wrong.
fn reset<'s, F: TestFormat>(
    space: &mut Space<'s, Arena, F>,
    model: &mut Model,
    templates: &[Template<'s, F>],
    how: Reset,
    tally: &mut Tally,
) -> Option<String> {
    let own = |template: &&Template<'_, F>| Some(template.number) == model.template;
    let template = templates.iter().find(own).or(templates.first())?;
    match space.reset(&template.frozen, how) {
        Ok(restored) if model.template == Some(template.number) => {
            let warm = u64::from(!restored.cold);
            (tally.warm, tally.cold) = (tally.warm + warm, tally.cold + 1 - warm);
            tally.dropped += if restored.cold { 0 } else { restored.dropped };
            *model = template.model.of_fork(model.template);
            holds_what_the_model_says(space, model).err()
        }
        Ok(_) => Some("reset to another's template".into()),
        Err(ResetError::NotAFork) if model.template.is_none() => None,
        Err(ResetError::OtherTemplate) if model.template != Some(template.number) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// The steps of a fork that is written and reset in every way, through two linear addresses each time.
fn a_life_of_resets() -> Vec<Step> {
    let guest = |page, write: Option<u8>| {
        [false, true].map(|alias| Step::Guest {
            space: 0,
            cpu: 0,
            page,
            alias,
            write,
        })
    };
    let mut steps = vec![];
    steps.extend(guest(0, Some(1)));
    steps.push(Step::Freeze { space: 0 });
    steps.push(Step::Fork {
        template: 0,
        prefetched: false,
    });
    for how in [Reset::Warm, Reset::Warm, Reset::Cold, Reset::Auto] {
        for page in [0, 1, 5] {
            steps.extend(guest(page, None));
            steps.extend(guest(page, Some(7)));
        }
        steps.push(Step::Reset { space: 0, how });
        for page in [0, 1, 5] {
            steps.extend(guest(page, None));
        }
    }
    // Pages that go because they are idle.
    steps.push(Step::Remember { space: 0 });
    steps.push(Step::Rest { space: 0 });
    for page in [0, 1, 5] {
        steps.extend(guest(page, None));
        steps.extend(guest(page, Some(8)));
    }
    steps.push(Step::Reset {
        space: 0,
        how: Reset::Warm,
    });
    steps.extend(guest(0, None));
    steps.push(Step::Freeze { space: 0 });
    steps.push(Step::Fork {
        template: 1,
        prefetched: false,
    });
    steps.push(Step::Fork {
        template: 0,
        prefetched: true,
    });
    steps
}

/// Whatever a fork reads and then writes, its log has once: the life looks after each step.
#[test]
fn what_is_read_and_then_written_is_logged_once() {
    let mut steps = vec![
        Step::Freeze { space: 0 },
        Step::Fork {
            template: 0,
            prefetched: false,
        },
    ];
    for write in [None, Some(1)] {
        steps.extend((0..11).map(|page| Step::Guest {
            space: 0,
            cpu: 0,
            page,
            alias: false,
            write,
        }));
    }
    for machine in machines() {
        live(&steps, machine, None).unwrap();
    }
}

/// The steps that the properties are about are really taken.
#[test]
fn a_life_has_resets_of_both_kinds() {
    for machine in machines() {
        let tally = live(&a_life_of_resets(), machine, None).unwrap();
        assert!(tally.warm >= 4 && tally.cold == 1, "{tally:?}");
        // Without marks nobody knows that a page is idle.
        let marks = machine.capability.accessed_dirty;
        let dropped = if marks { 3 } else { 0 };
        assert_eq!((tally.dropped, tally.deepest), (dropped, 2), "{tally:?}");
        // Where write was withdrawn, a fork notes a page again when it is written.
        let noted = marks || !machine.tracked;
        assert_eq!(tally.prefetched, if noted { 3 } else { 0 });
    }
}

/// Every INVEPT that a reset owes is needed: with any single one left out, something stale is used, or a later reset misses
/// a page.
#[test]
fn no_invept_of_a_reset_can_be_left_out() {
    for machine in machines() {
        let steps = a_life_of_resets();
        let owed = live(&steps, machine, None).unwrap().owed;
        let known = machine.capability.accessed_dirty || machine.tracked;
        let expected = if known { 5 } else { 1 };
        assert_eq!(owed.len(), expected, "{owed:?}");
        for nth in owed {
            let outcome = live(&steps, machine, Some(nth));
            assert!(outcome.is_err(), "INVEPT {nth} was not missed");
        }
    }
}

/// CPUs that mark pages dirty and log them, that mark them, and that do neither, where somebody asks for dirty pages from the
/// start and where nobody does; two that mark them in nested page tables; one with large pages, and one where those may not be executed.
fn machines() -> [Machine; 8] {
    let all = all_capabilities();
    let no_marks = EptCapability {
        accessed_dirty: false,
        ..all
    };
    let multihit = EptCapability {
        execute_large: false,
        ..all
    };
    let machine = |capability, log, tracked, large| Machine {
        capability,
        large,
        log,
        tracked,
        around: AROUND,
        nested: false,
    };
    let nested = |machine| Machine {
        nested: true,
        ..machine
    };
    [
        machine(all, false, false, false),
        machine(all, true, false, false),
        machine(no_marks, false, true, false),
        machine(no_marks, false, false, false),
        nested(machine(all, false, false, false)),
        nested(machine(all, false, false, true)),
        machine(all, false, false, true),
        machine(multihit, false, false, true),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]

    /// In any order of everything a fork holds what its template held and what it has written since, a reset brings back
    /// exactly the first, no template ever changes, nothing stale is used, and all frames come back.
    #[test]
    fn forks_hold_their_own_and_templates_never_change(
        steps in prop::collection::vec(step(), 1..90),
        machine in 0usize..8,
        around in 0u32..5,
    ) {
        let outcome = live(&steps, Machine { around: 1 << around, ..machines()[machine] }, None);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
    }

    /// The log, the marks and write protection tell the same pages of templates' forks, whatever they are given ahead
    /// of need, and before and after resets of any kind.
    #[test]
    fn the_three_ways_to_tell_what_forks_wrote_agree(
        steps in prop::collection::vec(step(), 1..90),
        around in 0u32..5,
    ) {
        let steps: Vec<_> = steps
            .into_iter()
            .filter(|step| !matches!(step, Step::Scarce { .. }))
            .collect();
        let [marked, logged, protected, _, nested, ..] = machines()
            .map(|machine| live(&steps, Machine { around: 1 << around, ..machine }, None));
        let marked = marked.map_err(TestCaseError::fail)?;
        let (logged, protected) = (logged.map_err(TestCaseError::fail)?, protected.map_err(TestCaseError::fail)?);
        prop_assert_eq!(&marked.harvests, &logged.harvests);
        prop_assert_eq!(&marked.harvests, &protected.harvests);
        prop_assert_eq!(&marked.harvests, &nested.map_err(TestCaseError::fail)?.harvests);
        // What was told and what a reset has to copy back do not depend on each other.
        prop_assert_eq!((marked.warm, marked.cold), (protected.warm, protected.cold));
    }
}
