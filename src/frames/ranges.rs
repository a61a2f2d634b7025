//! Sets of frame numbers: what is usable, less what is reserved.

use crate::addr::{AddrRange, Hpa, PAGE_SIZE};

/// How many separate ranges of memory are managed at most.
pub(super) const MAX_RANGES: usize = 64;

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
}

/// Disjoint spans without order. When there are more than fit, the smallest is left out: managing less memory is
/// always safe.
#[derive(Clone, Debug)]
pub(super) struct SpanSet {
    spans: [Span; MAX_RANGES],
    used: usize,
}

impl SpanSet {
    pub const fn new() -> Self {
        Self {
            spans: [Span::EMPTY; MAX_RANGES],
            used: 0,
        }
    }

    pub fn as_slice(&self) -> &[Span] {
        self.spans.get(..self.used).unwrap_or(&[])
    }

    pub fn frames(&self) -> u64 {
        self.as_slice().iter().map(|span| span.len()).sum()
    }

    /// Adds the frames wholly inside `range`; it may overlap or touch what is there.
    pub fn add(&mut self, range: AddrRange<Hpa>) {
        self.add_span(Span::inside(range));
    }

    /// Adds every frame that `range` touches.
    pub fn add_touched(&mut self, range: AddrRange<Hpa>) {
        self.add_span(Span::around(range));
    }

    fn add_span(&mut self, mut new: Span) {
        if new.len() == 0 {
            return;
        }
        let mut i = 0;
        while let Some(&span) = self.as_slice().get(i) {
            if span.start <= new.end && new.start <= span.end {
                new = Span {
                    start: span.start.min(new.start),
                    end: span.end.max(new.end),
                };
                self.take(i);
                i = 0;
            } else {
                i += 1;
            }
        }
        self.push(new);
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
        if let Some(spans) = self.spans.get_mut(..self.used) {
            spans.sort_unstable_by_key(|span| span.start);
        }
        let mut left = most;
        let mut kept = Self::new();
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
        } else if let Some(smallest) = self.spans.iter_mut().min_by_key(|old| old.len())
            && smallest.len() < span.len()
        {
            *smallest = span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    fn frames(set: &SpanSet) -> Vec<u64> {
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
        let mut set = SpanSet::new();
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
        let mut set = SpanSet::new();
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
            let mut set = SpanSet::new();
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
        let mut set = SpanSet::new();
        for i in 0..MAX_RANGES as u64 {
            set.add(range(i * 0x10000, 0x1000 * (1 + (i != 3) as u64)));
        }
        let before = set.frames();
        set.add(range(0x1000_0000, 0x3000));
        assert_eq!(set.frames(), before - 1 + 3);
        set.add(range(0x2000_0000, 0x1000));
        assert_eq!(set.frames(), before - 1 + 3);
    }
}
