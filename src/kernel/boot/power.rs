//! The end of a run: the verdict for whoever reads the console, then power off.

use super::clock;
use super::console::{self, say};
use super::firmware;
use core::fmt;
use offshoot::host::acpi::{Enable, PortWrite, Power, Tables, Unknown};
use offshoot::host::cmdline::{DEFAULT_END_AFTER, Duration, End};
use spin::Mutex;
use x86_64::instructions::port::Port;

/// The TSC's speed where the timer does not say.
const ASSUMED_TSC_HZ: u64 = 1_000_000_000;
/// Seconds that a machine has to do what it is told: by then it has, or never will.
const PATIENCE: u64 = 3;

/// What is to happen at the end.
struct Plan {
    end: End,
    after: Duration,
    /// What says how the machine does it.
    acpi: Result<Tables, Unknown>,
}

static PLAN: Mutex<Plan> = Mutex::new(Plan {
    end: End::PowerOff,
    after: DEFAULT_END_AFTER,
    acpi: Err(Unknown::Missing("RSDP")),
});

/// Says how the machine is switched off and reset.
pub fn set_acpi(tables: Result<Tables, Unknown>) {
    PLAN.lock().acpi = tables;
}

/// Says what is to happen at the end, and how long after.
pub fn set_end(end: End, after: Duration) {
    let mut plan = PLAN.lock();
    (plan.end, plan.after) = (end, after);
}

/// Ends the run. The verdict is the console's last line in an emulator, whose ways out follow. A machine that is still there
/// does what the command line says.
pub fn end(verdict: Result<(), fmt::Arguments<'_>>) -> ! {
    console::finish();
    match verdict {
        Ok(()) => say!("OFFSHOOT-END ok"),
        Err(reason) => say!("OFFSHOOT-END failed: {reason}"),
    }
    console::drain();
    // SAFETY: on a machine that is no emulator nothing listens to these ports; in Bochs and QEMU they end the run.
    unsafe {
        Port::<u32>::new(0xf4).write(if verdict.is_ok() { 0x10 } else { 0x11 });
        for byte in *b"Shutdown" {
            Port::<u8>::new(0x8900).write(byte);
        }
    }
    // Nobody comes back here who holds it: what fails above ends with a halt.
    if let Some(plan) = PLAN.try_lock() {
        carry_out(&plan);
    }
    halt()
}

fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

fn carry_out(plan: &Plan) {
    let what = match plan.end {
        End::PowerOff => "power off",
        End::Reset => "reset",
        End::Halt => return say!("the machine halts"),
    };
    let hz = clock::tsc_hz().unwrap_or(ASSUMED_TSC_HZ);
    let wait = plan.after.ticks(hz);
    say!("{what} in {} s (end=, end-after=)", wait.div_ceil(hz));
    let begin = clock::now();
    let passed = || clock::now().wrapping_sub(begin);
    let mut second = u64::MAX;
    while passed() < wait {
        let left = (wait - passed().min(wait)).div_ceil(hz);
        if left != second {
            second = left;
            console::show_line(format_args!("{what} in {left} s "));
        }
        core::hint::spin_loop();
    }
    console::show_line(format_args!("{what}        "));
    let known = firmware::power(plan.acpi).unwrap_or_else(|unknown| {
        log::warn!("{unknown}");
        Power::default()
    });
    match plan.end {
        End::PowerOff => switch_off(&known, hz),
        End::Reset | End::Halt => reset(&known, hz),
    }
    say!("the machine does not {what}: it halts");
}

fn wait_until(hz: u64, mut done: impl FnMut() -> bool) {
    let begin = clock::now();
    while !done() && clock::now().wrapping_sub(begin) < hz.saturating_mul(PATIENCE) {
        core::hint::spin_loop();
    }
}

fn write(what: PortWrite) {
    // SAFETY: the firmware's tables say that this is the way to what the run is to end with.
    unsafe {
        match what {
            PortWrite::Byte(port, value) => Port::new(port).write(value),
            PortWrite::Word(port, value) => Port::new(port).write(value),
        }
    }
}

fn switch_off(power: &Power, hz: u64) {
    if let Some(Enable { request, control }) = power.enable {
        // SAFETY: reading a PM1 control register does nothing.
        let is_on = || unsafe { Port::<u16>::new(control).read() } & 1 != 0;
        if !is_on() {
            write(request);
            wait_until(hz, is_on);
        }
    }
    power.off.into_iter().flatten().for_each(write);
    wait_until(hz, || false);
}

fn reset(power: &Power, hz: u64) {
    /// What resets a machine whose tables do not say: the chipset's reset control register, and the keyboard controller.
    const OTHERS: [PortWrite; 3] = [
        PortWrite::Byte(0xcf9, 0x02),
        PortWrite::Byte(0xcf9, 0x06),
        PortWrite::Byte(0x64, 0xfe),
    ];
    for way in power.reset.into_iter().chain(OTHERS) {
        write(way);
        wait_until(hz / PATIENCE, || false);
    }
}
