//! A small image format, read as such readers are often written: fast, by hand, and with one check that is wrong.
//!
//! ```text
//! file  = "OFIM" version:u8 chunk...       numbers are little endian
//! chunk = tag:[u8; 4] len:u32 payload
//! HEAD    width:u16 height:u16 depth:u8 flags:u8     flags: 1 = colours from a palette, 2 = runs
//! PALT    3 bytes for each colour
//! NOTE    text: key=value
//! DATA    rows of pixels, or runs
//! ENDC    nothing
//! ```

const fn tag(name: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*name)
}
const HEAD: u32 = tag(b"HEAD");
const PALT: u32 = tag(b"PALT");
const NOTE: u32 = tag(b"NOTE");
const DATA: u32 = tag(b"DATA");
const ENDC: u32 = tag(b"ENDC");

const PALETTE: u8 = 1;
const RUNS: u8 = 2;
const FLAGS: u8 = PALETTE | RUNS;
/// The most pixels of an image.
pub const PIXELS_MAX: usize = 64 * 64;

/// Why a file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Magic,
    Version,
    Truncated,
    Order,
    Size,
    Depth,
    Flags,
    Palette,
    Note,
    Pixels,
    Tag,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub pixels: usize,
    pub colours: usize,
    pub notes: usize,
}

struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], Refused> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Refused::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
    fn u8(&mut self) -> Result<u8, Refused> {
        let [byte] = self.array()?;
        Ok(byte)
    }
    fn u16(&mut self) -> Result<u16, Refused> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, Refused> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        self.take(N)?.try_into().map_err(|_| Refused::Truncated)
    }
}

struct Head {
    pixels: usize,
    width: usize,
    depth: u8,
    flags: u8,
}

/// Reads a file. The pixels go to `into`, which has room for [`PIXELS_MAX`] and ends where memory ends. With `CHECKED` the
/// check that is wrong is right.
pub fn read<const CHECKED: bool>(file: &[u8], into: *mut u8) -> Result<Summary, Refused> {
    let mut file = Bytes(file);
    for expected in *b"OFIM" {
        if file.u8()? != expected {
            return Err(Refused::Magic);
        }
    }
    let version = file.u8()?;
    if !(1..=3).contains(&version) {
        return Err(Refused::Version);
    }
    let mut summary = Summary::default();
    let mut head = None;
    loop {
        let tag = file.u32()?;
        let len = file.u32()? as usize;
        let mut payload = Bytes(file.take(len)?);
        match (tag, &head) {
            (HEAD, None) => head = Some(read_head(&mut payload)?),
            (PALT, Some(head)) => summary.colours = read_palette(head, &payload)?,
            (NOTE, _) => summary.notes += read_note(&payload)?,
            (DATA, Some(head)) if head.flags & PALETTE != 0 && summary.colours == 0 => {
                return Err(Refused::Palette);
            }
            (DATA, Some(head)) => {
                // The buffer ends where memory ends, so a small image lies at the end of it.
                let start = into.wrapping_add(PIXELS_MAX - head.pixels);
                summary.pixels += if head.flags & RUNS != 0 {
                    read_runs::<CHECKED>(head, version, &mut payload, start)?
                } else {
                    read_rows(head, &mut payload, start)?
                };
            }
            (ENDC, Some(_)) if len == 0 => return Ok(summary),
            (HEAD | PALT | DATA | ENDC, _) => return Err(Refused::Order),
            _ => return Err(Refused::Tag),
        }
    }
}

fn read_head(payload: &mut Bytes) -> Result<Head, Refused> {
    let width = usize::from(payload.u16()?);
    let height = usize::from(payload.u16()?);
    let depth = payload.u8()?;
    let flags = payload.u8()?;
    let pixels = width * height;
    if pixels == 0 || pixels > PIXELS_MAX {
        return Err(Refused::Size);
    }
    if !matches!(depth, 1 | 2 | 4 | 8) {
        return Err(Refused::Depth);
    }
    if flags & !FLAGS != 0 {
        return Err(Refused::Flags);
    }
    Ok(Head {
        pixels,
        width,
        depth,
        flags,
    })
}

fn read_palette(head: &Head, payload: &Bytes) -> Result<usize, Refused> {
    let (colours, rest) = payload.0.as_chunks::<3>();
    if head.flags & PALETTE == 0 || !rest.is_empty() || colours.len() > 1 << head.depth {
        return Err(Refused::Palette);
    }
    Ok(colours.len())
}

fn read_note(payload: &Bytes) -> Result<usize, Refused> {
    let at = payload.0.iter().position(|byte| *byte == b'=');
    let (key, value) = payload.0.split_at(at.ok_or(Refused::Note)?);
    if key.is_empty() || !key.iter().all(u8::is_ascii_lowercase) {
        return Err(Refused::Note);
    }
    if value.iter().any(|byte| byte.is_ascii_control()) {
        return Err(Refused::Note);
    }
    Ok(1)
}

/// Rows of pixels, each row on bytes of its own.
fn read_rows(head: &Head, payload: &mut Bytes, start: *mut u8) -> Result<usize, Refused> {
    let row_bytes = (head.width * usize::from(head.depth)).div_ceil(8);
    let mut written = 0;
    while written < head.pixels {
        let row = payload.take(row_bytes)?;
        for x in 0..head.width {
            let bit = x * usize::from(head.depth);
            let byte = row.get(bit / 8).copied().unwrap_or(0);
            let value = byte >> (8 - usize::from(head.depth) - bit % 8);
            // SAFETY: there are whole rows only, so this is one of the image's pixels, for which there is room.
            unsafe { start.add(written + x).write(value) };
        }
        written += head.width;
    }
    Ok(written)
}

/// Runs: `0x00..=0x7f` is so many pixels and one, which follow; `0x80..=0xbf` so many less 128 and one of the pixel that
/// follows; and since version 2, `0xc0..=0xff` is a long run, with 6 bits of its length and 8 in the next byte.
fn read_runs<const CHECKED: bool>(
    head: &Head,
    version: u8,
    payload: &mut Bytes,
    start: *mut u8,
) -> Result<usize, Refused> {
    let mut written = 0;
    while written < head.pixels {
        let left = head.pixels - written;
        match payload.u8()? {
            count @ 0..=0x7f => {
                let pixels = payload.take(usize::from(count) + 1)?;
                if pixels.len() > left {
                    return Err(Refused::Pixels);
                }
                for (at, pixel) in pixels.iter().enumerate() {
                    // SAFETY: no more than are left of the image.
                    unsafe { start.add(written + at).write(*pixel) };
                }
                written += pixels.len();
            }
            0xc0.. if version < 2 => return Err(Refused::Pixels),
            high @ 0xc0.. => {
                let count = usize::from(high & 0x3f) << 8 | usize::from(payload.u8()?);
                let value = payload.u8()?;
                // The planted bug: a run is let through that some image has room for, but this one may not.
                let most = if CHECKED { left } else { PIXELS_MAX };
                if count > most {
                    return Err(Refused::Pixels);
                }
                for at in 0..count {
                    // SAFETY: with `CHECKED`, no more than are left. Without, this is what the fuzzer is to find.
                    unsafe { start.add(written + at).write_volatile(value) };
                }
                written += count;
            }
            count => {
                let count = usize::from(count - 0x80) + 1;
                let value = payload.u8()?;
                if count > left {
                    return Err(Refused::Pixels);
                }
                for at in 0..count {
                    // SAFETY: no more than are left.
                    unsafe { start.add(written + at).write(value) };
                }
                written += count;
            }
        }
    }
    Ok(written)
}
