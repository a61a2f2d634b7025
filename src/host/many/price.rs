//! What an operation took, and the figures that tell it.

use super::linear_fit::LinearFit;
use crate::counting::{self, Counted, Counts};
use crate::frames::{FrameAllocator, PhysMem};
use crate::vm::clock::now;
use crate::vm::figure::Unit;
use arrayvec::ArrayString;
use core::fmt::Write;
use offshoot_abi::FIGURE_NAME_MAX;

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement<'n> {
    /// What was measured. `%` stands for the size of the guest.
    pub name: &'n str,
    /// How much it is.
    pub value: u64,
    /// Of what.
    pub unit: Unit,
}

/// Operations of which the median is taken.
pub(super) const REPEATS: usize = 7;

/// What is told of each operation: what stands behind the figure's name, and of what it is.
const PARTS: [(&str, Unit); 7] = [
    ("", Unit::Ticks),
    (".vmreads", Unit::Count),
    (".vmwrites", Unit::Count),
    (".invepts", Unit::Count),
    (".invvpids", Unit::Count),
    (".frames", Unit::Frames),
    (".bytes", Unit::Bytes),
];
const TICKS: usize = 0;
const FRAMES: usize = 5;

/// What one operation took: ticks, what is counted, and how many frames it took or gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Price([u64; PARTS.len()]);

impl Price {
    pub fn new(ticks: u64, counts: Counts, frames: u64) -> Self {
        let [reads, writes, invepts, invvpids, bytes] = Counted::ALL.map(|kind| counts.of(kind));
        Self([ticks, reads, writes, invepts, invvpids, frames, bytes])
    }

    /// The same, but so much for its ticks.
    pub fn with_ticks(mut self, ticks: u64) -> Self {
        self.0[TICKS] = ticks;
        self
    }

    /// What is left without a part of it.
    pub fn without(self, part: Self) -> Self {
        let rest = |n: usize| Some(self.0.get(n)?.saturating_sub(*part.0.get(n)?));
        Self(core::array::from_fn(|n| rest(n).unwrap_or(0)))
    }

    pub fn ticks(&self) -> u64 {
        self.0[TICKS]
    }
    pub fn frames(&self) -> u64 {
        self.0[FRAMES]
    }

    /// Tells `file` of it: of the ticks, or where things are counted, which takes ticks, of all else.
    pub fn tell(&self, name: &str, file: &mut impl FnMut(Measurement<'_>)) {
        for ((part, unit), value) in PARTS.into_iter().zip(self.0) {
            let mut whole = ArrayString::<FIGURE_NAME_MAX>::new();
            if counting::ON != (unit == Unit::Ticks) && write!(whole, "{name}{part}").is_ok() {
                file(Measurement {
                    name: &whole,
                    value,
                    unit,
                });
            }
        }
    }
}

/// Tells `file` of what was counted for each of so many operations, which take so many frames each. Nothing, where nothing is
/// counted.
pub fn tell_counted(
    name: &str,
    (all, operations): (Counts, u64),
    frames: u64,
    file: &mut impl FnMut(Measurement<'_>),
) {
    if counting::ON {
        let each = |count: u64| count.checked_div(operations).unwrap_or(0);
        let mut price = Price(Price::new(0, all, 0).0.map(each));
        price.0[FRAMES] = frames;
        price.tell(name, file);
    }
}

/// A moment from which on is measured.
pub(super) struct Moment {
    frames: u64,
    counts: Counts,
    ticks: u64,
}

impl Moment {
    pub fn now<M: PhysMem>(frames: &FrameAllocator<M>) -> Self {
        Self {
            frames: frames.statistics().used,
            counts: Counts::now(),
            ticks: now(),
        }
    }

    /// What was done since.
    pub fn price<M: PhysMem>(self, frames: &FrameAllocator<M>) -> Price {
        let ticks = now().wrapping_sub(self.ticks);
        let used = frames.statistics().used;
        Price::new(ticks, self.counts.so_far(), used.abs_diff(self.frames))
    }
}

/// The prices of one operation, done several times.
#[derive(Default)]
pub(super) struct Series([Price; REPEATS]);

impl Series {
    pub fn set(&mut self, repeat: usize, price: Price) {
        if let Some(slot) = self.0.get_mut(repeat) {
            *slot = price;
        }
    }

    /// The median of each part.
    pub fn median(&self) -> Price {
        Price(core::array::from_fn(|part| {
            let mut values = self
                .0
                .each_ref()
                .map(|price| price.0.get(part).copied().unwrap_or(0));
            *values.select_nth_unstable(REPEATS / 2).1
        }))
    }
}

/// A linear fit for each part of a price, by the pages that were written.
#[derive(Default)]
pub(super) struct LinearFits([LinearFit; PARTS.len()]);

impl LinearFits {
    pub fn add(&mut self, pages: u64, price: &Price) {
        for (line, value) in self.0.iter_mut().zip(price.0) {
            line.add(pages, value);
        }
    }

    /// Tells `file` where they start, and how they rise.
    pub fn tell(&self, base: &str, per_page: &str, file: &mut impl FnMut(Measurement<'_>)) {
        let (mut start, mut slope) = (Price::default(), Price::default());
        for (n, line) in self.0.iter().enumerate() {
            let Some((at_0, rise)) = line.fit() else {
                return;
            };
            for (price, value) in [(&mut start, at_0), (&mut slope, rise)] {
                if let Some(part) = price.0.get_mut(n) {
                    *part = u64::try_from(value).unwrap_or(0);
                }
            }
        }
        start.tell(base, file);
        slope.tell(per_page, file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(parts: [u64; PARTS.len()]) -> Price {
        Price(parts)
    }

    #[test]
    fn each_part_has_a_median_of_its_own() {
        let mut series = Series::default();
        for repeat in 0..REPEATS {
            let up = repeat as u64;
            series.set(repeat, price([up, 9 - up, 3, 3, up * up, 0, 1]));
        }
        assert_eq!(series.median(), price([3, 6, 3, 3, 9, 0, 1]));
    }

    #[test]
    fn each_part_has_a_line_of_its_own() {
        let mut lines = LinearFits::default();
        for pages in [5, 6, 13, 261] {
            lines.add(
                pages,
                &price([100 + 7 * pages, 2, pages, 1, 4 + pages, 0, 1]),
            );
        }
        let mut told = vec![];
        lines.tell("a", "b", &mut |found| {
            told.push((found.name.to_string(), found.value, found.unit));
        });
        // This is not built to count.
        let expected = [("a".into(), 100, Unit::Ticks), ("b".into(), 7, Unit::Ticks)];
        assert_eq!(told, expected);
    }
}
