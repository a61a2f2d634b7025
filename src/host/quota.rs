//! What a guest may have of what the host keeps for all: how its ends are told, and what it has lost.

use arrayvec::ArrayVec;

use crate::vm::Words;
use crate::vm::name::Name;

/// So many ends of a guest and its forks are explained; the first at length where that helps.
pub const EXPLAINED_MAX: u64 = 8;
/// What an explanation takes at most, at length and in short.
const ALL_BYTES: usize = 20 << 10;
const FEW_BYTES: usize = 4 << 10;
/// The most guests that are kept account of.
const GUESTS_MAX: usize = 128;

/// What a guest wanted kept and was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Lines that it printed.
    pub lines: u64,
    /// Figures that it filed.
    pub figures: u64,
    /// Explanations of its end, and of those of its forks.
    pub explanations: u64,
}

impl Lost {
    /// Nothing.
    pub const NOTHING: Self = Self {
        lines: 0,
        figures: 0,
        explanations: 0,
    };
}

/// How the ends of one guest and its forks were told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Explanations {
    told: u64,
    left_out: u64,
}

impl Explanations {
    /// Of nobody.
    pub const NONE: Self = Self {
        told: 0,
        left_out: 0,
    };

    /// How much is said of another end, where there is room for so many bytes: nobody waits for that.
    pub fn another(&mut self, room: usize) -> Words {
        let words = match self.told {
            0 if room >= ALL_BYTES => Words::All,
            0..EXPLAINED_MAX if room >= FEW_BYTES => Words::Few,
            _ => Words::None,
        };
        if words == Words::None {
            self.left_out += 1;
        } else {
            self.told += 1;
        }
        words
    }
    /// Of how many nothing was said.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// Counts by the names of guests.
#[derive(Clone, Debug, Default)]
pub struct CountsByGuest(ArrayVec<(Name, u64), GUESTS_MAX>);

impl CountsByGuest {
    /// Of nothing.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }
    /// Counts one for the guest with this name.
    pub fn count(&mut self, name: Name) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, count)) => *count += 1,
            // There are no more guests than that.
            None => drop(self.0.try_push((name, 1))),
        }
    }
    /// How many were counted for it.
    pub fn of(&self, name: Name) -> u64 {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ends_are_explained() {
        let mut told = Explanations::NONE;
        assert_eq!(told.another(ALL_BYTES), Words::All);
        for _ in 1..EXPLAINED_MAX {
            assert_eq!((told.another(FEW_BYTES), told.left_out()), (Words::Few, 0));
        }
        for left_out in 1..10 {
            let words = told.another(usize::MAX);
            assert_eq!((words, told.left_out()), (Words::None, left_out));
        }
        // Where there is no room, those that come later have theirs.
        let mut told = Explanations::NONE;
        assert_eq!(told.another(FEW_BYTES - 1), Words::None);
        assert_eq!(
            (told.another(ALL_BYTES - 1), told.left_out()),
            (Words::Few, 1)
        );
    }

    #[test]
    fn each_has_its_own_count() {
        let mut counts = CountsByGuest::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| Name::new(name).unwrap());
        for name in [a, b, a] {
            counts.count(name);
        }
        assert_eq!([a, b, c].map(|name| counts.of(name)), [2, 1, 0]);
    }
}
