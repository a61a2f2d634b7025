//! Sets of frame numbers: what is usable, less what is reserved.

use crate::addr::{AddrRange, Hpa, PAGE_SIZE};

/// How many separate ranges of memory an allocator manages at most. Of more, it leaves the smallest alone.
pub const MAX_RANGES: usize = 64;

/// Frames `start..end`, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// The frames wholly inside `range`.
    fn inside(range: AddrRange<Hpa>) -> Self {
        match range.last() {
            Some(last) => {
                let start = range.start().as_u64().div_ceil(PAGE_SIZE);
                // A frame is inside when its last byte is; the range may end at the last address.
                let end = last.as_u64() / PAGE_SIZE
                    + u64::from(last.as_u64() % PAGE_SIZE == PAGE_SIZE - 1);
                Self {
                    start,
                    end: end.max(start),
                }
            }
            None => Self::EMPTY,
        }
    }

    /// The frames that `range` touches.
    fn around(range: AddrRange<Hpa>) -> Self {
        match range.last() {
            Some(last) => Self {
                start: range.start().as_u64() / PAGE_SIZE,
                end: last.as_u64() / PAGE_SIZE + 1,
            },
            None => Self::EMPTY,
        }
    }

    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Both and what lies between them.
    fn hull(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

/// What becomes of a span for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenFull {
    /// The smallest is left out, as managing less memory is always safe.
    GiveUp,
    /// The two nearest become one, so that nothing is forgotten: what lies between them counts too.
    Join,
}

/// Disjoint spans without order, at most `N`. Only [`SpanSet::add_touched`] never forgets.
#[derive(Clone, Debug)]
pub(super) struct SpanSet<const N: usize> {
    spans: [Span; N],
    used: usize,
    given_up: u64,
    joined: u64,
}

impl<const N: usize> SpanSet<N> {
    pub const fn new() -> Self {
        Self {
            spans: [Span::EMPTY; N],
            used: 0,
            given_up: 0,
            joined: 0,
        }
    }

    /// How many frames were left out for want of room, so far.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// How many frames count that nobody has added, because they lie between two spans that became one.
    pub fn joined(&self) -> u64 {
        self.joined
    }

    pub fn as_slice(&self) -> &[Span] {
        self.spans.get(..self.used).unwrap_or(&[])
    }

    pub fn frames(&self) -> u64 {
        self.as_slice().iter().map(|span| span.len()).sum()
    }

    /// Adds the frames wholly inside `range`; it may overlap or touch what is there.
    pub fn add(&mut self, range: AddrRange<Hpa>) {
        self.add_span(Span::inside(range), WhenFull::GiveUp);
    }

    /// Adds every frame that `range` touches, for good.
    pub fn add_touched(&mut self, range: AddrRange<Hpa>) {
        self.add_span(Span::around(range), WhenFull::Join);
    }

    fn add_span(&mut self, mut new: Span, full: WhenFull) {
        if new.len() == 0 {
            return;
        }
        let mut i = 0;
        while let Some(&span) = self.as_slice().get(i) {
            if span.start <= new.end && new.start <= span.end {
                new = span.hull(new);
                self.take(i);
                i = 0;
            } else {
                i += 1;
            }
        }
        if full == WhenFull::Join && self.used == N {
            new = self.make_room(new);
        }
        self.push(new);
    }

    /// Joins the two nearest of the spans, of which there are as many as there can be, and `new`, which touches none of
    /// them. Returns what is to be added then.
    fn make_room(&mut self, mut new: Span) -> Span {
        self.sort();
        // A span between two others is nearer to both than they are to each other.
        let gap_after = |i: usize| match (self.spans.get(i), self.spans.get(i + 1)) {
            (Some(span), Some(next)) => next.start - span.end,
            _ => u64::MAX,
        };
        let gap_to_new = |i: usize| match self.spans.get(i) {
            Some(span) if span.end < new.start => new.start - span.end,
            Some(span) => span.start.saturating_sub(new.end),
            None => u64::MAX,
        };
        let pair = (0..N).min_by_key(|i| gap_after(*i)).unwrap_or(0);
        let near = (0..N).min_by_key(|i| gap_to_new(*i)).unwrap_or(0);
        let gap = gap_after(pair).min(gap_to_new(near));
        self.joined = self.joined.saturating_add(gap);
        if gap_to_new(near) == gap {
            new = self.spans.get(near).map_or(new, |span| span.hull(new));
            self.take(near);
        } else if let Some(&next) = self.spans.get(pair + 1) {
            if let Some(span) = self.spans.get_mut(pair) {
                *span = span.hull(next);
            }
            self.take(pair + 1);
        }
        new
    }

    /// Removes every frame that `range` touches.
    pub fn remove(&mut self, range: AddrRange<Hpa>) {
        self.remove_span(Span::around(range));
    }

    pub fn remove_span(&mut self, gone: Span) {
        if gone.len() == 0 {
            return;
        }
        let mut i = 0;
        while let Some(&span) = self.as_slice().get(i) {
            if span.start < gone.end && gone.start < span.end {
                self.take(i);
                // What is pushed back no longer meets `gone`, so looking at it again ends.
                self.push(Span {
                    start: span.start,
                    end: gone.start.max(span.start),
                });
                self.push(Span {
                    start: gone.end.min(span.end),
                    end: span.end,
                });
                i = 0;
            } else {
                i += 1;
            }
        }
    }

    /// Takes out the highest frame below frame `limit`.
    pub fn take_below(&mut self, limit: u64) -> Option<u64> {
        let below = self.as_slice().iter().filter(|span| span.start < limit);
        let frame = below.map(|span| span.end.min(limit) - 1).max()?;
        self.remove_span(Span {
            start: frame,
            end: frame + 1,
        });
        Some(frame)
    }

    /// Keeps the lowest `most` frames.
    pub fn keep_lowest(&mut self, most: u64) {
        self.sort();
        let mut left = most;
        let mut kept = Self {
            given_up: self.given_up,
            joined: self.joined,
            ..Self::new()
        };
        for span in self.as_slice() {
            let end = span.start + span.len().min(left);
            left -= end - span.start;
            kept.push(Span {
                start: span.start,
                end,
            });
        }
        *self = kept;
    }

    fn sort(&mut self) {
        if let Some(spans) = self.spans.get_mut(..self.used) {
            spans.sort_unstable_by_key(|span| span.start);
        }
    }

    /// Biggest first, so that a look-up by address nearly always ends at the first.
    pub fn sort_by_size(&mut self) {
        if let Some(spans) = self.spans.get_mut(..self.used) {
            spans.sort_unstable_by_key(|span| core::cmp::Reverse((span.len(), span.start)));
        }
    }

    fn take(&mut self, i: usize) {
        self.used -= 1;
        self.spans.swap(i, self.used);
    }

    fn push(&mut self, span: Span) {
        if span.len() == 0 {
            return;
        }
        if let Some(slot) = self.spans.get_mut(self.used) {
            *slot = span;
            self.used += 1;
            return;
        }
        let mut smallest = span;
        if let Some(other) = self.spans.iter_mut().min_by_key(|old| old.len())
            && other.len() < span.len()
        {
            smallest = core::mem::replace(other, span);
        }
        self.given_up = self.given_up.saturating_add(smallest.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    fn frames<const N: usize>(set: &SpanSet<N>) -> Vec<u64> {
        let mut all: Vec<u64> = set
            .as_slice()
            .iter()
            .flat_map(|span| span.start..span.end)
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn usable_rounds_inward_and_reserved_outward() {
        let mut set = SpanSet::<MAX_RANGES>::new();
        set.add(range(0x1001, 0x4000)); // 0x1001..0x5001: whole frames 2, 3, 4
        assert_eq!(frames(&set), [2, 3, 4]);
        set.remove(range(0x3fff, 2)); // touches frames 3 and 4
        assert_eq!(frames(&set), [2]);
        set.add(range(0x9000, 0xfff)); // no whole frame
        assert_eq!(frames(&set), [2]);
        set.remove(range(0x2800, 0)); // empty: nothing
        assert_eq!(frames(&set), [2]);
    }

    #[test]
    fn the_end_of_the_address_range_does_not_wrap() {
        let mut set = SpanSet::<MAX_RANGES>::new();
        set.add(range(u64::MAX - 0x1fff, 0x2000));
        assert_eq!(set.frames(), 2);
        set.remove(range(u64::MAX, 1));
        assert_eq!(set.frames(), 1);
        set.remove(range(0, u64::MAX));
        assert_eq!(set.frames(), 0);
    }

    #[test]
    fn agrees_with_a_set_of_numbers() {
        // A fixed linear congruence is enough variety here, and repeatable.
        let mut seed = 12345u64;
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut set = SpanSet::<MAX_RANGES>::new();
            let mut model = BTreeSet::new();
            for _ in 0..20 {
                let (start, len) = (next(40 * 4096), next(8 * 4096));
                set.add(range(start, len));
                model.extend(
                    (0..64u64).filter(|f| f * 4096 >= start && (f + 1) * 4096 <= start + len),
                );
            }
            for _ in 0..10 {
                let (start, len) = (next(40 * 4096), next(3 * 4096));
                set.remove(range(start, len));
                model.retain(|f| len == 0 || (f + 1) * 4096 <= start || f * 4096 >= start + len);
            }
            assert_eq!(frames(&set), model.iter().copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn too_many_ranges_lose_the_smallest() {
        let mut set = SpanSet::<MAX_RANGES>::new();
        for i in 0..MAX_RANGES as u64 {
            set.add(range(i * 0x10000, 0x1000 * (1 + (i != 3) as u64)));
        }
        let before = set.frames();
        set.add(range(0x1000_0000, 0x3000));
        assert_eq!(set.frames(), before - 1 + 3);
        set.add(range(0x2000_0000, 0x1000));
        assert_eq!(set.frames(), before - 1 + 3);
    }

    #[test]
    fn the_nearest_are_joined_where_nothing_may_be_forgotten() {
        let mut set = SpanSet::<3>::new();
        for frame in [10, 30, 36] {
            set.add_touched(range(frame * PAGE_SIZE, PAGE_SIZE));
        }
        assert_eq!((frames(&set), set.joined()), (vec![10, 30, 36], 0));
        // The new one is the nearest to another, from below and above.
        set.add_touched(range(33 * PAGE_SIZE, PAGE_SIZE));
        assert_eq!(frames(&set), [10, 30, 31, 32, 33, 36]);
        set.add_touched(range(12 * PAGE_SIZE, PAGE_SIZE));
        assert_eq!(frames(&set), [10, 11, 12, 30, 31, 32, 33, 36]);
        assert_eq!((set.joined(), set.given_up()), (3, 0));
        // Two others are.
        set.add_touched(range(50 * PAGE_SIZE, PAGE_SIZE));
        assert_eq!(frames(&set), [10, 11, 12, 30, 31, 32, 33, 34, 35, 36, 50]);
        // At both ends of all addresses.
        set.add_touched(range(u64::MAX, 1));
        set.add_touched(range(0, 1));
        let ends = [0, u64::MAX / PAGE_SIZE];
        let holds = |frame| {
            set.as_slice()
                .iter()
                .any(|s| (s.start..s.end).contains(&frame))
        };
        assert!(ends.into_iter().all(holds) && [10, 50].into_iter().all(holds));
    }

    /// Usable ranges, then reserved ones, as a machine reports them, in a set that holds `N`.
    fn reported<const N: usize>(usable: &[(u64, u64)], reserved: &[(u64, u64)]) {
        let (mut memory, mut other) = (SpanSet::<N>::new(), SpanSet::<N>::new());
        let (mut model, mut not) = (BTreeSet::new(), BTreeSet::new());
        for &(start, len) in usable {
            memory.add(range(start, len));
            model.extend(start.div_ceil(PAGE_SIZE)..(start + len) / PAGE_SIZE);
        }
        for &(start, len) in reserved {
            other.add_touched(range(start, len));
            if len > 0 {
                not.extend(start / PAGE_SIZE..(start + len).div_ceil(PAGE_SIZE));
            }
        }
        let reserved_frames: BTreeSet<_> = frames(&other).into_iter().collect();
        assert!(
            not.is_subset(&reserved_frames),
            "what is reserved is forgotten"
        );
        // Some of what lay between may have been added since.
        assert!((reserved_frames.len() - not.len()) as u64 <= other.joined());
        assert_eq!(other.given_up(), 0);
        other
            .as_slice()
            .iter()
            .for_each(|span| memory.remove_span(*span));
        let left: BTreeSet<_> = frames(&memory).into_iter().collect();
        assert!(left.is_disjoint(&not), "what is reserved counts as free");
        let free: BTreeSet<_> = model.difference(&not).copied().collect();
        assert!(left.is_subset(&free), "what nobody reported counts as free");
        let lost = (free.len() - left.len()) as u64;
        assert!(lost <= memory.given_up() + other.joined());
        for set in [&memory, &other] {
            let spans = set.as_slice();
            assert!(spans.len() <= N && spans.iter().all(|span| span.len() > 0));
            assert_eq!(frames(set).len() as u64, set.frames());
            let apart = |a: &Span, b: &Span| a.end < b.start || b.end < a.start;
            let twice = |(i, a): (usize, &Span)| spans[..i].iter().all(|b| apart(a, b));
            assert!(spans.iter().enumerate().all(twice), "{spans:?}");
        }
    }

    fn ranges(most: usize) -> impl proptest::strategy::Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..0x200_0000u64, 0..0x5000u64), 0..most)
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(64)))]
        #[test]
        fn what_is_reserved_is_never_free(
            usable in proptest::collection::vec((0..0x200_0000u64, 0..0x10_0000u64), 0..300),
            reserved in ranges(300),
        ) {
            reported::<4>(&usable, &reserved);
            reported::<64>(&usable, &reserved);
            reported::<256>(&usable, &reserved);
            reported::<256>(&reserved, &[]);
        }
    }
}
