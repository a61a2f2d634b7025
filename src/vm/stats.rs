//! What a guest's run cost.

use crate::addr::{Gpa, PAGE_SIZE, PageSize};
use crate::virt::exit::ExitReason;

/// Exits by reason, and where the time went.
#[derive(Clone, Debug)]
pub struct RunStats {
    exits: [u64; ExitReason::COUNT],
    /// TSC ticks from each exit to the next entry.
    pub host_ticks: u64,
    /// TSC ticks from each entry to the next exit, both included.
    pub guest_ticks: u64,
    /// What was told of its dirty pages.
    pub harvests: Harvests,
}

impl RunStats {
    /// Of a guest that has not run.
    pub const ZERO: Self = Self {
        exits: [0; ExitReason::COUNT],
        host_ticks: 0,
        guest_ticks: 0,
        harvests: Harvests::NONE,
    };

    /// Counts an exit.
    #[inline(always)]
    pub fn count(&mut self, reason: ExitReason) {
        if let Some(count) = self.exits.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// The reasons for which the guest exited, and how often.
    pub fn exits(&self) -> impl Iterator<Item = (ExitReason, u64)> + Clone + '_ {
        let reason = |number: usize| ExitReason::from_number(number as u32);
        self.exits
            .iter()
            .enumerate()
            .filter(|(_, count)| **count != 0)
            .filter_map(move |(number, count)| Some((reason(number)?, *count)))
    }

    /// Adds what another guest's run cost.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.exits.iter_mut().zip(&other.exits) {
            *count += more;
        }
        self.host_ticks += other.host_ticks;
        self.guest_ticks += other.guest_ticks;
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.exits.iter().sum()
    }

    /// Time the guest took so far, its own and the host's for it.
    pub fn ticks(&self) -> u64 {
        self.host_ticks.saturating_add(self.guest_ticks)
    }
}

/// What was told of a guest's dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harvests {
    /// How often somebody asked.
    pub count: u64,
    /// Pages that were told, in pages of 4 KiB.
    pub pages: u64,
    /// A checksum of what was told, in its order: equal where the same was.
    pub digest: u64,
}

impl Harvests {
    /// Nobody has asked.
    pub const NONE: Self = Self {
        count: 0,
        pages: 0,
        digest: 0,
    };

    pub(super) fn begin(&mut self) {
        self.count += 1;
        self.mix(self.count);
    }
    pub(super) fn page(&mut self, page: Gpa, size: PageSize) {
        self.pages += size.bytes() / PAGE_SIZE;
        self.mix(page.as_u64() | (size.bytes() / PAGE_SIZE));
    }
    /// As FNV-1a, by words.
    fn mix(&mut self, word: u64) {
        let mixed = (self.digest ^ word).wrapping_mul(0x100_0000_01b3);
        self.digest = mixed ^ mixed >> 29;
    }
}
