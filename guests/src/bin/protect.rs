//! Gives memory back and takes rights to it away from itself, and finds what it was told: before it is frozen, and in each
//! run of each fork.
#![no_std]
#![no_main]

use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::abi::{CHANGE_MAX, Error, MAY_EXECUTE, MAY_READ, MAY_WRITE};
use offshoot_guest::call::{discard, protect};
use offshoot_guest::{StartInfo, count, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::forks::freeze;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const ALL: u64 = MAY_READ | MAY_WRITE | MAY_EXECUTE;
/// How much is written and given back at once, and how often.
const CHUNK: u64 = 512;
const CHUNKS: u64 = 12;
/// How often parts of a large page are protected.
const SPLITS: u64 = 8;

fn read(address: u64) -> u64 {
    // SAFETY: only called for the heap, which may be read.
    unsafe { read_volatile(address as *const u64) }
}

fn write(address: u64, word: u64) {
    // SAFETY: the heap is nobody else's. Who may not write is stopped, which is the test of another guest.
    unsafe { write_volatile(address as *mut u64, word) }
}

fn give_back(first: u64, pages: u64) -> Result<(), Error> {
    // SAFETY: nothing of Rust's is in the heap, and what is refused changes nothing.
    unsafe { discard(first, pages) }
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let heap = info.heap.next_multiple_of(LARGE);
    more_than_there_is(&mut checks, heap);
    parts_of_a_large_page(&mut checks, heap);
    refused(&mut checks, info, heap);

    // What forks find: a page of each kind, and what nobody has touched.
    let [kept, still, untouched] = [0, 1, 2].map(|page| heap + 4 * LARGE + page * PAGE);
    write(kept, 0x11);
    write(still, 0x22);
    checks.that(protect(still, 1, MAY_READ).is_ok(), format_args!("before"));
    let before = checks.finish();
    let run = match freeze() {
        Ok(run) => run,
        Err(error) => {
            println!("not frozen: {error:?}");
            return 2;
        }
    };
    let mut checks = Checks::default();
    checks.equal(format_args!("before it froze"), before, 0);
    checks.equal(format_args!("a page of the template"), read(kept), 0x11);
    checks.equal(format_args!("one that is still"), read(still), 0x22);
    checks.equal(format_args!("an untouched one"), read(untouched), 0);
    // Were the last run's changes still there, this would stop the fork.
    write(kept, run.fork);
    write(untouched, run.run + 1);
    let gone = give_back(kept, 3);
    checks.that(gone.is_ok(), format_args!("giving back: {gone:?}"));
    for page in [kept, still, untouched] {
        checks.equal(format_args!("{page:#x} given back"), read(page), 0);
    }
    let locked = protect(kept, 1, MAY_READ).and(protect(still, 2, ALL));
    checks.that(locked.is_ok(), format_args!("protecting: {locked:?}"));
    write(still, 0x33);
    checks.equal(format_args!("one that may be written"), read(still), 0x33);
    checks.failed()
}

/// The same of more pages than one call takes.
fn give_back_all(first: u64, pages: u64) -> Result<(), Error> {
    let mut starts = (0..pages).step_by(CHANGE_MAX as usize);
    starts.try_for_each(|start| give_back(first + start * PAGE, CHANGE_MAX.min(pages - start)))
}

/// Writes more than there is memory for, a chunk at a time, and gives each back.
fn more_than_there_is(checks: &mut Checks, heap: u64) {
    let pages = |chunk: u64| (0..CHUNK).map(move |page| heap + (chunk * CHUNK + page) * PAGE);
    for chunk in 0..CHUNKS {
        pages(chunk).for_each(|page| write(page + 8, page));
        let wrong = pages(chunk).filter(|page| read(page + 8) != *page).count();
        checks.equal(format_args!("pages of chunk {chunk}"), wrong as u64, 0);
        // All but the first page.
        let first = heap + chunk * CHUNK * PAGE;
        let done = give_back(first + PAGE, 100).and(give_back_all(first + 101 * PAGE, CHUNK - 101));
        checks.that(done.is_ok(), format_args!("giving back: {done:?}"));
        let left = pages(chunk).filter(|page| read(page + 8) != 0).count();
        checks.equal(format_args!("pages kept of chunk {chunk}"), left as u64, 1);
        checks.that(
            give_back_all(first, CHUNK).is_ok(),
            format_args!("the rest"),
        );
    }
    let filed = count("protect.discarded", CHUNKS * CHUNK);
    checks.that(filed.is_ok(), format_args!("the figure: {filed:?}"));
}

/// Protects parts of a large page, uses what is left, and makes it whole again.
fn parts_of_a_large_page(checks: &mut Checks, heap: u64) {
    write(heap, 1);
    for split in 0..SPLITS {
        let part = heap + (1 + 7 * split) * PAGE;
        for may in [MAY_READ, MAY_READ | MAY_EXECUTE, MAY_READ | MAY_WRITE] {
            let done = protect(part, 1 + split, may);
            checks.that(done.is_ok(), format_args!("protecting: {done:?}"));
            checks.equal(format_args!("what may be read"), read(part), 0);
            write(heap, split);
            write(heap + LARGE - 8, split);
        }
        let done = protect(part, 1 + split, ALL);
        checks.that(done.is_ok(), format_args!("restoring: {done:?}"));
        write(part, split);
        checks.equal(format_args!("what was restored"), read(part), split);
        write(part, 0);
    }
}

/// Asks for what is not to be had.
fn refused(checks: &mut Checks, info: &StartInfo, heap: u64) {
    write(heap, 0x5a);
    let end = info.memory;
    let mut expect = |what, done: Result<(), Error>, error| {
        checks.that(done == Err(error), format_args!("{what}: {done:?}"));
    };
    for (first, pages) in [
        (heap + 1, 1),
        (heap, 0),
        (heap, CHANGE_MAX + 1),
        (heap, u64::MAX),
        (!(PAGE - 1), 2),
    ] {
        expect(
            "a bad range given back",
            give_back(first, pages),
            Error::Invalid,
        );
        expect(
            "a bad range protected",
            protect(first, pages, MAY_READ),
            Error::Invalid,
        );
    }
    for (first, pages) in [(end, 1), (end - PAGE, 2), (!(PAGE - 1), 1)] {
        expect(
            "no memory given back",
            give_back(first, pages),
            Error::BadAddress,
        );
        expect(
            "no memory protected",
            protect(first, pages, MAY_READ),
            Error::BadAddress,
        );
    }
    for may in [
        0,
        MAY_WRITE,
        MAY_EXECUTE,
        MAY_WRITE | MAY_EXECUTE,
        8 | ALL,
        u64::MAX,
    ] {
        expect("bad rights", protect(heap, 1, may), Error::Invalid);
    }
    // Every second page, until there are too many parts; then all again.
    let mut parts = (0..100).map(|part| protect(heap + 2 * part * PAGE, 1, MAY_READ | MAY_WRITE));
    let full = parts.find(Result::is_err);
    expect("too many parts", full.unwrap_or(Ok(())), Error::NoSpace);
    let again = protect(heap, 200, ALL);
    checks.that(again.is_ok(), format_args!("all again: {again:?}"));
    checks.equal(format_args!("what nobody changed"), read(heap), 0x5a);
}
