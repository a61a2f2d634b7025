//! The run: every boot module that is not data becomes a guest, one after the other; then the report.

use crate::boot::console::{self, Out};
use crate::boot::info::{BootInfo, MAX_MODULES};
use crate::boot::layout::{self, DirectMap};
use crate::boot::{clock, power, traps};
use crate::data;
use crate::forks::RUNS;
use crate::fuzz::Job;
use crate::passthrough;
use crate::selftest::GuestTest;
use arrayvec::ArrayVec;
use core::arch::x86_64::_rdtsc;
use offshoot::addr::{AddrRange, Hpa};
use offshoot::ept::{Census, Faults, Spaces};
use offshoot::frames::{FrameAllocator, FrameFigures};
use offshoot::host::cmdline::{GuestOptions, KernelOptions};
use offshoot::host::figures::Figures;
use offshoot::host::modules::{BootModule, ModuleKind};
use offshoot::host::quota::{Counts, Explanations, Lost};
use offshoot::host::report::{Ending, GuestSummary, Report};
use offshoot::vm::console::Printer;
use offshoot::vm::figure::{Figure, FigureName, Unit};
use offshoot::vm::loader::Image;
use offshoot::vm::name::Name;
use offshoot::vm::{Guest, GuestError, Host, Machine, RunStats, StartError, Turn, Words};
use spin::Mutex;

/// Who files the hypervisor's own figures.
const OWN_NAME: &str = "hypervisor";
/// From the boot loader's hand-over to the first instruction of the first guest, in TSC ticks.
const BOOT_FIGURE: &[u8] = b"boot.to_first_guest";

type Summaries = ArrayVec<GuestSummary<'static>, MAX_MODULES>;

// Too large for the stack.
static MODULES: Mutex<ArrayVec<BootModule<'static>, MAX_MODULES>> =
    Mutex::new(ArrayVec::new_const());
static SUMMARIES: Mutex<Summaries> = Mutex::new(Summaries::new_const());
static FIGURES: Mutex<Figures> = Mutex::new(Figures::new());
static LINES_LOST: Mutex<Counts> = Mutex::new(Counts::new());
/// Of the guest that runs.
static EXPLANATIONS: Mutex<Explanations> = Mutex::new(Explanations::NONE);

/// How often in a second a guest that nobody waits for gives the CPU back for the console, as long as that has something to put
/// out: the port's FIFO is sent about that often.
const TURNS_FOR_CONSOLE: u64 = 1000;

/// Reports that there is no machine to run guests on, and ends the run.
pub fn run_none(frames: &FrameAllocator<DirectMap>, error: &StartError) -> ! {
    log::error!("no guest can run: {error}");
    report(&SUMMARIES.lock(), frames.figures(), 0);
    power::end(Err(format_args!("{error}")));
}

/// Runs all guests, reports, and ends the run.
pub fn run_all(
    mut machine: Machine<'static, DirectMap>,
    boot: &BootInfo,
    options: &KernelOptions<'_>,
    tsc_hz: u64,
    hand_over: u64,
) -> ! {
    let frames = machine.frames();
    let spaces = match Spaces::new(frames, machine.ept()) {
        Ok(spaces) => spaces,
        Err(error) => power::end(Err(format_args!("no frame of zeroes: {error}"))),
    };
    let spaces = match boot.mtrrs {
        Some(mtrrs) => spaces.with_mtrrs(mtrrs),
        None => spaces,
    };
    let mut modules = MODULES.lock();
    let width = u32::from(machine.capabilities().physical_bits);
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
    let before = frames.figures().used;
    let mut first = Some(hand_over);
    let mut summaries = SUMMARIES.lock();
    for (index, module) in modules.iter().enumerate() {
        let summary = match &module.kind {
            ModuleKind::Data => match data::refused(module, modules.get(..index).unwrap_or(&[])) {
                Some(refused) => refused,
                None => continue,
            },
            ModuleKind::BadGuest(error) | ModuleKind::BadData(error) => {
                not_run(module.name, Ending::BadOptions(*error))
            }
            ModuleKind::Guest(_) if summaries.iter().any(|other| other.name == module.name) => {
                not_run(module.name, Ending::DuplicateName)
            }
            ModuleKind::Guest(guest) => {
                let mut run = Run {
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
            Ending::BadOptions(error) => log::error!("{error}"),
            ref ending if ending.is_success() => log::info!("{what} {}: {ending}", summary.name),
            ref ending => log::error!("{what} {}: {ending}", summary.name),
        }
        // There are as many places as modules.
        let _ = summaries.try_push(summary);
    }
    let figures = frames.figures();
    let leaked = figures.used.saturating_sub(before);
    if let Err(error) = spaces.end() {
        log::error!("the frame of zeroes: {error}");
    }
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

fn report(guests: &Summaries, frames: FrameFigures, leaked: u64) {
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

/// What running one module takes.
pub struct Run<'r> {
    boot: &'r BootInfo,
    modules: &'r [BootModule<'static>],
    pub machine: &'r mut Machine<'static, DirectMap>,
    pub spaces: &'r Spaces<'static, DirectMap>,
    pub tsc_hz: u64,
    pub audit: bool,
    /// What is done to guests before they run.
    test: Option<GuestTest>,
}

impl Run<'_> {
    /// Runs the guest of one module to its end. `first` is taken when the first guest of all is about to run.
    fn guest(
        &mut self,
        index: usize,
        module: &BootModule<'_>,
        options: &GuestOptions,
        first: &mut Option<u64>,
    ) -> GuestSummary<'static> {
        let data = options.map.map(|map| data::shared(self.modules, &map));
        let devices = passthrough::devices(self.boot, &options.passthrough);
        let made = match (Image::parse(bytes(module.range)), data.transpose(), devices) {
            (Ok(image), Ok(data), Ok(devices)) => {
                for warning in image.warnings() {
                    log::warn!("guest {}: {warning}", options.name);
                }
                let setup = options.setup(data, &devices, self.tsc_hz);
                Guest::create(self.machine, self.spaces, &image, &setup)
            }
            (Err(error), ..) => Err(GuestError::Image(error)),
            (_, Err(error), _) => Err(GuestError::Data(error)),
            (.., Err(error)) => Err(GuestError::PassThrough(error)),
        };
        let mut guest = match made {
            Ok(guest) => guest,
            Err(error) => return not_run(options.name, Ending::NotMade(error)),
        };
        if let Some(test) = self.test {
            test.apply(&mut guest, self.machine, options.name);
        }
        if let Some(hand_over) = first.take() {
            file_boot_figure(hand_over);
        }
        if options.fuzz.executions != 0 {
            return self.fuzz(guest, module, options);
        }
        let mut summary = not_run(options.name, Ending::DuplicateName);
        let limit = options.forks.freeze.map(|after| after.ticks(self.tsc_hz));
        let turn = self.run_up_to(&mut guest, limit);
        summary.faults = guest.space().faults();
        summary.memory = self.look_at(&guest, &options.name);
        summary.invalidations = guest.space().invalidations();
        summary.linear_invalidations = guest.space().linear_invalidations();
        summary.stats = guest.stats.clone();
        (summary.ending, summary.forks) = match turn {
            Turn::Ended(outcome) => {
                guest.end(self.machine);
                let ending = if options.forks.given {
                    Ending::NeverFroze(outcome)
                } else {
                    Ending::Ran(outcome)
                };
                (ending, None)
            }
            Turn::AsksFreeze | Turn::Halts | Turn::SliceOver => {
                self.freeze_and_fork(guest, index, options)
            }
        };
        summary
    }

    /// Runs a guest until it ends, asks to be frozen, or has run for `limit` ticks.
    fn run_up_to(&mut self, guest: &mut Guest<'_, DirectMap>, limit: Option<u64>) -> Turn {
        loop {
            let left = limit.map(|limit| limit.saturating_sub(guest.stats.ticks()));
            let turn = guest.run(self.machine, &mut Kernel, left);
            console::offer();
            let over = limit.is_some_and(|limit| guest.stats.ticks() >= limit);
            match turn {
                // There is nobody else.
                Turn::Halts | Turn::SliceOver if !over => {}
                turn => return turn,
            }
        }
    }

    /// Freezes a guest and runs inputs on forks of it.
    #[inline(never)]
    fn fuzz<'g>(
        &mut self,
        guest: Guest<'g, DirectMap>,
        module: &BootModule<'_>,
        options: &GuestOptions,
    ) -> GuestSummary<'static> {
        let name = options.name;
        let input = match options
            .fuzz
            .inputs
            .map(|wanted| data::input(self.modules, wanted))
        {
            Some(Err(error)) => {
                guest.end(self.machine);
                return not_run(name, Ending::NotMade(GuestError::Data(error)));
            }
            found => found.and_then(Result::ok),
        };
        let job = Job {
            options,
            file: bytes(module.range),
            input,
            tsc_hz: self.tsc_hz,
        };
        let (audit, spaces) = (self.audit, self.spaces);
        let fuzzed = job.run(guest, self.machine, &mut Kernel, |alive| {
            if audit {
                match spaces.audit(alive) {
                    Ok(others) => log::info!("guest {name}: audited, {others} frames of the host"),
                    Err(flaw) => power::end(Err(format_args!("audit after guest {name}: {flaw}"))),
                }
            }
        });
        GuestSummary {
            stats: fuzzed.stats,
            faults: fuzzed.faults,
            ..not_run(name, fuzzed.ending)
        }
    }

    /// Counts what the guest holds and, where asked for, checks every frame's count and every table.
    fn look_at(&self, guest: &Guest<'_, DirectMap>, name: &Name) -> Census {
        let census = guest.space().census().unwrap_or_else(|flaw| {
            log::error!("guest {name}: its tables are not as they must be: {flaw}");
            Census::default()
        });
        if self.audit {
            // What no space refers to is the host's: were there fewer, a guest would have one of them.
            let held = self.machine.frames_held() + Guest::<DirectMap>::FRAMES_HELD;
            match self.spaces.audit([guest.space()]) {
                Ok(others) if others == held => {
                    log::info!("guest {name}: audited, {others} frames of the host");
                }
                Ok(others) => power::end(Err(format_args!(
                    "audit after guest {name}: {others} frames in use are in no space, but the host holds {held}"
                ))),
                Err(flaw) => power::end(Err(format_args!("audit after guest {name}: {flaw}"))),
            }
        }
        census
    }
}

/// The summary of a module that comes to no run.
pub fn not_run(name: Name, ending: Ending<'static>) -> GuestSummary<'static> {
    GuestSummary {
        name,
        ending,
        stats: RunStats::ZERO,
        faults: Faults::default(),
        memory: Census::default(),
        invalidations: 0,
        linear_invalidations: 0,
        forks: None,
        lost: Lost::NOTHING,
    }
}

/// The bytes of a module. They stay as they are: its memory is never given to the allocator.
pub fn bytes(range: AddrRange<Hpa>) -> &'static [u8] {
    // SAFETY: the boot loader put the module there, the direct map shows it, and nobody writes to it.
    unsafe { core::slice::from_raw_parts(layout::direct(range.start()), range.len() as usize) }
}

fn file_boot_figure(hand_over: u64) {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    let value = unsafe { _rdtsc() }.wrapping_sub(hand_over);
    if let Some(own) = Name::new(OWN_NAME) {
        file_figure(own, BOOT_FIGURE, value, Unit::Ticks);
    }
}

/// Files a figure of the hypervisor's about a guest.
pub fn file_figure(guest: Name, name: &[u8], value: u64, unit: Unit) {
    let filed = FigureName::new(name).is_some_and(|name| {
        FIGURES.lock().file(Figure {
            guest,
            host: true,
            name,
            value,
            unit,
        })
    });
    if !filed {
        log::warn!("no room for figure {}", name.escape_ascii());
    }
}

/// The kernel, as the run loop sees it.
pub struct Kernel;

impl Host for Kernel {
    fn external_interrupt(&mut self, vector: u8) {
        clock::end_of_interrupt(vector);
    }
    fn non_maskable_interrupt(&mut self) {
        traps::raise_nmi();
    }
    fn machine_check(&mut self) {
        traps::raise_machine_check();
    }
    fn print(&mut self, from: &Printer, line: &[u8]) -> u64 {
        let (price, loser) = console::print(from, line);
        if let Some(loser) = loser {
            LINES_LOST.lock().count(loser);
        }
        price
    }
    fn tell(&mut self, text: &str) {
        console::write_fmt(format_args!("{text}"));
    }
    fn explains(&mut self) -> Words {
        EXPLANATIONS.lock().another(console::room())
    }
    fn wants_back(&self) -> Option<u64> {
        console::wants_turn()
    }
    fn between_turns(&mut self) {
        console::offer();
    }
    fn figure(&mut self, figure: Figure) -> bool {
        FIGURES.lock().file(figure)
    }
}
