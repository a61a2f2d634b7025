//! Physical memory that is none: pages that the caller has, for tests, examples and tools on a host.

use super::{FrameAllocator, FrameError, PhysMem};
use crate::addr::{AddrRange, Address, Hpa, PAGE_SIZE};
use core::marker::PhantomData;

/// A page of memory, aligned like one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct PageBytes(pub [u8; PAGE_SIZE as usize]);

impl PageBytes {
    /// A page full of zeroes.
    pub const ZERO: Self = Self([0; PAGE_SIZE as usize]);
}

/// Pages of the caller's own that stand for the physical memory from a base address on.
///
/// ```
/// use offshoot::addr::Hpa;
/// use offshoot::frames::{PageBytes, PageMemory};
///
/// let mut pages = vec![PageBytes::ZERO; 16];
/// let frames = PageMemory::allocator(Hpa::new(0x10_0000), &mut pages)?;
/// // One of them holds the counts.
/// assert_eq!(frames.statistics().free, 15);
/// # Ok::<(), offshoot::frames::FrameError>(())
/// ```
#[derive(Debug)]
pub struct PageMemory<'m> {
    range: AddrRange<Hpa>,
    bytes: *mut u8,
    pages: PhantomData<&'m mut [PageBytes]>,
}

// SAFETY: it is a plain block of bytes that nobody else reaches; who may touch which of them is the business of its users.
unsafe impl Send for PageMemory<'_> {}
// SAFETY: as above.
unsafe impl Sync for PageMemory<'_> {}

impl<'m> PageMemory<'m> {
    /// Memory from `base` on. `None` where there are no pages, `base` is no start of a page, or the end is no address.
    pub fn new(base: Hpa, pages: &'m mut [PageBytes]) -> Option<Self> {
        let range = AddrRange::new(base, size_of_val(pages) as u64)?;
        (base.is_aligned(PAGE_SIZE) && !pages.is_empty()).then_some(Self {
            range,
            bytes: pages.as_mut_ptr().cast(),
            pages: PhantomData,
        })
    }

    /// An allocator over all of it.
    ///
    /// # Errors
    /// [`FrameError::NoRoomForCounts`] where [`PageMemory::new`] makes none of the pages, or there are too few.
    pub fn allocator(
        base: Hpa,
        pages: &'m mut [PageBytes],
    ) -> Result<FrameAllocator<Self>, FrameError> {
        let memory = Self::new(base, pages).ok_or(FrameError::NoRoomForCounts)?;
        let range = memory.range;
        // SAFETY: the pages are borrowed for as long as the memory lives, so nothing else uses them.
        unsafe { FrameAllocator::new(memory, [range], []) }
    }

    /// The addresses that it has.
    pub const fn range(&self) -> AddrRange<Hpa> {
        self.range
    }
}

// SAFETY: the pages are borrowed as long as the memory lives, each is aligned as its address is, and an address outside
// them ends the program.
unsafe impl PhysMem for PageMemory<'_> {
    /// # Panics
    /// Where the address is outside the memory.
    fn ptr(&self, address: Hpa) -> *mut u8 {
        assert!(
            self.range.contains(address),
            "{address:?} is outside the memory"
        );
        let offset = address.as_u64() - self.range.start().as_u64();
        // SAFETY: the offset is inside the pages.
        unsafe { self.bytes.add(offset as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_the_bytes_of_the_pages() {
        let mut pages = [PageBytes::ZERO; 3];
        let first = pages[0].0.as_ptr() as usize;
        let memory = PageMemory::new(Hpa::new(0x5000), &mut pages).unwrap();
        assert_eq!(
            memory.range(),
            AddrRange::new(Hpa::new(0x5000), 0x3000).unwrap()
        );
        for offset in [0, 1, 0xfff, 0x1000, 0x2fff] {
            let at = memory.ptr(Hpa::new(0x5000 + offset as u64));
            assert_eq!(at as usize, first + offset);
            // SAFETY: inside the pages.
            unsafe { at.write(offset as u8 | 1) };
        }
        assert_eq!((pages[0].0[0xfff], pages[2].0[0xfff]), (0xff, 0xff));
        assert_eq!((pages[1].0[0], pages[1].0[1]), (1, 0));
    }

    #[test]
    #[should_panic(expected = "outside the memory")]
    fn an_address_behind_the_pages_leads_nowhere() {
        let mut pages = [PageBytes::ZERO; 1];
        let memory = PageMemory::new(Hpa::new(0x5000), &mut pages).unwrap();
        memory.ptr(Hpa::new(0x6000));
    }

    #[test]
    fn what_can_be_no_memory_is_refused() {
        let mut pages = [PageBytes::ZERO; 2];
        let mut made = |base| PageMemory::new(Hpa::new(base), &mut pages).is_some();
        assert!(made(0x1000) && !made(0x1800) && !made(u64::MAX - 0xfff));
        assert!(PageMemory::new(Hpa::new(0x1000), &mut []).is_none());
        let none = PageMemory::allocator(Hpa::new(1), &mut pages);
        assert_eq!(none.err(), Some(FrameError::NoRoomForCounts));
    }
}
