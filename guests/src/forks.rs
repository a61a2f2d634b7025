//! What a guest needs that is forked: who it is, and memory that tells forks apart.

use crate::check::Checks;
use core::arch::asm;
use offshoot_abi::Error;
use offshoot_guest::call;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Words of a page that are looked at, one in each part of this many bytes.
const STRIDE: u64 = 512;

/// Which run of which fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the fork.
    pub fork: u64,
    /// The number of the run.
    pub run: u64,
}

/// In one page.
#[repr(align(16))]
struct Message([u8; 16]);

/// Asks to be frozen, and goes on in every fork with its numbers.
///
/// # Errors
/// The host does not freeze this guest.
pub fn freeze() -> Result<Run, Error> {
    let mut message = Message([0; 16]);
    let bytes = call::freeze(&mut message.0)?;
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).ok_or(Error::Invalid)?;
        let mut number = [0; 8];
        number.copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    };
    Ok(Run {
        fork: number(0)?,
        run: number(8)?,
    })
}

/// Lets others have the CPU.
pub fn give_way() {
    // SAFETY: no interrupt is ever pending for a guest, and every vector that could come has a handler.
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
}

/// Numbers that look random.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// A series for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }
    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// The next one, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

/// Pages of the heap.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Where they begin.
    pub start: u64,
    /// How many there are.
    pub count: u64,
}

impl Pages {
    fn words(self, page: u64) -> impl Iterator<Item = *mut u64> {
        let start = self.start + page * PAGE;
        // Not all at the same place, so that the ends of the page are among them.
        (start..start + PAGE)
            .step_by(STRIDE as usize)
            .map(move |part| (part + (page * 8 + part / 8) % STRIDE / 8 * 8) as *mut u64)
    }

    /// Writes what `owner` writes into a page.
    pub fn write(self, page: u64, owner: u64) {
        for word in self.words(page) {
            // SAFETY: in the heap, of which nobody holds a reference.
            unsafe { word.write_volatile(pattern(word as u64, owner)) };
        }
    }

    /// Checks that a page holds what `owner` wrote into it.
    pub fn check(self, checks: &mut Checks, page: u64, owner: u64) {
        for word in self.words(page) {
            // SAFETY: in the heap.
            let found = unsafe { word.read_volatile() };
            checks.equal(format_args!("{word:p}"), found, pattern(word as u64, owner));
        }
    }
}

fn pattern(at: u64, owner: u64) -> u64 {
    (at ^ owner.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
