//! Numbers and text for people.

use core::fmt::{self, Display, Write};

use arrayvec::ArrayString;

/// Columns of the report.
pub(super) const WIDTH: usize = 100;
pub(super) const MARGIN: &str = "    ";

/// A number with a comma between each three digits.
pub(super) struct Grouped(pub u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = ArrayString::<26>::new(); // 20 digits and 6 commas
        let mut divisor = 1_000_000_000_000_000_000;
        while divisor > 1 && self.0 / divisor == 0 {
            divisor /= 1000;
        }
        write!(text, "{}", self.0 / divisor)?;
        while divisor > 1 {
            divisor /= 1000;
            write!(text, ",{:03}", self.0 / divisor % 1000)?;
        }
        f.pad(&text)
    }
}

/// A number in at most six columns: whole up to five digits, then in thousands, millions and so on.
pub(super) struct Brief(pub u64);

impl Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = ArrayString::<8>::new();
        let (mut value, mut tenths) = (self.0, 0);
        let mut units = ["", "k", "M", "G", "T", "P", "E"].iter();
        let mut unit = units.next();
        while value >= 100_000 || (unit != Some(&"") && value >= 1000) {
            tenths = value % 1000 / 100;
            value /= 1000;
            unit = units.next();
        }
        match unit {
            Some(&"") | None => write!(text, "{value}")?,
            Some(unit) => write!(text, "{value}.{tenths}{unit}")?,
        }
        f.pad(&text)
    }
}

/// Bytes in KiB, MiB or GiB.
pub(super) struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.0 {
            0..0x10_0000 => ("KiB", 10),
            0x10_0000..0x4000_0000 => ("MiB", 20),
            _ => ("GiB", 30),
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// Text with a margin, broken at blanks.
pub(super) struct Wrapped<'a, W> {
    out: &'a mut W,
    /// What may have to go to the next line as a whole.
    word: ArrayString<{ WIDTH - MARGIN.len() }>,
    column: usize,
}

impl<'a, W: Write> Wrapped<'a, W> {
    pub fn new(out: &'a mut W) -> Self {
        Self {
            out,
            word: ArrayString::new(),
            column: 0,
        }
    }
    pub fn end(mut self) -> fmt::Result {
        self.put_word()?;
        self.out.write_char('\n')
    }
    fn put_word(&mut self) -> fmt::Result {
        let len = self.word.chars().count();
        if self.column == 0 {
            self.out.write_str(MARGIN)?;
            self.column = MARGIN.len();
        } else if self.column + 1 + len > WIDTH {
            write!(self.out, "\n{MARGIN}")?;
            self.column = MARGIN.len();
        } else if len != 0 {
            self.out.write_char(' ')?;
            self.column += 1;
        }
        self.out.write_str(&self.word)?;
        self.column += len;
        self.word.clear();
        Ok(())
    }
}

impl<W: Write> Write for Wrapped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c == ' ' {
                self.put_word()?;
            } else if self.word.try_push(c).is_err() {
                self.put_word()?;
                self.word.try_push(c).map_err(|_| fmt::Error)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let grouped = |n| Grouped(n).to_string();
        assert_eq!(
            [0, 999, 1000, 1_000_001].map(grouped),
            ["0", "999", "1,000", "1,000,001"]
        );
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        let brief = |n| Brief(n).to_string();
        assert_eq!(
            [0, 99_999, 100_000, 999_999].map(brief),
            ["0", "99999", "100.0k", "999.9k"]
        );
        assert_eq!(
            [1_000_000, 12_345_678, u64::MAX].map(brief),
            ["1.0M", "12.3M", "18.4E"]
        );
        let size = |n| Size(n).to_string();
        assert_eq!(
            [4096, 64 << 20, 3 << 29].map(size),
            ["4.0 KiB", "64.0 MiB", "1.5 GiB"]
        );
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn text_is_broken_at_blanks() {
        let wrap = |text: &str| {
            let mut out = String::new();
            let mut words = Wrapped::new(&mut out);
            words.write_str(text).unwrap();
            words.end().unwrap();
            out
        };
        assert_eq!(wrap("one two"), "    one two\n");
        for len in [1, 2, 7, 30, 95, 96, 97, 300] {
            let text = [&"w".repeat(len)[..]; 40].join(" ");
            let out = wrap(&text);
            assert!(
                out.lines().all(|line| line.chars().count() <= WIDTH),
                "{len}: {out}"
            );
            assert_eq!(out.replace(char::is_whitespace, ""), text.replace(' ', ""));
        }
    }
}
