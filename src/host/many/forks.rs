//! What the schedule asks of whoever makes, runs and resets forks.

use super::queue::{Linked, Queue};

/// How a run ended, as far as it matters here.
pub trait Verdict: Clone {
    /// Whether it ended well.
    fn is_success(&self) -> bool;
    /// Whether there were no frames for it: more of them may come free.
    fn is_out_of_frames(&self) -> bool;
    /// It ran as long as it was allowed to.
    fn out_of_budget() -> Self;
    /// It would be one generation too many.
    fn too_deep() -> Self;
}

/// What a run took, beside time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// VM exits.
    pub exits: u64,
    /// Pages that became the fork's own: copied or filled.
    pub pages: u64,
}

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self { exits: 0, pages: 0 };

    /// What was added to an earlier count.
    pub(super) const fn since(self, before: Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(before.exits),
            pages: self.pages.saturating_sub(before.pages),
        }
    }

    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            exits: self.exits.saturating_add(other.exits),
            pages: self.pages.saturating_add(other.pages),
        }
    }
}

/// What the schedule notes of a living fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkSlot {
    /// The number of the fork among those of its template.
    pub fork: u64,
    /// The number of its run.
    pub run: u64,
    /// TSC ticks that this run may take.
    pub(super) budget: u64,
    /// Those it took so far.
    pub(super) ticks: u64,
    /// Those that the host took to make it possible.
    pub(super) charged: u64,
    /// Those that attempts at it took which were given up, as others had all frames.
    pub(super) given_up: u64,
    /// By how much its turns were longer than they should have been: it has so much less of those to come.
    pub(super) over: u64,
}

impl ForkSlot {
    /// What the run may still take.
    pub(super) const fn left(&self) -> u64 {
        self.budget
            .saturating_sub(self.ticks)
            .saturating_sub(self.charged)
    }
    /// Whether the run may be begun again: all attempts that are given up have as much time as the one that is not.
    pub(super) const fn may_begin_again(&self) -> bool {
        self.given_up.saturating_add(self.ticks) < self.budget
    }
    /// The run, begun again.
    pub(super) const fn again(self) -> Self {
        Self {
            ticks: 0,
            given_up: self.given_up.saturating_add(self.ticks),
            ..self
        }
    }
}

/// What comes after a turn.
#[derive(Clone, Debug)]
pub enum After<E> {
    /// Another turn.
    Going,
    /// The run is over.
    Ended(E),
    /// The fork asks to become a template.
    Frozen,
}

/// What a turn came to.
#[derive(Clone, Debug)]
pub struct ForkTurn<E> {
    /// TSC ticks it took.
    pub ticks: u64,
    /// What comes after it.
    pub after: After<E>,
}

/// Whoever makes, runs and resets forks.
pub trait Forks {
    /// What forks are made of.
    type Template;
    /// A living fork, together with the place it is kept in.
    type Fork: Linked;
    /// How a run ended.
    type End: Verdict;

    /// Makes a fork, about to begin the run that `slot` says.
    ///
    /// # Errors
    /// Why there is none, as the end of its run.
    fn fork(
        &mut self,
        template: &mut Self::Template,
        slot: ForkSlot,
    ) -> Result<Self::Fork, Self::End>;
    /// The fork's notes.
    fn slot<'f>(&self, fork: &'f mut Self::Fork) -> &'f mut ForkSlot;
    /// Lets it run for about so many ticks.
    fn turn(&mut self, fork: &mut Self::Fork, ticks: u64) -> ForkTurn<Self::End>;
    /// What the run took so far, beside time.
    fn cost(&self, fork: &Self::Fork) -> Cost;
    /// Brings it back to its template, about to begin the run that its slot says; returns how many pages it took. The
    /// run before ended for lack of frames if `scarce`.
    ///
    /// # Errors
    /// Why it cannot be, as the end of its run.
    fn reset(
        &mut self,
        template: &mut Self::Template,
        fork: &mut Self::Fork,
        scarce: bool,
    ) -> Result<u64, Self::End>;
    /// Looks whether a reset has done what it should.
    ///
    /// # Errors
    /// The first thing that differs, as the end of its run.
    fn check_reset(
        &mut self,
        template: &Self::Template,
        fork: &Self::Fork,
    ) -> Result<(), Self::End>;
    /// Makes a template of it.
    ///
    /// # Errors
    /// Why it cannot be, as the end of its run.
    fn freeze(&mut self, fork: Self::Fork) -> Result<Self::Template, Self::End>;
    /// Ends it. Its template may have ended before.
    fn end(&mut self, template: Option<&mut Self::Template>, fork: Self::Fork);
    /// Ends a template, of which no fork is left, or one that is not reset any more.
    fn end_template(&mut self, template: Self::Template);
    /// Whether a template stays until its last fork has ended. Else that fork has all that both of them had for itself in
    /// its last run, and copies nothing.
    fn keeps_templates(&self) -> bool;
    /// Looks whether all is as it must be. It is asked to now and then, between two turns.
    fn check(&mut self, alive: &Alive<'_, Self>);
    /// The time-stamp counter.
    fn now(&self) -> u64;
}

/// All that is alive: of the generation whose turn it is, and of those above it, which wait.
pub struct Alive<'a, F: Forks + ?Sized> {
    /// What its forks were made of, unless it has ended.
    pub template: Option<&'a F::Template>,
    /// Its forks: those who have turns, and those who wait for frames.
    pub forks: [&'a Queue<F::Fork>; 2],
    /// The generation above.
    pub above: Option<&'a Self>,
}

impl<'a, F: Forks + ?Sized> Alive<'a, F> {
    /// All its forks.
    pub fn forks(&self) -> impl Iterator<Item = &'a F::Fork> {
        self.forks.into_iter().flat_map(Queue::iter)
    }

    /// This generation and those above it.
    pub fn generations(&'a self) -> impl Iterator<Item = &'a Self> {
        core::iter::successors(Some(self), |alive| alive.above)
    }
}
