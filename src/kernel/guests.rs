//! The run: every boot module that is not data becomes a guest, one after the other; then the report.

use crate::boot::console::{self, Out};
use crate::boot::info::{BootInfo, MAX_MODULES};
use crate::boot::layout::DirectMap;
use crate::boot::power;
use crate::data;
use crate::forks::RUNS;
use crate::host::{EXPLANATIONS, FIGURES, LINES_LOST};
use crate::run::Session;
use crate::selftest::{GuestTest, OnKernel};
use arrayvec::ArrayVec;
use offshoot::ept::Spaces;
use offshoot::frames::{FrameAllocator, FrameStatistics};
use offshoot::host::cmdline::KernelOptions;
use offshoot::host::modules::{BootModule, ModuleKind};
use offshoot::host::quota::Explanations;
use offshoot::host::report::{GuestEnding, GuestSummary, Report};
use offshoot::vm::{Machine, StartError};
use spin::Mutex;

type Summaries = ArrayVec<GuestSummary<'static>, MAX_MODULES>;

// Too large for the stack.
static MODULES: Mutex<ArrayVec<BootModule<'static>, MAX_MODULES>> =
    Mutex::new(ArrayVec::new_const());
static SUMMARIES: Mutex<Summaries> = Mutex::new(Summaries::new_const());
/// How often in a second a guest that nobody waits for gives the CPU back for the console, as long as that has something to put
/// out: the port's FIFO is sent about that often.
const TURNS_FOR_CONSOLE: u64 = 1000;

/// Reports that there is no machine to run guests on, and ends the run.
pub fn run_none(frames: &FrameAllocator<DirectMap>, error: &StartError) -> ! {
    log::error!("no guest can run: {error}");
    report(&SUMMARIES.lock(), frames.statistics(), 0);
    power::end(Err(format_args!("{error}")));
}

/// Runs all guests, reports, and ends the run.
pub fn run_all<B: OnKernel>(
    mut machine: Machine<'static, DirectMap, B>,
    boot: &BootInfo,
    options: &KernelOptions<'_>,
    tsc_hz: u64,
    hand_over: u64,
) -> ! {
    let frames = machine.frames();
    let spaces = match Spaces::new(frames, machine.tables()) {
        Ok(spaces) => spaces,
        Err(error) => power::end(Err(format_args!("no frame of zeroes: {error}"))),
    };
    let spaces = match boot.mtrrs.clone() {
        Some(mtrrs) => spaces.with_mtrrs(mtrrs),
        None => spaces,
    };
    let mut modules = MODULES.lock();
    let width = u32::from(machine.physical_bits());
    modules.extend(
        boot.modules()
            .enumerate()
            .map(|(index, module)| BootModule::read(module.cmdline, module.range, index, width)),
    );
    FIGURES
        .lock()
        .divide(modules.iter().filter(|module| module.is_guest()).count());
    // From here on nobody waits for the console.
    console::queue_for(tsc_hz / TURNS_FOR_CONSOLE);
    let before = frames.statistics().used;
    let mut first = Some(hand_over);
    let mut summaries = SUMMARIES.lock();
    for (index, module) in modules.iter().enumerate() {
        let summary = match &module.kind {
            ModuleKind::Data => match data::refused(module, modules.get(..index).unwrap_or(&[])) {
                Some(refused) => refused,
                None => continue,
            },
            ModuleKind::BadGuest(error) | ModuleKind::BadData(error) => {
                GuestSummary::not_run(module.name, GuestEnding::BadOptions(*error))
            }
            ModuleKind::Guest(_) if summaries.iter().any(|other| other.name == module.name) => {
                GuestSummary::not_run(module.name, GuestEnding::DuplicateName)
            }
            ModuleKind::Guest(guest) => {
                let mut run = Session {
                    boot,
                    modules: &modules,
                    machine: &mut machine,
                    spaces: &spaces,
                    tsc_hz,
                    audit: options.audit,
                    test: options.selftest.and_then(GuestTest::of),
                };
                *EXPLANATIONS.lock() = Explanations::NONE;
                let mut summary = run.guest(index, module, guest, &mut first);
                summary.lost.explanations = EXPLANATIONS.lock().left_out();
                summary
            }
        };
        let what = if module.is_guest() { "guest" } else { "data" };
        match summary.ending {
            GuestEnding::BadOptions(error) => log::error!("{error}"),
            ref ending if ending.is_success() => log::info!("{what} {}: {ending}", summary.name),
            ref ending => log::error!("{what} {}: {ending}", summary.name),
        }
        // There are as many places as modules.
        let _ = summaries.try_push(summary);
    }
    let figures = frames.statistics();
    let leaked = figures.used.saturating_sub(before);
    drop(spaces);
    machine.stop();
    for summary in summaries.iter_mut() {
        summary.lost.lines = LINES_LOST.lock().of(summary.name);
        summary.lost.figures = FIGURES.lock().refused(summary.name);
    }
    let mut failed = summaries
        .iter()
        .filter(|summary| !summary.ending.is_success());
    let all = summaries.len();
    report(&summaries, figures, leaked);
    match (all, failed.next(), leaked) {
        (0, ..) => power::end(Err(format_args!(
            "there are no guests: give at least one boot module, an ELF image"
        ))),
        (_, None, 0) => power::end(Ok(())),
        (_, None, _) => power::end(Err(format_args!("{leaked} frames were not given back"))),
        (_, Some(first), _) => power::end(Err(format_args!(
            "{} of {all} guests did not end well, first {}: {}",
            failed.count() + 1,
            first.name,
            first.ending
        ))),
    }
}

fn report(guests: &Summaries, frames: FrameStatistics, leaked: u64) {
    console::finish();
    let figures = FIGURES.lock();
    let report = Report {
        guests,
        frames,
        leaked,
        figures: &figures,
        fork_runs: &RUNS.lock(),
    };
    // The console takes everything.
    let _ = report.write_table(&mut Out);
    let _ = report.write_json(&mut Out);
}
