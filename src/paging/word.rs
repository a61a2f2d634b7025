//! The word of memory that holds an entry.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The word of memory that holds an entry: [`AtomicU32`] or [`AtomicU64`].
pub trait AtomicWord {
    /// The word. What was written before it by the same hand is seen after it.
    fn load(&self) -> u64;
    /// Replaces the word; what was written before is seen by who sees it.
    fn store(&self, bits: u64);
    /// Replaces the word if it is `old`, else returns it.
    ///
    /// # Errors
    /// The word that stands there instead.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64>;
}

macro_rules! word {
    ($atomic:ty, $int:ty) => {
        impl AtomicWord for $atomic {
            #[inline(always)]
            fn load(&self) -> u64 {
                self.load(Ordering::Acquire) as u64
            }
            #[inline(always)]
            fn store(&self, bits: u64) {
                self.store(bits as $int, Ordering::Release);
            }
            #[inline(always)]
            fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
                self.compare_exchange(
                    old as $int,
                    new as $int,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .map(drop)
                .map_err(|found| found as u64)
            }
        }
    };
}
word!(AtomicU32, u32);
word!(AtomicU64, u64);
