//! A frame buffer: characters out of pixels.

use super::{Color, Surface};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;
/// Pixels of a character.
const CELL: (usize, usize) = (get_raster_width(WEIGHT, HEIGHT), HEIGHT.val());

/// Where one of the three colors is in a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its lowest bit.
    pub position: u8,
    /// How many bits it has.
    pub bits: u8,
}

impl Channel {
    /// The bits for a value of 0 to 255.
    fn encode(self, value: u32) -> u32 {
        value >> (8 - self.bits) << self.position
    }
    const fn is_in(self, pixel_bits: u32) -> bool {
        self.bits >= 1 && self.bits <= 8 && self.position as u32 + self.bits as u32 <= pixel_bits
    }
}

/// How a frame buffer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Bits of a pixel: 15 to 32.
    pub bits: u8,
    /// Red, green, blue.
    pub channels: [Channel; 3],
}

impl PixelFormat {
    const fn pixel_bytes(&self) -> usize {
        (self.bits as usize).div_ceil(8)
    }
    /// Bytes of the whole frame buffer. `None`: that cannot be one, or there is no room for a character.
    pub fn bytes(&self) -> Option<u64> {
        let line = u64::from(self.width) * self.pixel_bytes() as u64;
        let fits = matches!(self.bits, 15..=32)
            && line <= self.pitch.into()
            && (self.width as usize) >= CELL.0
            && (self.height as usize) >= CELL.1
            && self
                .channels
                .iter()
                .all(|channel| channel.is_in(self.bits.into()));
        fits.then_some(u64::from(self.pitch) * u64::from(self.height))
    }
}

/// A frame buffer.
#[derive(Debug)]
pub struct Pixels {
    first: *mut u8,
    format: PixelFormat,
}

// SAFETY: it is memory that is nobody else's, as `Pixels::new` is promised, on whatever CPU.
unsafe impl Send for Pixels {}

impl Pixels {
    /// The frame buffer whose first byte is at `first`. `None`: such a format cannot be.
    ///
    /// # Safety
    /// As many bytes as the format says are mapped there, writable, and nobody else's, for as long as this is used.
    pub unsafe fn new(first: *mut u8, format: PixelFormat) -> Option<Self> {
        format.bytes()?;
        Some(Self { first, format })
    }

    /// Writes a pixel that the frame buffer has.
    fn set(&mut self, x: usize, y: usize, value: u32) {
        let bytes = self.format.pixel_bytes();
        let at = y * self.format.pitch as usize + x * bytes;
        if bytes == 4 && (self.first as usize + at).is_multiple_of(4) {
            // SAFETY: as below; one store rather than four, as none of them is cached.
            return unsafe { self.first.add(at).cast::<u32>().write_volatile(value) };
        }
        for (i, byte) in value.to_le_bytes().into_iter().take(bytes).enumerate() {
            // SAFETY: the caller stays within the width and the height, so within the bytes that are promised to be there.
            unsafe { self.first.add(at + i).write_volatile(byte) };
        }
    }
}

impl Surface for Pixels {
    fn size(&self) -> (usize, usize) {
        let (width, height) = CELL;
        (
            self.format.width as usize / width,
            self.format.height as usize / height,
        )
    }

    fn draw(&mut self, column: usize, row: usize, character: u8, color: Color) {
        let Some(raster) = get_raster(character.into(), WEIGHT, HEIGHT) else {
            return;
        };
        let (columns, rows) = self.size();
        if column >= columns || row >= rows {
            return;
        }
        let rgb = rgb(color);
        for (y, line) in raster.rows().enumerate() {
            for (x, &intensity) in line.iter().enumerate() {
                let channels = self.format.channels.iter().zip(rgb);
                let value = channels.fold(0, |value, (channel, full)| {
                    value | channel.encode(u32::from(full) * u32::from(intensity) / 255)
                });
                self.set(column * CELL.0 + x, row * CELL.1 + y, value);
            }
        }
    }
}

const fn rgb(color: Color) -> [u8; 3] {
    match color {
        Color::Plain => [0xd8, 0xd8, 0xd8],
        Color::Good => [0x60, 0xd0, 0x60],
        Color::Warning => [0xe8, 0xc0, 0x40],
        Color::Error => [0xff, 0x60, 0x60],
        Color::Faint => [0x80, 0x80, 0x80],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn channel(position: u8, bits: u8) -> Channel {
        Channel { position, bits }
    }
    const TRUE_COLOR: [Channel; 3] = [channel(16, 8), channel(8, 8), channel(0, 8)];
    const HIGH_COLOR: [Channel; 3] = [channel(11, 5), channel(5, 6), channel(0, 5)];

    fn format(width: u32, height: u32, bits: u8, channels: [Channel; 3]) -> PixelFormat {
        let pitch = width * u32::from(bits).div_ceil(8) + 12;
        PixelFormat {
            width,
            height,
            pitch,
            bits,
            channels,
        }
    }

    #[test]
    fn a_character_is_its_raster_and_nothing_else_is_touched() {
        let (width, height) = CELL;
        for (bits, channels) in [(32, TRUE_COLOR), (24, TRUE_COLOR), (16, HIGH_COLOR)] {
            let format = format(3 * width as u32 + 2, 2 * height as u32 + 5, bits, channels);
            let len = format.bytes().unwrap() as usize;
            let mut memory = vec![0xaa_u8; len + 64];
            // SAFETY: the bytes are there, and only looked at when it is gone.
            let mut pixels = unsafe { Pixels::new(memory.as_mut_ptr(), format) }.unwrap();
            assert_eq!(pixels.size(), (3, 2));
            pixels.draw(1, 1, b'W', Color::Plain);
            pixels.draw(3, 1, b'W', Color::Plain);
            pixels.draw(1, 2, b'W', Color::Plain);
            let raster = get_raster('W', WEIGHT, HEIGHT).unwrap();
            let bytes = usize::from(bits).div_ceil(8);
            let mut bright = 0;
            for (i, byte) in memory.iter().enumerate() {
                let (x, y) = (i % format.pitch as usize / bytes, i / format.pitch as usize);
                let inside = (width..2 * width).contains(&x) && (height..2 * height).contains(&y);
                if inside {
                    let lit = raster.pixel(x - width, y - height).unwrap() > 128;
                    bright += usize::from(lit && *byte > 0x20);
                } else {
                    assert_eq!(*byte, 0xaa, "{x}, {y}");
                }
            }
            assert!(bright > 20, "{bits} bits: {bright}");
        }
    }

    #[test]
    fn what_can_be_no_frame_buffer_is_refused() {
        let good = format(640, 480, 32, TRUE_COLOR);
        assert_eq!(good.bytes(), Some(480 * (640 * 4 + 12)));
        let bad = [
            PixelFormat { bits: 8, ..good },
            PixelFormat { bits: 33, ..good },
            PixelFormat {
                pitch: 2559,
                ..good
            },
            PixelFormat { width: 3, ..good },
            PixelFormat { height: 15, ..good },
            PixelFormat { bits: 16, ..good },
        ];
        for format in bad {
            assert_eq!(format.bytes(), None, "{format:?}");
        }
        let all = u32::MAX;
        let largest = PixelFormat {
            width: all / 4,
            height: all,
            pitch: all,
            ..good
        };
        assert_eq!(largest.bytes(), Some(u64::from(all) * u64::from(all)));
    }
}
