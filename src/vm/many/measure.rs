//! What forks cost: to make, to run for the first time, to reset and to end, by the pages they write.
//!
//! Each figure is the median of several forks, in ticks of the TSC; of an emulator whose TSC counts instructions it is a
//! number of instructions, exact and repeatable. What grows with the pages is told as a line: its start and its slope.

use super::end::ForkEnd;
use super::forks::Slot;
use super::guests::LivingFork;
use super::line::Line;
use crate::ept::Reset;
use crate::frames::{FrameAllocator, FrameBox, PhysMem};
use crate::vm::cmdline::Measure;
use crate::vm::figures::Unit;
use crate::vm::run::now;
use crate::vm::{Guest, Host, Machine, Outcome, ResetError, Template, Turn};
use crate::vmx::GuestRegs;
use crate::vmx::cpu::{EntryArea, ExtendedState};

/// Forks of which the median is taken.
const REPEATS: usize = 7;
/// Pages that are written.
const PAGES: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];

/// So many pages are written where others were measured too.
const COMPARED: u64 = 16;

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

/// The values of one point, of all forks.
#[derive(Default)]
struct Series([u64; REPEATS]);

impl Series {
    fn set(&mut self, repeat: usize, value: u64) {
        if let Some(slot) = self.0.get_mut(repeat) {
            *slot = value;
        }
    }
    fn median(&mut self) -> u64 {
        *self.0.select_nth_unstable(REPEATS / 2).1
    }
}

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
    /// INVEPTs that a warm reset is followed by, and a cold one with the run after it.
    warm_invepts: u64,
    cold_invepts: u64,
    /// Frames that a cold reset gives back.
    frames: u64,
}

/// The lines of all points.
#[derive(Default)]
struct Lines {
    first_run: Line,
    warm_first: Line,
    warm: Line,
    cold: Line,
    end: Line,
    invepts: Line,
}

struct Bench<'r, 'f, 's, M: PhysMem, H> {
    machine: &'r mut Machine<'f, M>,
    host: &'r mut H,
    template: &'r Template<'s, M>,
}

/// Measures forks of `template`, and tells `file` of each figure.
pub fn measure<'s, M: PhysMem, H: Host>(
    machine: &mut Machine<'_, M>,
    host: &mut H,
    template: &Template<'s, M>,
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
        Measure::All => bench.by_pages(file),
    }
}

/// A figure in ticks.
fn ticks(name: &str, value: u64) -> Measurement<'_> {
    Measurement {
        name,
        value,
        unit: Unit::Ticks,
    }
}

fn times(name: &str, value: u64) -> Measurement<'_> {
    Measurement {
        unit: Unit::Times,
        ..ticks(name, value)
    }
}

fn frames(name: &str, value: u64) -> Measurement<'_> {
    Measurement {
        unit: Unit::Frames,
        ..ticks(name, value)
    }
}

fn bytes(name: &str, value: u64) -> Measurement<'_> {
    Measurement {
        unit: Unit::Bytes,
        ..ticks(name, value)
    }
}

impl<'s, M: PhysMem, H: Host> Bench<'_, '_, 's, M, H> {
    fn frames(&self) -> &FrameAllocator<M> {
        self.machine.frames()
    }

    fn fork(&mut self, pages: u64) -> Result<(Guest<'s, M>, u64), ForkEnd> {
        let begin = now();
        let fork = self.template.fork(self.machine, &pages.to_le_bytes());
        let ticks = now().wrapping_sub(begin);
        Ok((fork.map_err(ForkEnd::NotMade)?, ticks))
    }

    /// Runs a fork to its end. Yields what the hypervisor took for it.
    fn run(&mut self, fork: &mut Guest<'s, M>) -> Result<u64, ForkEnd> {
        let own = fork.stats.guest_ticks;
        let begin = now();
        let turn = fork.run(self.machine, self.host, None);
        let ticks = now().wrapping_sub(begin);
        match turn {
            Turn::Ended(Outcome::Exited(0)) => {
                Ok(ticks.saturating_sub(fork.stats.guest_ticks - own))
            }
            Turn::Ended(outcome) => Err(ForkEnd::Ran(outcome)),
            // It has no slice, so it has frozen again, which this guest is not for.
            Turn::AsksFreeze | Turn::Halts | Turn::SliceOver => Err(ForkEnd::FrozeAgain),
        }
    }

    fn end(&mut self, fork: Guest<'s, M>) -> u64 {
        let begin = now();
        fork.end(self.machine);
        now().wrapping_sub(begin)
    }

    /// Making a fork, the VMCS apart.
    fn forks(
        &mut self,
        what: Measure,
        file: &mut impl FnMut(Measurement<'_>),
    ) -> Result<(), ForkEnd> {
        let (mut rest, mut vmcs) = (Series::default(), Series::default());
        let mut taken = 0;
        for repeat in 0..REPEATS {
            let before = self.frames().figures().used;
            let (fork, ticks) = self.fork(0)?;
            taken = self.frames().figures().used - before;
            let setup = fork.setup_ticks();
            vmcs.set(repeat, setup);
            rest.set(repeat, ticks.saturating_sub(setup));
            self.end(fork);
        }
        // The VMCS and the entry area are set up with the processor.
        const OF_VCPU: u64 = 2;
        file(ticks("fork.%", rest.median()));
        file(frames("fork.%.frames", taken.saturating_sub(OF_VCPU)));
        file(bytes("fork.%.bytes", 4096 * taken.saturating_sub(OF_VCPU)));
        for name in ["fork.%.vmreads", "fork.%.vmwrites", "fork.%.invepts"] {
            file(times(name, 0));
        }
        if what == Measure::Fork {
            return Ok(());
        }
        let (mut fork, _) = self.fork(0)?;
        let counted = self.template.count_vmcs_accesses(&mut fork, self.machine);
        self.end(fork);
        let (all, reset) = counted.map_err(|error| ForkEnd::NotReset(ResetError::Vcpu(error)))?;
        file(ticks("fork.vmcs", vmcs.median()));
        file(times("fork.vmcs.vmreads", all.reads));
        file(times("fork.vmcs.vmwrites", all.writes));
        file(times("fork.vmcs.vmclears", 1));
        file(times("fork.vmcs.vmptrlds", 1));
        file(frames("fork.vmcs.frames", OF_VCPU));
        file(bytes("fork.vmcs.bytes", 4096 + area_bytes()));
        file(times("reset.warm.base.vmreads", reset.reads));
        file(times("reset.warm.base.vmwrites", reset.writes));
        file(times("reset.cold.base.vmreads", reset.reads));
        file(times("reset.cold.base.vmwrites", reset.writes));
        Ok(())
    }

    fn reset(
        &mut self,
        fork: &mut Guest<'s, M>,
        how: Reset,
        pages: u64,
    ) -> Result<(crate::ept::Restored, u64), ForkEnd> {
        let message = pages.to_le_bytes();
        let begin = now();
        let reset = self.template.reset(fork, self.machine, how, &message);
        let ticks = now().wrapping_sub(begin);
        Ok((reset.map_err(ForkEnd::NotReset)?, ticks))
    }

    /// A fork through its whole life, once.
    fn life(
        &mut self,
        fork: &mut Guest<'s, M>,
        pages: u64,
        repeat: usize,
        point: &mut Point,
    ) -> Result<(), ForkEnd> {
        point.first_run.set(repeat, self.run(fork)?);
        let (_, ticks) = self.reset(fork, Reset::Warm, pages)?;
        point.warm_first.set(repeat, ticks);
        self.run(fork)?;
        let before = fork.space().invalidations();
        let (restored, ticks) = self.reset(fork, Reset::Warm, pages)?;
        point.warm.set(repeat, ticks);
        point.copied = restored.copied;
        point.warm_run.set(repeat, self.run(fork)?);
        point.warm_invepts = fork.space().invalidations() - before;
        let before = (private(fork), fork.space().invalidations());
        let (restored, ticks) = self.reset(fork, Reset::Cold, pages)?;
        point.cold.set(repeat, ticks);
        (point.dropped, point.frames) = (restored.dropped, restored.frames);
        self.run(fork)?;
        point.private = private(fork) - before.0;
        point.cold_invepts = fork.space().invalidations() - before.1;
        Ok(())
    }

    /// The memory of a fork that has not run, in the place where a schedule keeps it.
    fn idle(&mut self, file: &mut impl FnMut(Measurement<'_>)) -> Result<(), ForkEnd> {
        let frames_of = |bench: &Self| bench.frames().figures().used;
        let before = frames_of(self);
        let (fork, _) = self.fork(0)?;
        let fork = LivingFork::new(fork, Slot::default());
        let kept = FrameBox::new(self.machine.frames(), fork);
        let taken = frames_of(self) - before;
        let (kept, failed) = match kept {
            Ok(kept) => (kept.into_inner(), None),
            Err((error, fork)) => (fork, Some(ForkEnd::NoFrame(error))),
        };
        self.end(kept.into_guest());
        if let Some(error) = failed {
            return Err(error);
        }
        file(bytes("fork.idle_memory", 4096 * taken));
        for name in [
            "fork.idle_memory.root_table",
            "fork.idle_memory.vmcs",
            "fork.idle_memory.entry_area",
        ] {
            file(frames(name, 1));
        }
        file(frames("fork.idle_memory.rest", taken.saturating_sub(3)));
        Ok(())
    }

    fn by_pages(&mut self, file: &mut impl FnMut(Measurement<'_>)) -> Result<(), ForkEnd> {
        let mut lines = Lines::default();
        log::info!(
            "pages written   own   first run   warm reset   run after   cold reset         end"
        );
        let (mut last, mut most) = (Point::default(), 0);
        for pages in PAGES {
            let mut point = Point::default();
            for repeat in 0..REPEATS {
                let (mut fork, _) = self.fork(pages)?;
                let lived = self.life(&mut fork, pages, repeat, &mut point);
                let ticks = self.end(fork);
                lived?;
                point.end.set(repeat, ticks);
            }
            if pages == COMPARED {
                file(ticks("fork.first_run.16_pages", point.first_run.median()));
                file(frames("fork.first_run.16_pages.frames", point.private));
                file(ticks("drop.16_pages", point.end.median()));
                file(frames("drop.16_pages.frames", point.private));
            }
            lines.first_run.add(point.private, point.first_run.median());
            lines
                .warm_first
                .add(point.copied, point.warm_first.median());
            lines.warm.add(point.copied, point.warm.median());
            lines.cold.add(point.dropped, point.cold.median());
            lines.end.add(point.private, point.end.median());
            lines.invepts.add(point.private, point.cold_invepts);
            log::info!(
                "{pages:>13} {:>5} {:>11} {:>12} {:>11} {:>12} {:>11}",
                point.private,
                point.first_run.median(),
                point.warm.median(),
                point.warm_run.median(),
                point.cold.median(),
                point.end.median(),
            );
            (last, most) = (point, pages);
        }
        for (line, base, per_page) in [
            (&lines.first_run, "fork.run.base", "fork.run.per_page"),
            (&lines.warm, "reset.warm.base", "reset.warm.per_page"),
            (
                &lines.warm_first,
                "reset.warm.first.base",
                "reset.warm.first.per_page",
            ),
            (&lines.cold, "reset.cold.base", "reset.cold.per_page"),
            (&lines.end, "drop.base", "drop.per_page"),
        ] {
            if let Some((start, slope)) = line.fit() {
                file(ticks(base, u64::try_from(start).unwrap_or(0)));
                file(ticks(per_page, u64::try_from(slope).unwrap_or(0)));
            }
        }
        // They are executed when the fork is entered next.
        file(times("reset.warm.base.invepts", last.warm_invepts));
        if let Some((start, slope)) = lines.invepts.fit() {
            let start = u64::try_from(start).unwrap_or(0);
            file(times("reset.cold.base.invepts", start));
            let slope = u64::try_from(slope).unwrap_or(0);
            file(times("fork.run.per_page.invepts", slope));
        }
        file(bytes("reset.warm.base.bytes", reset_bytes()));
        file(bytes("reset.cold.base.bytes", reset_bytes()));
        let per_page = |all: u64| all.checked_div(last.copied).unwrap_or(0);
        file(bytes(
            "reset.warm.per_page.bytes",
            per_page(4096 * last.copied),
        ));
        self.idle(file)?;
        log::info!(
            "of {most} pages a cold reset gives back {} frames, tables included",
            last.frames
        );
        Ok(())
    }
}

/// Pages that became the fork's own.
fn private<M: PhysMem>(fork: &Guest<'_, M>) -> u64 {
    let faults = fork.space().faults();
    faults.copied + faults.filled + faults.taken_over
}

const fn area_bytes() -> u64 {
    size_of::<EntryArea>() as u64
}

/// What a reset moves of it for a guest that uses no vector state above SSE, as the one that is measured.
const fn reset_bytes() -> u64 {
    (ExtendedState::LEAST_RESTORED + size_of::<GuestRegs>()) as u64
}
