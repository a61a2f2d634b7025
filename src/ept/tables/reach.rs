//! How much of its tables a space can use: nothing beyond its last region, so nobody has to look there.

use crate::addr::{AddrRange, Gpa, PAGE_SIZE};
use crate::ept::tables::table::ENTRIES;

/// The first address for which no table of a space has had an entry yet: it had no region there, nor had the spaces that it
/// was forked from.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::ept) struct Reach(u64);

impl Reach {
    /// Notes that there is a region.
    pub fn include(&mut self, range: AddrRange<Gpa>) {
        let last = range.last().unwrap_or(range.start());
        self.0 = self.0.max(last.as_u64().saturating_add(1));
    }

    /// How many entries of any table of `level` can be in use: the first ones.
    #[inline]
    pub fn entries(self, level: u8) -> usize {
        let span = PAGE_SIZE << (9 * (u32::from(level) - 1));
        self.0.div_ceil(span).min(ENTRIES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(start: u64, len: u64) -> Reach {
        let mut reach = Reach::default();
        reach.include(AddrRange::new(Gpa::new(start), len).unwrap());
        reach
    }

    #[test]
    fn every_entry_that_a_region_needs_can_be_used() {
        let each = |reach: Reach| [1, 2, 3, 4].map(|level| reach.entries(level));
        assert_eq!(each(Reach::default()), [0; 4]);
        assert_eq!(each(of(0, PAGE_SIZE)), [1; 4]);
        assert_eq!(each(of(0, 16 << 20)), [512, 8, 1, 1]);
        assert_eq!(each(of(16 << 20, PAGE_SIZE)), [512, 9, 1, 1]);
        assert_eq!(each(of(0, 3 << 30)), [512, 512, 3, 1]);
        assert_eq!(each(of((3 << 30) - 1, 2)), [512, 512, 4, 1]);
        assert_eq!(each(of(512 << 30, PAGE_SIZE)), [512, 512, 512, 2]);
        assert_eq!(each(of((1 << 48) - PAGE_SIZE, PAGE_SIZE)), [512; 4]);
        assert_eq!(each(of(u64::MAX, 1)), [512; 4]);
        let mut both = of(5 << 30, 1);
        both.include(AddrRange::new(Gpa::new(0), 1).unwrap());
        assert_eq!(both.entries(3), 6);
    }
}
