//! The run of one guest, from its image to its end.

use crate::boot::info::BootInfo;
use crate::boot::layout::DirectMap;
use crate::boot::{console, power};
use crate::data::{self, bytes};
use crate::fuzz::Job;
use crate::host::{Kernel, file_figure};
use crate::passthrough;
use crate::selftest::{GuestTest, OnKernel};
use core::arch::x86_64::_rdtsc;
use offshoot::ept::{Census, Spaces};
use offshoot::host::cmdline::GuestOptions;
use offshoot::host::modules::BootModule;
use offshoot::host::report::{GuestEnding, GuestSummary};
use offshoot::vm::figure::Unit;
use offshoot::vm::loader::Image;
use offshoot::vm::name::Name;
use offshoot::vm::{Guest, GuestError, Machine, TablesOf, Turn};

/// Who files the hypervisor's own figures.
const OWN_NAME: &str = "hypervisor";
/// From the boot loader's hand-over to the first instruction of the first guest, in TSC ticks.
const BOOT_FIGURE: &[u8] = b"boot.to_first_guest";

/// What running one module takes.
pub struct Session<'r, B: OnKernel> {
    pub boot: &'r BootInfo,
    pub modules: &'r [BootModule<'static>],
    pub machine: &'r mut Machine<'static, DirectMap, B>,
    pub spaces: &'r Spaces<'static, DirectMap, TablesOf<B>>,
    pub tsc_hz: u64,
    pub audit: bool,
    /// What is done to guests before they run.
    pub test: Option<GuestTest>,
}

impl<B: OnKernel> Session<'_, B> {
    /// Runs the guest of one module to its end. `first` is taken when the first guest of all is about to run.
    pub fn guest(
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
            Err(error) => return GuestSummary::not_run(options.name, GuestEnding::NotMade(error)),
        };
        if let Some(test) = self.test {
            B::apply(test, &mut guest, self.machine, options.name);
        }
        if let Some(hand_over) = first.take() {
            file_boot_figure(hand_over);
        }
        if options.fuzz.executions != 0 {
            return self.fuzz(guest, module, options);
        }
        let mut summary = GuestSummary::not_run(options.name, GuestEnding::DuplicateName);
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
                    GuestEnding::NeverFroze(outcome)
                } else {
                    GuestEnding::Ran(outcome)
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
    fn run_up_to(&mut self, guest: &mut Guest<'_, DirectMap, B>, limit: Option<u64>) -> Turn {
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
        guest: Guest<'g, DirectMap, B>,
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
                return GuestSummary::not_run(name, GuestEnding::NotMade(GuestError::Data(error)));
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
            ..GuestSummary::not_run(name, fuzzed.ending)
        }
    }

    /// Counts what the guest holds and, where asked for, checks every frame's count and every table.
    fn look_at(&self, guest: &Guest<'_, DirectMap, B>, name: &Name) -> Census {
        let census = guest.space().census().unwrap_or_else(|flaw| {
            log::error!("guest {name}: its tables are not as they must be: {flaw}");
            Census::default()
        });
        if self.audit {
            // What no space refers to is the host's: were there fewer, a guest would have one of them.
            let held = self.machine.frames_held() + Guest::<DirectMap, B>::FRAMES_HELD;
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

fn file_boot_figure(hand_over: u64) {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    let value = unsafe { _rdtsc() }.wrapping_sub(hand_over);
    if let Some(own) = Name::new(OWN_NAME) {
        file_figure(own, BOOT_FIGURE, value, Unit::Ticks);
    }
}
