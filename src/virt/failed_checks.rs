//! The checks that an entry did not pass, as they are made again in software.

use core::fmt;

/// What the manual wants of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// These bits must be 0.
    Zero(u64),
    /// The control of the first name, which is 1, needs that of the second.
    Needs(&'static str, &'static str),
    /// Anything else.
    Words(&'static str),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Words(words) => f.write_str(words),
            Self::Needs(control, needed) => write!(f, "\"{control}\" needs \"{needed}\""),
            Self::Zero(mut bits) => {
                let mut separator = "bits ";
                while bits != 0 {
                    let above = 64 - bits.leading_zeros();
                    let count = (bits << (64 - above)).leading_ones();
                    bits &= !(!0 << (above - count));
                    write!(f, "{separator}{}", above - 1)?;
                    if count > 1 {
                        write!(f, ":{}", above - count)?;
                    }
                    separator = ", ";
                }
                f.write_str(" must be 0")
            }
        }
    }
}

/// The checks that failed, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedChecks<C> {
    named: [Option<C>; NAMED],
    count: usize,
}

/// How many are named; more are counted.
const NAMED: usize = 16;

impl<C: Copy> Default for FailedChecks<C> {
    fn default() -> Self {
        let named = [None; NAMED];
        Self { named, count: 0 }
    }
}

impl<C> FailedChecks<C> {
    /// How many are named; more are counted.
    pub const NAMED: usize = NAMED;

    /// How many checks failed. Where it is none, the CPU has made a check that is not made here.
    pub const fn count(&self) -> usize {
        self.count
    }
    /// The first of them.
    pub fn iter(&self) -> impl Iterator<Item = &C> {
        self.named.iter().flatten()
    }
    /// Notes one.
    pub fn add(&mut self, check: C) {
        if let Some(place) = self.named.get_mut(self.count) {
            *place = Some(check);
        }
        self.count += 1;
    }
}

impl<C: fmt::Display> fmt::Display for FailedChecks<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("no failed check found\n");
        }
        for check in self.iter() {
            writeln!(f, "{check}")?;
        }
        if let Some(more @ 1..) = self.count.checked_sub(Self::NAMED) {
            writeln!(f, "and {more} more")?;
        }
        Ok(())
    }
}
