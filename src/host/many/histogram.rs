//! A histogram of values, in constant memory.

/// Each power of two is divided into so many buckets, as a power of two.
const FINE: u32 = 5;
const BUCKETS: usize = ((64 - FINE as usize) + 1) << FINE;

/// Counts of values by size: exact below 64, to one part in 32 above.
#[derive(Clone, Debug)]
pub struct Histogram {
    count: u64,
    total: u64,
    min: u64,
    max: u64,
    buckets: [u32; BUCKETS],
}

/// What a [`Histogram`] comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub total: u64,
    /// The smallest.
    pub min: u64,
    /// The one in the middle, to one part in 32.
    pub median: u64,
    /// The largest.
    pub max: u64,
}

impl Histogram {
    /// Of no values.
    pub const fn new() -> Self {
        Self {
            count: 0,
            total: 0,
            min: u64::MAX,
            max: 0,
            buckets: [0; BUCKETS],
        }
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        // Not by assignment of a new one, which would stand on the stack.
        self.buckets.fill(0);
        (self.count, self.total, self.min, self.max) = (0, 0, u64::MAX, 0);
    }

    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        self.count += 1;
        self.total = self.total.saturating_add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if let Some(bucket) = self.buckets.get_mut(index(value)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    /// Returns what they come to.
    pub fn distribution(&self) -> Distribution {
        if self.count == 0 {
            return Distribution::default();
        }
        let mut seen = 0;
        let middle = self.buckets.iter().position(|bucket| {
            seen += u64::from(*bucket);
            seen > self.count / 2
        });
        let median = middle.map_or(self.max, value).clamp(self.min, self.max);
        Distribution {
            count: self.count,
            total: self.total,
            min: self.min,
            median,
            max: self.max,
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of a value.
fn index(value: u64) -> usize {
    let magnitude = value.checked_ilog2().unwrap_or(0);
    match magnitude.checked_sub(FINE) {
        None => value as usize,
        Some(shift) => {
            let within = (value >> shift) as usize - (1 << FINE);
            ((shift as usize + 1) << FINE) + within
        }
    }
}

/// The value in the middle of a bucket.
fn value(index: usize) -> u64 {
    let (row, within) = (index >> FINE, (index & ((1 << FINE) - 1)) as u64);
    match row.checked_sub(1) {
        None => within,
        Some(shift) => {
            let first = ((1 << FINE) + within) << shift;
            first + ((1_u64 << shift) - 1) / 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_value_has_a_bucket_of_its_size() {
        for value_of in (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, u64::MAX >> bit]) {
            let at = index(value_of);
            assert!(at < BUCKETS, "{value_of:#x}");
            let middle = value(at);
            assert!(middle.abs_diff(value_of) <= value_of / 32, "{value_of:#x}");
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
        assert!((0..64).all(|small| value(index(small)) == small));
    }

    #[test]
    fn nothing_and_one() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.distribution(), Distribution::default());
        histogram.add(1_000_003);
        let one = histogram.distribution();
        assert_eq!(
            (one.min, one.median, one.max),
            (1_000_003, 1_000_003, 1_000_003)
        );
        histogram.add(u64::MAX);
        assert_eq!(histogram.distribution().total, u64::MAX, "it does not wrap");
        histogram.clear();
        assert_eq!(histogram.distribution(), Distribution::default());
    }

    proptest! {
        #[test]
        fn the_median_is_near(mut values in prop::collection::vec(any::<u64>().prop_map(|v| v >> (v % 61)), 1..200)) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|v| histogram.add(*v));
            values.sort_unstable();
            let found = histogram.distribution();
            let median = values[values.len() / 2];
            prop_assert!(found.median.abs_diff(median) <= median / 32, "{} for {median}", found.median);
            prop_assert_eq!((found.min, found.max), (values[0], values[values.len() - 1]));
            prop_assert_eq!(found.count, values.len() as u64);
        }
    }
}
