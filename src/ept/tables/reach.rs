//! How much of its tables a space can use: nothing beyond its last region, so nobody has to look there.

use crate::addr::{AddrRange, Gpa, PAGE_SIZE};
use crate::ept::tables::table::EIGHTS;

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

    /// How many entries of any table of `level` can be in use, the first ones, by eights.
    #[inline]
    pub fn eights(self, level: u8) -> usize {
        let span = PAGE_SIZE << (9 * (u32::from(level) - 1));
        self.0.div_ceil(8 * span).min(EIGHTS as u64) as usize
    }
}
