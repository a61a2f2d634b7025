//! Numbers by chance, the same for the same seed.

use crate::cpu::rdtsc;
use crate::pattern::mix;

/// A generator of numbers: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers that follow from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed for this run: that which the environment had as `SEED` when the guest was built, to repeat a run, else
    /// the time.
    pub fn seed() -> u64 {
        option_env!("SEED")
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(rdtsc)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        number
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
