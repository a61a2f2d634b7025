//! Random lives of guest-physical address spaces in very little memory: guests touch pages through a CPU that caches what it
//! may, and report the violations; spaces are edited, frozen, forked, reset and ended. A model knows every byte. After each
//! few steps all tables and counts are audited, and in the end every frame has come back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use offshoot::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE};
use offshoot::ept::{
    Access, CpuId, EditError, EptCapability, Eptp, FrozenSpace, HostBytes, Invalidate, Reason,
    Region, RegionError, RegionKind, Reset, ResetError, Resolution, Space, Spaces, Violation,
};
use offshoot::frames::{FrameAllocator, PageBytes, PageMemory, PhysMem};

use crate::Bytes;

const PAGES: usize = 160;
const BASE: u64 = 0x10_0000;
const RAM: u64 = 0;
const RAM_PAGES: u64 = 8;
/// The host's pages, which the first two pages of the memory stand for: the second is only begun.
const MODULE: u64 = 0x4000_0000;
const MODULE_LEN: u64 = PAGE_SIZE + 0x234;
const ROM: u64 = 0x80_0000_0000;
/// Bits of an EPT leaf (SDM "Format of an EPT Page-Table Entry").
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

type Memory<'m> = PageMemory<'m>;

thread_local! {
    static MEMORY: RefCell<Vec<PageBytes>> = RefCell::new(vec![PageBytes::ZERO; PAGES]);
}

/// A cached translation: the frame, and whether it may be written.
type Cached = (u64, bool);

/// A CPU. What it caches by a linear address and by a guest-physical one are two things.
struct Cpu {
    id: CpuId,
    linear: HashMap<(u64, u64), Cached>,
    physical: HashMap<(u64, u64), Cached>,
}

// SAFETY: no real CPU runs on the tables; the model drops what it is told to.
unsafe impl Invalidate for Cpu {
    fn cpu(&self) -> CpuId {
        self.id
    }
    fn invept(&mut self, eptp: Eptp) {
        let root = eptp.root().as_u64();
        self.linear.retain(|(of, _), _| *of != root);
        self.physical.retain(|(of, _), _| *of != root);
    }
    fn invvpid(&mut self, eptp: Eptp) {
        let root = eptp.root().as_u64();
        self.linear.retain(|(of, _), _| *of != root);
    }
}

/// What the tables say of an address: the frame, whether it may be written, and the leaf.
fn walk<'m>(
    memory: &'m Memory<'_>,
    space: &Space<'_, Memory<'_>>,
    gpa: u64,
) -> Option<(Cached, &'m AtomicU64)> {
    let (mut write, mut last) = (true, None);
    for step in space.path(Gpa::new(gpa)) {
        write &= step.bits & 2 != 0;
        last = Some(step);
    }
    let leaf = last.filter(|step| step.level == 1 && step.bits & 1 != 0)?;
    let at = Hpa::new(leaf.table.as_u64() + leaf.index as u64 * 8);
    // SAFETY: an entry of a table of a space that is alive.
    let word = unsafe { AtomicU64::from_ptr(memory.ptr(at).cast()) };
    Some(((leaf.bits & FRAME, write), word))
}

impl Cpu {
    /// The frame that a guest's access to `gpa` reaches, through one of two linear addresses. Violations are reported until
    /// there is none.
    fn access(
        &mut self,
        memory: &Memory<'_>,
        space: &mut Space<'_, Memory<'_>>,
        (gpa, alias): (u64, bool),
        write: bool,
    ) -> Result<u64, Reason> {
        let root = space.enter(self).eptp().root().as_u64();
        let page = gpa & !0xfff;
        let linear = (root, page | u64::from(alias));
        for _ in 0..3 {
            let cached = self
                .linear
                .get(&linear)
                .or(self.physical.get(&(root, page)));
            let found = walk(memory, space, page);
            if let Some(&(frame, may)) = cached
                && (may || !write)
            {
                // What is cached may lack a permission that was added, and nothing else.
                let now = found.map(|(now, _)| now);
                assert!(
                    now.is_some_and(|(there, granted)| there == frame && granted >= may),
                    "{gpa:#x}: {frame:#x} is cached, {now:x?} is mapped"
                );
            }
            if let Some((cached, leaf)) = found
                && (cached.1 || !write)
            {
                self.linear.insert(linear, cached);
                self.physical.insert((root, page), cached);
                if space.eptp().accessed_dirty() {
                    leaf.fetch_or(ACCESSED | if write { DIRTY } else { 0 }, Relaxed);
                }
                return Ok(cached.0);
            }
            self.linear.remove(&linear);
            self.physical.remove(&(root, page));
            let access = if write { Access::WRITE } else { Access::READ };
            match space.resolve(&Violation::new(Gpa::new(gpa), access)) {
                Ok(Resolution::Retry(_)) => {}
                Ok(device) => panic!("{device:?} at {gpa:#x}"),
                Err(error) => return Err(error.reason),
            }
            let _ = space.enter(self);
        }
        panic!("{gpa:#x} violates again and again");
    }
}

/// What a space holds where it differs from what it held in the beginning.
#[derive(Clone, Default)]
struct Model {
    bytes: BTreeMap<u64, u8>,
    dirty: BTreeSet<u64>,
    protected: BTreeSet<u64>,
    holes: BTreeSet<u64>,
    /// The number of its template.
    template: Option<u32>,
}

fn module_byte(at: u64) -> u8 {
    (at % 251) as u8 | 1
}

impl Model {
    fn byte(&self, gpa: u64) -> u8 {
        let module = gpa.wrapping_sub(MODULE);
        let first = if module < MODULE_LEN {
            module_byte(module)
        } else {
            0
        };
        self.bytes.get(&gpa).copied().unwrap_or(first)
    }
    fn write(&mut self, gpa: u64, bytes: u64, byte: u8) {
        for at in gpa..gpa + bytes {
            self.bytes.insert(at, byte);
            self.dirty.insert(at & !0xfff);
        }
    }
    fn of_fork(&self, template: Option<u32>) -> Self {
        Self {
            template,
            dirty: BTreeSet::new(),
            ..self.clone()
        }
    }
    fn forget(&mut self, page: u64) {
        self.bytes.retain(|gpa, _| gpa & !0xfff != page);
        self.dirty.remove(&page);
    }
    /// Whether this is why an access to the page fails.
    fn explains(&self, page: u64, write: bool, reason: &Reason) -> bool {
        match reason {
            Reason::OutOfFrames => true,
            Reason::NoRegion => self.holes.contains(&page),
            Reason::Denied { .. } | Reason::Protected { .. } => {
                write && (self.protected.contains(&page) || page == ROM)
            }
            _ => false,
        }
    }
}

fn page(number: u8) -> u64 {
    match number % 12 {
        n @ 0..8 => RAM + u64::from(n) * PAGE_SIZE,
        n @ 8..11 => MODULE + u64::from(n - 8) * PAGE_SIZE,
        _ => ROM,
    }
}

fn pages(start: u64, pages: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa::new(start), pages * PAGE_SIZE).expect("a range of the guest's")
}

fn is_scarce(error: &EditError) -> bool {
    matches!(
        error,
        EditError::Tables(Reason::OutOfFrames) | EditError::Region(RegionError::Frames(_))
    )
}

fn holds<M: PhysMem>(space: &Space<'_, M>, model: &Model) {
    for start in (0..12).map(page).filter(|page| !model.holes.contains(page)) {
        let mut expected = [0; PAGE_SIZE as usize];
        let module = start.wrapping_sub(MODULE);
        for (at, byte) in (module..MODULE_LEN).zip(expected.iter_mut()) {
            *byte = module_byte(at);
        }
        for (gpa, byte) in model.bytes.range(start..start + PAGE_SIZE) {
            expected[(gpa - start) as usize] = *byte;
        }
        let mut bytes = [0xcc; PAGE_SIZE as usize];
        let read = space.read(Gpa::new(start), &mut bytes);
        assert!(read.is_ok(), "{read:?}");
        assert_eq!(bytes, expected, "{start:#x}");
    }
}

struct Template<'s, 'm> {
    frozen: FrozenSpace<'s, Memory<'m>>,
    model: Model,
    number: u32,
}

/// Lives through the steps that `input` lists.
pub fn run(input: &[u8]) {
    MEMORY.with_borrow_mut(|memory| live(memory, Bytes(input)));
}

fn live(memory: &mut [PageBytes], mut steps: Bytes<'_>) {
    let [size, how] = steps.take();
    let (module, rest) = memory.split_at_mut(2);
    for (at, byte) in (0..).zip(module.iter_mut().flat_map(|page| page.0.iter_mut())) {
        *byte = module_byte(at);
    }
    let used = (24 + usize::from(size) / 2).min(rest.len()) + 2;
    let Some(memory) = PageMemory::new(Hpa::new(BASE), &mut memory[..used]) else {
        return;
    };
    let usable = memory.range();
    let host = AddrRange::new(usable.start(), 2 * PAGE_SIZE).expect("two pages");
    // SAFETY: the memory is this function's; of the host's pages no frames are made.
    let frames = unsafe { FrameAllocator::new(memory, [usable], [host]) }.expect("room for counts");
    let memory = frames.mem();
    let capability = EptCapability {
        accessed_dirty: how & 1 != 0,
        ..EptCapability::typical()
    };
    let Ok(spaces) = Spaces::new(&frames, capability) else {
        return;
    };
    let mut cpus = [0, 1].map(|number| Cpu {
        id: CpuId::new(number).expect("a CPU's number"),
        linear: HashMap::new(),
        physical: HashMap::new(),
    });
    let mut alive = vec![];
    let mut templates: Vec<Template<'_, '_>> = vec![];
    let (mut made, mut scarce) = (0, false);
    if let Ok(mut first) = spaces.create(48) {
        // SAFETY: nobody writes the host's pages any more.
        let bytes =
            unsafe { HostBytes::new(AddrRange::new(host.start(), MODULE_LEN).expect("it")) };
        let mut map = |start, len, kind| {
            let done = first.map(Region::new(pages(start, len), kind));
            assert!(done.is_ok(), "{done:?}");
        };
        map(RAM, RAM_PAGES, RegionKind::Ram);
        map(MODULE, 3, RegionKind::CopyOnWrite(bytes));
        map(ROM, 1, RegionKind::Rom);
        if how & 2 != 0 {
            first.track_dirty();
        }
        alive.push((first, Model::default()));
    }
    let exact = how & 3 != 0;
    let mut count = 0;
    while !steps.is_empty() && count < 64 {
        count += 1;
        let [kind, which, at, byte] = steps.take();
        let living = alive.len();
        let place = usize::from(which & 0x3f) % living.max(1);
        let cpu = &mut cpus[usize::from(which >> 6 & 1)];
        let start = page(at);
        let Some((space, model)) = alive.get_mut(place) else {
            break;
        };
        match kind % 32 {
            0..12 => {
                let (gpa, write) = (start + u64::from(byte) * 16, kind & 1 != 0);
                match cpu.access(memory, space, (gpa, which & 0x80 != 0), write) {
                    Ok(frame) => {
                        assert!(!model.holes.contains(&start));
                        let at = memory.ptr(Hpa::new(frame + (gpa & 0xfff)));
                        // SAFETY: in the memory; what it is is the question here.
                        unsafe {
                            if write {
                                assert!(!model.protected.contains(&start) && start != ROM);
                                at.write(byte);
                                model.write(gpa, 1, byte);
                            } else {
                                assert_eq!(at.read(), model.byte(gpa), "{gpa:#x}");
                            }
                        }
                    }
                    Err(reason) => assert!(model.explains(start, write, &reason), "{reason}"),
                }
            }
            // Across the end of the page.
            12 | 13 => match space.write(Gpa::new(start + PAGE_SIZE - 2), &[byte; 4]) {
                Ok(()) => model.write(start + PAGE_SIZE - 2, 4, byte),
                Err(error) => {
                    let page = error.gpa.as_u64() & !0xfff;
                    // Behind each of the three areas nothing is.
                    let behind = [
                        RAM_PAGES * PAGE_SIZE,
                        MODULE + 3 * PAGE_SIZE,
                        ROM + PAGE_SIZE,
                    ];
                    let nothing = error.reason == Reason::NoRegion && behind.contains(&page);
                    assert!(
                        nothing || model.explains(page, true, &error.reason),
                        "{error}"
                    );
                }
            },
            14 => match space.load(Gpa::new(ROM + u64::from(byte)), &[byte; 2]) {
                Ok(()) => model.write(ROM + u64::from(byte), 2, byte),
                Err(error) => assert!(error.reason == Reason::OutOfFrames, "{error}"),
            },
            15 => match space.discard(pages(start, 1)) {
                Ok(()) => model.forget(start),
                Err(EditError::NotMemory(_)) if model.holes.contains(&start) => {}
                Err(error) => assert!(is_scarce(&error), "{error}"),
            },
            16 => match space.protect(pages(start, 1), byte & 1 != 0, true) {
                Ok(()) => {
                    model.protected.remove(&start);
                    if byte & 1 == 0 {
                        model.protected.insert(start);
                    }
                }
                Err(EditError::NotMemory(_)) if model.holes.contains(&start) => {}
                Err(error) => assert!(is_scarce(&error), "{error}"),
            },
            17 => {
                let memory: Vec<_> = space.regions().map(|region| region.range).collect();
                let mut told = vec![];
                for range in memory {
                    let done = space.harvest_dirty(range, |gpa, _| told.push(gpa.as_u64()));
                    assert!(done.is_ok(), "{done:?}");
                }
                assert!(
                    scarce || !exact || told.iter().eq(&model.dirty),
                    "{told:x?} instead of {:x?}",
                    model.dirty
                );
                model.dirty.clear();
            }
            18 => {
                let start = page(at % 8);
                match space.unmap(pages(start, 1)) {
                    Ok(()) => {
                        model.forget(start);
                        model.protected.remove(&start);
                        assert!(model.holes.insert(start));
                    }
                    Err(EditError::Region(RegionError::NoSuchRegion(_)))
                        if model.holes.contains(&start) => {}
                    Err(error) => assert!(is_scarce(&error), "{error}"),
                }
            }
            19 => {
                let start = page(at % 8);
                match space.map(Region::new(pages(start, 1), RegionKind::Ram)) {
                    Ok(()) => assert!(model.holes.remove(&start)),
                    Err(RegionError::Overlaps { .. }) if !model.holes.contains(&start) => {}
                    Err(error) => assert!(matches!(error, RegionError::Frames(_)), "{error}"),
                }
            }
            20 => {
                let done = space.merge(pages(0, 1 << 28));
                assert!(done.is_ok(), "{done:?}");
            }
            21 | 22 if templates.len() < 3 => {
                let (space, model) = alive.swap_remove(place);
                match space.freeze() {
                    Ok(frozen) => {
                        made += 1;
                        templates.push(Template {
                            frozen,
                            model,
                            number: made,
                        });
                    }
                    Err((error, _)) => panic!("{error}"),
                }
                // Who has no space left begins with a fork.
                if alive.is_empty() {
                    fork(&templates, usize::from(at), false, &mut alive, &mut scarce);
                }
            }
            23 | 24 if living < 5 => {
                fork(
                    &templates,
                    usize::from(at),
                    kind % 2 != 0,
                    &mut alive,
                    &mut scarce,
                );
            }
            25 if living < 5 => match space.fork() {
                Ok(fork) => {
                    model.dirty.clear();
                    let model = model.of_fork(None);
                    alive.push((fork, model));
                }
                Err(error) => {
                    scarce = true;
                    assert!(is_scarce(&error), "{error}");
                }
            },
            26..29 => {
                let how = [Reset::Warm, Reset::Cold, Reset::Auto][usize::from(byte % 3)];
                let own = |template: &&Template<'_, '_>| Some(template.number) == model.template;
                let Some(template) = templates.iter().find(own).or(templates.first()) else {
                    continue;
                };
                let is_own = Some(template.number) == model.template;
                match space.reset(&template.frozen, how) {
                    Ok(_) => {
                        assert!(is_own);
                        *model = template.model.of_fork(model.template);
                        holds(space, model);
                    }
                    Err(ResetError::NotAFork) => assert!(model.template.is_none()),
                    Err(ResetError::OtherTemplate) => assert!(!is_own),
                    Err(error) => {
                        assert!(is_own && matches!(error, ResetError::Frames(_)), "{error}");
                    }
                }
            }
            29 => {
                let own =
                    |template: &&mut Template<'_, '_>| Some(template.number) == model.template;
                if let Some(template) = templates.iter_mut().find(own) {
                    let _ = template.frozen.remember_working_set(space);
                }
            }
            30 if living > 1 => {
                let (space, _) = alive.swap_remove(place);
                end(space.end(), &mut cpus);
            }
            31 if !templates.is_empty() => {
                let template = templates.swap_remove(usize::from(at) % templates.len());
                end(template.frozen.end(), &mut cpus);
            }
            _ => {}
        }
        scarce |= frames.statistics().free == 0;
        if count % 4 == 0 {
            audit(&spaces, &alive, &templates);
        }
    }
    audit(&spaces, &alive, &templates);
    for (space, model) in &alive {
        holds(space, model);
    }
    for template in &templates {
        holds(template.frozen.as_space(), &template.model);
    }
    for (space, _) in alive {
        end(space.end(), &mut cpus);
    }
    for template in templates {
        end(template.frozen.end(), &mut cpus);
    }
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn fork<'s, 'm>(
    templates: &[Template<'s, 'm>],
    which: usize,
    prefetched: bool,
    alive: &mut Vec<(Space<'s, Memory<'m>>, Model)>,
    scarce: &mut bool,
) {
    let Some(template) = templates.get(which % templates.len().max(1)) else {
        return;
    };
    let fork = match prefetched {
        true => template.frozen.fork_prefetched().map(|(fork, _)| fork),
        false => template.frozen.fork(),
    };
    match fork {
        Ok(fork) => alive.push((fork, template.model.of_fork(Some(template.number)))),
        Err(error) => {
            *scarce = true;
            assert!(is_scarce(&error), "{error}");
        }
    }
}

fn end<M: PhysMem>(mut ending: offshoot::ept::Ending<'_, M>, [a, b]: &mut [Cpu; 2]) {
    while !ending.step(a, 100) && !ending.step(b, 100) {}
}

fn audit<'s, 'm>(
    spaces: &Spaces<'_, Memory<'m>>,
    alive: &[(Space<'s, Memory<'m>>, Model)],
    templates: &[Template<'s, 'm>],
) {
    let templates = templates.iter().map(|template| template.frozen.as_space());
    let found = spaces.audit(templates.chain(alive.iter().map(|(space, _)| space)));
    assert_eq!(found, Ok(0));
}
