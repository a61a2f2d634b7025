//! The console on COM1 and the logger that writes to it.

use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use offshoot::serial::Serial;
use spin::Mutex;
use uart_16550::backend::Backend;
use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;

/// The registers of COM1.
#[derive(Debug)]
struct Com1;

impl Backend for Com1 {
    unsafe fn read(&mut self, register: u8) -> u8 {
        // SAFETY: COM1 is the kernel's alone: guests reach ports only through exits.
        unsafe { Port::new(COM1 + u16::from(register)).read() }
    }
    unsafe fn write(&mut self, register: u8, value: u8) {
        // SAFETY: as above.
        unsafe { Port::new(COM1 + u16::from(register)).write(value) };
    }
}

static UART: Mutex<Option<Serial<Com1>>> = Mutex::new(None);

/// Finds the UART and starts logging. A machine without one runs silently.
pub fn init() {
    // SAFETY: the ports are COM1's or nobody's, and the kernel's alone.
    *UART.lock() = unsafe { Serial::new(Com1) };
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
        // It never fails; an error would come from an argument's `Display`.
        let _ = Terminal(uart).write_fmt(args);
    }
}

/// A serial port behind which a terminal stands.
struct Terminal<'u>(&'u mut Serial<Com1>);

impl Write for Terminal<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.0.send(line.as_bytes());
                    self.0.send(b"\r\n");
                }
                None => self.0.send(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Waits until what was written has left the UART.
pub fn drain() {
    if let Some(uart) = UART.lock().as_mut() {
        uart.drain();
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
