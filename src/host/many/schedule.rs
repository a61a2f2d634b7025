//! Who is alive and whose turn it is: the living stand in a queue, and each has a turn when it is the first.
//!
//! A run that freezes goes on in the forks of what it has frozen. These have no more than it had left: its runs, each of them,
//! and its time, all of them together. So what a guest may take is what its options say, however often it freezes.
//!
//! A fork for which there is no frame goes back to the start of its run and waits until another has ended, so that forks
//! that need much memory do not bring down those that need little. Only one that finds too little while all others wait,
//! each with the few frames of an idle fork, fails for it.

use super::forks::{After, Alive, Cost, ForkSlot, Forks, Verdict};
use super::queue::Queue;
use super::statistics::{ForkStatistics, RunRecord};
use crate::host::cmdline::{ForkOptions, GENERATIONS_MAX};

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct ForkPlan<'o> {
    /// How many, how often.
    pub options: &'o ForkOptions,
    /// TSC ticks that each run may take; what a run that freezes has left of them is for all forks of it together.
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
    plan: ForkPlan<'_>,
    statistics: &mut ForkStatistics<F::End>,
) {
    let begin = forks.now();
    let runs = plan.options.runs;
    let all = u128::from(plan.options.forks(0)) * u128::from(runs);
    let share = Share {
        runs,
        ticks: all.saturating_mul(plan.budget.into()),
    };
    generation(forks, template, plan, share, None, statistics);
    statistics.ticks = forks.now().wrapping_sub(begin);
}

/// What the forks of a template may take.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// How often each of them runs.
    runs: u64,
    /// TSC ticks of all their runs.
    ticks: u128,
}

/// One template and its forks. The recursion is as deep as [`GENERATIONS_MAX`].
fn generation<F: Forks>(
    forks: &mut F,
    template: F::Template,
    plan: ForkPlan<'_>,
    share: Share,
    above: Option<&Alive<'_, F>>,
    statistics: &mut ForkStatistics<F::End>,
) {
    let depth = above.map_or(0, |above| above.generations().count());
    if let Some(sums) = statistics.generation(depth) {
        sums.templates += 1;
    }
    let total = plan.options.forks(depth);
    let mut crowd = Crowd {
        total,
        purse: Purse {
            ticks: share.ticks,
            runs: u128::from(total) * u128::from(share.runs),
            most: plan.budget,
        },
        runs: share.runs,
        forks,
        template: Some(template),
        plan,
        depth,
        above,
        statistics,
        alive: Queue::new(),
        waiting: Queue::new(),
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

/// The time that is left for the forks of one template.
#[derive(Clone, Copy, Debug)]
struct Purse {
    /// TSC ticks that no run has.
    ticks: u128,
    /// The runs that have not begun.
    runs: u128,
    /// The most that a run may take.
    most: u64,
}

impl Purse {
    /// What the next run may take: as much as each of those that have not begun.
    fn next(&self) -> u64 {
        let each = self.ticks.checked_div(self.runs).unwrap_or(0);
        u64::try_from(each).unwrap_or(u64::MAX).min(self.most)
    }
    /// A run begins, with that.
    fn begin(&mut self, ticks: u64) {
        self.ticks = self.ticks.saturating_sub(ticks.into());
        self.lose(1);
    }
    /// So many runs that have not begun are somebody else's, with what they may take.
    fn take(&mut self, runs: u64) -> u128 {
        let all = u128::from(self.next()).saturating_mul(runs.into());
        self.ticks = self.ticks.saturating_sub(all);
        self.lose(runs);
        all
    }
    /// So many runs will never be.
    fn lose(&mut self, runs: u64) {
        self.runs = self.runs.saturating_sub(runs.into());
    }
    /// A run has left so much of what it had.
    fn give_back(&mut self, ticks: u64) {
        self.ticks = self.ticks.saturating_add(ticks.into());
    }
}

/// The forks of one template.
struct Crowd<'r, F: Forks> {
    forks: &'r mut F,
    /// Until nobody needs it any more.
    template: Option<F::Template>,
    plan: ForkPlan<'r>,
    depth: usize,
    above: Option<&'r Alive<'r, F>>,
    statistics: &'r mut ForkStatistics<F::End>,
    /// Each has its turn when it is the first.
    alive: Queue<F::Fork>,
    /// Those who wait for frames, at the start of their run.
    waiting: Queue<F::Fork>,
    purse: Purse,
    /// How often each fork runs.
    runs: u64,
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
            && self.waiting.is_empty()
            && self.next < self.total
        {
            let slot = ForkSlot {
                fork: self.next,
                budget: self.purse.next(),
                ..ForkSlot::default()
            };
            match self.make(slot) {
                Ok(()) => {
                    self.next += 1;
                    self.purse.begin(slot.budget);
                }
                Err(end) if end.is_out_of_frames() && !self.alive.is_empty() => self.scarce = true,
                Err(end) => self.give_up(slot, end),
            }
        }
    }

    /// Counts the runs of all forks that are still to be made: what fails now fails for each of them.
    fn give_up(&mut self, slot: ForkSlot, end: F::End) {
        let others = self.total - self.next;
        self.next = self.total;
        let lost = others.saturating_mul(self.runs);
        self.purse.lose(lost);
        self.statistics.lost(self.depth, slot, lost, end);
    }

    fn make(&mut self, slot: ForkSlot) -> Result<(), F::End> {
        let begin = self.forks.now();
        let Some(template) = &mut self.template else {
            return Ok(());
        };
        let fork = self.forks.fork(template, slot)?;
        let ticks = self.forks.now().wrapping_sub(begin);
        self.alive.push(fork);
        if let Some(sums) = self.statistics.generation(self.depth) {
            sums.forks.add(ticks);
            sums.alive_most = sums.alive_most.max(self.alive.len() + self.waiting.len());
        }
        Ok(())
    }

    fn turn(&mut self, mut fork: F::Fork) {
        let slice = self.plan.slice;
        let slot = self.forks.slot(&mut fork);
        if slot.over >= slice && !self.alive.is_empty() {
            // It has had this turn already.
            slot.over -= slice;
            return self.alive.push(fork);
        }
        let (left, slot) = (slot.left(), *slot);
        if self.is_last(slot)
            && let Some(template) = self.template.take()
        {
            self.forks.end_template(template);
        }
        let turn = self.forks.turn(&mut fork, left.min(slice));
        let slot = self.forks.slot(&mut fork);
        // Even a turn that took nothing counts: else a run could go on without end.
        slot.ticks = slot.ticks.saturating_add(turn.ticks.max(1));
        slot.over = slot.over.saturating_add(turn.ticks.saturating_sub(slice));
        let slot = *slot;
        match turn.after {
            After::Going if slot.left() != 0 => self.alive.push(fork),
            After::Going => self.ended(fork, slot, F::End::out_of_budget()),
            After::Ended(end) => self.ended(fork, slot, end),
            After::Frozen if self.depth + 1 >= GENERATIONS_MAX => {
                self.ended(fork, slot, F::End::too_deep());
            }
            After::Frozen => self.frozen(fork, slot),
        }
    }

    /// Whether the fork whose turn it is is the last of its template, in its last run: it is not reset any more, since
    /// it waits for nobody either.
    fn is_last(&self, slot: ForkSlot) -> bool {
        self.next == self.total
            && self.alive.is_empty()
            && self.waiting.is_empty()
            && self.after(slot).is_none()
            && !self.forks.keeps_templates()
    }

    /// A run is over: the next one, or the end of the fork.
    fn ended(&mut self, fork: F::Fork, slot: ForkSlot, end: F::End) {
        let scarce = end.is_out_of_frames();
        if scarce && !self.alive.is_empty() && slot.may_begin_again() {
            return self.wait(fork, slot);
        }
        self.purse.give_back(slot.left());
        let cost = self.forks.cost(&fork);
        self.record(slot, cost, Some(end));
        self.ended += 1;
        let Some(next) = self.after(slot) else {
            return self.end(fork);
        };
        let budget = self.purse.next();
        self.purse.begin(budget);
        if let Some(fork) = self.reset(fork, ForkSlot { budget, ..next }, scarce) {
            self.alive.push(fork);
        }
    }

    /// Has a fork begin its run again once another has ended.
    fn wait(&mut self, fork: F::Fork, slot: ForkSlot) {
        if let Some(sums) = self.statistics.generation(self.depth) {
            sums.waited += 1;
        }
        let again = slot.again();
        if let Some(fork) = self.reset(fork, again, true) {
            self.waiting.push(fork);
        }
    }

    /// Brings a fork back to its template, for the run `next`. One that cannot be ends.
    fn reset(&mut self, mut fork: F::Fork, next: ForkSlot, scarce: bool) -> Option<F::Fork> {
        let template = self.template.as_mut()?;
        *self.forks.slot(&mut fork) = next;
        let begin = self.forks.now();
        let reset = self.forks.reset(template, &mut fork, scarce);
        let ticks = self.forks.now().wrapping_sub(begin);
        // A guest that has much to be reset has less time for its run.
        let slot = self.forks.slot(&mut fork);
        slot.charged = slot.charged.saturating_add(ticks);
        let checked = reset.and_then(|pages| {
            self.forks.check_reset(template, &fork)?;
            Ok(pages)
        });
        match checked {
            Ok(pages) => {
                if let Some(sums) = self.statistics.generation(self.depth) {
                    sums.resets.add(ticks);
                    sums.pages_reset = sums.pages_reset.saturating_add(pages);
                }
                Some(fork)
            }
            Err(end) => {
                let runs = self.runs - next.run;
                // This one has begun.
                self.purse.lose(runs - 1);
                self.purse.give_back(next.budget);
                self.statistics.lost(self.depth, next, runs, end);
                self.end(fork);
                None
            }
        }
    }

    /// A fork becomes a template, whose forks run until none is left. They have the runs that it has left, this one among them,
    /// and the time.
    fn frozen(&mut self, fork: F::Fork, slot: ForkSlot) {
        let cost = self.forks.cost(&fork);
        let runs = self.runs - slot.run;
        let to_come = runs.saturating_sub(1);
        let ticks = self.purse.take(to_come).saturating_add(slot.left().into());
        match self.forks.freeze(fork) {
            Ok(template) => {
                self.record(slot, cost, None);
                let above = Alive {
                    template: self.template.as_ref(),
                    forks: [&self.alive, &self.waiting],
                    above: self.above,
                };
                let share = Share { runs, ticks };
                generation(
                    self.forks,
                    template,
                    self.plan,
                    share,
                    Some(&above),
                    self.statistics,
                );
            }
            Err(end) => {
                self.record(slot, cost, Some(end.clone()));
                if let Some(next) = self.after(slot) {
                    self.statistics.lost(self.depth, next, to_come, end);
                }
            }
        }
        self.scarce = false;
    }

    /// The run after this one, if there is one.
    fn after(&self, slot: ForkSlot) -> Option<ForkSlot> {
        let run = slot.run + 1;
        let fork = slot.fork;
        (run < self.runs).then_some(ForkSlot {
            fork,
            run,
            over: slot.over,
            ..ForkSlot::default()
        })
    }

    fn record(&mut self, slot: ForkSlot, cost: Cost, end: Option<F::End>) {
        self.statistics.ran(RunRecord {
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
        if let Some(sums) = self.statistics.generation(self.depth) {
            sums.ends.add(ticks);
        }
        self.scarce = false;
        if let Some(fork) = self.waiting.pop() {
            self.alive.push(fork);
        }
    }
}
