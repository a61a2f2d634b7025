//! VGA's text mode: cells of a character and its attribute.

use super::{Color, Surface};

/// The cells of VGA's text mode.
#[derive(Debug)]
pub struct TextMode {
    first: *mut u16,
    columns: usize,
    rows: usize,
}

// SAFETY: it is memory that is nobody else's, as `TextMode::new` is promised, on whatever CPU.
unsafe impl Send for TextMode {}

impl TextMode {
    /// The cells, of which the first is at `first`.
    ///
    /// # Safety
    /// So many are mapped there, writable, and nobody else's, for as long as this is used.
    pub const unsafe fn new(first: *mut u16, columns: usize, rows: usize) -> Self {
        Self {
            first,
            columns,
            rows,
        }
    }
}

impl Surface for TextMode {
    fn size(&self) -> (usize, usize) {
        (self.columns, self.rows)
    }

    fn draw(&mut self, column: usize, row: usize, character: u8, color: Color) {
        if column < self.columns && row < self.rows {
            let cell = u16::from(attribute(color)) << 8 | u16::from(character);
            // SAFETY: it is one of the cells that are promised to be there.
            unsafe {
                self.first
                    .add(row * self.columns + column)
                    .write_volatile(cell)
            };
        }
    }
}

/// On black.
const fn attribute(color: Color) -> u8 {
    match color {
        Color::Plain => 0x7,
        Color::Good => 0xa,
        Color::Warning => 0xe,
        Color::Error => 0xc,
        Color::Faint => 0x8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_a_character_and_its_attribute() {
        let mut cells = [0_u16; 7];
        // SAFETY: the cells are there, and only looked at when it is gone.
        let mut text = unsafe { TextMode::new(cells.as_mut_ptr(), 3, 2) };
        assert_eq!(text.size(), (3, 2));
        text.draw(2, 1, b'x', Color::Error);
        text.draw(3, 0, b'y', Color::Plain);
        text.draw(0, 2, b'y', Color::Plain);
        text.draw(0, 0, b'z', Color::Plain);
        assert_eq!(cells, [0x077a, 0, 0, 0, 0, 0x0c78, 0]);
    }
}
