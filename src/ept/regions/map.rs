//! The regions of a space: which is where.

use crate::addr::{AddrRange, Address, Gpa, Hpa};
use crate::ept::regions::backing::Backing;
use crate::ept::regions::region::{MAX_REGIONS, Region, RegionError};
use crate::frames::{FrameAllocator, FrameError, FrameRc, PhysMem};
use crate::paging::Nested;
use core::ops::Deref;

/// The regions of a space, in order of their addresses.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct RegionMap {
    regions: [Option<Region>; MAX_REGIONS],
    used: usize,
    width: u32,
}

impl RegionMap {
    pub const fn new(width: u32) -> Self {
        Self {
            regions: [None; MAX_REGIONS],
            used: 0,
            width,
        }
    }

    /// Bits of a guest-physical address.
    pub const fn width(&self) -> u32 {
        self.width
    }

    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().take(self.used).flatten()
    }

    /// Adds a region after checking everything about it that does not need the frames.
    pub fn add(&mut self, region: Region) -> Result<(), RegionError> {
        region.check(self.width)?;
        let range = region.range;
        if let Some(other) = self.iter().find(|r| r.range.overlaps(range)) {
            return Err(RegionError::Overlaps {
                range,
                other: other.range,
            });
        }
        let mut new = Self::new(self.width);
        let at = self
            .iter()
            .take_while(|r| r.range.start() < range.start())
            .count();
        let (before, behind) = (self.iter().take(at), self.iter().skip(at));
        for region in before.chain([&region]).chain(behind) {
            new.push(*region)?;
        }
        *self = new;
        Ok(())
    }

    /// Puts a region behind all others; it becomes one with the last if they differ in nothing.
    fn push(&mut self, region: Region) -> Result<(), RegionError> {
        let last = self.used.checked_sub(1);
        if let Some(Some(last)) = last.and_then(|last| self.regions.get_mut(last))
            && let Some(joined) = last.joined(&region)
        {
            *last = joined;
            return Ok(());
        }
        let place = self.regions.get_mut(self.used);
        *place.ok_or(RegionError::TooMany)? = Some(region);
        self.used += 1;
        Ok(())
    }

    /// The same regions with what `change` makes of those in `range`, cut where they are partly in it.
    fn changed(
        &self,
        range: AddrRange<Gpa>,
        change: impl Fn(Region) -> Option<Region>,
    ) -> Result<Self, RegionError> {
        let last = range.last().ok_or(RegionError::Empty(range.start()))?;
        let mut new = Self::new(self.width);
        let before = AddrRange::new(Gpa::new(0), range.start().as_u64());
        let end = last.checked_add(1);
        let after = end.and_then(|end| AddrRange::new(end, u64::MAX - end.as_u64()));
        for region in self.iter() {
            for (place, changes) in [(before, false), (Some(range), true), (after, false)] {
                let Some(place) = place.filter(|place| place.overlaps(region.range)) else {
                    continue;
                };
                let part = region
                    .part(place)
                    .ok_or(RegionError::Indivisible(region.range))?;
                let part = if changes { change(part) } else { Some(part) };
                part.map_or(Ok(()), |part| new.push(part))?;
            }
        }
        Ok(new)
    }

    /// The same regions with other permissions in `range`, which is in memory regions; those that are partly in it are cut,
    /// and those that come to be the same are one.
    pub fn protected(
        &self,
        range: AddrRange<Gpa>,
        write: bool,
        execute: bool,
    ) -> Result<Self, RegionError> {
        self.changed(range, |part| {
            Some(Region {
                write,
                execute,
                ..part
            })
        })
    }

    /// The same regions without `range`, all of which must be in regions; those that are partly in it are cut.
    pub fn without(&self, range: AddrRange<Gpa>) -> Result<Self, RegionError> {
        if self.first_hole(range, |_| true).is_some() {
            return Err(RegionError::NoSuchRegion(range));
        }
        self.changed(range, |_| None)
    }

    /// The first address of the range that is not in a region which `counts`.
    pub fn first_hole(
        &self,
        range: AddrRange<Gpa>,
        counts: impl Fn(&Region) -> bool,
    ) -> Option<Gpa> {
        let (mut at, last) = (range.start(), range.last()?);
        loop {
            let region = self.find(at).filter(|region| counts(region));
            let end = match region.and_then(|region| region.range.last()) {
                Some(end) => end,
                None => return Some(at),
            };
            if end >= last {
                return None;
            }
            // Regions end below 2^48, so this does not wrap.
            at = Gpa::new(end.as_u64() + 1);
        }
    }

    /// The region that `gpa` is in.
    pub fn find(&self, gpa: Gpa) -> Option<&Region> {
        let regions = self.regions.get(..self.used)?;
        let begins = |region: &Option<Region>| matches!(region, Some(r) if r.range.start() <= gpa);
        let last = regions.partition_point(begins).checked_sub(1)?;
        let region = regions.get(last)?.as_ref();
        region.filter(|region| region.range.contains(gpa))
    }
}

/// The regions of a space, which it may share with others, and what the last look-up found.
pub(in crate::ept) struct Regions<'f, M: PhysMem, F: Nested> {
    map: FrameRc<'f, RegionMap, M>,
    /// The next look-up is likely for the same.
    backing: Backing<F>,
    /// Whether a page that is made writable counts as written.
    marked: bool,
}

impl<'f, M: PhysMem, F: Nested> Regions<'f, M, F> {
    /// No regions.
    pub fn new(frames: &'f FrameAllocator<M>, width: u32) -> Result<Self, FrameError> {
        FrameRc::new(frames, RegionMap::new(width)).map(Self::of)
    }

    fn of(map: FrameRc<'f, RegionMap, M>) -> Self {
        Self {
            map,
            backing: Backing::NONE,
            marked: true,
        }
    }

    /// Says whether a page that is made writable counts as written. It does at first.
    pub fn set_marked(&mut self, marked: bool) {
        (self.marked, self.backing) = (marked, Backing::NONE);
    }

    /// The same regions for another space: nothing is copied before one of the two changes them.
    #[inline]
    pub fn share(&self) -> Result<Self, FrameError> {
        self.map.share().map(Self::of)
    }

    /// Whether these are the same regions because nobody has changed them since they were shared.
    pub fn is_same(&self, other: &Self) -> bool {
        self.map.frame() == other.map.frame()
    }

    /// The frame that they are in.
    pub fn frame(&self) -> Hpa {
        self.map.frame()
    }

    /// The regions, to be changed.
    pub fn change(&mut self) -> Result<&mut RegionMap, FrameError> {
        self.backing = Backing::NONE;
        self.map.make_mut()
    }

    /// What the page at `gpa` is treated by, which [`Regions::backing`] is from then on.
    #[inline]
    pub fn look_up(&mut self, gpa: Gpa) -> Option<&Backing<F>> {
        if !self.backing.contains(gpa) {
            let region = self.map.find(gpa)?;
            self.backing = Backing::new(region, gpa, self.marked);
        }
        Some(&self.backing)
    }

    /// What the last look-up found.
    #[inline(always)]
    pub fn backing(&self) -> &Backing<F> {
        &self.backing
    }
}

impl<M: PhysMem, F: Nested> Deref for Regions<'_, M, F> {
    type Target = RegionMap;

    #[inline(always)]
    fn deref(&self) -> &RegionMap {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::regions::region::RegionKind;
    use crate::ept::tests::{device, host_bytes as bytes};

    fn range(start: u64, len: u64) -> AddrRange<Gpa> {
        AddrRange::new(Gpa::new(start), len).unwrap()
    }
    fn ram(start: u64, len: u64) -> Region {
        Region::new(range(start, len), RegionKind::Ram)
    }
    #[test]
    fn bad_regions_are_refused_and_change_nothing() {
        let mut map = RegionMap::new(36);
        map.add(ram(0x10_0000, 0x10_0000)).unwrap();
        let refused = |map: &mut RegionMap, region: Region| {
            let before = *map;
            let error = map.add(region).unwrap_err();
            assert!(before.iter().eq(map.iter()));
            error
        };
        let map = &mut map;
        assert_eq!(
            refused(map, ram(0x4000, 0)),
            RegionError::Empty(Gpa::new(0x4000))
        );
        assert_eq!(
            refused(map, ram(0x800, 0x1000)),
            RegionError::Unaligned(range(0x800, 0x1000))
        );
        assert_eq!(
            refused(map, ram(0, 0x1800)),
            RegionError::Unaligned(range(0, 0x1800))
        );
        let wide = range((1 << 36) - 0x1000, 0x2000);
        assert_eq!(
            refused(map, ram((1 << 36) - 0x1000, 0x2000)),
            RegionError::TooWide {
                range: wide,
                width: 36
            }
        );
        assert!(matches!(
            refused(map, ram(1 << 50, 0x1000)),
            RegionError::TooWide { .. }
        ));
        assert!(matches!(
            refused(map, ram(u64::MAX - 0xfff, 0x1000)),
            RegionError::TooWide { .. }
        ));
        for (start, len) in [
            (0x1f_f000, 0x1000),
            (0xf_f000, 0x2000),
            (0, 0x100_0000),
            (0x18_0000, 0x1000),
        ] {
            assert!(matches!(
                refused(map, ram(start, len)),
                RegionError::Overlaps { .. }
            ));
        }
        let with = |kind| Region::new(range(0, 0x2000), kind);
        for kind in [
            RegionKind::CopyOnWrite(bytes(0x1800, 0x800)),
            RegionKind::ReadOnly(bytes(0x1000, 0x2001)),
            RegionKind::PassThrough(device(0x1000, 0x1000)),
            RegionKind::PassThrough(device(0x1080, 0x2000)),
        ] {
            assert!(matches!(
                refused(map, with(kind)),
                RegionError::HostRange(_)
            ));
        }
    }

    #[test]
    fn neighbours_fit_and_the_last_page_too() {
        let mut map = RegionMap::new(48);
        map.add(ram(0x2000, 0x1000).with_tag(2)).unwrap();
        map.add(ram((1 << 48) - 0x1000, 0x1000)).unwrap();
        map.add(ram(0x1000, 0x1000).with_tag(1)).unwrap();
        map.add(ram(0x3000, 0x1000).with_tag(3)).unwrap();
        let starts: Vec<u64> = map.iter().map(|r| r.range.start().as_u64()).collect();
        assert_eq!(starts, [0x1000, 0x2000, 0x3000, (1 << 48) - 0x1000]);
        for (gpa, start) in [
            (0xfff, None),
            (0x1000, Some(0x1000)),
            (0x2fff, Some(0x2000)),
            (0x4000, None),
        ] {
            let found = |r: Option<&Region>| r.map(|r| r.range.start().as_u64());
            assert_eq!(found(map.find(Gpa::new(gpa))), start);
        }
        assert!(map.find(Gpa::new((1 << 48) - 1)).is_some());
        assert!(map.find(Gpa::new(u64::MAX)).is_none());
        let without = map.without(range(0x2000, 0x1000)).unwrap();
        let map = &mut { without };
        assert_eq!(
            map.without(range(0x2000, 0x1000)).err(),
            Some(RegionError::NoSuchRegion(range(0x2000, 0x1000)))
        );
        assert!(map.without(range(0x1000, 0x2000)).is_err());
        assert!(map.find(Gpa::new(0x2000)).is_none());
        assert_eq!(map.iter().count(), 3);
    }

    #[test]
    fn one_too_many_is_refused() {
        let mut map = RegionMap::new(48);
        for i in 0..MAX_REGIONS as u64 {
            map.add(ram(i * 0x2000, 0x1000)).unwrap();
        }
        let one_more = ram(0x1000, 0x1000).with_tag(1);
        assert_eq!(map.add(one_more), Err(RegionError::TooMany));
        assert!(
            map.protected(range(0, 0x1000), false, true).is_ok(),
            "the same number"
        );
        // It fills the hole between two others, which become one with it.
        map.add(ram(0x1000, 0x1000)).unwrap();
        assert_eq!(map.iter().count(), MAX_REGIONS - 1);
        let map = map.without(range(0x1000, 0x1000)).unwrap();
        let mut map = map.without(range(0, 0x1000)).unwrap();
        map.add(one_more).unwrap();
        assert_eq!(map.iter().count(), MAX_REGIONS);
    }

    /// What the map says of each page: everything but where the region begins.
    fn pages(map: &RegionMap) -> Vec<Region> {
        let whole = map.iter().flat_map(|region| {
            let pages = region.range.len() / 0x1000;
            (0..pages).map(move |page| {
                let start = region.range.start().as_u64() + page * 0x1000;
                let part = region.part(range(start, 0x1000)).unwrap();
                // Where no bytes are does not matter.
                let kind = match part.kind {
                    RegionKind::CopyOnWrite(b) if b.range().is_empty() => {
                        RegionKind::CopyOnWrite(bytes(0, 0))
                    }
                    RegionKind::ReadOnly(b) if b.range().is_empty() => {
                        RegionKind::ReadOnly(bytes(0, 0))
                    }
                    kind => kind,
                };
                Region { kind, ..part }
            })
        });
        whole.collect()
    }

    #[test]
    fn cut_regions_say_the_same_and_become_whole_again() {
        let module = |start, bytes: u64| {
            Region::new(
                range(start, 0x8000),
                RegionKind::CopyOnWrite(self::bytes(0x1_0000, bytes)),
            )
        };
        let through = Region::new(
            range(0x40_0000, 0x8000),
            RegionKind::PassThrough(device(0xfee0_0000, 0x8000)),
        );
        let shared = RegionKind::ReadOnly(bytes(0x1_0000, 0x2000));
        for region in [
            ram(0x40_0000, 0x8000),
            Region::new(range(0x40_0000, 0x8000), RegionKind::Rom),
            module(0x40_0000, 0x8000),
            module(0x40_0000, 0x3234),
            module(0x40_0000, 0x3000),
            module(0x40_0000, 0),
            Region::new(range(0x40_0000, 0x8000), shared),
            through,
        ] {
            let mut map = RegionMap::new(48);
            map.add(ram(0, 0x1000)).unwrap();
            map.add(region).unwrap();
            let before: Vec<_> = map.iter().copied().collect();
            let all = pages(&map);
            for first in 0..8 {
                for count in 1..=8 - first {
                    let part = range(0x40_0000 + first * 0x1000, count * 0x1000);
                    let cut = map.protected(part, false, false).unwrap();
                    let ranges = |regions: &[Region]| -> Vec<_> {
                        regions.iter().map(|region| region.range).collect()
                    };
                    let cut_regions: Vec<_> = cut.iter().copied().collect();
                    assert_eq!(ranges(&cut_regions), ranges(&pages_joined(&cut)));
                    assert_eq!(pages(&cut).len(), all.len());
                    let again = cut.protected(part, true, region.execute).unwrap();
                    assert!(again.iter().eq(&before), "{region:?} {part}");
                    // The same with a hole in it.
                    let mut hole = map.without(part).unwrap();
                    assert!(pages(&hole).iter().all(|page| all.contains(page)));
                    assert_eq!(pages(&hole).len() as u64, all.len() as u64 - count);
                    hole.add(region.part(part).unwrap()).unwrap();
                    assert!(hole.iter().eq(&before), "{region:?} {part}");
                }
            }
        }
    }

    /// The regions of pages put together one by one.
    fn pages_joined(map: &RegionMap) -> Vec<Region> {
        let mut new = RegionMap::new(48);
        for page in pages(map) {
            new.add(page).unwrap();
        }
        new.iter().copied().collect()
    }

    #[test]
    fn what_differs_or_cannot_be_divided_stays_apart() {
        let mut map = RegionMap::new(48);
        let at = |page: u64, kind| Region::new(range(page * 0x1000, 0x1000), kind);
        let through = |start| RegionKind::PassThrough(device(start, 0x1000));
        let all = [
            at(0, RegionKind::Ram),
            at(1, RegionKind::Ram).with_tag(1),
            at(2, RegionKind::Ram).with_tag(1).with_execute(false),
            at(3, RegionKind::Rom).with_tag(1).with_execute(false),
            at(4, RegionKind::Mmio),
            at(5, RegionKind::Mmio),
            // The other way round in host memory.
            at(6, through(0xfee0_1000)),
            at(7, through(0xfee0_0000)),
            // Not all of its page.
            at(8, RegionKind::ReadOnly(bytes(0x1_0000, 0xfff))),
            at(9, RegionKind::ReadOnly(bytes(0x1_1000, 0x1000))),
            at(10, RegionKind::CopyOnWrite(bytes(0x1_2000, 0x1000))),
            // A hole.
            at(12, RegionKind::CopyOnWrite(bytes(0x1_3000, 0x1000))),
        ];
        for region in all.iter().rev() {
            map.add(*region).unwrap();
        }
        assert!(map.iter().eq(&all));
        let mut map = RegionMap::new(48);
        let registers = Region::new(range(0x2000, 0x3000), RegionKind::Mmio);
        map.add(registers).unwrap();
        for part in [range(0x2000, 0x1000), range(0x4000, 0x1000)] {
            let indivisible = RegionError::Indivisible(registers.range);
            assert_eq!(map.without(part).err(), Some(indivisible));
        }
        assert_eq!(map.without(registers.range).unwrap().iter().count(), 0);
        let empty = RegionError::Empty(Gpa::new(0x2000));
        assert_eq!(map.without(range(0x2000, 0)).err(), Some(empty));
    }
}
