//! Which physical memory there is, put together from what firmware and boot loader say.

use super::ranges::SpanSet;
use crate::addr::{AddrRange, Hpa, PAGE_SIZE};

/// So many separate ranges are told apart. Linux takes 128 from a BIOS; UEFI reports more, most of which touch each other.
const RANGES: usize = 256;

/// A set of whole frames: what is memory, less what must not be touched; or what must not be touched. What is added may be
/// unaligned, overlap and come in any order. Where there are too many separate ranges, those that may be forgotten
/// ([`MemoryMap::add`]) give way, the smallest first, and those that must not ([`MemoryMap::add_touched`]) are joined.
#[derive(Clone, Debug)]
pub struct MemoryMap(SpanSet<RANGES>);

impl MemoryMap {
    /// No memory.
    pub const fn new() -> Self {
        Self(SpanSet::new())
    }
    /// Adds the frames wholly inside `range`, as far as there is room: see [`MemoryMap::given_up`].
    pub fn add(&mut self, range: AddrRange<Hpa>) {
        self.0.add(range);
    }
    /// Adds every frame that `range` touches, and where there is no room for it those between the two nearest ranges, which
    /// become one: see [`MemoryMap::joined`].
    pub fn add_touched(&mut self, range: AddrRange<Hpa>) {
        self.0.add_touched(range);
    }
    /// Removes every frame that `range` touches.
    pub fn remove(&mut self, range: AddrRange<Hpa>) {
        self.0.remove(range);
    }
    /// Takes out the highest frame below `limit`.
    pub fn take_below(&mut self, limit: Hpa) -> Option<Hpa> {
        let frame = self.0.take_below(limit.as_u64() / PAGE_SIZE)?;
        Some(Hpa::new(frame * PAGE_SIZE))
    }
    /// Keeps only the lowest frames, `bytes` of them at most.
    pub fn keep_lowest(&mut self, bytes: u64) {
        self.0.keep_lowest(bytes / PAGE_SIZE);
    }
    /// Keeps only what lies below `limit`. Returns how many bytes go.
    pub fn keep_below(&mut self, limit: Hpa) -> u64 {
        let before = self.bytes();
        AddrRange::new(limit, u64::MAX - limit.as_u64())
            .into_iter()
            .for_each(|beyond| self.remove(beyond));
        before - self.bytes()
    }
    /// The ranges, disjoint, in no order.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange<Hpa>> + '_ {
        self.0.as_slice().iter().filter_map(|span| {
            AddrRange::new(Hpa::new(span.start * PAGE_SIZE), span.len() * PAGE_SIZE)
        })
    }
    /// Bytes that were left out, because there was no room for a range that was added, or for both sides of one out of which
    /// something was removed.
    pub fn given_up(&self) -> u64 {
        self.0.given_up().saturating_mul(PAGE_SIZE)
    }
    /// Bytes that count though nobody has added them, because they lie between ranges that became one.
    pub fn joined(&self) -> u64 {
        self.0.joined().saturating_mul(PAGE_SIZE)
    }
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.0.frames() * PAGE_SIZE
    }
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cpu_cannot_address_is_left_out() {
        let with = |limit| {
            let mut map = MemoryMap::new();
            map.add(range(0x1000, 0x9000));
            map.add(range((1 << 36) - 0x2000, (1 << 36) + 0x3000));
            map.add(range(1 << 51, (1 << 51) + 0x7000));
            let gone = map.keep_below(Hpa::new(limit));
            let mut left: Vec<_> = map.ranges().collect();
            left.sort_by_key(|range| range.start());
            (gone, left)
        };
        let low = range(0x1000, 0x9000);
        let below = range((1 << 36) - 0x2000, 1 << 36);
        assert_eq!(with(1 << 36), (0xa000, vec![low, below]));
        assert_eq!(with(1 << 52).0, 0);
        assert_eq!(
            with(1 << 51),
            (
                0x7000,
                vec![low, range((1 << 36) - 0x2000, (1 << 36) + 0x3000)]
            )
        );
        assert_eq!(with(0).1, []);
    }

    fn range(start: u64, end: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), end - start).unwrap()
    }
    fn map(ranges: &[(u64, u64)]) -> MemoryMap {
        let mut map = MemoryMap::new();
        ranges.iter().for_each(|&(s, e)| map.add(range(s, e)));
        map
    }
    fn sorted(map: &MemoryMap) -> Vec<(u64, u64)> {
        let mut all: Vec<_> = map
            .ranges()
            .map(|r| (r.start().as_u64(), r.start().as_u64() + r.len()))
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn overlapping_reports_are_joined_and_reserved_ones_win() {
        let mut map = map(&[(0x1000, 0x9fc00), (0x8000, 0x20000), (0x10_0000, 0x20_0000)]);
        map.remove(range(0x1_0800, 0x1_0900));
        assert_eq!(
            sorted(&map),
            [
                (0x1000, 0x10000),
                (0x11000, 0x9f000),
                (0x10_0000, 0x20_0000)
            ]
        );
    }

    #[test]
    fn as_many_reserved_ranges_as_firmware_reports_stay_reserved() {
        for count in [100, RANGES as u64, RANGES as u64 + 1, 1000] {
            let (mut memory, mut other) = (MemoryMap::new(), MemoryMap::new());
            memory.add(range(1 << 20, 2 << 30));
            let start = |n: u64| (16 << 20) + (n * 7 % count) * 0x10_0000;
            (0..count).for_each(|n| other.add_touched(range(start(n) + 0x10, start(n) + 0x1010)));
            other.ranges().for_each(|range| memory.remove(range));
            let (all, reserved) = ((2 << 30) - (1 << 20), count * 0x2000);
            let told = other.joined() + memory.given_up();
            assert!(memory.bytes() + reserved <= all);
            assert!(
                memory.bytes() + reserved + told >= all,
                "{count}: what is lost is told"
            );
            assert_eq!(other.joined() == 0, count <= RANGES as u64);
            for n in 0..count {
                let free = |at| memory.ranges().any(|range| range.contains(Hpa::new(at)));
                assert!(
                    !free(start(n)) && !free(start(n) + 0x1fff),
                    "{n} of {count}"
                );
            }
        }
    }

    #[test]
    fn what_is_touched_can_be_added_whole() {
        let mut map = map(&[(0x1000, 0x9fc00)]);
        map.add_touched(range(0x9f800, 0x9fa00));
        map.add_touched(range(0x9f800, 0x9f800));
        assert_eq!(sorted(&map), [(0x1000, 0xa0000)]);
    }

    #[test]
    fn frames_for_tables_come_from_below_the_limit_each_once() {
        let mut map = map(&[(0x1000, 0x3000), (0x8000, 0xb000), (0x10_0000, 0x20_0000)]);
        let taken: Vec<_> = core::iter::from_fn(|| map.take_below(Hpa::new(0xa000)))
            .map(Hpa::as_u64)
            .collect();
        assert_eq!(taken, [0x9000, 0x8000, 0x2000, 0x1000]);
        assert_eq!(sorted(&map), [(0xa000, 0xb000), (0x10_0000, 0x20_0000)]);
    }

    #[test]
    fn a_limit_is_met_to_the_frame_wherever_the_reserved_parts_are() {
        let mut map = map(&[(0x10_0000, 0x20_0000), (0x1000, 0x8000)]);
        map.remove(range(0x3000, 0x4000));
        map.keep_lowest(0x8fff);
        assert_eq!(map.bytes(), 0x8000);
        assert_eq!(
            sorted(&map),
            [(0x1000, 0x3000), (0x4000, 0x8000), (0x10_0000, 0x10_2000)]
        );
        map.keep_lowest(u64::MAX);
        assert_eq!(map.bytes(), 0x8000);
        map.keep_lowest(0xfff);
        assert_eq!(sorted(&map), []);
    }
}
