//! Dirty pages of guests: the CPU's log of them while a guest runs, and what is told of them.
//!
//! A CPU that keeps a log has one page for it, into which it notes for whichever guest runs. What it has noted goes to the
//! guest's space when the log is full, when somebody asks for dirty pages, and when the guest leaves the CPU. Nothing is
//! logged for a guest before somebody has asked for the first time.

use super::backend::{Backend, Cpu};
use super::machine::Machine;
use super::run::Running;
use super::stats::RunStats;
use super::{Guest, Host};
use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE, PageSize};
use crate::ept::{EditError, Space};
use crate::frames::PhysMem;
use crate::paging::Nested;

/// Tells `page` of the dirty pages in the range, and counts them.
fn harvest<M: PhysMem, F: Nested>(
    space: &mut Space<'_, M, F>,
    stats: &mut RunStats,
    range: AddrRange<Gpa>,
    mut page: impl FnMut(Gpa, PageSize),
) -> Result<u64, EditError> {
    let mut harvests = stats.harvests;
    harvests.begin();
    let found = space.harvest_dirty(range, |gpa, size| {
        harvests.page(gpa, size);
        page(gpa, size);
    })?;
    stats.harvests = harvests;
    Ok(found)
}

/// Sets the bit of each page of `size` at `page` in a bitmap whose bit 0 is of the page at `first`.
fn set_bits(bitmap: &mut [u8], first: Gpa, page: Gpa, size: PageSize) {
    for offset in (0..size.bytes()).step_by(PAGE_SIZE as usize) {
        let at = page.as_u64() + offset;
        if let Some(distance) = at.checked_sub(first.as_u64())
            && let Some(byte) = bitmap.get_mut((distance / PAGE_SIZE / 8) as usize)
        {
            *byte |= 1 << (distance / PAGE_SIZE % 8);
        }
    }
}

impl<M: PhysMem, B: Backend> Guest<'_, M, B> {
    /// Tells `page` of each page in the range that was written, by the guest or for it, since it was last told; see
    /// [`Space::harvest_dirty`]. From the first call on the CPU keeps a log of them, where it can: later calls cost in
    /// proportion to what was written.
    ///
    /// # Errors
    /// As of [`Space::harvest_dirty`].
    pub fn harvest_dirty(
        &mut self,
        machine: &Machine<'_, M, B>,
        range: AddrRange<Gpa>,
        page: impl FnMut(Gpa, PageSize),
    ) -> Result<u64, EditError> {
        let (space, stats) = self.dirty_parts();
        if machine.logs {
            space.log_dirty();
        }
        harvest(space, stats, range, page)
    }
}

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Hands what the CPU has logged to the space.
    pub(super) fn drain_pml(&mut self) -> Result<(), P::Error> {
        self.processor.drain_log(self.frames, self.space)
    }

    /// Sets the bits of the dirty pages from `first` on in `bitmap`. `None`: not all of these pages, so many, are memory.
    pub(super) fn harvest_bitmap(
        &mut self,
        first: Gpa,
        pages: u64,
        bitmap: &mut [u8],
    ) -> Result<Option<()>, P::Error> {
        let range = pages.checked_mul(PAGE_SIZE);
        let range = range.and_then(|len| AddrRange::new(first, len));
        let Some(range) = range.filter(|_| first.is_aligned(PAGE_SIZE)) else {
            return Ok(None);
        };
        self.drain_pml()?;
        if self.processor.can_log() && !self.space.logs_dirty() && self.space.log_dirty() {
            self.processor.begin_log()?;
        }
        let set = |page, size| set_bits(bitmap, first, page, size);
        Ok(harvest(self.space, self.stats, range, set).ok().map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::stats::Harvests;

    #[test]
    fn bits_are_set_for_what_is_in_the_window() {
        let mut bitmap = [0; 3];
        let first = Gpa::new(0x20_0000 - 2 * PAGE_SIZE);
        set_bits(&mut bitmap, first, Gpa::new(0), PageSize::Size4K);
        set_bits(
            &mut bitmap,
            first,
            Gpa::new(first.as_u64() + 0x1000),
            PageSize::Size4K,
        );
        assert_eq!(bitmap, [2, 0, 0]);
        set_bits(&mut bitmap, first, Gpa::new(0x20_0000), PageSize::Size2M);
        assert_eq!(bitmap, [0xfe, 0xff, 0xff]);
        let mut one = [0; 1];
        set_bits(&mut one, Gpa::new(0x1f_f000), Gpa::new(0), PageSize::Size2M);
        assert_eq!(one, [1]);
    }

    #[test]
    fn the_digest_tells_order_size_and_harvests_apart() {
        let digest = |harvests: &[&[(u64, PageSize)]]| {
            let mut all = Harvests::NONE;
            for harvest in harvests {
                all.begin();
                harvest
                    .iter()
                    .for_each(|(page, size)| all.page(Gpa::new(*page), *size));
            }
            all.digest
        };
        let (a, b) = ((0x1000, PageSize::Size4K), (0x20_0000, PageSize::Size4K));
        let large = (0x20_0000, PageSize::Size2M);
        let all: [&[&[_]]; 7] = [
            &[],
            &[&[]],
            &[&[], &[]],
            &[&[a, b]],
            &[&[b, a]],
            &[&[a, large]],
            &[&[a], &[b]],
        ];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(digest(one), digest(one));
            assert!(all[..i].iter().all(|other| digest(other) != digest(one)));
        }
    }
}
