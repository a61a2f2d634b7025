//! Who is alive and whose turn it is: the living stand in a queue, and each has a turn when it is the first.
//!
//! A fork for which there is no frame goes back to the start of its run and waits until another has ended, so that forks
//! that need much memory do not bring down those that need little. Only one that finds too little while all others wait,
//! each with the few frames of an idle fork, fails for it.

use arrayvec::ArrayVec;

use super::forks::{After, Alive, Cost, Forks, Slot, Verdict};
use super::queue::Queue;
use super::tally::{RunRecord, Tally};
use crate::vm::cmdline::{ForkOptions, GENERATIONS_MAX};

/// So many forks that froze may wait for a frame for their next run; any other that would freeze waits before it does.
const OWED_MAX: usize = 4;

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
        template: Some(template),
        plan,
        depth,
        above,
        tally,
        alive: Queue::new(),
        waiting: Queue::new(),
        owed: ArrayVec::new(),
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
    if let Some(template) = template {
        forks.end_template(template);
    }
}

/// The forks of one template.
struct Crowd<'r, F: Forks> {
    forks: &'r mut F,
    /// Until nobody needs it any more.
    template: Option<F::Template>,
    plan: Plan<'r>,
    depth: usize,
    above: Option<&'r Alive<'r, F>>,
    tally: &'r mut Tally<F::End>,
    /// Each has its turn when it is the first.
    alive: Queue<F::Fork>,
    /// Those who wait for frames, at the start of their run.
    waiting: Queue<F::Fork>,
    /// The runs to come of forks that have become templates, each that of a new fork of the same number.
    owed: ArrayVec<Slot, OWED_MAX>,
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
        while let Some(fork) = self.alive.pop().or_else(|| self.waiting.pop()) {
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
            template: self.template.as_ref(),
            forks: [&self.alive, &self.waiting],
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
        while self.alive.len() + self.waiting.len() < parallel
            && !self.scarce
            && let Some(slot) = self.next_slot()
        {
            match self.make(slot) {
                Ok(()) if self.owed.pop_at(0).is_some() => {}
                Ok(()) => self.next += 1,
                Err(end) if end.is_out_of_frames() && !self.alive.is_empty() => self.scarce = true,
                Err(end) => self.give_up(slot, end),
            }
        }
    }

    /// The run for which a fork is to be made next.
    fn next_slot(&self) -> Option<Slot> {
        let first = Slot {
            fork: self.next,
            ..Slot::default()
        };
        let more = self.next < self.total && self.waiting.is_empty();
        self.owed.first().copied().or(more.then_some(first))
    }

    /// Counts the runs of a fork that cannot be made.
    fn give_up(&mut self, slot: Slot, end: F::End) {
        let runs = self.plan.options.runs;
        let lost = if self.owed.pop_at(0).is_some() {
            runs - slot.run
        } else {
            // What fails now fails for all that follow.
            let others = self.total - self.next;
            self.next = self.total;
            others.saturating_mul(runs)
        };
        self.tally.lost(self.depth, slot, lost, end);
    }

    fn make(&mut self, slot: Slot) -> Result<(), F::End> {
        let begin = self.forks.now();
        let Some(template) = &mut self.template else {
            return Ok(());
        };
        let fork = self.forks.fork(template, slot)?;
        let ticks = self.forks.now().wrapping_sub(begin);
        self.alive.push(fork);
        if let Some(sums) = self.tally.generation(self.depth) {
            sums.forks.add(ticks);
            sums.alive_most = sums.alive_most.max(self.alive.len() + self.waiting.len());
        }
        Ok(())
    }

    fn turn(&mut self, mut fork: F::Fork) {
        let Plan { budget, slice, .. } = self.plan;
        if self.is_last(*self.forks.slot(&mut fork))
            && let Some(template) = self.template.take()
        {
            self.forks.end_template(template);
        }
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
            After::Frozen if self.depth + 1 >= GENERATIONS_MAX => {
                self.ended(fork, slot, F::End::too_deep());
            }
            After::Frozen if self.owed.is_full() => {
                // It gives its frames back, of which those who wait may make use.
                self.scarce = false;
                self.wait(fork, slot);
            }
            After::Frozen => self.frozen(fork, slot),
        }
    }

    /// Whether the fork whose turn it is is the last of its template, in its last run: it is not reset any more, since
    /// it waits for nobody either.
    fn is_last(&self, slot: Slot) -> bool {
        self.next == self.total
            && self.alive.is_empty()
            && self.waiting.is_empty()
            && self.owed.is_empty()
            && self.after(slot).is_none()
            && !self.forks.keeps_templates()
    }

    /// A run is over: the next one, or the end of the fork.
    fn ended(&mut self, fork: F::Fork, slot: Slot, end: F::End) {
        let scarce = end.is_out_of_frames();
        if scarce && !self.alive.is_empty() {
            return self.wait(fork, slot);
        }
        let cost = self.forks.cost(&fork);
        self.record(slot, cost, Some(end));
        self.ended += 1;
        let Some(next) = self.after(slot) else {
            return self.end(fork);
        };
        if let Some(fork) = self.reset(fork, next, scarce) {
            self.alive.push(fork);
        }
    }

    /// Has a fork begin its run again once another has ended.
    fn wait(&mut self, fork: F::Fork, slot: Slot) {
        if let Some(sums) = self.tally.generation(self.depth) {
            sums.waited += 1;
        }
        let again = Slot { ticks: 0, ..slot };
        if let Some(fork) = self.reset(fork, again, true) {
            self.waiting.push(fork);
        }
    }

    /// Brings a fork back to its template, for the run `next`. One that cannot be ends.
    fn reset(&mut self, mut fork: F::Fork, next: Slot, scarce: bool) -> Option<F::Fork> {
        let template = self.template.as_mut()?;
        *self.forks.slot(&mut fork) = next;
        let begin = self.forks.now();
        let reset = self.forks.reset(template, &mut fork, scarce);
        let ticks = self.forks.now().wrapping_sub(begin);
        let checked = reset.and_then(|pages| {
            self.forks.check_reset(template, &fork)?;
            Ok(pages)
        });
        match checked {
            Ok(pages) => {
                if let Some(sums) = self.tally.generation(self.depth) {
                    sums.resets.add(ticks);
                    sums.pages_reset = sums.pages_reset.saturating_add(pages);
                }
                Some(fork)
            }
            Err(end) => {
                let runs = self.plan.options.runs - next.run;
                self.tally.lost(self.depth, next, runs, end);
                self.end(fork);
                None
            }
        }
    }

    /// A fork becomes a template, whose forks run until none is left. Its own next run is that of a new fork of the same
    /// number.
    fn frozen(&mut self, fork: F::Fork, slot: Slot) {
        let cost = self.forks.cost(&fork);
        match self.forks.freeze(fork) {
            Ok(template) => {
                self.record(slot, cost, None);
                let above = Alive {
                    template: self.template.as_ref(),
                    forks: [&self.alive, &self.waiting],
                    above: self.above,
                };
                generation(self.forks, template, self.plan, Some(&above), self.tally);
            }
            Err(end) => self.record(slot, cost, Some(end)),
        }
        self.scarce = false;
        // There is room, else it would not have come to this.
        let _ = self.after(slot).map(|next| self.owed.try_push(next));
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

    fn record(&mut self, slot: Slot, cost: Cost, end: Option<F::End>) {
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
        self.forks.end(self.template.as_mut(), fork);
        let ticks = self.forks.now().wrapping_sub(begin);
        if let Some(sums) = self.tally.generation(self.depth) {
            sums.ends.add(ticks);
        }
        self.scarce = false;
        if let Some(fork) = self.waiting.pop() {
            self.alive.push(fork);
        }
    }
}
