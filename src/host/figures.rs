//! The figures of a run, for its report.

use arrayvec::ArrayVec;

use crate::host::quota::CountsByGuest;
use crate::vm::figure::Figure;
use crate::vm::name::Name;

/// The most figures that one guest files.
pub const FIGURES_MAX: usize = 256;
/// The most that all guests file, of which each has the same part.
const GUESTS_MAX: usize = 1024;
/// The most that the hypervisor files.
const HOST_MAX: usize = 256;

/// The figures of a run, in the order in which they were filed. Nobody takes another's place.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    all: ArrayVec<Figure, { GUESTS_MAX + HOST_MAX }>,
    /// How many guests there are.
    guests: usize,
    refused: CountsByGuest,
}

impl Figures {
    /// No figures.
    pub const fn new() -> Self {
        Self {
            all: ArrayVec::new_const(),
            guests: 1,
            refused: CountsByGuest::new(),
        }
    }
    /// Divides the places among so many guests.
    pub fn divide(&mut self, guests: usize) {
        self.guests = guests;
    }
    /// Files a figure. One by the same filer of the same guest and name is replaced. `false` where there is no room.
    #[must_use]
    pub fn file(&mut self, figure: Figure) -> bool {
        let whose = |other: &Figure| (other.guest, other.host) == (figure.guest, figure.host);
        let same = |other: &&mut Figure| whose(other) && other.name == figure.name;
        if let Some(other) = self.all.iter_mut().find(same) {
            *other = figure;
            return true;
        }
        let (most, there) = if figure.host {
            let there = self.all.iter().filter(|other| other.host);
            (HOST_MAX, there.count())
        } else {
            let there = self.all.iter().filter(|other| whose(other));
            let part = GUESTS_MAX.checked_div(self.guests).unwrap_or(GUESTS_MAX);
            (part.min(FIGURES_MAX), there.count())
        };
        let filed = there < most && self.all.try_push(figure).is_ok();
        if !filed {
            self.refused.count(figure.guest);
        }
        filed
    }
    /// All of them.
    pub fn as_slice(&self) -> &[Figure] {
        &self.all
    }
    /// How many of a guest, or about it, had no room.
    pub fn refused(&self, guest: Name) -> u64 {
        self.refused.of(guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::figure::{FigureName, Unit};

    fn figure(guest: &str, host: bool, i: usize, value: u64) -> Figure {
        Figure {
            guest: Name::new(guest).unwrap(),
            host,
            name: FigureName::new(format!("f{i}").as_bytes()).unwrap(),
            value,
            unit: Unit::Ticks,
        }
    }

    #[test]
    fn a_guest_cannot_file_without_end() {
        let mut figures = Box::new(Figures::new());
        for i in 0..FIGURES_MAX {
            assert!(figures.file(figure("g", false, i, 1)));
        }
        assert!(!figures.file(figure("g", false, FIGURES_MAX, 1)));
        assert!(
            figures.file(figure("g", false, 7, 2)),
            "it is there already"
        );
        assert_eq!(
            (figures.as_slice().len(), figures.as_slice()[7].value),
            (FIGURES_MAX, 2)
        );
        assert_eq!(figures.refused(Name::new("g").unwrap()), 1);
    }

    #[test]
    fn nobody_takes_the_place_of_another() {
        for guests in [1, 2, 7, 100, 128] {
            let mut figures = Box::new(Figures::new());
            figures.divide(guests);
            let names: Vec<_> = (0..guests).map(|guest| format!("g{guest}")).collect();
            let mut filed = vec![0; guests];
            for (guest, name) in names.iter().enumerate() {
                for i in 0..300 {
                    filed[guest] += usize::from(figures.file(figure(name, false, i, 1)));
                }
            }
            assert!(
                filed.iter().all(|filed| *filed == (1024 / guests).min(256)),
                "{filed:?}"
            );
            // A guest cannot replace what the hypervisor says of it.
            for i in 0..256 {
                assert!(figures.file(figure("g0", true, i, 2)));
            }
            assert!(!figures.file(figure("hypervisor", true, 0, 2)));
            assert!(figures.file(figure("g0", false, 0, 3)));
            let host = figures.as_slice().iter().filter(|figure| figure.host);
            assert!(host.clone().all(|figure| figure.value == 2) && host.count() == 256);
        }
    }
}
