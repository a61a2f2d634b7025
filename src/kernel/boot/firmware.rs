//! What the firmware has set up and described: the screen, and how the machine is switched off.

use super::layout::{self, BOOT_MAPPED};
use multiboot2::{FramebufferField, FramebufferTag, FramebufferType};
use offshoot::addr::{AddrRange, Hpa};
use offshoot::host::acpi::{self, Power, Root, Tables};
use offshoot::host::screen::{Channel, PixelFormat};

/// The screen that the boot loader has set up: where its memory is, and what that holds.
#[derive(Clone, Copy)]
pub struct Screen {
    pub memory: AddrRange<Hpa>,
    pub kind: ScreenKind,
}

#[derive(Clone, Copy)]
pub enum ScreenKind {
    Pixels(PixelFormat),
    /// So many columns and rows.
    Text(usize, usize),
}

/// What the boot loader says of the screen. `None`: nothing that can be used.
pub fn screen(tag: &FramebufferTag) -> Option<Screen> {
    let (width, height) = (tag.width(), tag.height());
    let (kind, bytes) = match tag.buffer_type().ok()? {
        FramebufferType::Text => {
            let cells = u64::from(width).checked_mul(height.into())?;
            let kind = ScreenKind::Text(width as usize, height as usize);
            (kind, cells.checked_mul(size_of::<u16>() as u64)?)
        }
        FramebufferType::RGB { red, green, blue } => {
            let format = PixelFormat {
                width,
                height,
                pitch: tag.pitch(),
                bits: tag.bpp(),
                channels: [red, green, blue].map(|field: FramebufferField| Channel {
                    position: field.position,
                    bits: field.size,
                }),
            };
            (ScreenKind::Pixels(format), format.bytes()?)
        }
        FramebufferType::Indexed { .. } => return None,
    };
    let memory = AddrRange::new(Hpa::new(tag.address()), bytes)?;
    Some(Screen { memory, kind })
}

/// The firmware's memory, as far as the boot tables map it; later only what the boot information says to keep.
pub struct Firmware;

impl acpi::Memory for Firmware {
    fn bytes(&self, start: Hpa, len: u64) -> Option<&[u8]> {
        let range = AddrRange::new(start, len)?;
        let last = range.last().filter(|last| last.as_u64() < BOOT_MAPPED);
        last?;
        // SAFETY: mapped, and nobody writes to it while it is looked at.
        Some(unsafe { core::slice::from_raw_parts(layout::direct(range.start()), len as usize) })
    }
}

/// Finds ACPI's tables.
pub fn acpi_tables(root: Option<Root>) -> Result<Tables, acpi::Unknown> {
    Tables::find(&Firmware, root.ok_or(acpi::Unknown::Missing("RSDP"))?)
}

/// What they say, of which the kernel's own tables map what is needed.
pub fn power(tables: Result<Tables, acpi::Unknown>) -> Result<Power, acpi::Unknown> {
    tables?.power(&Firmware)
}
