//! Page tables: 4-level and PAE ones, which share all but the top, and two-level ones. Each translates the first 4 GiB to
//! themselves, for the supervisor, and the first of them page by page.

use crate::block::Shared;
use crate::layout::{EDGE_BOUND, HIGH_BOUND, PAGE};
use crate::mode::Paging;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
pub const NO_EXECUTE: u64 = 1 << 63;
const OPEN: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;

#[repr(C, align(4096))]
struct Wide([u64; 512]);
#[repr(C, align(4096))]
struct Narrow([u32; 1024]);

impl Wide {
    const EMPTY: Self = Self([0; 512]);
}

struct Tables {
    root: Wide,
    /// Of 4-level paging, below the root; its first four entries, without what they must not have there, are those of
    /// PAE paging.
    pointers: Wide,
    pae: Wide,
    directories: [Wide; 4],
    /// The first 2 MiB.
    low: Wide,
    /// The way to what lies beyond 4 GiB.
    high: [Wide; 3],
    narrow: Narrow,
    /// The first 4 MiB.
    narrow_low: Narrow,
}

static TABLES: Shared<Tables> = Shared::new(Tables {
    root: Wide::EMPTY,
    pointers: Wide::EMPTY,
    pae: Wide::EMPTY,
    directories: [Wide::EMPTY; 4],
    low: Wide::EMPTY,
    high: [Wide::EMPTY; 3],
    narrow: Narrow([0; 1024]),
    narrow_low: Narrow([0; 1024]),
});

/// Fills the tables.
pub fn build() {
    let address = |table: *const Wide| table as u64;
    // SAFETY: none of them is in use yet.
    let tables = unsafe { &mut *TABLES.0.get() };
    tables.root.0[0] = address(&tables.pointers) | OPEN;
    for gib in 0..4 {
        let directory = address(&tables.directories[gib]);
        tables.pointers.0[gib] = directory | OPEN;
        tables.pae.0[gib] = directory | PRESENT;
        for (at, entry) in tables.directories[gib].0.iter_mut().enumerate() {
            *entry = (gib as u64) << 30 | (at as u64) << 21 | OPEN & !USER | LARGE;
        }
    }
    tables.directories[0].0[0] = address(&tables.low) | OPEN;
    for (at, entry) in (0..).zip(tables.low.0.iter_mut()) {
        *entry = (at * PAGE) | OPEN & !USER;
    }
    let [pointers, directory, leaves] = &mut tables.high;
    for bound in [HIGH_BOUND, EDGE_BOUND - 1] {
        tables.root.0[(bound >> 39 & 511) as usize] = address(pointers) | OPEN;
    }
    pointers.0[511] = address(directory) | OPEN;
    directory.0[511] = address(leaves) | OPEN;
    tables.narrow.0[0] = (&raw const tables.narrow_low) as u32 | OPEN as u32;
    for (at, entry) in (0_u32..).zip(tables.narrow.0.iter_mut()).skip(1) {
        *entry = at << 22 | (OPEN & !USER | LARGE) as u32;
    }
    for (at, entry) in (0_u32..).zip(tables.narrow_low.0.iter_mut()) {
        *entry = at << 12 | (OPEN & !USER) as u32;
    }
}

/// The root of the tables for `paging`, for CR3.
pub fn root(paging: Paging) -> u64 {
    let tables = TABLES.0.get();
    // SAFETY: only addresses are taken.
    unsafe {
        match paging {
            Paging::FourLevel => (&raw const (*tables).root) as u64,
            Paging::Pae => (&raw const (*tables).pae) as u64,
            Paging::Off | Paging::TwoLevel => (&raw const (*tables).narrow) as u64,
        }
    }
}

/// The leaf for the page at `linear`, below 2 MiB or beside one of the bounds beyond 4 GiB.
pub fn leaf(paging: Paging, linear: u64) -> Leaf {
    let index = (linear >> 12 & 511) as usize;
    let tables = TABLES.0.get();
    // SAFETY: only addresses are taken.
    unsafe {
        match paging {
            Paging::TwoLevel | Paging::Off => {
                Leaf::Narrow(&raw mut (*tables).narrow_low.0[(linear >> 12 & 1023) as usize])
            }
            _ if linear >> 32 != 0 => Leaf::Wide(&raw mut (*tables).high[2].0[index]),
            _ => Leaf::Wide(&raw mut (*tables).low.0[index]),
        }
    }
}

/// An entry for a page.
pub enum Leaf {
    Narrow(*mut u32),
    Wide(*mut u64),
}

impl Leaf {
    pub fn set(&self, entry: u64) {
        // SAFETY: the entry is one of ours, for a page that only code under test uses.
        unsafe {
            match *self {
                Self::Narrow(at) => at.write_volatile(entry as u32),
                Self::Wide(at) => at.write_volatile(entry),
            }
        }
    }

    pub fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe {
            match *self {
                Self::Narrow(at) => at.read_volatile().into(),
                Self::Wide(at) => at.read_volatile(),
            }
        }
    }
}
