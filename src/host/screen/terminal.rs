//! The characters that a screen is to show.
//!
//! Text goes into a ring of rows. What of it the display shows already is remembered, so that it is drawn only where it
//! differs: after a line that scrolled, a screen of short lines costs a few hundred characters rather than thousands.
//! Nothing that is written can do more than stand there: what is no printable character of ASCII is a question mark, and
//! there are no escape sequences.

use super::Surface;

/// A larger display is used in part.
pub const MAX_COLUMNS: usize = 240;
/// The same of rows.
pub const MAX_ROWS: usize = 68;
/// Characters from one stop of the tabulator to the next.
const TAB: usize = 8;

/// What a line is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Color {
    /// Text.
    #[default]
    Plain,
    /// The good end.
    Good,
    /// What is worth a look.
    Warning,
    /// What went wrong.
    Error,
    /// Details.
    Faint,
}

/// How lines begin that have a color of their own.
const BEGINNINGS: [(&[u8], Color); 6] = [
    (b"[ERROR]", Color::Error),
    (b"[WARN ]", Color::Warning),
    (b"[DEBUG]", Color::Faint),
    (b"[TRACE]", Color::Faint),
    (b"OFFSHOOT-END ok", Color::Good),
    (b"OFFSHOOT-END failed", Color::Error),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    character: u8,
    color: Color,
}

const BLANK: Cell = Cell {
    character: b' ',
    color: Color::Plain,
};

/// A row, and what the display shows where it was when it was last drawn.
type Row = [Cell; MAX_COLUMNS];

/// The grid. It is too large for a stack.
#[derive(Debug)]
pub struct Terminal {
    /// A ring of rows, of which `top` is the uppermost.
    rows: [Row; MAX_ROWS],
    top: usize,
    /// What the display shows, from its uppermost row.
    shown: [Row; MAX_ROWS],
    columns: usize,
    height: usize,
    /// Where the next character goes; it may be behind the last column.
    column: usize,
    row: usize,
    color: Color,
    /// The first characters of the line.
    line: [u8; 20],
    line_len: usize,
    /// Rows of the display that may differ: from this one on, so many.
    next: usize,
    stale: usize,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// An empty one of VGA's size, until a display is known.
    pub const fn new() -> Self {
        Self {
            rows: [[BLANK; MAX_COLUMNS]; MAX_ROWS],
            top: 0,
            shown: [[BLANK; MAX_COLUMNS]; MAX_ROWS],
            columns: 80,
            height: 25,
            column: 0,
            row: 0,
            color: Color::Plain,
            line: [0; 20],
            line_len: 0,
            next: 0,
            stale: 0,
        }
    }

    /// Goes over to a display of so many columns and rows, which shows anything now. What was written stays, as far as there
    /// is room for it.
    pub fn resize(&mut self, (columns, rows): (usize, usize)) {
        let height = rows.clamp(1, MAX_ROWS);
        self.columns = columns.clamp(1, MAX_COLUMNS);
        // The uppermost row becomes the first of the ring, or the first that there is still room for.
        let lost = (self.row + 1).saturating_sub(height);
        self.rows[..self.height].rotate_left((self.top + lost) % self.height);
        self.rows[self.row + 1 - lost..].fill([BLANK; MAX_COLUMNS]);
        (self.top, self.row, self.height) = (0, self.row - lost, height);
        self.column = self.column.min(self.columns);
        // No cell shows this, so all are drawn.
        let unknown = Cell {
            character: 0,
            color: Color::Plain,
        };
        self.shown = [[unknown; MAX_COLUMNS]; MAX_ROWS];
        self.redraw_from(0);
    }

    /// Writes text. Lines that are too long go on in the next row.
    pub fn write(&mut self, text: &[u8]) {
        for &byte in text {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => self.begin_line_again(),
                b'\t' => {
                    let blanks = TAB - self.column % TAB;
                    (0..blanks).for_each(|_| self.put(b' '));
                }
                b' '..=b'~' => self.put(byte),
                // The rest of a character of several bytes.
                0x80..=0xbf => {}
                _ => self.put(b'?'),
            }
        }
    }

    fn end_line(&mut self) {
        self.next_row();
        (self.color, self.line_len) = (Color::Plain, 0);
    }

    /// What follows replaces the row.
    fn begin_line_again(&mut self) {
        (self.column, self.line_len) = (0, 0);
    }

    fn put(&mut self, character: u8) {
        if self.column >= self.columns {
            self.next_row();
        }
        let (at, column) = (self.place(self.row), self.column);
        let color = self.color;
        self.rows[at][column] = Cell { character, color };
        self.column += 1;
        self.redraw(self.row);
        if let Some(slot) = self.line.get_mut(self.line_len) {
            *slot = character;
            self.line_len += 1;
            self.choose_color(at);
        }
    }

    /// Colors the line if it begins so.
    fn choose_color(&mut self, at: usize) {
        let line = &self.line[..self.line_len];
        if let Some((_, color)) = BEGINNINGS.iter().find(|(begin, _)| *begin == line) {
            self.color = *color;
            let begin = self.column.saturating_sub(self.line_len);
            self.rows[at][begin..self.column]
                .iter_mut()
                .for_each(|cell| cell.color = *color);
        }
    }

    fn next_row(&mut self) {
        self.column = 0;
        if self.row + 1 < self.height {
            self.row += 1;
            return;
        }
        let gone = self.place(0);
        self.rows[gone] = [BLANK; MAX_COLUMNS];
        self.top = (self.top + 1) % self.height;
        self.redraw_from(0);
    }

    /// Where in the ring the row stands.
    const fn place(&self, row: usize) -> usize {
        (self.top + row) % self.height
    }

    /// The row may not be what the display shows.
    fn redraw(&mut self, row: usize) {
        let behind = (row + self.height - self.next) % self.height;
        if self.stale == 0 {
            (self.next, self.stale) = (row, 1);
        } else if behind >= self.stale {
            self.stale = behind + 1;
        }
    }

    fn redraw_from(&mut self, row: usize) {
        (self.next, self.stale) = (row, self.height);
    }

    /// Whether the display shows all.
    pub const fn is_shown(&self) -> bool {
        self.stale == 0
    }

    /// Draws what the display does not show yet, of one row. Returns whether it shows all now.
    pub fn draw_row(&mut self, surface: &mut impl Surface) -> bool {
        if self.stale == 0 {
            return true;
        }
        let row = self.next;
        let (wanted, shown) = (&self.rows[self.place(row)], &mut self.shown[row]);
        let pairs = wanted.iter().zip(shown).take(self.columns);
        for (column, (wanted, shown)) in pairs.enumerate() {
            if *wanted != *shown {
                surface.draw(column, row, wanted.character, wanted.color);
                *shown = *wanted;
            }
        }
        self.next = (row + 1) % self.height;
        self.stale -= 1;
        self.stale == 0
    }

    /// Draws all that the display does not show yet.
    pub fn draw(&mut self, surface: &mut impl Surface) {
        while !self.draw_row(surface) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A display that remembers what it shows, and counts what is drawn.
    struct Fake {
        cells: Vec<Vec<(u8, Color)>>,
        drawn: usize,
    }

    impl Fake {
        fn new(columns: usize, rows: usize) -> Self {
            let cells = vec![vec![(b'#', Color::Error); columns]; rows];
            Self { cells, drawn: 0 }
        }
        fn lines(&self) -> Vec<String> {
            let line = |row: &Vec<(u8, Color)>| row.iter().map(|cell| cell.0 as char).collect();
            let trimmed = |line: String| line.trim_end().to_owned();
            self.cells.iter().map(line).map(trimmed).collect()
        }
    }

    impl Surface for Fake {
        fn size(&self) -> (usize, usize) {
            (self.cells[0].len(), self.cells.len())
        }
        fn draw(&mut self, column: usize, row: usize, character: u8, color: Color) {
            assert!((b' '..=b'~').contains(&character));
            self.cells[row][column] = (character, color);
            self.drawn += 1;
        }
    }

    fn shown(columns: usize, rows: usize, text: &[u8]) -> Fake {
        let mut fake = Fake::new(columns, rows);
        let mut terminal = Box::new(Terminal::new());
        terminal.resize(fake.size());
        terminal.write(text);
        terminal.draw(&mut fake);
        assert!(terminal.is_shown());
        fake
    }

    #[test]
    fn lines_scroll_and_wrap() {
        let fake = shown(10, 3, b"first\nsecond\n0123456789abc\nlast");
        assert_eq!(fake.lines(), ["0123456789", "abc", "last"]);
        let fake = shown(10, 3, b"a\tb\r\nx\x1b[31m\xc3\xbcy");
        assert_eq!(fake.lines(), ["a       b", "x?[31m?y", ""]);
        let fake = shown(10, 2, b"in 10 s\rin  9 s");
        assert_eq!(fake.lines(), ["in  9 s", ""]);
    }

    #[test]
    fn lines_have_the_color_of_their_level() {
        let fake = shown(
            30,
            5,
            b"[ERROR] x\n[WARN ] y\n [ERROR]\nOFFSHOOT-END ok\nplain",
        );
        let colors = fake.cells.iter().map(|row| (row[0].1, row[8].1));
        let expected = [
            (Color::Error, Color::Error),
            (Color::Warning, Color::Warning),
            (Color::Plain, Color::Plain),
            (Color::Good, Color::Good),
            (Color::Plain, Color::Plain),
        ];
        assert_eq!(colors.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_what_differs_is_drawn() {
        let mut fake = Fake::new(80, 25);
        let mut terminal = Box::new(Terminal::new());
        terminal.resize(fake.size());
        terminal.draw(&mut fake);
        assert_eq!(fake.drawn, 2000);
        terminal.write(b"abc");
        terminal.draw(&mut fake);
        assert_eq!(fake.drawn, 2003);
        terminal.write(&b"\nabc".repeat(24));
        terminal.draw(&mut fake);
        assert_eq!(fake.drawn, 2003 + 72);
        // All rows are alike, so one that is new changes nothing but the last.
        terminal.write(b"\nabc\nx");
        terminal.draw(&mut fake);
        assert_eq!(fake.drawn, 2003 + 72 + 3);
        assert!(terminal.draw_row(&mut fake));
    }

    #[test]
    fn what_was_written_before_a_display_was_known_is_shown() {
        let mut terminal = Box::new(Terminal::new());
        for line in 0..40 {
            terminal.write(format!("line {line}\n").as_bytes());
        }
        terminal.write(b"end");
        for rows in [48, 25, 7] {
            let mut fake = Fake::new(100, rows);
            terminal.resize(fake.size());
            terminal.draw(&mut fake);
            let lines = fake.lines();
            let kept = rows.min(25);
            assert_eq!(lines[kept - 1], "end", "{rows}");
            assert_eq!(lines[kept - 2], "line 39");
            assert!(lines[kept..].iter().all(String::is_empty));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(100)))]

        /// Whatever is written, drawn in whatever steps, the display shows the last rows of it.
        #[test]
        fn the_display_shows_the_last_rows(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0usize..4), 1..30),
            columns in 1usize..30,
            rows in 1usize..12,
        ) {
            let mut fake = Fake::new(columns, rows);
            let mut terminal = Box::new(Terminal::new());
            terminal.resize(fake.size());
            let (mut text, mut column) = (vec![String::new()], 0);
            for (piece, draws) in &pieces {
                terminal.write(piece);
                (0..*draws).for_each(|_| { terminal.draw_row(&mut fake); });
                for &byte in piece {
                    let blanks = if byte == b'\t' { 8 - column % 8 } else { 1 };
                    match byte {
                        b'\n' => { text.push(String::new()); column = 0; }
                        b'\r' => column = 0,
                        0x80..=0xbf => {}
                        _ => for _ in 0..blanks {
                            if column == columns { text.push(String::new()); column = 0; }
                            let character = match byte {
                                b'\t' => ' ',
                                b' '..=b'~' => byte as char,
                                _ => '?',
                            };
                            let row = text.last_mut().unwrap();
                            if column < row.len() {
                                row.replace_range(column..column + 1, &character.to_string());
                            } else {
                                row.push(character);
                            }
                            column += 1;
                        }
                    }
                }
            }
            terminal.draw(&mut fake);
            let first = text.len().saturating_sub(rows);
            let mut expected: Vec<_> = text[first..].iter().map(|row| row.trim_end().to_owned()).collect();
            expected.resize(rows, String::new());
            prop_assert_eq!(fake.lines(), expected);
        }
    }
}
