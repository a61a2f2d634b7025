//! Works on data that others see, too: finds it as it was made, page by page in no order, writes single words and then
//! all of it where it may, and finds what it has written. Where it may not, every write raises #PF.
#![no_std]
#![no_main]

use offshoot_guest::trap::{PF, PF_PRESENT, PF_WRITE, Trap};
use offshoot_guest::{StartInfo, count, println, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::pattern;
use offshoot_guests::random::Random;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
/// A prime above the number of pages: its multiples visit every page once, in an order without neighbours.
const STEP: u64 = 2_654_435_761;

/// The data, in words of eight bytes up to the end of its last page.
struct Data {
    base: u64,
    len: u64,
    pages: u64,
}

impl Data {
    /// The pages in an order of no meaning, by their offsets.
    fn walk(&self) -> impl Iterator<Item = u64> {
        let pages = self.pages;
        (0..pages).map(move |n| n * STEP % pages * PAGE)
    }
    fn read(&self, offset: u64) -> u64 {
        // SAFETY: the word lies in the pages of the data, which may be read.
        unsafe { ((self.base + offset) as *const u64).read_volatile() }
    }
    fn write(&self, offset: u64, word: u64) {
        // SAFETY: the word lies in the pages of the data; only called where it may be written.
        unsafe { ((self.base + offset) as *mut u64).write_volatile(word) }
    }
    /// What was there before anybody wrote: zeroes follow the last byte.
    fn original(&self, offset: u64) -> u64 {
        match self.len.saturating_sub(offset) {
            8.. => pattern::data(offset),
            left => pattern::data(offset) & ((1 << (8 * left)) - 1),
        }
    }
}

/// Compares the page at offset `page` with what is `expected` of each word.
fn check_page(checks: &mut Checks, data: &Data, page: u64, expected: impl Fn(u64) -> u64) {
    let mut words = (page..page + PAGE).step_by(8);
    let wrong = words.find(|&offset| data.read(offset) != expected(offset));
    let offset = wrong.unwrap_or(page);
    let what = format_args!("the data at offset {offset:#x}");
    checks.equal(what, data.read(offset), expected(offset));
}

/// The exception that a write raises which changes nothing.
fn try_to_write(address: u64) -> Option<Trap> {
    // SAFETY: an exception is caught, and else the byte stays what it is.
    unsafe { probe!("lock or byte ptr [{address}], 0"; address = in(reg) address) }
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let data = Data {
        base: info.data,
        len: info.data_len,
        pages: info.data_len.div_ceil(PAGE),
    };
    if data.pages == 0 || data.pages >= STEP {
        println!("I need data to work on: map=NAME");
        return 2;
    }
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let mut checks = Checks::default();
    // The last page: in the others, the first touch may then be a read or a write.
    let writable = try_to_write(data.base + (data.pages - 1) * PAGE).is_none();

    let mut written = 0_u64;
    for page in data.walk() {
        let touched = page + random.below(PAGE / 8) * 8;
        let write = writable && random.one_in(2);
        if write {
            data.write(touched, pattern::word(touched, seed));
            written += 1;
        } else if !writable {
            let address = data.base + touched;
            let what = format_args!("a write to {address:#x}");
            checks.trapped(what, try_to_write(address), PF, PF_PRESENT | PF_WRITE);
        }
        check_page(&mut checks, &data, page, |offset| {
            match write && offset == touched {
                true => pattern::word(touched, seed),
                false => data.original(offset),
            }
        });
    }
    if writable {
        for offset in data.walk().flat_map(|page| (page..page + PAGE).step_by(8)) {
            data.write(offset, pattern::word(offset, !seed));
        }
        for page in (0..data.pages * PAGE).step_by(PAGE as usize) {
            check_page(&mut checks, &data, page, |offset| {
                pattern::word(offset, !seed)
            });
        }
    }
    if checks.failed() != 0 {
        println!("SEED={seed}");
    }
    // A report without the figure is no failure of the memory.
    let _ = count("shared.written_first", written);
    checks.finish()
}
