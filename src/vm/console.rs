//! What a guest prints, line by line, with its name before each line.

use core::fmt::{self, Write};

use arrayvec::ArrayVec;

use super::name::Name;

/// A longer line is broken.
pub const LINE_MAX: usize = 240;

/// Who prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Printer {
    /// The name of the guest.
    pub name: Name,
    /// How many templates are above it.
    pub generation: u32,
    /// Which fork of its template it is.
    pub fork: u64,
}

/// The line that a guest is printing. Whatever the bytes are, what [comes out](write_line) is text without control
/// characters, so a guest can neither play with the terminal nor write a line that looks like the host's.
#[derive(Clone, Debug)]
pub struct Console {
    /// Whose it is.
    pub from: Printer,
    line: ArrayVec<u8, LINE_MAX>,
    /// What it owes for lines that were passed on, in ticks of the TSC.
    owed: u64,
}

impl Console {
    /// The console of the guest with this name.
    pub fn new(name: Name) -> Self {
        Self {
            from: Printer {
                name,
                generation: 0,
                fork: 0,
            },
            line: ArrayVec::new(),
            owed: 0,
        }
    }

    /// Has it be printing what `from`, whose name is the same, is printing.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        self.line.clear();
        if !from.line.is_empty() {
            self.line.clone_from(&from.line);
        }
    }

    /// Takes what the guest prints, and passes on the lines that are complete. `out` returns what one costs.
    pub fn print(&mut self, bytes: &[u8], out: &mut impl FnMut(&Printer, &[u8]) -> u64) {
        bytes.iter().for_each(|&byte| self.put(byte, out));
    }

    /// Takes one byte.
    pub fn put(&mut self, byte: u8, out: &mut impl FnMut(&Printer, &[u8]) -> u64) {
        if byte == b'\n' {
            return self.end_line(out);
        }
        if self.line.is_full() {
            self.break_line(out);
        }
        // There is room: a full line was broken just now, and at most three bytes of it are kept.
        let _ = self.line.try_push(byte);
    }

    /// Passes on a last line that has no end.
    pub fn flush(&mut self, out: &mut impl FnMut(&Printer, &[u8]) -> u64) {
        if !self.line.is_empty() {
            self.end_line(out);
        }
    }

    /// Whether there is something to be paid.
    #[inline(always)]
    pub const fn owes(&self) -> bool {
        self.owed != 0
    }

    /// What is owed, once.
    pub const fn pay(&mut self) -> u64 {
        core::mem::replace(&mut self.owed, 0)
    }

    fn end_line(&mut self, out: &mut impl FnMut(&Printer, &[u8]) -> u64) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        self.owed = self.owed.saturating_add(out(&self.from, line));
        self.line.clear();
    }

    /// Passes on a line that is too long, up to a character that may not be complete yet.
    fn break_line(&mut self, out: &mut impl FnMut(&Printer, &[u8]) -> u64) {
        let keep = incomplete_tail(&self.line);
        let at = self.line.len() - keep;
        let line = self.line.get(..at).unwrap_or_default();
        self.owed = self.owed.saturating_add(out(&self.from, line));
        self.line.drain(..at);
    }
}

/// How many bytes at the end begin a UTF-8 character that is not complete.
fn incomplete_tail(line: &[u8]) -> usize {
    let from_end = line.iter().rev().take(3).position(|&byte| byte >= 0xc0);
    match (from_end, line.iter().rev().nth(from_end.unwrap_or(0))) {
        (Some(at), Some(&lead)) => {
            let len = match lead {
                0xf0.. => 4,
                0xe0.. => 3,
                _ => 2,
            };
            if at + 1 < len { at + 1 } else { 0 }
        }
        _ => 0,
    }
}

/// Writes a line of the guest with this name, without its end.
///
/// # Errors
/// What `out` refuses.
pub fn write_line(name: &Name, line: &[u8], out: &mut impl Write) -> fmt::Result {
    write!(out, "[{name}] ")?;
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.write_char(c)?,
                c if c.is_control() => write!(out, "{}", c.escape_default())?,
                c => out.write_char(c)?,
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> Console {
        Console::new(Name::new("web").unwrap())
    }
    /// Writes lines to a string; each costs 3.
    fn to(out: &mut String) -> impl FnMut(&Printer, &[u8]) -> u64 {
        |from, line| {
            write_line(&from.name, line, out).unwrap();
            out.push('\n');
            3
        }
    }
    fn printed(bytes: &[u8]) -> String {
        let mut out = String::new();
        let mut console = console();
        console.print(bytes, &mut to(&mut out));
        console.flush(&mut to(&mut out));
        assert_eq!(console.owes(), !out.is_empty());
        assert_eq!(console.pay(), 3 * out.matches('\n').count() as u64);
        assert!(!console.owes());
        out
    }

    #[test]
    fn every_line_carries_the_name() {
        assert_eq!(
            printed(b"one\ntwo\r\n\nthree"),
            "[web] one\n[web] two\n[web] \n[web] three\n"
        );
        assert_eq!(printed(b""), "");
    }

    #[test]
    fn a_line_is_brought_back() {
        for (line, other) in [("half", ""), ("", "other"), ("half", "another")] {
            let (mut a, mut b, mut out) = (console(), console(), String::new());
            a.print(line.as_bytes(), &mut to(&mut out));
            b.print(other.as_bytes(), &mut to(&mut out));
            b.restore(&a);
            assert_eq!((&b.line, out.as_str()), (&a.line, ""));
        }
    }

    #[test]
    fn lines_wait_for_their_end() {
        let (mut console, mut out) = (console(), String::new());
        console.print(b"half", &mut to(&mut out));
        assert_eq!(out, "");
        console.print(b" done\nnext", &mut to(&mut out));
        assert_eq!(out, "[web] half done\n");
        console.flush(&mut to(&mut out));
        console.flush(&mut to(&mut out));
        assert_eq!(out, "[web] half done\n[web] next\n");
    }

    #[test]
    fn nothing_controls_the_terminal() {
        assert_eq!(
            printed(b"\x1b[2J\x07\x00\ttab"),
            "[web] \\u{1b}[2J\\u{7}\\u{0}\ttab\n"
        );
        assert_eq!(
            printed(b"\rOFFSHOOT-REPORT {}"),
            "[web] \\rOFFSHOOT-REPORT {}\n"
        );
        assert_eq!(
            printed("\u{9b}31m grün".as_bytes()),
            "[web] \\u{9b}31m grün\n"
        );
        assert_eq!(
            printed(b"\xff\xc3(\xe2\x82"),
            "[web] \\xff\\xc3(\\xe2\\x82\n"
        );
        for byte in 0..=255u8 {
            let line = printed(&[byte]);
            let harmless = |c: char| !c.is_control() || c == '\t';
            assert!(
                line.trim_end_matches('\n').chars().all(harmless),
                "{byte:#x}"
            );
        }
    }

    #[test]
    fn long_lines_are_broken_between_characters() {
        assert_eq!(
            printed(&[b'x'; 500]).lines().map(str::len).max(),
            Some(6 + LINE_MAX)
        );
        for shift in 0..4 {
            let text = format!("{}{}", "x".repeat(shift), "€𝄞é".repeat(100));
            let out = printed(text.as_bytes());
            assert_eq!(out.replace("[web] ", "").replace('\n', ""), text);
        }
        // Bytes that never become a character do not pile up.
        assert_eq!(printed(&[0xf0; 1000]).matches("\\xf0").count(), 1000);
    }
}
