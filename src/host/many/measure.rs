//! What forks cost: to make, to run for the first time, to reset and to end, by the pages they write.
//!
//! Each figure is the median of several forks, in ticks of the TSC; of an emulator whose TSC counts instructions it is a
//! number of instructions, exact and repeatable. What grows with the pages is told as a linear fit: its start and its slope. A
//! kernel that [counts](crate::counting) tells for each figure what was counted instead.

use super::end::ForkEnd;
use super::forks::ForkSlot;
use super::guests::LivingFork;
use super::price::{LinearFits, Measurement, Moment, Price, REPEATS, Series};
use crate::counting;
use crate::ept::{Reset, Restored};
use crate::frames::{FrameAllocator, FrameBox, PhysMem};
use crate::host::cmdline::Measure;
use crate::vm::figure::Unit;
use crate::vm::{Backend, Guest, Host, Machine, OnVmx, Outcome, Template, Turn};

/// Pages that are written.
const PAGES: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];

/// So many pages are written where others were measured too.
const COMPARED: u64 = 16;

/// What one fork that writes a certain number of pages costs.
#[derive(Default)]
struct Point {
    first_run: Series,
    warm_first: Series,
    warm: Series,
    warm_run: Series,
    cold: Series,
    end: Series,
    /// Pages that it made its own, that a warm reset copied, and that a cold one dropped.
    private: u64,
    copied: u64,
    dropped: u64,
    /// Frames that a cold reset gives back.
    frames: u64,
}

struct Bench<'r, 'f, 's, M: PhysMem, H, B: Backend = OnVmx> {
    machine: &'r mut Machine<'f, M, B>,
    host: &'r mut H,
    template: &'r Template<'s, M, B>,
}

/// Measures forks of `template`, and tells `file` of each figure.
///
/// # Errors
/// The first fork that could not be made, run or reset.
pub fn measure<'s, M: PhysMem, H: Host, B: Backend>(
    machine: &mut Machine<'_, M, B>,
    host: &mut H,
    template: &Template<'s, M, B>,
    what: Measure,
    file: &mut impl FnMut(Measurement<'_>),
) -> Result<(), ForkEnd> {
    let mut bench = Bench {
        machine,
        host,
        template,
    };
    bench.forks(what, file)?;
    match what {
        Measure::Fork => Ok(()),
        Measure::All => {
            bench.idle(file)?;
            bench.by_pages(file)
        }
    }
}

impl<'s, M: PhysMem, H: Host, B: Backend> Bench<'_, '_, 's, M, H, B> {
    fn frames(&self) -> &FrameAllocator<M> {
        self.machine.frames()
    }

    fn fork(&mut self, pages: u64) -> Result<(Guest<'s, M, B>, Price), ForkEnd> {
        let begin = Moment::now(self.frames());
        let fork = self.template.fork(self.machine, &pages.to_le_bytes());
        let price = begin.price(self.frames());
        Ok((fork.map_err(ForkEnd::NotMade)?, price))
    }

    /// Runs a fork to its end. Returns what the hypervisor took for it.
    fn run(&mut self, fork: &mut Guest<'s, M, B>) -> Result<Price, ForkEnd> {
        let own = fork.stats.guest_ticks;
        let begin = Moment::now(self.frames());
        let turn = loop {
            match fork.run(self.machine, self.host, None) {
                // The host has something to put out, which is for later.
                Turn::SliceOver => self.host.between_turns(),
                turn => break turn,
            }
        };
        let price = begin.price(self.frames());
        match turn {
            Turn::Ended(Outcome::Exited(0)) => {
                let own = fork.stats.guest_ticks - own;
                Ok(price.with_ticks(price.ticks().saturating_sub(own)))
            }
            Turn::Ended(outcome) => Err(ForkEnd::Ran(outcome)),
            // It has no slice, so it has frozen again, which this guest is not for.
            Turn::AsksFreeze | Turn::Halts | Turn::SliceOver => Err(ForkEnd::FrozeAgain),
        }
    }

    fn end(&mut self, fork: Guest<'s, M, B>) -> Price {
        let begin = Moment::now(self.frames());
        fork.end(self.machine);
        begin.price(self.frames())
    }

    /// Making a fork, the VMCS apart.
    fn forks(
        &mut self,
        what: Measure,
        file: &mut impl FnMut(Measurement<'_>),
    ) -> Result<(), ForkEnd> {
        let (mut rest, mut vmcs) = (Series::default(), Series::default());
        for repeat in 0..REPEATS {
            let (fork, all) = self.fork(0)?;
            let (ticks, counts) = fork.setup();
            let setup = Price::new(ticks, counts, Guest::<M, B>::FRAMES_HELD);
            vmcs.set(repeat, setup);
            rest.set(repeat, all.without(setup));
            self.end(fork);
        }
        rest.median().tell("fork.%", file);
        if what == Measure::All {
            vmcs.median().tell("fork.vmcs", file);
        }
        Ok(())
    }

    fn reset(
        &mut self,
        fork: &mut Guest<'s, M, B>,
        how: Reset,
        pages: u64,
    ) -> Result<(Restored, Price), ForkEnd> {
        let message = pages.to_le_bytes();
        let begin = Moment::now(self.frames());
        let reset = self.template.reset(fork, self.machine, how, &message);
        if counting::ON {
            // What is owed is paid at the next entry, and is of the reset.
            fork.settle(self.machine);
        }
        let price = begin.price(self.frames());
        Ok((reset.map_err(ForkEnd::NotReset)?, price))
    }

    /// A fork through its whole life, once.
    fn life(
        &mut self,
        fork: &mut Guest<'s, M, B>,
        pages: u64,
        repeat: usize,
        point: &mut Point,
    ) -> Result<(), ForkEnd> {
        point.first_run.set(repeat, self.run(fork)?);
        let (_, price) = self.reset(fork, Reset::Warm, pages)?;
        point.warm_first.set(repeat, price);
        self.run(fork)?;
        let (restored, price) = self.reset(fork, Reset::Warm, pages)?;
        point.warm.set(repeat, price);
        point.copied = restored.copied;
        point.warm_run.set(repeat, self.run(fork)?);
        let before = private(fork);
        let (restored, price) = self.reset(fork, Reset::Cold, pages)?;
        point.cold.set(repeat, price);
        (point.dropped, point.frames) = (restored.dropped, restored.frames);
        self.run(fork)?;
        point.private = private(fork) - before;
        Ok(())
    }

    /// The memory of a fork that has not run, in the place where a schedule keeps it.
    fn idle(&mut self, file: &mut impl FnMut(Measurement<'_>)) -> Result<(), ForkEnd> {
        let begin = Moment::now(self.frames());
        let (fork, made) = self.fork(0)?;
        let fork = LivingFork::new(fork, ForkSlot::default());
        let kept = FrameBox::new(self.machine.frames(), fork);
        let all = begin.price(self.frames());
        let (kept, failed) = match kept {
            Ok(kept) => (kept.into_inner(), None),
            Err((error, fork)) => (fork, Some(ForkEnd::NoFrame(error))),
        };
        self.end(kept.into_guest());
        if let Some(error) = failed {
            return Err(error);
        }
        let of_vcpu = Guest::<M, B>::FRAMES_HELD;
        for (name, value, unit) in [
            ("fork.idle_memory", 4096 * all.frames(), Unit::Bytes),
            (
                "fork.idle_memory.root_table",
                made.frames().saturating_sub(of_vcpu),
                Unit::Frames,
            ),
            ("fork.idle_memory.vmcs_and_area", of_vcpu, Unit::Frames),
            (
                "fork.idle_memory.rest",
                all.frames().saturating_sub(made.frames()),
                Unit::Frames,
            ),
        ] {
            file(Measurement { name, value, unit });
        }
        if counting::ON {
            all.tell("fork.idle_memory", file);
        }
        Ok(())
    }

    fn by_pages(&mut self, file: &mut impl FnMut(Measurement<'_>)) -> Result<(), ForkEnd> {
        let [mut first_run, mut warm, mut warm_first, mut cold, mut end] =
            core::array::from_fn(|_| LinearFits::default());
        log::info!(
            "pages written   own   first run   warm reset   run after   cold reset         end"
        );
        let (mut last, mut most) = (0, 0);
        for pages in PAGES {
            let mut point = Point::default();
            for repeat in 0..REPEATS {
                let (mut fork, _) = self.fork(pages)?;
                let lived = self.life(&mut fork, pages, repeat, &mut point);
                let price = self.end(fork);
                lived?;
                point.end.set(repeat, price);
            }
            if pages == COMPARED {
                let ran = point.first_run.median();
                ran.tell("fork.first_run.16_pages", file);
                point.end.median().tell("drop.16_pages", file);
            }
            for (lines, pages, series) in [
                (&mut first_run, point.private, &point.first_run),
                (&mut warm, point.copied, &point.warm),
                (&mut warm_first, point.copied, &point.warm_first),
                (&mut cold, point.dropped, &point.cold),
                (&mut end, point.private, &point.end),
            ] {
                lines.add(pages, &series.median());
            }
            log::info!(
                "{pages:>13} {:>5} {:>11} {:>12} {:>11} {:>12} {:>11}",
                point.private,
                point.first_run.median().ticks(),
                point.warm.median().ticks(),
                point.warm_run.median().ticks(),
                point.cold.median().ticks(),
                point.end.median().ticks(),
            );
            (last, most) = (point.frames, pages);
        }
        first_run.tell("fork.run.base", "fork.run.per_page", file);
        warm.tell("reset.warm.base", "reset.warm.per_page", file);
        warm_first.tell("reset.first.base", "reset.first.per_page", file);
        cold.tell("reset.cold.base", "reset.cold.per_page", file);
        end.tell("drop.base", "drop.per_page", file);
        log::info!("of {most} pages a cold reset gives back {last} frames, tables included");
        Ok(())
    }
}

/// Pages that became the fork's own.
fn private<M: PhysMem, B: Backend>(fork: &Guest<'_, M, B>) -> u64 {
    let faults = fork.space().faults();
    faults.copied + faults.filled + faults.taken_over
}
