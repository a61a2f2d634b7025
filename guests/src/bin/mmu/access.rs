//! Accesses through the tables in use, and what they should lead to.

use crate::tables::{Frames, Tables, peek, poke};
use core::arch::{asm, naked_asm};
use core::fmt;
use offshoot::addr::{Gva, PAGE_SIZE};
use offshoot::paging::{Content, Format, FormatOf, GuestAmd64, MappingOf, Rights, VirtOf, query};
use offshoot_guest::probe;
use offshoot_guest::trap::{BP, PF, PF_FETCH, PF_PRESENT, PF_USER, PF_WRITE, Trap};
use offshoot_guests::check::Checks;
use offshoot_guests::probe_user;

/// Page-fault error code: a reserved bit is set in an entry.
pub const PF_RESERVED: u64 = 1 << 3;
/// The size of the area around a [`Spot`]: the largest leaf that maps only free memory.
pub const AREA: u64 = 4 << 20;
/// RET, eight times.
const RETURNS: u64 = 0xc3c3_c3c3_c3c3_c3c3;
const CR0_WP: u64 = 1 << 16;

/// A page to map: RET at its beginning, then a word to read and write.
#[derive(Clone, Copy)]
pub struct Spot {
    /// Where it is.
    pub phys: u64,
}

impl Spot {
    /// A page in the middle of a free area.
    pub fn new(frames: &Frames) -> Self {
        Self::at(frames.area(AREA) + 0x12_3000)
    }
    /// The page at `phys`.
    pub fn at(phys: u64) -> Self {
        poke(phys, RETURNS);
        poke(phys + 8, !phys);
        Self { phys }
    }
    /// Where a leaf of `size` bytes that has the page in it begins.
    pub fn leaf(&self, size: u64) -> u64 {
        self.phys & !(size - 1)
    }
    /// How far behind the beginning of such a leaf the page is.
    pub fn offset(&self, size: u64) -> u64 {
        self.phys & (size - 1)
    }
    /// The word.
    pub fn word(&self) -> u64 {
        peek(self.phys + 8)
    }
    /// Copies the page to another one.
    pub fn copy_to(&self, phys: u64) -> Self {
        for at in (0..PAGE_SIZE).step_by(8) {
            poke(phys + at, peek(self.phys + at));
        }
        Self { phys }
    }
}

/// What is done to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its word is read.
    Read,
    /// Its word is written.
    Write,
    /// Its RET is run.
    Fetch,
}

/// An access, as whom it is made, and CR0.WP.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub access: Access,
    pub user: bool,
    pub write_protect: bool,
}

impl Attempt {
    /// One by the supervisor, with CR0.WP set.
    pub const fn kernel(access: Access) -> Self {
        Self {
            access,
            user: false,
            write_protect: true,
        }
    }
    /// All there are, those that CR0.WP does not restrict last.
    pub fn all() -> impl Iterator<Item = Self> {
        [true, false].into_iter().flat_map(|write_protect| {
            [true, false].into_iter().flat_map(move |user| {
                [Access::Fetch, Access::Read, Access::Write].map(|access| Self {
                    access,
                    user,
                    write_protect,
                })
            })
        })
    }
    /// How far into the page it goes.
    pub const fn offset(&self) -> u64 {
        match self.access {
            Access::Fetch => 0,
            _ => 8,
        }
    }

    /// The error code of the page fault that is due where the walker says this of the address, or none where the access
    /// is allowed (SDM "Access Rights", 5.6.1). Without no-execute pages, no bit tells a fetch.
    pub fn expected<F: Format>(
        &self,
        mapping: Option<&MappingOf<F>>,
        no_execute: bool,
    ) -> Option<u64> {
        let write = self.access == Access::Write;
        let fetch = self.access == Access::Fetch;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let code =
            bit(write, PF_WRITE) | bit(self.user, PF_USER) | bit(fetch && no_execute, PF_FETCH);
        let Some(Content::Page { attr, .. }) = mapping.map(|mapping| mapping.content) else {
            return Some(code);
        };
        let rights = F::rights(attr);
        let denied = self.user && !rights.contains(Rights::USER)
            || fetch && !rights.contains(Rights::EXECUTE)
            || write && !rights.contains(Rights::WRITE) && (self.user || self.write_protect);
        denied.then_some(code | PF_PRESENT)
    }

    /// Makes it on the page at `page`; returns what was read and the exception, if there was one.
    pub fn make(&self, page: u64, value: u64) -> (u64, Option<Trap>) {
        let at = page + self.offset();
        let mut word = value;
        set_write_protect(self.write_protect);
        // SAFETY: RET is run, or the word of a page that nothing else uses read or written; an exception is caught.
        let trap = unsafe {
            match (self.access, self.user) {
                (Access::Read, false) => {
                    probe!("mov rax, [rcx]"; in("rcx") at, inout("rax") word)
                }
                (Access::Write, false) => {
                    probe!("mov [{at}], {word}"; at = in(reg) at, word = in(reg) word)
                }
                (Access::Fetch, false) => probe!("call {at}"; at = in(reg) at),
                (Access::Read, true) => {
                    probe_user!(user_read; in("rcx") at, inout("rax") word)
                }
                (Access::Write, true) => {
                    probe_user!(user_write; in("rcx") at, in("rax") word)
                }
                (Access::Fetch, true) => probe_user!(user_fetch; in("rcx") at),
            }
        };
        set_write_protect(true);
        // User code ends with INT3.
        let ended = |trap: &Trap| self.user && trap.is(BP, 0) && trap.cs & 3 == 3;
        (word, trap.filter(|trap| !ended(trap)))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{:?} by {}{}",
            self.access,
            if self.user { "user" } else { "supervisor" },
            if self.write_protect {
                ""
            } else {
                " without WP"
            }
        )
    }
}

#[unsafe(naked)]
extern "C" fn user_read() {
    naked_asm!("mov rax, [rcx]", "int3")
}

#[unsafe(naked)]
extern "C" fn user_write() {
    naked_asm!("mov [rcx], rax", "int3")
}

#[unsafe(naked)]
extern "C" fn user_fetch() {
    naked_asm!("call rcx", "int3")
}

/// Sets CR0.WP.
pub fn set_write_protect(on: bool) {
    let wp = if on { CR0_WP } else { 0 };
    // SAFETY: nothing in this program relies on writes that fault, but the probes.
    unsafe {
        asm!("mov {0}, cr0", "and {0}, {1}", "or {0}, {2}", "mov cr0, {0}",
            out(reg) _, const !(CR0_WP as i32), in(reg) wp, options(nostack));
    }
}

/// What the walker says of `page`, or nothing where it calls the tables bad.
pub fn told(
    tables: &Tables<GuestAmd64>,
    page: u64,
) -> Option<MappingOf<FormatOf<Tables<'static, GuestAmd64>>>> {
    let address: VirtOf<Tables<GuestAmd64>> = Gva::new(page);
    query(tables, address).ok().flatten()
}

/// Makes `attempt` on the page at `page` of `tables`, which are in use, and checks that it does what the walker says:
/// the access goes to the physical address that the walker names, or raises the exact page fault and changes
/// nothing. Tells whether it was allowed.
pub fn check(
    checks: &mut Checks,
    tables: &Tables<GuestAmd64>,
    page: u64,
    attempt: Attempt,
    what: fmt::Arguments,
) -> bool {
    let mapping = told(tables, page);
    let what = format_args!("{what}: {attempt} at {page:#x}");
    let phys = mapping.and_then(|mapping| mapping.phys_of(Gva::new(page)));
    let spot = phys.map(|phys| Spot {
        phys: phys.as_u64(),
    });
    let before = spot.map_or(0, |spot| spot.word());
    let value = before.rotate_left(7) ^ page;
    let (word, trap) = attempt.make(page, value);
    let after = spot.map_or(0, |spot| spot.word());
    let wrote = match attempt.expected::<GuestAmd64>(mapping.as_ref(), true) {
        Some(error) => {
            checks.trapped(what, trap, PF, error);
            let at = page + attempt.offset();
            checks.equal(what, trap.map_or(!at, |trap| trap.cr2), at);
            false
        }
        None => {
            checks.quiet(what, trap);
            if attempt.access == Access::Read {
                checks.equal(what, word, before);
            }
            attempt.access == Access::Write
        }
    };
    checks.equal(what, after, if wrote { value } else { before });
    trap.is_none()
}
