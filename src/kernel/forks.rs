//! The forks of a guest that froze.

use crate::boot::console;
use crate::boot::layout::DirectMap;
use crate::boot::power;
use crate::host::{Kernel, file_figure};
use crate::run::Session;
use crate::selftest::OnKernel;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};
use offshoot::addr::PAGE_SIZE;
use offshoot::counting::Counts;
use offshoot::host::cmdline::{GuestOptions, Measure};
use offshoot::host::many::{
    ForkEnd, ForkPlan, ForkStatistics, ForksSummary, GuestForks, GuestRun, Measurement,
    RECORDS_MAX, measure, schedule, tell_counted,
};
use offshoot::host::report::GuestEnding;
use offshoot::vm::figure::Unit;
use offshoot::vm::{FreezeError, Guest, Template};
use offshoot_abi::FIGURE_NAME_MAX;
use spin::Mutex;

/// The delivery of one event may exit for each page that it uses: two of the stack, of the TSS and of the descriptor
/// tables, and the guest's page tables for them. A guest may also make one event follow the other without end.
const DELIVERY_EXITS: u32 = 64;

/// So many runs of forks are told one by one, of all guests together.
const RUNS_MAX: usize = 2 * RECORDS_MAX;

// Too large for the stack.
static STATISTICS: Mutex<ForkStatistics<ForkEnd>> = Mutex::new(ForkStatistics::new());
/// The first runs of forks.
pub static RUNS: Mutex<ArrayVec<GuestRun, RUNS_MAX>> = Mutex::new(ArrayVec::new_const());

impl<B: OnKernel> Session<'_, B> {
    /// Makes a guest a template and runs its forks, as its options say. `index` is its place in the report.
    pub fn freeze_and_fork(
        &mut self,
        guest: Guest<'_, DirectMap, B>,
        index: usize,
        options: &GuestOptions,
    ) -> (GuestEnding<'static>, Option<ForksSummary>) {
        if guest.message_buffer().is_none() && guest.stats.harvests.count != 0 {
            log::warn!(
                "guest {}: it asks for its dirty pages; its forks are not told of those it wrote before",
                options.name
            );
        }
        // One of which forks were not asked for goes on in one, with the time that it has left.
        let budget = if options.forks.given {
            options.budget.ticks(self.tsc_hz)
        } else {
            guest.budget_left()
        };
        let mut frozen = guest.freeze(self.machine);
        if matches!(frozen, Err((FreezeError::EventPending, _))) {
            log::info!(
                "guest {}: an event is delivered before it freezes",
                options.name
            );
        }
        for _ in 0..DELIVERY_EXITS {
            frozen = match frozen {
                // It was stopped just then: once the event is delivered it can be.
                Err((FreezeError::EventPending, mut guest)) => {
                    guest.run(self.machine, &mut Kernel, Some(1));
                    guest.freeze(self.machine)
                }
                other => other,
            };
        }
        match frozen {
            Ok(template) if options.forks.measure.is_some() => {
                (self.measure(template, options), None)
            }
            Ok(template) => {
                let forks = self.forks(template, index, options, budget);
                let (runs, bad) = (forks.runs(), forks.bad());
                (GuestEnding::Forked { runs, bad }, Some(forks))
            }
            Err((error, guest)) => {
                guest.end(self.machine);
                (GuestEnding::NotFrozen(error), None)
            }
        }
    }

    fn forks(
        &mut self,
        template: Template<'_, DirectMap, B>,
        index: usize,
        options: &GuestOptions,
        budget: u64,
    ) -> ForksSummary {
        let plan = ForkPlan {
            options: &options.forks,
            budget,
            slice: options.forks.slice_ticks(self.tsc_hz),
        };
        let mut statistics = STATISTICS.lock();
        statistics.clear();
        let (kernel, counts) = (&mut Kernel, Counts::now());
        let mut forks = GuestForks::new(
            self.machine,
            kernel,
            self.spaces,
            &options.forks,
            self.audit,
        );
        match forks.template(template) {
            Ok(template) => schedule(&mut forks, template, plan, &mut statistics),
            Err(end) => statistics.none(end),
        }
        let (counts, checked, idle_frames) = (counts.so_far(), forks.checked, forks.idle_frames);
        let name = options.name;
        if options.forks.prefetch {
            log::info!(
                "guest {name}: prefetch gave forks {} pages before they ran, {} KiB in all",
                forks.prefetched,
                forks.prefetched.saturating_mul(PAGE_SIZE) >> 10
            );
        }
        if let Some(wrong) = checked.wrong {
            power::end(Err(format_args!("check of forks of guest {name}: {wrong}")));
        }
        if self.audit {
            log::info!(
                "guest {name}: everything audited {} times, processors of {} reset forks compared and memory of {}",
                checked.walks,
                checked.processors,
                checked.memories
            );
        }
        let mut runs = RUNS.lock();
        for record in statistics.records() {
            // What there is no place for is in the sums.
            let _ = runs.try_push(GuestRun {
                guest: index,
                record: record.clone(),
            });
        }
        let summary = ForksSummary::new(&statistics, self.tsc_hz, idle_frames);
        if options.forks.idle {
            self.file_density(options, &summary, counts);
        }
        summary
    }

    /// Measures what forks cost, and files it.
    fn measure(
        &mut self,
        template: Template<'_, DirectMap, B>,
        options: &GuestOptions,
    ) -> GuestEnding<'static> {
        let what = options.forks.measure.unwrap_or(Measure::Fork);
        // What is measured is not to be broken off for the console.
        console::flush();
        let (kernel, mut figures) = (&mut Kernel, 0);
        let file = &mut |found: Measurement<'_>| {
            let mut name = ArrayString::<FIGURE_NAME_MAX>::new();
            let parts = found.name.split_once('%').unwrap_or((found.name, ""));
            let fits = if found.name.contains('%') {
                write!(name, "{}{}{}", parts.0, Short(options.mem), parts.1)
            } else {
                write!(name, "{}", found.name)
            };
            if fits.is_ok() {
                figures += 1;
                file_figure(options.name, name.as_bytes(), found.value, found.unit);
            }
        };
        let measured = measure(self.machine, kernel, &template, what, file);
        template.end(self.machine);
        match measured {
            Ok(()) => GuestEnding::Measured(figures),
            Err(end) => GuestEnding::NotMeasured(end),
        }
    }

    /// How many idle forks fit into a GiB, everything else that is there included. `counts` is of making and ending them.
    fn file_density(&self, options: &GuestOptions, forks: &ForksSummary, counts: Counts) {
        let alive = forks.generations.first().map_or(0, |all| all.alive_most);
        let bytes = u128::from(self.machine.frames().statistics().total) * u128::from(PAGE_SIZE);
        let per_gib = (u128::from(alive) << 30).checked_div(bytes).unwrap_or(0);
        log::info!(
            "guest {}: {alive} idle forks in {} MiB",
            options.name,
            bytes >> 20
        );
        let name = "fork.per_gib";
        file_figure(options.name, name.as_bytes(), per_gib as u64, Unit::Forks);
        let file = &mut |found: Measurement<'_>| {
            file_figure(options.name, found.name.as_bytes(), found.value, found.unit);
        };
        tell_counted(name, (counts, alive), forks.idle_frames, file);
    }
}

/// A size of memory as in `16m`.
struct Short(u64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            gib if gib.trailing_zeros() >= 30 => write!(f, "{}g", gib >> 30),
            mib if mib.trailing_zeros() >= 20 => write!(f, "{}m", mib >> 20),
            other => write!(f, "{}k", other >> 10),
        }
    }
}
