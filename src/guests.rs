//! The run: every boot module becomes a guest, one after the other; then the report.

use crate::boot::console::{self, Out};
use crate::boot::info::{BootInfo, MAX_MODULES, Module};
use crate::boot::layout::{self, DirectMap};
use crate::boot::{clock, power, traps};
use arrayvec::ArrayVec;
use core::arch::x86_64::_rdtsc;
use offshoot::ept::{Census, Faults, Space, Spaces};
use offshoot::frames::{FrameAllocator, FrameFigures};
use offshoot::vm::cmdline::{GuestOptions, KernelOptions, Name};
use offshoot::vm::figures::{Figure, FigureName, Figures};
use offshoot::vm::loader::Image;
use offshoot::vm::report::{Ending, GuestSummary, Report};
use offshoot::vm::{
    Guest, GuestError, Host, Machine, Outcome, RunStats, StartError, Template, Turn,
};
use offshoot::vmx::cpu::CurrentVmcs;
use offshoot::vmx::{FieldNatural, Vmcs};
use spin::Mutex;

/// Who files the hypervisor's own figures.
const OWN_NAME: &str = "hypervisor";
/// From the boot loader's hand-over to the first instruction of the first guest, in TSC ticks.
const BOOT_FIGURE: &[u8] = b"boot.to_first_guest";

/// The self-test in which every VM entry fails on the guest's state, to see how that is reported.
pub const SELFTEST_ENTRY: &str = "entry";

type Summaries = ArrayVec<GuestSummary<'static>, MAX_MODULES>;

// Too large for the stack.
static SUMMARIES: Mutex<Summaries> = Mutex::new(Summaries::new_const());
static FIGURES: Mutex<Figures> = Mutex::new(Figures::new());

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
    let before = frames.figures().used;
    let mut first = Some(hand_over);
    let mut summaries = SUMMARIES.lock();
    for (index, module) in boot.modules().enumerate() {
        let mut run = Run {
            machine: &mut machine,
            spaces: &spaces,
            tsc_hz,
            audit: options.audit,
            spoil: options.selftest == Some(SELFTEST_ENTRY),
        };
        let summary = run.module(index, &module, &summaries, &mut first);
        match summary.ending {
            Ending::BadOptions(error) => log::error!("{error}"),
            ref ending if ending.is_success() => log::info!("guest {}: {ending}", summary.name),
            ref ending => log::error!("guest {}: {ending}", summary.name),
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
    let figures = FIGURES.lock();
    let report = Report {
        guests,
        frames,
        leaked,
        figures: &figures,
    };
    // The console takes everything.
    let _ = report.write_table(&mut Out);
    let _ = report.write_json(&mut Out);
}

/// What running one module takes.
struct Run<'r> {
    machine: &'r mut Machine<'static, DirectMap>,
    spaces: &'r Spaces<'static, DirectMap>,
    tsc_hz: u64,
    audit: bool,
    /// Make every VM entry fail.
    spoil: bool,
}

impl Run<'_> {
    /// Runs the guest of one module to its end. `first` is taken when the first guest of all is about to run.
    fn module(
        &mut self,
        index: usize,
        module: &Module,
        earlier: &Summaries,
        first: &mut Option<u64>,
    ) -> GuestSummary<'static> {
        let width = u32::from(self.machine.capabilities().physical_bits);
        let mut summary = GuestSummary {
            name: Name::numbered(index),
            ending: Ending::DuplicateName,
            stats: RunStats::ZERO,
            faults: Faults::default(),
            tables: 0,
        };
        let options = match GuestOptions::parse(module.cmdline, index, width) {
            Ok(options) => options,
            Err(error) => {
                summary.name = error.guest.unwrap_or(summary.name);
                summary.ending = Ending::BadOptions(error);
                return summary;
            }
        };
        summary.name = options.name;
        if earlier.iter().any(|guest| guest.name == options.name) {
            return summary;
        }
        let made = match Image::parse(bytes(module)) {
            Ok(image) => {
                for warning in image.warnings() {
                    log::warn!("guest {}: {warning}", options.name);
                }
                let budget = options.budget.ticks(self.tsc_hz);
                Guest::create(self.machine, self.spaces, &image, &options, budget)
            }
            Err(error) => Err(GuestError::Image(error)),
        };
        let mut guest = match made {
            Ok(guest) => guest,
            Err(error) => {
                summary.ending = Ending::NotMade(error);
                return summary;
            }
        };
        if self.spoil {
            // Bit 1 of RFLAGS is always 1.
            let spoil = |vmcs: &mut CurrentVmcs| vmcs.write_natural(FieldNatural::GuestRflags, 0);
            // SAFETY: RFLAGS is guest state.
            let spoilt = unsafe { guest.with_vmcs(self.machine, spoil) };
            if let Err(error) = spoilt {
                log::error!("guest {}: {error}", options.name);
            }
        }
        if let Some(hand_over) = first.take() {
            file_boot_figure(hand_over);
        }
        let Ran {
            outcome,
            guest,
            template,
        } = self.run_or_freeze(guest, &options.name);
        summary.ending = Ending::Ran(outcome);
        summary.faults = guest.space().faults();
        let frozen = template
            .as_ref()
            .map(|template| template.space().as_space());
        summary.tables = self.look_at(&guest, frozen, &options.name).tables;
        summary.stats = guest.stats.clone();
        guest.end(self.machine);
        if let Some(template) = template {
            template.end(self.machine);
        }
        summary
    }

    /// Runs a guest to its end. One that asks to be frozen is, and goes on as its own first fork.
    fn run_or_freeze<'g>(&mut self, mut guest: Guest<'g, DirectMap>, name: &Name) -> Ran<'g> {
        let ended = |outcome, guest| Ran {
            outcome,
            guest,
            template: None,
        };
        if let Turn::Ended(outcome) = guest.run(self.machine, &mut Kernel, None) {
            return ended(outcome, guest);
        }
        let template = match guest.freeze(self.machine) {
            Ok(template) => template,
            Err((error, mut guest)) => {
                log::error!("guest {name}: {error}");
                return ended(run_to_end(&mut guest, self.machine), guest);
            }
        };
        // The fork's number and the number of the run.
        match template.fork(self.machine, &[0; 16]) {
            Ok(mut guest) => Ran {
                outcome: run_to_end(&mut guest, self.machine),
                guest,
                template: Some(template),
            },
            Err(error) => power::end(Err(format_args!("guest {name}: {error}"))),
        }
    }

    /// Counts what the guest holds and, where asked for, checks every frame's count and every table.
    fn look_at(
        &self,
        guest: &Guest<'_, DirectMap>,
        frozen: Option<&Space<'_, DirectMap>>,
        name: &Name,
    ) -> Census {
        let census = guest.space().census().unwrap_or_else(|flaw| {
            log::error!("guest {name}: its tables are not as they must be: {flaw}");
            Census::default()
        });
        if self.audit {
            match self.spaces.audit(frozen.into_iter().chain([guest.space()])) {
                Ok(others) => log::info!("guest {name}: audited, {others} frames of the host"),
                Err(flaw) => power::end(Err(format_args!("audit after guest {name}: {flaw}"))),
            }
        }
        census
    }
}

/// The bytes of a module. They stay as they are: its memory is never given to the allocator.
fn bytes(module: &Module) -> &'static [u8] {
    // SAFETY: the boot loader put the module there, the direct map shows it, and nobody writes to it.
    unsafe {
        core::slice::from_raw_parts(
            layout::direct(module.range.start()),
            module.range.len() as usize,
        )
    }
}

fn file_boot_figure(hand_over: u64) {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    let value = unsafe { _rdtsc() }.wrapping_sub(hand_over);
    if let (Some(guest), Some(name)) = (Name::new(OWN_NAME), FigureName::new(BOOT_FIGURE)) {
        // It is the first of all figures, so there is room.
        let _ = FIGURES.lock().file(Figure { guest, name, value });
    }
}

/// What became of a guest.
struct Ran<'g> {
    outcome: Outcome,
    /// The guest, or where it was frozen its fork.
    guest: Guest<'g, DirectMap>,
    template: Option<Template<'g, DirectMap>>,
}

/// Runs a guest that is not frozen, whatever it asks for.
fn run_to_end(
    guest: &mut Guest<'_, DirectMap>,
    machine: &mut Machine<'static, DirectMap>,
) -> Outcome {
    loop {
        if let Turn::Ended(outcome) = guest.run(machine, &mut Kernel, None) {
            return outcome;
        }
    }
}

/// The kernel, as the run loop sees it.
struct Kernel;

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
    fn print(&mut self, text: &str) {
        console::write_fmt(format_args!("{text}"));
    }
    fn figure(&mut self, figure: Figure) -> bool {
        FIGURES.lock().file(figure)
    }
}
