//! Who is alive and whose turn it is: the living stand in a queue, and each has a turn when it is the first.

use super::queue::{Linked, Queue};
use super::tally::{RunRecord, Tally};
use crate::vm::cmdline::{ForkOptions, GENERATIONS_MAX};

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
pub struct Slot {
    /// The number of the fork among those of its template.
    pub fork: u64,
    /// The number of its run.
    pub run: u64,
    /// TSC ticks that this run took so far.
    ticks: u64,
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
pub struct Turn<E> {
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
    fn fork(&mut self, template: &mut Self::Template, slot: Slot) -> Result<Self::Fork, Self::End>;
    /// The fork's notes.
    fn slot<'f>(&self, fork: &'f mut Self::Fork) -> &'f mut Slot;
    /// Lets it run for about so many ticks.
    fn turn(&mut self, fork: &mut Self::Fork, ticks: u64) -> Turn<Self::End>;
    /// What the run took so far, beside time.
    fn cost(&self, fork: &Self::Fork) -> Cost;
    /// Brings it back to its template, about to begin the run that its slot says; yields how many pages it took. The
    /// run before ended for lack of frames if `scarce`.
    fn reset(
        &mut self,
        template: &mut Self::Template,
        fork: &mut Self::Fork,
        scarce: bool,
    ) -> Result<u64, Self::End>;
    /// Looks whether a reset has done what it should.
    fn check_reset(
        &mut self,
        template: &Self::Template,
        fork: &Self::Fork,
    ) -> Result<(), Self::End>;
    /// Makes a template of it.
    fn freeze(&mut self, fork: Self::Fork) -> Result<Self::Template, Self::End>;
    /// Ends it.
    fn end(&mut self, template: &mut Self::Template, fork: Self::Fork);
    /// Ends a template, of which no fork is left.
    fn end_template(&mut self, template: Self::Template);
    /// Looks whether all is as it must be. It is asked to now and then, between two turns.
    fn check(&mut self, alive: &Alive<'_, Self>);
    /// The time-stamp counter.
    fn now(&self) -> u64;
}

/// All that is alive: of the generation whose turn it is, and of those above it, which wait.
pub struct Alive<'a, F: Forks + ?Sized> {
    /// What its forks were made of.
    pub template: &'a F::Template,
    /// Its forks.
    pub forks: &'a Queue<F::Fork>,
    /// The generation above.
    pub above: Option<&'a Self>,
}

impl<'a, F: Forks + ?Sized> Alive<'a, F> {
    /// This generation and those above it.
    pub fn generations(&'a self) -> impl Iterator<Item = &'a Self> {
        core::iter::successors(Some(self), |alive| alive.above)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'o> {
    /// How many, how often.
    pub options: &'o ForkOptions,
    /// TSC ticks that each run may take.
    pub budget: u64,
    /// TSC ticks of a turn.
    pub slice: u64,
}

/// Makes, runs and ends all forks of a template, and the template.
///
/// A fork that freezes becomes the template of the next generation, which is done with before the others go on.
pub fn schedule<F: Forks>(
    forks: &mut F,
    template: F::Template,
    plan: Plan<'_>,
    tally: &mut Tally<F::End>,
) {
    let begin = forks.now();
    generation(forks, template, plan, None, tally);
    tally.ticks = forks.now().wrapping_sub(begin);
}

/// One template and its forks. The recursion is as deep as [`GENERATIONS_MAX`].
fn generation<F: Forks>(
    forks: &mut F,
    template: F::Template,
    plan: Plan<'_>,
    above: Option<&Alive<'_, F>>,
    tally: &mut Tally<F::End>,
) {
    let depth = above.map_or(0, |above| above.generations().count());
    if let Some(sums) = tally.generation(depth) {
        sums.templates += 1;
    }
    let mut crowd = Crowd {
        total: plan.options.forks(depth),
        forks,
        template,
        plan,
        depth,
        above,
        tally,
        alive: Queue::new(),
        next: 0,
        scarce: false,
        ended: 0,
    };
    if plan.options.idle {
        crowd.keep_idle();
    } else {
        crowd.run();
    }
    let Crowd {
        forks, template, ..
    } = crowd;
    forks.end_template(template);
}

/// The forks of one template.
struct Crowd<'r, F: Forks> {
    forks: &'r mut F,
    template: F::Template,
    plan: Plan<'r>,
    depth: usize,
    above: Option<&'r Alive<'r, F>>,
    tally: &'r mut Tally<F::End>,
    /// Each has its turn when it is the first.
    alive: Queue<F::Fork>,
    /// The number of the fork to make next.
    next: u64,
    /// How many forks there are to be.
    total: u64,
    /// There is no frame for another fork until one ends.
    scarce: bool,
    /// How many runs have ended.
    ended: u64,
}

impl<F: Forks> Crowd<'_, F> {
    fn run(&mut self) {
        self.fill(self.plan.options.parallel);
        let mut next_check = 0;
        while let Some(fork) = self.alive.pop() {
            self.turn(fork);
            self.fill(self.plan.options.parallel);
            if self.ended >= next_check {
                next_check = (2 * self.ended).max(1);
                self.check();
            }
        }
        self.check();
    }

    fn check(&mut self) {
        self.forks.check(&Alive {
            template: &self.template,
            forks: &self.alive,
            above: self.above,
        });
    }

    /// Makes forks until all are alive or there are no more frames, and ends them.
    fn keep_idle(&mut self) {
        self.fill(u64::MAX);
        self.check();
        while let Some(fork) = self.alive.pop() {
            self.end(fork);
        }
    }

    /// Makes forks as long as more of them may be alive.
    fn fill(&mut self, parallel: u64) {
        while self.alive.len() < parallel && self.next < self.total && !self.scarce {
            let first = Slot {
                fork: self.next,
                ..Slot::default()
            };
            match self.make(first) {
                Ok(()) => self.next += 1,
                Err(end) if end.is_out_of_frames() && !self.alive.is_empty() => self.scarce = true,
                Err(end) => {
                    // What fails now fails for all that follow.
                    let others = self.total - self.next;
                    let runs = others.saturating_mul(self.plan.options.runs);
                    self.tally.lost(self.depth, first, runs, end);
                    self.next = self.total;
                }
            }
        }
    }

    fn make(&mut self, slot: Slot) -> Result<(), F::End> {
        let begin = self.forks.now();
        let fork = self.forks.fork(&mut self.template, slot)?;
        let ticks = self.forks.now().wrapping_sub(begin);
        self.alive.push(fork);
        if let Some(sums) = self.tally.generation(self.depth) {
            sums.forks.add(ticks);
            sums.alive_most = sums.alive_most.max(self.alive.len());
        }
        Ok(())
    }

    fn turn(&mut self, mut fork: F::Fork) {
        let Plan { budget, slice, .. } = self.plan;
        let left = budget.saturating_sub(self.forks.slot(&mut fork).ticks);
        let turn = self.forks.turn(&mut fork, left.min(slice));
        let slot = self.forks.slot(&mut fork);
        // Even a turn that took nothing counts: else a run could go on without end.
        slot.ticks = slot.ticks.saturating_add(turn.ticks.max(1));
        let slot = *slot;
        match turn.after {
            After::Going if slot.ticks < budget => self.alive.push(fork),
            After::Going => self.ended(fork, slot, F::End::out_of_budget()),
            After::Ended(end) => self.ended(fork, slot, end),
            After::Frozen if self.depth + 1 < GENERATIONS_MAX => self.frozen(fork, slot),
            After::Frozen => self.ended(fork, slot, F::End::too_deep()),
        }
    }

    /// A run is over: the next one, or the end of the fork.
    fn ended(&mut self, mut fork: F::Fork, slot: Slot, end: F::End) {
        let scarce = end.is_out_of_frames();
        self.record(&fork, slot, Some(end));
        self.ended += 1;
        let Some(next) = self.after(slot) else {
            return self.end(fork);
        };
        *self.forks.slot(&mut fork) = next;
        let begin = self.forks.now();
        let reset = self.forks.reset(&mut self.template, &mut fork, scarce);
        let ticks = self.forks.now().wrapping_sub(begin);
        let checked = reset.and_then(|pages| {
            self.forks.check_reset(&self.template, &fork)?;
            Ok(pages)
        });
        match checked {
            Ok(pages) => {
                if let Some(sums) = self.tally.generation(self.depth) {
                    sums.resets.add(ticks);
                    sums.pages_reset = sums.pages_reset.saturating_add(pages);
                }
                self.alive.push(fork);
            }
            Err(end) => {
                let runs = self.plan.options.runs - next.run;
                self.tally.lost(self.depth, next, runs, end);
                self.end(fork);
            }
        }
    }

    /// A fork becomes a template, whose forks run until none is left. Its own next run is that of a new fork of the same
    /// number.
    fn frozen(&mut self, fork: F::Fork, slot: Slot) {
        self.record(&fork, slot, None);
        match self.forks.freeze(fork) {
            Ok(template) => {
                let above = Alive {
                    template: &self.template,
                    forks: &self.alive,
                    above: self.above,
                };
                generation(self.forks, template, self.plan, Some(&above), self.tally);
            }
            Err(end) => self.tally.lost(self.depth, slot, 1, end),
        }
        self.scarce = false;
        let Some(next) = self.after(slot) else {
            return;
        };
        if let Err(end) = self.make(next) {
            let runs = self.plan.options.runs - next.run;
            self.tally.lost(self.depth, next, runs, end);
        }
    }

    /// The run after this one, if there is one.
    fn after(&self, slot: Slot) -> Option<Slot> {
        let run = slot.run + 1;
        let fork = slot.fork;
        (run < self.plan.options.runs).then_some(Slot {
            fork,
            run,
            ticks: 0,
        })
    }

    fn record(&mut self, fork: &F::Fork, slot: Slot, end: Option<F::End>) {
        let cost = self.forks.cost(fork);
        self.tally.ran(RunRecord {
            generation: self.depth,
            fork: slot.fork,
            run: slot.run,
            ticks: slot.ticks,
            cost,
            end,
        });
    }

    fn end(&mut self, fork: F::Fork) {
        let begin = self.forks.now();
        self.forks.end(&mut self.template, fork);
        let ticks = self.forks.now().wrapping_sub(begin);
        if let Some(sums) = self.tally.generation(self.depth) {
            sums.ends.add(ticks);
        }
        self.scarce = false;
    }
}
