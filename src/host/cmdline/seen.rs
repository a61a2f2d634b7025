//! Keys, to notice repetition.

use super::Problem;
use super::forks::ForkKey;
use super::fuzz::FuzzKey;

/// A key.
#[derive(Clone, Copy)]
pub(super) enum Key {
    Name,
    Mem,
    Budget,
    Map,
    Pages,
    Around,
    Log,
    Selftest,
    Tick,
    Pool,
    Audit,
    Testdev,
    Mitigations,
    Tenant,
    Screen,
    End,
    EndAfter,
    Forks(ForkKey),
    Fuzz(FuzzKey),
}

impl Key {
    const fn bit(self) -> u64 {
        match self {
            Self::Name => 1 << 0,
            Self::Mem => 1 << 1,
            Self::Budget => 1 << 2,
            Self::Log => 1 << 3,
            Self::Selftest => 1 << 4,
            Self::Tick => 1 << 5,
            Self::Pool => 1 << 6,
            Self::Audit => 1 << 7,
            Self::Map => 1 << 8,
            Self::Pages => 1 << 9,
            Self::Testdev => 1 << 10,
            Self::Around => 1 << 11,
            Self::Mitigations => 1 << 12,
            Self::Tenant => 1 << 13,
            Self::Screen => 1 << 14,
            Self::End => 1 << 15,
            Self::EndAfter => 1 << 16,
            Self::Forks(key) => 1 << (20 + key as u32),
            Self::Fuzz(key) => 1 << (32 + key as u32),
        }
    }
}

/// The keys that a line has had so far.
#[derive(Default)]
pub(super) struct SeenKeys(u64);

impl SeenKeys {
    /// Notes that the key is there.
    pub fn first_time(&mut self, key: Key) -> Result<(), Problem> {
        let bit = key.bit();
        let repeated = self.0 & bit != 0;
        self.0 |= bit;
        if repeated {
            Err(Problem::Repeated)
        } else {
            Ok(())
        }
    }
}
