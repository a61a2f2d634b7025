//! A console on the screen of the machine, beside the serial port: what a PC without one shows.
//!
//! The [`Terminal`] keeps what is to be seen as a grid of characters, which costs little, and brings the display up to date
//! when there is time for it. The display is a [`Surface`]: [`Pixels`] of a frame buffer, or the cells of VGA's [`TextMode`].

mod pixels;
mod terminal;
mod text_mode;

pub use pixels::{Channel, PixelFormat, Pixels};
pub use terminal::{Color, MAX_COLUMNS, MAX_ROWS, Terminal};
pub use text_mode::TextMode;

/// What characters are drawn on.
pub trait Surface {
    /// How many columns and rows of characters it has.
    fn size(&self) -> (usize, usize);
    /// Draws a character of ASCII, from blank to tilde, at a column and a row that it has.
    fn draw(&mut self, column: usize, row: usize, character: u8, color: Color);
}

/// A display that the boot loader has set up.
#[derive(Debug)]
pub enum Display {
    /// A frame buffer.
    Pixels(Pixels),
    /// VGA's text mode.
    Text(TextMode),
}

impl Surface for Display {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Pixels(pixels) => pixels.size(),
            Self::Text(text) => text.size(),
        }
    }
    fn draw(&mut self, column: usize, row: usize, character: u8, color: Color) {
        match self {
            Self::Pixels(pixels) => pixels.draw(column, row, character, color),
            Self::Text(text) => text.draw(column, row, character, color),
        }
    }
}
