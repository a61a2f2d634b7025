//! Where everything lies in the memory of a guest.
//!
//! ```text
//! page 0     segments    heap: the largest gap      stack   start info  tables      | data
//! unmapped   as linked   guard pages around it      64 KiB  read-only   read-only   | at a multiple of 2 MiB
//! ```
//! Data lies behind the guest's memory, where the guest asks for it.
//! GVA and GPA are the same. The block of stack, start information and tables goes into the highest gap that is wide
//! enough, which is the top of memory unless the image is linked there.

use arrayvec::ArrayVec;
use offshoot_abi::{Device, PASSTHROUGH_MAX};

use super::{Image, LoadError, SEGMENTS_MAX};
use crate::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE, PageSize};

/// Bytes of a guest's first stack.
pub const STACK_SIZE: u64 = 64 << 10;
/// GVA = GPA, so guest memory must lie in the lower half of the canonical addresses.
const MEMORY_MAX: u64 = 1 << 47;

/// What an area of guest memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaKind {
    /// A segment of the image, by its place in [`Image::segments`].
    Segment(usize),
    /// The stack.
    Stack,
    /// The page with the `StartInfo`.
    StartInfo,
    /// The page tables.
    Tables,
    /// The heap.
    Heap,
    /// The data behind the guest's memory.
    Data,
}

/// Data that a guest sees behind its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedData {
    /// Its bytes.
    pub len: u64,
    /// Whether the guest may write there.
    pub write: bool,
}

impl MappedData {
    /// Where it lies behind `memory` bytes of guest memory. At a multiple of 2 MiB, large leaves can map most of it.
    fn place(self, memory: u64) -> Option<AddrRange<Gpa>> {
        let start = memory.checked_next_multiple_of(PageSize::Size2M.bytes())?;
        let pages = self.len.checked_next_multiple_of(PAGE_SIZE)?;
        let end = start.checked_add(pages)?;
        AddrRange::new(Gpa::new(start), self.len).filter(|_| end <= MEMORY_MAX)
    }
}

/// Whole pages of guest memory with one purpose and one set of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The pages.
    pub range: AddrRange<Gpa>,
    /// What they are for.
    pub kind: AreaKind,
    /// Whether they may be read; if not, they are not mapped.
    pub read: bool,
    /// Whether they may be written.
    pub write: bool,
    /// Whether they may be executed.
    pub execute: bool,
}

/// Segments, stack, start information, tables, heap, data.
type Areas = ArrayVec<Area, { SEGMENTS_MAX + 5 }>;

/// Where everything lies in the memory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of guest memory.
    pub memory: u64,
    /// The entry point.
    pub entry: Gpa,
    /// The largest leaf of the guest's tables.
    pub largest_leaf: PageSize,
    /// The stack; the page below it is unmapped.
    pub stack: AddrRange<Gpa>,
    /// Where the `StartInfo` lies, at the start of a page.
    pub start_info: Gpa,
    /// The page tables, the root first: exactly as many as the mappings need.
    pub tables: AddrRange<Gpa>,
    /// The heap; may be empty.
    pub heap: AddrRange<Gpa>,
    /// The data behind the guest's memory, if there is any.
    pub data: Option<AddrRange<Gpa>>,
    /// The test device, behind all that; not mapped.
    pub test_device: Option<Gpa>,
    /// Devices of the machine, wherever they are; not mapped.
    pub passthrough: [Device; PASSTHROUGH_MAX],
    areas: Areas,
}

impl Plan {
    /// Plans `memory` bytes, a multiple of 4 KiB, for `image`, and `data` behind them. With `gib_pages` the CPU has 1 GiB
    /// leaves.
    ///
    /// # Errors
    /// What does not fit: the image, the data, or the memory itself.
    pub fn new(
        image: &Image<'_>,
        memory: u64,
        data: Option<MappedData>,
        gib_pages: bool,
    ) -> Result<Self, LoadError> {
        let most = MEMORY_MAX;
        let behind = data.map_or(0, |data| data.len);
        let too_much = LoadError::TooMuchMemory {
            memory: memory.saturating_add(behind),
            most,
        };
        if memory > most || data.is_some_and(|data| data.place(memory).is_none()) {
            return Err(too_much);
        }
        let contents = Contents {
            entry: image.entry(),
            segments: segment_areas(image),
            data,
            largest_leaf: if gib_pages {
                PageSize::Size1G
            } else {
                PageSize::Size2M
            },
        };
        let mut segments = contents.segments.iter();
        if let Some(outside) = segments.find(|area| end(area.range) > memory) {
            return Err(LoadError::OutsideMemory {
                segment: outside.range,
                memory,
                needed: contents.memory_needed(),
            });
        }
        contents.plan(memory).ok_or_else(|| {
            let needed = contents.memory_needed();
            needed.map_or(too_much, |needed| LoadError::TooLittleMemory {
                memory,
                needed,
            })
        })
    }

    /// Every area, by address. No two share a page; page 0 and the guard pages are in none.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// The same with a test device.
    pub fn with_test_device(mut self) -> Self {
        let behind = self.data_pages().map_or(self.memory, end);
        self.test_device = Some(Gpa::new(behind));
        self
    }

    /// The same with devices of the machine, of which there is room for so many.
    pub fn with_devices(mut self, devices: impl IntoIterator<Item = AddrRange<Hpa>>) -> Self {
        for (place, range) in self.passthrough.iter_mut().zip(devices) {
            *place = Device {
                start: range.start().as_u64(),
                len: range.len(),
            };
        }
        self
    }

    /// The pages of the data behind the guest's memory.
    pub fn data_pages(&self) -> Option<AddrRange<Gpa>> {
        self.data.and_then(pages)
    }
}

/// The whole pages of `range`, which begins with one.
fn pages(range: AddrRange<Gpa>) -> Option<AddrRange<Gpa>> {
    AddrRange::new(
        range.start(),
        range.len().checked_next_multiple_of(PAGE_SIZE)?,
    )
}

fn start(range: AddrRange<Gpa>) -> u64 {
    range.start().as_u64()
}

/// The first address after `range`, which must not hold the last address there is.
fn end(range: AddrRange<Gpa>) -> u64 {
    start(range).saturating_add(range.len())
}

fn between(start: u64, end: u64) -> Option<AddrRange<Gpa>> {
    AddrRange::new(Gpa::new(start), end.checked_sub(start)?)
}

fn segment_areas(image: &Image<'_>) -> Areas {
    let area = |(index, segment): (usize, &super::LoadSegment<'_>)| Area {
        range: segment.pages(),
        kind: AreaKind::Segment(index),
        // A present entry always allows reading.
        read: segment.read || segment.write || segment.execute,
        write: segment.write,
        execute: segment.execute,
    };
    image.segments().iter().enumerate().map(area).collect()
}

/// What a guest's memory is to hold.
struct Contents {
    entry: Gpa,
    segments: Areas,
    data: Option<MappedData>,
    largest_leaf: PageSize,
}

impl Contents {
    /// The plan, or none if there is too little memory.
    fn plan(&self, memory: u64) -> Option<Plan> {
        let mut tables = 1;
        // The tables are mapped too, so their number depends on itself. It only ever grows here, and by little.
        loop {
            let plan = self.plan_with(memory, tables)?;
            let needed = count_tables(&plan.areas, self.largest_leaf);
            if needed <= tables {
                return Some(plan);
            }
            tables = needed;
        }
    }

    /// The plan with `tables` pages of tables.
    fn plan_with(&self, memory: u64, tables: u64) -> Option<Plan> {
        let block = block_len(tables)?;
        let gap = gaps(&self.segments, memory)
            .filter(|gap| gap.len() >= block)
            .last()?;
        let top = end(gap);
        let tables = between(top - tables * PAGE_SIZE, top)?;
        let start_info = between(start(tables) - PAGE_SIZE, start(tables))?;
        let stack = between(start(start_info) - STACK_SIZE, start(start_info))?;

        let mut areas = self.segments.clone();
        add(&mut areas, stack, AreaKind::Stack, true)?;
        add(&mut areas, start_info, AreaKind::StartInfo, false)?;
        add(&mut areas, tables, AreaKind::Tables, false)?;
        let widest = gaps(&areas, memory).max_by_key(|gap| gap.len());
        let within_guards = |gap| {
            between(start(gap) + PAGE_SIZE, end(gap) - PAGE_SIZE).filter(|heap| !heap.is_empty())
        };
        let heap = match widest.and_then(within_guards) {
            Some(heap) => add(&mut areas, heap, AreaKind::Heap, true)?,
            None => between(PAGE_SIZE, PAGE_SIZE)?,
        };
        // Last: it is no memory with gaps for the others.
        let data = match self.data {
            Some(data) => {
                let range = data.place(memory)?;
                add(&mut areas, pages(range)?, AreaKind::Data, data.write)?;
                Some(range)
            }
            None => None,
        };
        Some(Plan {
            memory,
            entry: self.entry,
            largest_leaf: self.largest_leaf,
            stack,
            start_info: start_info.start(),
            tables,
            heap,
            data,
            test_device: None,
            passthrough: [Device::default(); PASSTHROUGH_MAX],
            areas,
        })
    }

    /// Memory that is enough: the image and, above it, everything else.
    fn memory_needed(&self) -> Option<u64> {
        let top = self
            .segments
            .last()
            .map_or(PAGE_SIZE, |area| end(area.range));
        let data = self
            .data
            .map_or(0, |data| data.len / PageSize::Size1G.bytes());
        // Two guesses suffice in practice; tables that map the last tables add at most one for each level, data one for each
        // level and each GiB.
        (0..=data.saturating_add(20)).find_map(|extra| {
            let tables = count_tables(&self.segments, self.largest_leaf) + extra;
            let memory = top.checked_add(block_len(tables)?)?;
            (memory <= MEMORY_MAX && self.plan(memory).is_some()).then_some(memory)
        })
    }
}

/// Puts an area that is not executable in its place.
fn add(
    areas: &mut Areas,
    range: AddrRange<Gpa>,
    kind: AreaKind,
    write: bool,
) -> Option<AddrRange<Gpa>> {
    let place = areas.partition_point(|other| other.range.start() < range.start());
    let area = Area {
        range,
        kind,
        read: true,
        write,
        execute: false,
    };
    areas.try_insert(place, area).ok()?;
    Some(range)
}

/// Bytes of guard page, stack, start information and tables.
fn block_len(tables: u64) -> Option<u64> {
    tables
        .checked_mul(PAGE_SIZE)?
        .checked_add(PAGE_SIZE + STACK_SIZE + PAGE_SIZE)
}

/// The ranges of memory above page 0 that no area holds, by address.
fn gaps(areas: &[Area], memory: u64) -> impl Iterator<Item = AddrRange<Gpa>> {
    let starts = areas
        .iter()
        .map(|area| area.range.start().as_u64())
        .chain([memory]);
    let ends = [PAGE_SIZE]
        .into_iter()
        .chain(areas.iter().map(|area| end(area.range)));
    ends.zip(starts)
        .filter_map(|(end, start)| between(end, start))
}

/// How many tables map `areas` to addresses equal to their own, with leaves as large as possible.
fn count_tables(areas: &[Area], largest_leaf: PageSize) -> u64 {
    const ROOT: u64 = 1;
    let levels = [
        (PageSize::Size2M.bytes(), largest_leaf >= PageSize::Size2M),
        (PageSize::Size1G.bytes(), largest_leaf >= PageSize::Size1G),
        (512 * PageSize::Size1G.bytes(), false),
    ];
    ROOT + levels
        .iter()
        .map(|&(span, leaf)| count_spans(areas, span, leaf))
        .sum::<u64>()
}

/// How many aligned spans of `span` bytes need a table: those that hold a mapping and are not one leaf, where a
/// leaf can be that large.
fn count_spans(areas: &[Area], span: u64, leaf: bool) -> u64 {
    let mut count = 0;
    let mut uncounted = 0; // the first span that is not counted yet
    let mut add = |first: u64, last: u64| {
        let first = first.max(uncounted);
        if first <= last {
            count += last - first + 1;
            uncounted = last + 1;
        }
    };
    for area in areas
        .iter()
        .filter(|area| area.read && !area.range.is_empty())
    {
        let (start, end) = (start(area.range), end(area.range));
        let (first, last) = (start / span, (end - 1) / span);
        let (whole_first, whole_end) = (start.div_ceil(span), end / span);
        if leaf && whole_first < whole_end {
            // Only the ends stick out of the leaves.
            if first < whole_first {
                add(first, first);
            }
            if last >= whole_end {
                add(last, last);
            }
        } else {
            add(first, last);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ElfFile, Load, R, RW, RX};
    use super::*;
    use crate::addr::Address;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn plan_of(file: &ElfFile, memory: u64, gib: bool) -> Result<Plan, LoadError> {
        plan_with_data(file, memory, 0, gib)
    }
    fn plan_with_data(
        file: &ElfFile,
        memory: u64,
        data: u64,
        gib: bool,
    ) -> Result<Plan, LoadError> {
        let bytes = file.bytes();
        let data = (data > 0).then_some(MappedData {
            len: data,
            write: false,
        });
        Plan::new(&Image::parse(&bytes).unwrap(), memory, data, gib)
    }
    fn small() -> ElfFile {
        ElfFile::new(0x200000)
            .load(Load::new(0x200000, RX).memory(0x1800))
            .load(Load::new(0x202000, R).memory(0x100))
            .load(Load::new(0x203000, RW).memory(0x5000))
    }

    /// What must hold of every plan.
    fn check(plan: &Plan) {
        let areas = plan.areas();
        for (a, b) in areas.iter().zip(&areas[1..]) {
            assert!(end(a.range) <= b.range.start().as_u64(), "{a:?} {b:?}");
        }
        for area in areas {
            assert!(area.range.start().is_aligned(PAGE_SIZE) && area.range.len() % PAGE_SIZE == 0);
            assert!(!area.range.is_empty());
            let in_memory = end(area.range) <= plan.memory;
            assert_eq!(in_memory, area.kind != AreaKind::Data, "{area:?}");
            assert!(area.range.start().as_u64() >= PAGE_SIZE, "page 0 is mapped");
        }
        let mapped = |at: u64| areas.iter().any(|r| r.range.contains(Gpa::new(at)));
        assert!(
            !mapped(plan.stack.start().as_u64() - 1),
            "no guard page below the stack"
        );
        assert_eq!(plan.stack.len(), STACK_SIZE);
        if !plan.heap.is_empty() {
            assert!(!mapped(plan.heap.start().as_u64() - 1) && !mapped(end(plan.heap)));
        }
        assert!(plan.tables.len() / PAGE_SIZE >= count_tables(areas, plan.largest_leaf));
    }

    #[test]
    fn the_usual_layout() {
        let plan = plan_of(&small(), 64 * MIB, false).unwrap();
        check(&plan);
        let kinds: Vec<_> = plan.areas().iter().map(|area| area.kind).collect();
        use AreaKind::*;
        assert_eq!(
            kinds,
            [
                Segment(0),
                Segment(1),
                Segment(2),
                Heap,
                Stack,
                StartInfo,
                Tables
            ]
        );
        assert_eq!(end(plan.tables), 64 * MIB);
        // Root, PDPT, PD, and a PT for each end of the heap.
        assert_eq!(plan.tables.len(), 5 * PAGE_SIZE);
        assert_eq!(plan.heap.start().as_u64(), 0x209000);
        assert_eq!(end(plan.heap), plan.stack.start().as_u64() - PAGE_SIZE);
        let executable: Vec<_> = plan.areas().iter().filter(|r| r.execute).collect();
        assert_eq!(executable.len(), 1);
        assert!(plan.areas().iter().all(|r| !(r.write && r.execute)));
    }

    #[test]
    fn large_sparse_guests_cost_few_tables() {
        let tables = |memory, gib| {
            let plan = plan_of(&small(), memory, gib).unwrap();
            check(&plan);
            assert!(plan.heap.len() > memory / 100 * 99);
            plan.tables.len() / PAGE_SIZE
        };
        assert_eq!(tables(GIB, false), 5);
        assert_eq!(tables(GIB, true), 5);
        // One PD for each GiB, or for the first and last.
        assert_eq!(tables(64 * GIB, false), 4 + 64);
        assert_eq!(tables(64 * GIB, true), 4 + 2);
        assert_eq!(tables(1024 * GIB, true), 1 + 2 + 2 + 2);
    }

    #[test]
    fn data_lies_behind_memory_at_a_multiple_of_2_mib() {
        for (memory, start) in [
            (64 * MIB, 64 * MIB),
            (64 * MIB + PAGE_SIZE, 66 * MIB),
            (66 * MIB - PAGE_SIZE, 66 * MIB),
        ] {
            let plan = plan_with_data(&small(), memory, 5 * PAGE_SIZE + 1, false).unwrap();
            check(&plan);
            let data = plan.data.unwrap();
            assert_eq!(
                (data.start().as_u64(), data.len()),
                (start, 5 * PAGE_SIZE + 1)
            );
            assert_eq!(plan.data_pages().unwrap().len(), 6 * PAGE_SIZE);
            let area = plan.areas().last().unwrap();
            assert_eq!(area.range, plan.data_pages().unwrap());
            assert!(area.read && !area.write && !area.execute);
            assert!(end(plan.heap) <= memory);
        }
        assert_eq!(
            plan_of(&small(), 64 * MIB, false).unwrap().data_pages(),
            None
        );
    }

    #[test]
    fn the_test_device_lies_behind_everything() {
        let plan = plan_of(&small(), 64 * MIB, false).unwrap();
        assert_eq!(plan.test_device, None);
        let device = plan.with_test_device().test_device.unwrap();
        assert_eq!(device, Gpa::new(64 * MIB));
        let plan = plan_with_data(&small(), 64 * MIB, PAGE_SIZE + 1, false).unwrap();
        let device = plan.with_test_device().test_device.unwrap();
        assert_eq!(device, Gpa::new(64 * MIB + 2 * PAGE_SIZE));
    }

    #[test]
    fn data_beyond_what_can_be_mapped_is_refused() {
        let fits = plan_with_data(&small(), MEMORY_MAX - 2 * MIB, 2 * MIB, true).unwrap();
        check(&fits);
        for data in [2 * MIB + 1, MEMORY_MAX, u64::MAX] {
            let refused = plan_with_data(&small(), MEMORY_MAX - 2 * MIB, data, true);
            assert!(matches!(refused, Err(LoadError::TooMuchMemory { .. })));
        }
        let low = ElfFile::new(0x1000).load(Load::new(0x1000, RX).memory(0x1000));
        // The memory that data needs for its tables is in what is said to be needed.
        for (data, gib) in [(8 * GIB, false), (8 * GIB + PAGE_SIZE, true), (1, true)] {
            let error = plan_with_data(&low, 0x8000, data, gib).unwrap_err();
            let LoadError::TooLittleMemory { needed, .. } = error else {
                panic!("{error:?}")
            };
            check(&plan_with_data(&low, needed, data, gib).unwrap());
            assert!(plan_with_data(&low, needed - PAGE_SIZE, data, gib).is_err());
        }
    }

    #[test]
    fn an_image_at_the_top_of_memory() {
        let file = ElfFile::new(63 * MIB).load(Load::new(63 * MIB, RX).memory(MIB));
        let plan = plan_of(&file, 64 * MIB, false).unwrap();
        check(&plan);
        assert_eq!(end(plan.tables), 63 * MIB);
        assert_eq!(plan.heap.start().as_u64(), 2 * PAGE_SIZE);
    }

    #[test]
    fn the_stack_goes_where_it_fits() {
        // 60 KiB at the top are too little.
        let file = ElfFile::new(4 * MIB).load(Load::new(4 * MIB, RX).memory(4 * MIB - 60 * 1024));
        let plan = plan_of(&file, 8 * MIB, false).unwrap();
        check(&plan);
        assert_eq!(end(plan.tables), 4 * MIB);
    }

    #[test]
    fn unmapped_segments_keep_their_place() {
        let file = small().load(Load::new(0x400000, 0).memory(0x10000));
        let plan = plan_of(&file, 16 * MIB, false).unwrap();
        let reserved = plan
            .areas()
            .iter()
            .find(|r| r.range.start().as_u64() == 0x400000)
            .unwrap();
        assert!(!reserved.read);
        assert!(!plan.heap.overlaps(reserved.range));
    }

    #[test]
    fn too_little_memory_says_how_much_is_needed() {
        let outside = plan_of(&small(), 0x205000, false).unwrap_err();
        let LoadError::OutsideMemory {
            segment,
            memory: 0x205000,
            needed: Some(needed),
        } = outside
        else {
            panic!("{outside:?}");
        };
        assert_eq!(segment.start(), Gpa::new(0x203000));
        check(&plan_of(&small(), needed, false).unwrap());
        let low = ElfFile::new(0x1000).load(Load::new(0x1000, RX).memory(0x1000));
        for memory in [0x2000, 0x8000, 0x10000, 0x14000] {
            let LoadError::TooLittleMemory { needed, .. } =
                plan_of(&low, memory, true).unwrap_err()
            else {
                panic!("{memory:#x}")
            };
            check(&plan_of(&low, needed, true).unwrap());
            assert!(
                plan_of(&low, needed - PAGE_SIZE, true).is_err(),
                "{needed:#x} is not the least"
            );
        }
        let high = ElfFile::new(0xffff_ffff_8000_0000)
            .load(Load::new(0xffff_ffff_8000_0000, RX).memory(8));
        assert!(matches!(
            plan_of(&high, GIB, true),
            Err(LoadError::OutsideMemory { needed: None, .. })
        ));
        let error = plan_of(&small(), MEMORY_MAX + PAGE_SIZE, true).unwrap_err();
        assert!(matches!(error, LoadError::TooMuchMemory { .. }));
    }

    /// Counts tables page by page instead of by arithmetic.
    fn count_slowly(areas: &[Area], largest_leaf: PageSize) -> u64 {
        let mut tables = std::collections::BTreeSet::from([(3, 0)]);
        for area in areas.iter().filter(|area| area.read) {
            let (mut at, end) = (area.range.start().as_u64(), end(area.range));
            while at < end {
                let fits = |size: &PageSize| at % size.bytes() == 0 && end - at >= size.bytes();
                let size = [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K]
                    .into_iter()
                    .filter(|size| *size <= largest_leaf)
                    .find(fits)
                    .unwrap();
                for (level, span) in [(0, 1 << 21), (1, 1 << 30), (2, 1 << 39)] {
                    if span > size.bytes() {
                        tables.insert((level, at / span));
                    }
                }
                at += size.bytes();
            }
        }
        tables.len() as u64
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(128)))]
        #[test]
        fn random_images(
            segments in proptest::collection::vec((1u64..0x4000, 1u64..0x90_0000), 1..6),
            pages in 1u64..0x30_0000,
            data in proptest::prop_oneof![proptest::strategy::Just(0), 1u64..0x2_0000_0000],
            gib: bool,
        ) {
            let mut at = 0;
            let mut file = None;
            for (skip, len) in segments {
                at += skip * PAGE_SIZE;
                file = Some(file.unwrap_or(ElfFile::new(at)).load(Load::new(at, RX).memory(len)));
                at = (at + len).next_multiple_of(PAGE_SIZE);
            }
            match plan_with_data(&file.unwrap(), pages * PAGE_SIZE, data, gib) {
                Ok(plan) => {
                    check(&plan);
                    assert_eq!(count_tables(plan.areas(), plan.largest_leaf), count_slowly(plan.areas(), plan.largest_leaf));
                }
                Err(LoadError::OutsideMemory { needed, .. }) => assert!(needed.is_some()),
                Err(LoadError::TooLittleMemory { needed, memory }) => assert!(needed > memory),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
