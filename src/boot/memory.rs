//! The kernel's memory: the frame allocator over what is left of the machine's, and the kernel's own page tables.

use super::info::BootInfo;
use super::layout::{self, DIRECT_MAP, DirectMap};
use super::segments;
use core::fmt;
use offshoot::addr::{AddrRange, Address, Hpa, Hva, PAGE_SIZE, PageSize};
use offshoot::frames::{FrameAllocator, FrameError};
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

/// Puts all memory that is free under the allocator, `pool` bytes of it at most.
///
/// # Safety
/// To be called once, while the boot tables are in use.
pub unsafe fn init_frames(
    boot: &BootInfo,
    pool: Option<u64>,
) -> Result<&'static FrameAllocator<DirectMap>, FrameError> {
    let range = |start: u64, end: u64| AddrRange::new(Hpa::new(start), end.saturating_sub(start));
    let low = range(0, LOW_MEMORY);
    let image = range(layout::image_start(), layout::image_end());
    let reserved = low
        .into_iter()
        .chain(image)
        .chain(boot.modules().map(|module| module.range))
        .chain(boot.keep.iter().flatten().copied());

    let mut left = pool.unwrap_or(u64::MAX);
    let taken = reserved.clone();
    let usable = boot.memory().filter_map(move |memory| {
        let taken = taken
            .clone()
            .filter(|r| r.overlaps(memory))
            .map(AddrRange::len)
            .sum();
        let len = memory.len().min(left.saturating_add(taken));
        left = left.saturating_sub(memory.len().saturating_sub(taken));
        AddrRange::new(memory.start(), len)
    });
    // SAFETY: the firmware says that the memory is there, nothing that lives in it is left out of `reserved`, and the
    // direct map keeps the contract.
    let frames = unsafe { FrameAllocator::new(DirectMap, usable, reserved)? };
    Ok(FRAMES.call_once(|| frames))
}

/// The frames of the kernel's own tables. They are never given back.
struct TableFrames(&'static FrameAllocator<DirectMap>);

impl TableAlloc for TableFrames {
    fn alloc(&mut self) -> Option<Hpa> {
        self.0.alloc().ok().map(|frame| frame.into_raw())
    }
    fn free(&mut self, frame: Hpa) {
        if let Ok(frame) = self.0.from_entry(frame) {
            let _ = self.0.release(frame);
        }
    }
}

/// Why the kernel's tables could not be built.
pub enum TablesError {
    OutOfFrames,
    Map(Error<HostAmd64>),
}

impl fmt::Display for TablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hypervisor's own page tables: ")?;
        match self {
            Self::OutOfFrames => f.write_str("out of frames"),
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// Builds the kernel's own tables and goes over to them: the image with each part's own permissions and without the
/// guard pages of stacks, and memory at its direct map, without the image. Nothing else is mapped, the null page least
/// of all.
///
/// # Safety
/// To be called once, while the boot tables are in use, after which nothing may rely on what only they map.
pub unsafe fn init_tables(
    boot: &BootInfo,
    frames: &'static FrameAllocator<DirectMap>,
    gib_pages: bool,
) -> Result<(), TablesError> {
    // SAFETY: all tables will be frames of the allocator, whose memory the direct map shows.
    let mut tables =
        unsafe { PhysTables::<HostAmd64, _, _>::create(&DirectMap, TableFrames(frames)) }
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
    for memory in boot.memory() {
        // Whole pages, the image left out: what is below it and what is above.
        let start = memory
            .start()
            .align_up(PAGE_SIZE)
            .map_or(u64::MAX, Hpa::as_u64);
        let end = memory.start().as_u64().saturating_add(memory.len()) & !(PAGE_SIZE - 1);
        let below = (start, end.min(layout::image_start()));
        let above = (start.max(layout::image_end()), end);
        for (from, to) in [below, above] {
            if from < to {
                map(
                    DIRECT_MAP + from,
                    Hpa::new(from),
                    to - from,
                    Amd64Attr::READ_WRITE,
                )?;
            }
        }
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
    Ok(())
}
