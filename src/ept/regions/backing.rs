//! What stands behind the pages of a region, and what follows from that for each of them.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::hw::violation::Violation;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::tables::entry::{AttrOf, Origin};
use crate::paging::{Nested, Write};

/// What a page holds that was never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ept) enum Source {
    /// Zeroes.
    Zeroes,
    /// The host's bytes there.
    HostPage(Hpa),
    /// So many of the host's bytes there, less than a page; zeroes behind them.
    HostPart(Hpa, u64),
    /// A device.
    Device(Hpa),
    /// Nothing: a device model answers.
    Model,
}

/// Pages that lie one behind the other and are all treated alike: those of a region, or where it has host bytes, the whole
/// pages of them, the page with the last of them, or those behind.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct Backing<F: Nested> {
    start: u64,
    len: u64,
    /// What a violation may not say for that everything about it is here.
    unusual: u32,
    /// Of the first page.
    source: Source,
    /// The leaf of a page that was not written, beside whose frame it is.
    pub read: AttrOf<F>,
    /// The same for the zero page.
    pub zero_page: AttrOf<F>,
    /// The leaf of a page that was written and was given a zeroed frame.
    pub written: AttrOf<F>,
    /// The same for a copy.
    pub copied: AttrOf<F>,
    /// The tag of the region.
    pub tag: u32,
}

impl<F: Nested> Backing<F> {
    /// No page.
    pub const NONE: Self = Self {
        start: 0,
        len: 0,
        unusual: u32::MAX,
        source: Source::Model,
        read: F::READ,
        zero_page: F::READ,
        written: F::READ,
        copied: F::READ,
        tag: 0,
    };

    /// What the page at `gpa`, which must be in the region, is treated by. `marked` says whether a page that is made writable
    /// counts as written: on CPUs that do not note writes, permission to write is what tells dirty pages. Where the CPU
    /// logs them, the mark is left to it.
    pub fn new(region: &Region, gpa: Gpa, marked: bool) -> Self {
        // A type that there is not no region has in which anything is mapped.
        let read = F::page(region.memory_type).unwrap_or(F::READ);
        let read = F::with_fetch(read, region.execute);
        let write = if region.is_writable() {
            Write::Allowed
        } else {
            Write::Denied
        };
        let written = Origin::Filled.mark(read.with_dirty(marked).with_write(write));
        let all = region.range.len();
        let (first, end, source) = match region.kind {
            RegionKind::Ram | RegionKind::Rom => (0, all, Source::Zeroes),
            RegionKind::Mmio => (0, all, Source::Model),
            RegionKind::PassThrough(device) => (0, all, Source::Device(device.range().start())),
            RegionKind::CopyOnWrite(bytes) | RegionKind::ReadOnly(bytes) => {
                let bytes = bytes.range();
                let (start, part) = (bytes.start(), bytes.len() % PAGE_SIZE);
                let whole = bytes.len() - part;
                match region.offset(gpa) & !(PAGE_SIZE - 1) {
                    at if at < whole => (0, whole, Source::HostPage(start)),
                    at if at < bytes.len() => {
                        let start = Hpa::new(start.as_u64() + whole);
                        (whole, whole + PAGE_SIZE, Source::HostPart(start, part))
                    }
                    _ => (bytes.len().next_multiple_of(PAGE_SIZE), all, Source::Zeroes),
                }
            }
        };
        Self {
            start: region.range.start().as_u64() + first,
            len: end - first,
            unusual: match source {
                Source::Model => u32::MAX,
                _ => Violation::unusual(region.is_writable()),
            },
            source,
            read,
            zero_page: Origin::Zero.mark(read),
            written,
            copied: Origin::Copied.mark(written),
            tag: region.tag,
        }
    }

    /// Whether the address is in one of the pages.
    #[inline(always)]
    pub const fn contains(&self, gpa: Gpa) -> bool {
        self.offset(gpa) < self.len
    }

    /// Whether the violation is of one of the pages and for data as the region allows, and nothing else is to be said about it.
    #[inline(always)]
    pub const fn allows(&self, violation: &Violation) -> bool {
        self.contains(violation.gpa()) && !violation.has(self.unusual)
    }

    /// What all of the pages hold.
    #[inline(always)]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// What one of the pages holds.
    pub const fn source_of(&self, page: Gpa) -> Source {
        let offset = self.offset(page);
        match self.source {
            Source::HostPage(first) => Source::HostPage(Hpa::new(first.as_u64() + offset)),
            Source::Device(first) => Source::Device(Hpa::new(first.as_u64() + offset)),
            other => other,
        }
    }

    /// Bytes from the first page to `gpa`.
    #[inline(always)]
    pub const fn offset(&self, gpa: Gpa) -> u64 {
        gpa.as_u64().wrapping_sub(self.start)
    }

    /// The first address behind the pages.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::AddrRange;
    use crate::ept::hw::violation::Access;
    use crate::ept::tests::{device, host_bytes};
    use crate::paging::Ept;

    fn region(kind: RegionKind) -> Region {
        let range = AddrRange::new(Gpa::new(0x10_0000), 16 * PAGE_SIZE).unwrap();
        Region::new(range, kind)
    }

    #[test]
    fn host_bytes_have_whole_pages_a_part_and_zeroes_behind() {
        let at = |page: u64| Gpa::new(0x10_0000 + page * PAGE_SIZE + 8);
        for (len, whole, part) in [(2 * PAGE_SIZE + 5, 2, 5), (3 * PAGE_SIZE, 3, 0), (7, 0, 7)] {
            let bytes = host_bytes(0x7000, len);
            let region = region(RegionKind::CopyOnWrite(bytes));
            for page in 0..16 {
                let backing = Backing::<Ept>::new(&region, at(page), true);
                assert!(backing.contains(at(page)));
                let host = Hpa::new(0x7000 + page * PAGE_SIZE);
                let expected = match page {
                    page if page < whole => Source::HostPage(host),
                    page if page == whole && part != 0 => Source::HostPart(host, part),
                    _ => Source::Zeroes,
                };
                let start = Gpa::new(at(page).as_u64() & !0xfff);
                assert_eq!(backing.source_of(start), expected, "{len:#x} page {page}");
                // Whatever is in it is treated so.
                for other in (0..16).filter(|other| backing.contains(at(*other))) {
                    let again = Backing::<Ept>::new(&region, at(other), true);
                    assert_eq!((again.start, again.len), (backing.start, backing.len));
                    assert_eq!(again.source, backing.source);
                }
            }
        }
    }

    #[test]
    fn it_allows_what_its_region_allows() {
        let device = device(0x7000, 16 * PAGE_SIZE);
        let ram = region(RegionKind::Ram);
        let still = Region {
            write: false,
            ..ram
        };
        for (region, read, write) in [
            (ram, true, true),
            (still, true, false),
            (region(RegionKind::Rom), true, false),
            (region(RegionKind::Mmio), false, false),
            (region(RegionKind::PassThrough(device)), true, true),
        ] {
            let gpa = region.range.start();
            let backing = Backing::<Ept>::new(&region, gpa, true);
            let allows = |access| backing.allows(&Violation::new(gpa, access));
            let allowed = [Access::READ, Access::WRITE, Access::FETCH].map(allows);
            assert_eq!(allowed, [read, write, false], "{region:?}");
            let behind = Gpa::new(region.range.last().unwrap().as_u64() + 1);
            assert!(!backing.allows(&Violation::new(behind, Access::READ)));
            assert!(!Backing::<Ept>::NONE.contains(gpa));
            for bit in 12..=16 {
                let special = Violation::decode(0x181 | 1 << bit, gpa);
                assert!(!backing.allows(&special), "bit {bit}");
            }
        }
    }
}
