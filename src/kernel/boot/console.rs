//! The console on COM1 and on the screen, and the logger that writes to it.

use super::clock;
use super::firmware::ScreenKind;
use arrayvec::ArrayString;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use offshoot::host::console::Queue;
use offshoot::host::screen::{Display, Pixels, Surface, Terminal, TextMode};
use offshoot::host::serial::Serial;
use offshoot::vm::console::Printer;
use offshoot::vm::name::Name;
use spin::Mutex;
use uart_16550::backend::Backend;
use uart_16550::spec::registers::offsets;
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

/// Looks at the queue that its flushing takes at most, each for at least a byte: what is not out by then never will be.
const FLUSH_MAX: u32 = 1 << 20;
/// A longer line of the host's is put into the queue in pieces.
const PIECE_MAX: usize = 256;
/// What the queue costs for a byte, in ticks of the TSC; what the port takes comes to that.
const PRICE: u64 = 40;
/// What stands for a byte that is no plain character.
const ESCAPED: u64 = 6;

/// The console. What guests print, and what is said while they run, waits in a queue that is put out bit by bit; all else
/// is put out at once.
struct State {
    uart: Option<Serial<Com1>>,
    screen: Screen,
    queue: Queue,
    /// A piece of the host's text that is no whole line yet.
    piece: ArrayString<PIECE_MAX>,
    /// Ticks between two looks at the queue, while there is one.
    pace: Option<u64>,
    /// What putting out a byte costs a guest, in ticks of the TSC: for all and always the same.
    price: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    uart: None,
    screen: Screen {
        terminal: Terminal::new(),
        display: None,
        is_on: true,
    },
    queue: Queue::new(),
    piece: ArrayString::new_const(),
    pace: None,
    price: PRICE,
});

/// What is shown, once a display is known.
struct Screen {
    terminal: Terminal,
    display: Option<Display>,
    /// Whether it is to be shown at all.
    is_on: bool,
}

impl Screen {
    fn write(&mut self, text: &[u8]) {
        if self.is_on {
            self.terminal.write(text);
        }
    }
    /// Whether the display does not show all yet.
    fn is_stale(&self) -> bool {
        self.display.is_some() && !self.terminal.is_shown()
    }
    fn draw(&mut self) {
        if let Some(display) = &mut self.display {
            self.terminal.draw(display);
        }
    }
    /// Draws a row of what is not shown yet.
    fn draw_row(&mut self) {
        if let Some(display) = &mut self.display {
            self.terminal.draw_row(display);
        }
    }
}

impl State {
    /// Has the line of the host's that was begun wait with the others. Where there is no room, what waits is put out first.
    fn end_piece(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        let piece = core::mem::take(&mut self.piece);
        if !self.queue.tell(&piece) {
            self.put_out();
            let _ = self.queue.tell(&piece);
        }
    }

    /// Puts out all that waits.
    fn flush(&mut self) {
        self.end_piece();
        self.put_out();
        self.screen.draw();
    }

    fn put_out(&mut self) {
        for _ in 0..FLUSH_MAX {
            let pending = self.queue.pending();
            if pending.is_empty() {
                return;
            }
            if let Some(uart) = &mut self.uart {
                uart.send(pending);
            }
            self.screen.write(pending);
            let sent = pending.len();
            self.queue.sent(sent);
        }
    }

    /// Puts out as much as the port takes at once, and draws a row.
    fn offer(&mut self) {
        self.screen.draw_row();
        if self.queue.is_empty() {
            return;
        }
        let pending = self.queue.pending();
        let sent = match &mut self.uart {
            Some(uart) => uart.offer(pending),
            None => pending.len(),
        };
        self.screen.write(&pending[..sent]);
        self.queue.sent(sent);
    }
}

/// Finds the UART and starts logging. A machine without one has only the screen, if that.
pub fn init() {
    // SAFETY: the ports are COM1's or nobody's, and the kernel's alone.
    let uart = unsafe { Serial::new(Com1) };
    let begin = clock::now();
    // SAFETY: reading the scratch register does nothing.
    let _ = unsafe { Com1.read(offsets::SPR as u8) };
    let access = clock::now().wrapping_sub(begin);
    let mut state = STATE.lock();
    (state.uart, state.price) = (uart, PRICE.saturating_add(access));
    drop(state);
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Shows what was written, and what will be, on the screen whose memory begins at `first`.
///
/// # Safety
/// So much memory as the screen has is mapped there, writable, until this is called again, and nobody else's.
pub unsafe fn show(kind: ScreenKind, first: *mut u8) {
    let mut state = STATE.lock();
    let screen = &mut state.screen;
    if !screen.is_on {
        return;
    }
    let display = match kind {
        // SAFETY: as the caller promises.
        ScreenKind::Pixels(format) => unsafe { Pixels::new(first, format) }.map(Display::Pixels),
        // SAFETY: likewise.
        ScreenKind::Text(columns, rows) => Some(Display::Text(unsafe {
            TextMode::new(first.cast(), columns, rows)
        })),
    };
    let size = |display: &Option<Display>| display.as_ref().map(Surface::size);
    if let Some(new) = size(&display)
        && size(&screen.display) != Some(new)
    {
        screen.terminal.resize(new);
    }
    screen.display = display;
    screen.draw();
}

/// Has nothing shown on the screen.
pub fn leave_screen_alone() {
    STATE.lock().screen.is_on = false;
}

/// Writes to the screen alone, over the line that is there.
pub fn show_line(line: fmt::Arguments<'_>) {
    let mut text = ArrayString::<PIECE_MAX>::new();
    // What does not fit is left out.
    let _ = write!(text, "\r{line}");
    let mut state = STATE.lock();
    state.screen.write(text.as_bytes());
    state.screen.draw();
}

/// Has what is written wait in the queue from now on. Every `pace` ticks is a good time for [`offer`].
pub fn queue_for(pace: u64) {
    STATE.lock().pace = Some(pace.max(1));
}

/// Puts out what waits, and has nothing wait any more.
pub fn finish() {
    let mut state = STATE.lock();
    state.pace = None;
    state.flush();
}

/// Puts out what waits.
pub fn flush() {
    STATE.lock().flush();
}

/// Puts out as much of what waits as the port takes without waiting for it, at most what its FIFO holds.
pub fn offer() {
    STATE.lock().offer();
}

/// After how many ticks the next [`offer`] is due, if something waits.
pub fn wants_turn() -> Option<u64> {
    let state = STATE.lock();
    state
        .pace
        .filter(|_| !state.queue.is_empty() || state.screen.is_stale())
}

/// So many bytes of the host's have room in the queue.
pub fn room() -> usize {
    STATE.lock().queue.room()
}

/// Takes a line of a guest. Returns what it costs, and who has lost a line for it.
pub fn print(from: &Printer, line: &[u8]) -> (u64, Option<Name>) {
    let mut state = STATE.lock();
    state.end_piece();
    let loser = state.queue.print(from, line);
    let plain = |byte: &u8| matches!(byte, b' '..=b'~');
    let line = line
        .iter()
        .map(|byte| if plain(byte) { 1 } else { ESCAPED });
    let bytes = (from.name.as_str().len() + "[] \r\n".len()) as u64 + line.sum::<u64>();
    (state.price.saturating_mul(bytes).max(1), loser)
}

/// Takes the console from whoever holds it, and puts out what waits. For the report of a fatal error, which nothing else
/// outlives.
pub fn seize() {
    // SAFETY: the one CPU is here, so whoever held the lock is what died, and never runs again.
    unsafe { STATE.force_unlock() };
    finish();
}

/// Writes to the console as it is. While there is a queue it is to be whole lines.
pub fn write_fmt(args: fmt::Arguments<'_>) {
    let mut state = STATE.lock();
    // It never fails; an error would come from an argument's `Display`.
    let _ = if state.pace.is_some() {
        Text(&mut state).write_fmt(args)
    } else {
        let done = Terminals(&mut state).write_fmt(args);
        state.screen.draw();
        done
    };
}

/// The queue, for text of the host, line by line.
struct Text<'s>(&'s mut State);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let mut rest = line;
            while !rest.is_empty() {
                let room = self.0.piece.remaining_capacity();
                let (now, later) = rest.split_at(rest.floor_char_boundary(room));
                let _ = self.0.piece.try_push_str(now);
                if !later.is_empty() || line.ends_with('\n') {
                    self.0.end_piece();
                }
                rest = later;
            }
        }
        Ok(())
    }
}

/// The serial port, behind which a terminal stands, and the screen.
struct Terminals<'s>(&'s mut State);

impl Write for Terminals<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Self(state) = self;
        state.screen.write(text.as_bytes());
        let Some(uart) = &mut state.uart else {
            return Ok(());
        };
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    uart.send(line.as_bytes());
                    uart.send(b"\r\n");
                }
                None => uart.send(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Waits until what was written has left the UART.
pub fn drain() {
    if let Some(uart) = &mut STATE.lock().uart {
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
