//! The kernel's memory: its own page tables, and the frame allocator over what is left of the machine's.

use super::apic;
use super::console;
use super::info::BootInfo;
use super::layout::{self, BOOT_MAPPED, DIRECT_MAP, DirectMap};
use super::segments;
use core::fmt;
use offshoot::addr::{AddrRange, Address, Hpa, Hva, PAGE_SIZE, PageSize};
use offshoot::frames::{FrameAllocator, FrameError, MAX_RANGES, MemoryMap};
use offshoot::paging::{
    self, Amd64Attr, Content, Error, HostAmd64, PhysTables, TableAlloc, TableReadOps, Write,
};
use spin::Once;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

/// Memory below this is the firmware's and the boot loader's.
const LOW_MEMORY: u64 = 1 << 20;

static FRAMES: Once<FrameAllocator<DirectMap>> = Once::new();

/// The memory that is nobody's: the machine's without the image, the modules and what the boot loader left.
pub fn free(boot: &BootInfo) -> MemoryMap {
    let range = |start: u64, end: u64| AddrRange::new(Hpa::new(start), end.saturating_sub(start));
    let mut free = boot.memory.clone();
    range(0, LOW_MEMORY)
        .into_iter()
        .chain(range(layout::image_start(), layout::image_end()))
        .chain(boot.modules().map(|module| module.range))
        .chain(boot.keep.iter().flatten().copied())
        .for_each(|taken| free.remove(taken));
    free
}

/// Puts what is left of the `free` memory under the allocator, `pool` bytes of it at most.
///
/// # Safety
/// To be called once, when [`init_tables`] has been. `free` is as it has left it.
pub unsafe fn init_frames(
    mut free: MemoryMap,
    pool: Option<u64>,
) -> Result<&'static FrameAllocator<DirectMap>, FrameError> {
    if let Some(most) = pool {
        free.keep_lowest(most);
    }
    let ranges = free.ranges().count();
    if ranges > MAX_RANGES {
        log::warn!(
            "of {ranges} separate ranges of free memory only the {MAX_RANGES} largest are used"
        );
    }
    // SAFETY: the firmware says that the memory is there, nothing that lives in it is still in `free`, and the direct
    // map keeps the contract.
    let frames = unsafe { FrameAllocator::new(DirectMap, free.ranges(), [])? };
    Ok(FRAMES.call_once(|| frames))
}

/// The frames of the kernel's own tables, which stay for ever: out of free memory that the boot tables map.
struct TableFrames<'m>(&'m mut MemoryMap);

impl TableAlloc for TableFrames<'_> {
    fn alloc(&mut self) -> Option<Hpa> {
        self.0.take_below(Hpa::new(BOOT_MAPPED))
    }
    fn free(&mut self, frame: Hpa) {
        AddrRange::new(frame, PAGE_SIZE)
            .into_iter()
            .for_each(|range| self.0.add(range));
    }
}

/// Why the kernel's tables could not be built.
pub enum TablesError {
    OutOfFrames,
    TooManyRanges,
    Map(Error<HostAmd64>),
}

impl fmt::Display for TablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hypervisor's own page tables: ")?;
        match self {
            Self::OutOfFrames => f.write_str("out of frames"),
            Self::TooManyRanges => {
                f.write_str("memory and modules lie in too many separate ranges")
            }
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// Builds the kernel's own tables and goes over to them: the image with each part's own permissions and without the
/// guard pages of stacks; and at the direct map all memory without the image, with what the boot loader left wherever
/// it is. Nothing else is mapped, the null page least of all. The tables themselves come out of `free`.
///
/// # Safety
/// To be called once, while the boot tables are in use, after which nothing may rely on what only they map.
pub unsafe fn init_tables(
    boot: &BootInfo,
    free: &mut MemoryMap,
    gib_pages: bool,
) -> Result<(), TablesError> {
    // SAFETY: all tables will be free frames that the boot tables map, and the direct map to come, too.
    let mut tables =
        unsafe { PhysTables::<HostAmd64, _, _>::create(&DirectMap, TableFrames(free)) }
            .ok_or(TablesError::OutOfFrames)?;
    let largest = if gib_pages {
        PageSize::Size1G
    } else {
        PageSize::Size2M
    };
    let mut map = |start: u64, phys: Hpa, len: u64, attr: Amd64Attr| {
        let page = Content::Page {
            phys,
            attr: attr.with_global(true),
        };
        paging::map(&mut tables, Hva::new(start), len, page, largest).map_err(TablesError::Map)
    };
    for part in layout::parts() {
        let attr = Amd64Attr::READ
            .with_execute(part.execute)
            .with_write(if part.write {
                Write::Allowed
            } else {
                Write::Denied
            });
        map(part.start, part.physical(), part.len(), attr)?;
    }
    for shown in direct_map(boot)?.ranges() {
        let start = shown.start();
        map(
            DIRECT_MAP + start.as_u64(),
            start,
            shown.len(),
            Amd64Attr::READ_WRITE,
        )?;
    }
    if let Some(registers) = apic::page() {
        // The third entry of the page attribute table is for uncacheable, as the CPU has it at first.
        map(
            layout::APIC,
            registers,
            PAGE_SIZE,
            Amd64Attr::READ_WRITE.with_pat_index(3),
        )?;
    }
    if let Some(screen) = boot.screen {
        let first = screen.memory.start().align_down(PAGE_SIZE);
        let len = screen.memory.start().as_u64() - first.as_u64() + screen.memory.len();
        // The second entry is for uncacheable, unless an MTRR says that writes may be combined.
        map(
            layout::SCREEN,
            first,
            len.next_multiple_of(PAGE_SIZE),
            Amd64Attr::READ_WRITE.with_pat_index(2),
        )?;
    }
    for guard in segments::guard_pages() {
        paging::unmap(
            &mut tables,
            Hva::new(guard),
            PAGE_SIZE,
            paging::Emptied::Keep,
            |_| {},
        )
        .map_err(TablesError::Map)?;
    }
    let root = PhysFrame::containing_address(PhysAddr::new(tables.root().as_u64()));
    // SAFETY: the tables map the code that runs here, its stack and its data as the boot tables do.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    apic::set_mapped();
    if let Some(screen) = boot.screen {
        let page = screen.memory.start().as_u64() % PAGE_SIZE;
        // SAFETY: it is mapped there now, for good, and nobody else's.
        unsafe { console::show(screen.kind, (layout::SCREEN + page) as *mut u8) };
    }
    Ok(())
}

/// What the direct map shows: all that is relied on and nothing else.
fn direct_map(boot: &BootInfo) -> Result<MemoryMap, TablesError> {
    let mut shown = boot.memory.clone();
    // A boot loader may put them into memory that is not usable otherwise, or at its unaligned edge.
    boot.modules()
        .map(|module| module.range)
        .chain(boot.keep.iter().flatten().copied())
        .for_each(|left| shown.add_touched(left));
    let image = layout::image_end() - layout::image_start();
    AddrRange::new(Hpa::new(layout::image_start()), image)
        .into_iter()
        .for_each(|image| shown.remove(image));
    let exact = shown.joined() == 0 && shown.given_up() == boot.memory.given_up();
    exact.then_some(shown).ok_or(TablesError::TooManyRanges)
}
