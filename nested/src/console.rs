//! The console of a virtual machine: each line goes out when it is whole, with the name of the case before it.

use crate::cases::MARK;
use std::io::{self, Write};

/// The longest line that waits for its end.
const LONGEST: usize = 1 << 20;

/// What the serial port of a virtual machine writes to.
#[derive(Debug)]
pub struct Lines<W> {
    out: W,
    name: String,
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    /// Lines of the case `name` on `out`.
    pub fn new(out: W, name: &str) -> Self {
        Self {
            out,
            name: name.into(),
            line: Vec::new(),
        }
    }

    /// Writes what is left as a line of its own.
    ///
    /// # Errors
    /// What the output refuses.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        self.line.push(b'\n');
        self.send()
    }

    /// A line that is not the image's.
    ///
    /// # Errors
    /// What the output refuses.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.finish()?;
        self.line.extend_from_slice(text.as_bytes());
        self.finish()
    }

    fn send(&mut self) -> io::Result<()> {
        let mut whole = Vec::with_capacity(self.line.len() + self.name.len() + MARK.len());
        if !self.name.is_empty() {
            whole.extend_from_slice(self.name.as_bytes());
            whole.extend_from_slice(MARK.as_bytes());
        }
        whole.append(&mut self.line);
        self.out.write_all(&whole)?;
        self.out.flush()
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                self.send()?;
            } else if self.line.len() >= LONGEST {
                self.finish()?;
            }
        }
        Ok(bytes.len())
    }

    /// A line that is not whole waits.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_have_the_name() {
        let mut lines = Lines::new(Vec::new(), "a");
        lines.write_all(b"one\ntw").unwrap();
        lines.flush().unwrap();
        assert_eq!(lines.out, b"a| one\n");
        lines.write_all(b"o\r\nleft").unwrap();
        lines.say("said").unwrap();
        assert_eq!(lines.out, b"a| one\na| two\r\na| left\na| said\n");
        let mut bare = Lines::new(Vec::new(), "");
        bare.write_all(b"x\n").unwrap();
        bare.finish().unwrap();
        assert_eq!(bare.out, b"x\n");
    }
}
