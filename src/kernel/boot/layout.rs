//! Where things are in the kernel's address space.

use offshoot::addr::{Hpa, PAGE_SIZE};
use offshoot::frames::PhysMem;

/// All memory, at one distance from its physical address.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// The distance of the image from its physical address.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// How much of physical memory the boot tables map.
pub const BOOT_MAPPED: u64 = 4 << 30;
/// How much of it the direct map has room for below the image: 64 TiB.
pub const DIRECT_MAPPED: u64 = 1 << 46;
/// Where the registers of the local APIC are mapped, where they lie in memory: behind the direct map.
pub const APIC: u64 = DIRECT_MAP + DIRECT_MAPPED;

/// Where the screen's memory is mapped, whose first byte has its place in its page: right behind, so that the fewest tables
/// are needed.
pub const SCREEN: u64 = APIC + PAGE_SIZE;

/// Where the direct map has a physical address.
pub fn direct(address: Hpa) -> *mut u8 {
    (DIRECT_MAP + address.as_u64()) as *mut u8
}

/// The direct map as the hypervisor's way to physical memory.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap;

// SAFETY: the allocator is made when the kernel's own tables are in use, whose direct map shows every frame that it is
// given once, for ever, writable. Before that, only frames for those tables are used, which the boot tables map.
unsafe impl PhysMem for DirectMap {
    #[inline(always)]
    fn ptr(&self, address: Hpa) -> *mut u8 {
        direct(address)
    }

    #[inline(always)]
    unsafe fn copy_frame(&self, from: Hpa, to: Hpa) {
        // SAFETY: both are whole frames in the direct map, of which the caller alone uses `to`. The direction flag is clear,
        // as everywhere.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") PAGE_SIZE / 8 => _,
                inout("rsi") direct(from) => _,
                inout("rdi") direct(to) => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

macro_rules! symbols {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal;)*) => {
        $(
            $(#[$doc])*
            pub fn $name() -> u64 {
                unsafe extern "C" {
                    #[link_name = $symbol]
                    static SYMBOL: u8;
                }
                (&raw const SYMBOL) as u64
            }
        )*
    };
}

symbols! {
    /// Physical start of the image.
    image_start = "__image_start";
    /// Physical end of the image, page-aligned.
    image_end = "__image_end";
    /// Virtual start of the code, which ends where [`rodata_start`] is.
    text_start = "__text_start";
    /// Virtual start of the constants, which end where [`data_start`] is.
    rodata_start = "__rodata_start";
    /// Virtual start of what is writable.
    data_start = "__data_start";
    /// Virtual end of what is writable.
    data_end = "__data_end";
}

/// The part of the image in which a page lies decides what it may be used for.
#[derive(Clone, Copy, Debug)]
pub struct ImagePart {
    pub start: u64,
    pub end: u64,
    pub write: bool,
    pub execute: bool,
}

impl ImagePart {
    /// Where the part is in physical memory.
    pub fn physical(self) -> Hpa {
        Hpa::new(self.start - KERNEL_BASE)
    }
    /// Bytes of the part, whole pages.
    pub fn len(self) -> u64 {
        (self.end - self.start).next_multiple_of(PAGE_SIZE)
    }
}

/// The parts of the image that stay mapped. No part is both writable and executable.
pub fn parts() -> [ImagePart; 3] {
    [
        ImagePart {
            start: text_start(),
            end: rodata_start(),
            write: false,
            execute: true,
        },
        ImagePart {
            start: rodata_start(),
            end: data_start(),
            write: false,
            execute: false,
        },
        ImagePart {
            start: data_start(),
            end: data_end(),
            write: true,
            execute: false,
        },
    ]
}
