//! Two-level tables of 32-bit mode: the same questions as of 4-level ones.

use crate::Bench;
use crate::access::{Access, Attempt, Spot};
use crate::crossing::{Crossing, Op, Paging, USER_BASE};
use crate::tables::{Tables, WRITES, must};
use offshoot::addr::{Gpa, Gva, PAGE_SIZE, PageSize};
use offshoot::paging::{
    Content, Emptied, Entry, I686, I686Attr, I686Entry, MappingOf, PagingError, TableReadOps,
    Write, map, merge, modify, protect, query, split, translate, unmap,
};
use offshoot_guest::trap;

/// Where mappings of either size begin. Memory is mapped to itself below.
const SMALL: u64 = 0x4000_0000;
const LARGE: u64 = 0x5000_0000;
/// Where mappings that change are.
const AT: u64 = 0x7000_0000;
const SIZES: [(PageSize, u64); 2] = [(PageSize::Size4K, SMALL), (PageSize::Size4M, LARGE)];
const PAGING: Paging = Paging {
    pae: false,
    pse: true,
    no_execute: true,
    device: 0,
    user_device: 0,
};
/// Accesses of one visit to 32-bit mode.
const MOST: usize = 1024;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// An access to be made, and what should come of it.
#[derive(Clone, Copy)]
struct Expected {
    attempt: Attempt,
    page: u32,
    error: Option<u64>,
    /// The word that is there before and after.
    words: [u32; 2],
}

/// The two-level tables, and accesses through them that have been asked for.
struct Legacy<'a, 'b> {
    bench: &'a mut Bench<'b>,
    tables: Tables<'b, I686>,
    crossing: Crossing,
    ops: &'static mut [Op; 2 * MOST],
    expected: &'static mut [Option<Expected>; MOST],
    asked: usize,
}

pub fn check(bench: &mut Bench) {
    assert!(
        bench.info.memory <= SMALL,
        "too much memory for two-level tables"
    );
    let mut tables = Tables::new(bench.frames);
    let memory = bench.info.memory;
    // Accessed and dirty are preset.
    for (at, attr) in [
        (0, I686Attr::READ_WRITE),
        (u64::from(USER_BASE), I686Attr::READ_WRITE.with_user(true)),
    ] {
        map_to(&mut tables, at, memory, 0, attr);
    }
    let crossing = Crossing::new(bench.frames);
    let ops = bench
        .frames
        .area(size_of::<[Op; 2 * MOST]>().next_power_of_two() as u64);
    let expected = bench
        .frames
        .area(size_of::<[Option<Expected>; MOST]>().next_power_of_two() as u64);
    // SAFETY: fresh memory of the heap, and zeroes are ops and none.
    let (ops, expected) = unsafe {
        let ops = ops as *mut [Op; 2 * MOST];
        let expected = expected as *mut [Option<Expected>; MOST];
        for at in 0..MOST {
            (&raw mut (*expected)[at]).write(None);
        }
        (&mut *ops, &mut *expected)
    };
    let mut legacy = Legacy {
        bench,
        tables,
        crossing,
        ops,
        expected,
        asked: 0,
    };
    legacy.leaves();
    legacy.upper_level();
    legacy.last_page();
    let used = legacy.bench.frames.used();
    legacy.copy_on_write();
    legacy.zero_on_demand();
    legacy.changes();
    let left = legacy.bench.frames.used();
    let checks = &mut legacy.bench.checks;
    checks.equal(format_args!("i686 tables"), left, used);
}

fn map_to(tables: &mut Tables<I686>, at: u64, len: u64, phys: u64, attr: I686Attr) {
    let phys = Gpa::new(phys);
    let page = Content::Page { phys, attr };
    must(map(tables, Gva::new(at), len, page, PageSize::Size4M));
}

fn attributes() -> impl Iterator<Item = I686Attr> {
    (0_u8..24).map(|number| {
        let bit = |bit: u8| (number / 3) >> bit & 1 != 0;
        I686Attr::READ
            .with_write(WRITES[usize::from(number % 3)])
            .with_user(bit(0))
            .with_global(bit(1))
            .with_accessed(bit(2))
            .with_dirty(bit(2))
            .with_pat_index(number % 8)
            .with_soft(number.into())
    })
}

impl Legacy<'_, '_> {
    fn told(&self, page: u64) -> Option<MappingOf<I686>> {
        query(&self.tables, Gva::new(page)).ok().flatten()
    }

    /// Asks for an access to the page at `page`. What it should lead to is what the walker says now. `word` is what
    /// the accesses asked for before leave there.
    fn ask(&mut self, page: u64, attempt: Attempt, word: &mut u32) {
        let error = attempt.expected::<I686>(self.told(page).as_ref(), false);
        let before = *word;
        let value = before.rotate_left(7) ^ page as u32 ^ 1;
        if error.is_none() && attempt.access == Access::Write {
            *word = value;
        }
        let page = page as u32;
        let [wp, op] = &mut self.ops[2 * self.asked..][..2] else {
            return;
        };
        *wp = Op::set_write_protect(attempt.write_protect);
        *op = Op::attempt(&attempt, page, value);
        self.expected[self.asked] = Some(Expected {
            attempt,
            page,
            error,
            words: [before, *word],
        });
        self.asked += 1;
    }

    /// Asks for all accesses to a page that leads to `spot`.
    fn ask_all(&mut self, page: u64, spot: Spot) -> u32 {
        let mut word = spot.word() as u32;
        for attempt in Attempt::all() {
            self.ask(page, attempt, &mut word);
        }
        word
    }

    /// Makes the accesses that were asked for.
    fn make(&mut self, what: &str) {
        let ops = &mut self.ops[..2 * self.asked];
        // SAFETY: the tables map memory to itself and for user mode; writes go to spots.
        unsafe { self.crossing.run(self.tables.root().as_u64(), PAGING, ops) };
        crate::access::set_write_protect(true);
        let checks = &mut self.bench.checks;
        for (pair, expected) in ops.as_chunks::<2>().0.iter().zip(self.expected.iter()) {
            let (op, Some(expected)) = (&pair[1], expected) else {
                continue;
            };
            let Expected { attempt, page, .. } = *expected;
            let at = page + attempt.offset() as u32;
            let fault = op.fault();
            let right = match (fault, expected.error) {
                (None, None) => attempt.access != Access::Read || op.result() == expected.words[0],
                (Some(fault), Some(error)) => {
                    fault.vector == trap::PF.into()
                        && u64::from(fault.error) == error
                        && fault.cr2 == at
                }
                _ => false,
            };
            if right {
                checks.that(true, format_args!(""));
            } else if let Some(fault) = fault {
                checks.that(
                    false,
                    format_args!(
                        "{what}: {attempt} at {page:#x}: {fault} instead of {:x?}",
                        expected.error
                    ),
                );
            } else {
                checks.that(
                    false,
                    format_args!(
                        "{what}: {attempt} at {page:#x}: read {:#x} instead of {:#x}, due {:x?}",
                        op.result(),
                        expected.words[0],
                        expected.error
                    ),
                );
            }
        }
        self.asked = 0;
    }

    /// Makes all accesses to a page that leads to `spot`, and looks what is there afterwards.
    fn all(&mut self, page: u64, spot: Spot, what: &str) {
        let word = self.ask_all(page, spot);
        self.make(what);
        self.word(spot, word, what);
    }

    fn word(&mut self, spot: Spot, expected: u32, what: &str) {
        let found = spot.word() & 0xffff_ffff;
        let checks = &mut self.bench.checks;
        checks.equal(
            format_args!("{what}: memory at {:#x}", spot.phys),
            found,
            expected.into(),
        );
    }

    /// Makes one access that must not be allowed and returns the address of its page.
    fn fault(&mut self, page: u64, attempt: Attempt, what: &str) -> u64 {
        self.ask(page, attempt, &mut 0);
        self.make(what);
        let fault = self.ops[1].fault();
        let checks = &mut self.bench.checks;
        checks.that(fault.is_some(), format_args!("{what}: no fault"));
        fault.map_or(page, |fault| u64::from(fault.cr2) & !(PAGE_SIZE - 1))
    }

    /// All attributes in leaves of both sizes.
    fn leaves(&mut self) {
        let spot = self.bench.spots[0];
        for (size, start) in SIZES {
            let whole = size.bytes();
            let mut word = spot.word() as u32;
            let pages = |at: u64| at + spot.offset(whole);
            for (attr, at) in attributes().zip((start..).step_by(whole as usize)) {
                let phys = Gpa::new(spot.leaf(whole));
                let content = Content::Page { phys, attr };
                must(map(&mut self.tables, Gva::new(at), whole, content, size));
                for attempt in Attempt::all() {
                    self.ask(pages(at), attempt, &mut word);
                }
            }
            self.make("leaf");
            self.word(spot, word, "leaf");
            for (attr, at) in attributes().zip((start..).step_by(whole as usize)) {
                self.noted(attr, pages(at), size);
            }
        }
        let mut leaves = 0;
        for mapping in translate(&self.tables, Gva::new(0), u64::MAX, 1 << 20) {
            let mapping = must(mapping);
            let asked = query(&self.tables, mapping.virt);
            self.bench.checks.that(
                asked == Ok(Some(mapping)),
                format_args!("translate yields {mapping:?}, query {asked:?}"),
            );
            leaves += 1;
        }
        self.bench.checks.that(
            leaves > 2 * 24,
            format_args!("only {leaves} leaves in the space"),
        );
    }

    /// The CPU has noted in the leaf what all attempts together did, and changed nothing else.
    fn noted(&mut self, attr: I686Attr, page: u64, size: PageSize) {
        let found = self.told(page);
        // The supervisor reads every page, and without WP writes it.
        let expected = attr.with_accessed(true).with_dirty(true);
        let right = found.is_some_and(|mapping| {
            mapping.size == size
                && matches!(mapping.content, Content::Page { attr, .. } if attr == expected)
        });
        self.bench.checks.that(
            right,
            format_args!("{attr:?} at {page:#x} became {found:?}"),
        );
    }

    /// What an entry of the directory withholds, no leaf below it grants; a bad one is bad to both.
    fn upper_level(&mut self) {
        let spot = self.bench.spots[0];
        let attr = I686Attr::READ_WRITE.with_user(true);
        let size = PAGE_SIZE;
        map_to(&mut self.tables, AT, size, spot.phys, attr);
        let (table, index) = self.tables.place(AT, 2).unwrap_or_default();
        let Some(open) = self.tables.read_entry(table, index) else {
            return self.bench.checks.that(false, format_args!("no table"));
        };
        for clear in [WRITABLE, USER, WRITABLE | USER] {
            let entry = I686Entry::from_bits(open.to_bits() & !clear);
            self.tables.write_entry(table, index, entry);
            self.all(AT, spot, "below a directory entry that withholds");
        }
        self.tables.write_entry(table, index, open);
        self.clear(AT, size);

        let whole = PageSize::Size4M.bytes();
        map_to(&mut self.tables, AT, whole, spot.leaf(whole), attr);
        let good = self.tables.read_entry(table, index);
        let good = good.unwrap_or(I686Entry::EMPTY);
        // Bit 21 is reserved; it must be so to the walker.
        let bad = I686Entry::from_bits(good.to_bits() | 1 << 21);
        self.tables.write_entry(table, index, bad);
        let found = query(&self.tables, Gva::new(AT));
        self.bench.checks.that(
            matches!(found, Err(PagingError::Bad { level: 2, .. })),
            format_args!("{bad:?} is read as {found:?}"),
        );
        self.ask(AT, Attempt::kernel(Access::Read), &mut 0);
        if let Some(expected) = &mut self.expected[0] {
            expected.error = Some(trap::PF_PRESENT | crate::access::PF_RESERVED);
        }
        self.make("reserved bit");
        self.tables.write_entry(table, index, good);
        self.all(AT + spot.offset(whole), spot, "without the reserved bit");
        self.clear(AT, whole);
    }

    fn last_page(&mut self) {
        let at = 0xffff_f000;
        let spot = self.bench.spots[1];
        let attr = I686Attr::READ_WRITE.with_user(true);
        map_to(&mut self.tables, at, PAGE_SIZE, spot.phys, attr);
        self.all(at, spot, "last page");
        let found = self.told(at + PAGE_SIZE - 1).map(|mapping| mapping.virt);
        self.bench.checks.that(
            found == Some(Gva::new(at)),
            format_args!("the last byte is in {found:?}"),
        );
        self.clear(at, PAGE_SIZE);
    }

    fn clear(&mut self, at: u64, len: u64) {
        let retire = Emptied::Retire;
        must(unmap(&mut self.tables, Gva::new(at), len, retire, |_| ()));
    }

    fn copy_on_write(&mut self) {
        let spot = self.bench.spots[0];
        let attr = I686Attr::READ.with_write(Write::CopyFirst);
        map_to(&mut self.tables, AT, PAGE_SIZE, spot.phys, attr);
        let before = spot.word() as u32;
        let write = Attempt::kernel(Access::Write);
        let page = self.fault(AT, write, "write to copy-on-write");
        let copy = spot.copy_to(self.bench.frames.area(PAGE_SIZE));
        let resolve = modify(&mut self.tables, Gva::new(page), PAGE_SIZE, |leaf| {
            if let Content::Page { phys, attr } = leaf.content()
                && attr.write() == Write::CopyFirst
                && phys == Gpa::new(spot.phys)
            {
                must(leaf.set_page(Gpa::new(copy.phys), attr.with_write(Write::Allowed)));
            }
        });
        must(resolve);
        self.all(AT, copy, "the copy");
        self.word(spot, before, "the original");
        let changed = copy.word() as u32 != before;
        let checks = &mut self.bench.checks;
        checks.that(changed, format_args!("the copy was not written"));
        self.clear(AT, PAGE_SIZE);
    }

    fn zero_on_demand(&mut self) {
        for (size, _) in SIZES {
            let whole = size.bytes();
            let attr = I686Attr::READ_WRITE.with_user(true);
            let promise = Content::ZeroOnDemand { attr };
            must(map(&mut self.tables, Gva::new(AT), whole, promise, size));
            let last = AT + whole - PAGE_SIZE;
            let read = Attempt::kernel(Access::Read);
            let page = self.fault(last, read, "zero on demand");
            let found = self.told(page).map(|mapping| mapping.content);
            self.bench.checks.that(
                found == Some(promise),
                format_args!("zero on demand is {found:?}"),
            );
            let fresh = self.bench.frames.area(whole);
            let resolve = modify(&mut self.tables, Gva::new(AT), whole, |leaf| {
                if let Content::ZeroOnDemand { attr } = leaf.content() {
                    must(leaf.set_page(Gpa::new(fresh), attr));
                }
            });
            must(resolve);
            self.ask(last, read, &mut 0);
            self.make("filled");
            let spot = Spot::at(fresh + whole - PAGE_SIZE);
            self.all(last, spot, "filled");
            self.clear(AT, whole);
        }
    }

    /// Another page in the place of one, protection, splitting and merging.
    fn changes(&mut self) {
        let [one, other] = self.bench.spots;
        let attr = I686Attr::READ_WRITE.with_user(true);
        for (size, _) in SIZES {
            let whole = size.bytes();
            let page = AT + one.offset(whole);
            map_to(&mut self.tables, AT, whole, one.leaf(whole), attr);
            self.all(page, one, "first page");
            let phys = Gpa::new(other.leaf(whole));
            must(modify(&mut self.tables, Gva::new(AT), whole, |leaf| {
                must(leaf.set_page(phys, attr));
            }));
            self.all(page, other, "another page");
            type Change = fn(I686Attr) -> I686Attr;
            let changes: [Change; 4] = [
                |attr| attr.with_write(Write::Denied),
                |attr| attr.with_user(false),
                |attr| attr.with_write(Write::Allowed),
                |attr| attr.with_user(true),
            ];
            for change in changes {
                must(protect(&mut self.tables, Gva::new(AT), whole, change));
                self.all(page, other, "after protect");
            }
            self.clear(AT, whole);
            self.all(page, other, "unmapped");
        }

        let (size, small) = (PageSize::Size4M, PageSize::Size4K);
        let whole = size.bytes();
        let page = AT + one.offset(whole);
        map_to(&mut self.tables, AT, whole, one.leaf(whole), attr);
        let at = Gva::new(page);
        must(split(&mut self.tables, at, small));
        self.all(page, one, "split");
        self.size(page, small);
        let deny = |attr: I686Attr| attr.with_write(Write::Denied);
        must(protect(&mut self.tables, at, PAGE_SIZE, deny));
        self.all(page, one, "read-only part");
        let beside = Spot::at(one.phys + PAGE_SIZE);
        self.all(page + PAGE_SIZE, beside, "beside it");
        must(merge(&mut self.tables, Gva::new(AT), whole, size));
        self.size(page, small);
        let allow = |attr: I686Attr| attr.with_write(Write::Allowed);
        must(protect(&mut self.tables, at, PAGE_SIZE, allow));
        must(merge(&mut self.tables, Gva::new(AT), whole, size));
        self.size(page, size);
        self.all(page, one, "merged");
        self.clear(page, PAGE_SIZE);
        self.all(page, one, "the hole");
        self.all(page + PAGE_SIZE, beside, "behind the hole");
        self.clear(AT, whole);
    }

    fn size(&mut self, page: u64, size: PageSize) {
        let found = self.told(page).map(|mapping| mapping.size);
        let checks = &mut self.bench.checks;
        checks.that(
            found == Some(size),
            format_args!("{page:#x} is in a leaf of {found:?}, not {size:?}"),
        );
    }
}
