//! The console on COM1 and the logger that writes to it.

use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550Tty};
use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;

static UART: Mutex<Option<Uart16550Tty<PioBackend>>> = Mutex::new(None);

/// Finds the UART and starts logging. A machine without one runs silently.
pub fn init() {
    // SAFETY: COM1 is the kernel's alone: guests reach ports only through exits.
    *UART.lock() = unsafe { Uart16550Tty::new_port(COM1, Config::default()) }.ok();
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Takes the console from whoever holds it. For the report of a fatal error, which nothing else outlives.
pub fn seize() {
    // SAFETY: the one CPU is here, so whoever held the lock is what died, and never runs again.
    unsafe { UART.force_unlock() };
}

/// Writes to the console as it is.
pub fn write_fmt(args: fmt::Arguments<'_>) {
    if let Some(uart) = UART.lock().as_mut() {
        // The UART's own writer never fails; an error would come from an argument's `Display`.
        let _ = uart.write_fmt(args);
    }
}

/// Waits until what was written has left the UART, as far as it has one that says so.
pub fn drain() {
    const LINE_STATUS: u16 = COM1 + 5;
    const TRANSMITTER_EMPTY: u8 = 1 << 6;
    for _ in 0..1_000_000 {
        // SAFETY: reading the status clears no more than error bits, which nobody looks at.
        if unsafe { Port::<u8>::new(LINE_STATUS).read() } & TRANSMITTER_EMPTY != 0 {
            return;
        }
    }
}

/// Prints a line to the console.
macro_rules! say {
    ($($arg:tt)*) => { $crate::boot::console::write_fmt(format_args!("{}\n", format_args!($($arg)*))) };
}
pub(crate) use say;

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say!("[{:<5}] {}", record.level(), record.args());
        }
    }
    fn flush(&self) {}
}

/// The console as a writer, for the report.
pub struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_fmt(format_args!("{text}"));
        Ok(())
    }
}
