//! The kernel's memory: the frame allocator over what is left of the machine's, and the kernel's own page tables.

use super::info::BootInfo;
use super::layout::{self, DirectMap};
use offshoot::addr::{AddrRange, Address, Hpa, PAGE_SIZE};
use offshoot::frames::{FrameAllocator, FrameError};
use spin::Once;

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
