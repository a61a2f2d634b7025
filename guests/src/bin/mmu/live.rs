//! Changes to tables that the CPU is using: each is seen as soon as what is cached of the old entries is dropped.

use crate::access::{Access, Attempt, PF_RESERVED, Spot, check, told};
use crate::tables::{map_to, must};
use crate::{Bench, CR4_PGE, cr4, has_leaf, invlpg, load_cr3, set_cr4};
use offshoot::addr::{Gpa, Gva, PAGE_SIZE, PageSize};
use offshoot::paging::{
    Amd64Attr, Content, Emptied, TableReadOps, Write, map, merge, modify, protect, split, unmap,
};
use offshoot_guest::println;
use offshoot_guest::trap::{PF, PF_PRESENT, PF_WRITE};

const AT: u64 = 0xffff_a000_0000_0000;
const LARGE: u64 = PageSize::Size2M.bytes();
const READ: Attempt = Attempt::kernel(Access::Read);
const WRITE: Attempt = Attempt::kernel(Access::Write);

pub fn changes(bench: &mut Bench) {
    let tables = bench.frames.used();
    copy_on_write(bench);
    zero_on_demand(bench);
    remapping(bench);
    protection(bench);
    global(bench);
    splitting(bench, PageSize::Size2M);
    if has_leaf(PageSize::Size1G) {
        splitting(bench, PageSize::Size1G);
    }
    // Whatever was mapped is gone again, with its tables.
    let left = bench.frames.used();
    bench.checks.equal(format_args!("tables"), left, tables);
}

impl Bench<'_> {
    /// Makes an attempt and checks that it does what the walker says, and that it is allowed or not.
    fn attempt(&mut self, page: u64, attempt: Attempt, allowed: bool, what: &str) {
        let got = check(
            &mut self.checks,
            &self.tables,
            page,
            attempt,
            format_args!("{what}"),
        );
        self.checks.that(
            got == allowed,
            format_args!("{what}: {attempt} at {page:#x}: allowed is {got}"),
        );
    }

    /// All attempts must do what the walker says.
    fn attempts(&mut self, page: u64, what: &str) {
        for attempt in Attempt::all() {
            check(
                &mut self.checks,
                &self.tables,
                page,
                attempt,
                format_args!("{what}"),
            );
        }
    }

    /// Unmaps, and gives the tables back.
    fn clear(&mut self, at: u64, len: u64) {
        let retire = Emptied::Retire;
        must(unmap(&mut self.tables, Gva::new(at), len, retire, |_| ()));
        // Before a table that was given back is used for something else.
        flush_all();
    }
}

/// Drops everything that is cached, global pages too.
fn flush_all() {
    let value = cr4();
    set_cr4(value ^ CR4_PGE);
    set_cr4(value);
}

/// A page in two places, to be copied when written in either: the handler of the fault copies it.
fn copy_on_write(bench: &mut Bench) {
    let spot = bench.spots[0];
    let attr = Amd64Attr::READ.with_write(Write::CopyFirst);
    let (one, other) = (AT, AT + LARGE);
    for at in [one, other] {
        map_to(&mut bench.tables, at, PAGE_SIZE, spot.phys, attr);
        bench.attempt(at, READ, true, "copy-on-write");
    }
    let before = spot.word();
    let (_, fault) = WRITE.make(one, 0x1234);
    let error = PF_PRESENT | PF_WRITE;
    let what = format_args!("write to copy-on-write");
    bench.checks.trapped(what, fault, PF, error);
    let page = fault.map_or(one, |trap| trap.cr2) & !(PAGE_SIZE - 1);
    let copy = spot.copy_to(bench.frames.area(PAGE_SIZE));
    let resolve = modify(&mut bench.tables, Gva::new(page), PAGE_SIZE, |leaf| {
        if let Content::Page { phys, attr } = leaf.content()
            && attr.write() == Write::CopyFirst
            && phys == Gpa::new(spot.phys)
        {
            must(leaf.set_page(Gpa::new(copy.phys), attr.with_write(Write::Allowed)));
        }
    });
    must(resolve);
    invlpg(page);
    let (_, again) = WRITE.make(one, 0x1234);
    bench.checks.quiet(format_args!("write to the copy"), again);
    bench
        .checks
        .equal(format_args!("the copy"), copy.word(), 0x1234);
    let original = spot.word();
    bench
        .checks
        .equal(format_args!("the original"), original, before);
    bench.attempts(one, "the copy");
    bench.attempts(other, "the original");
    bench.attempt(other, WRITE, false, "the original");
    for at in [one, other] {
        bench.clear(at, PAGE_SIZE);
    }
}

/// Pages that are not there until they are touched, in leaves of every size that free memory can fill.
fn zero_on_demand(bench: &mut Bench) {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let attr = Amd64Attr::READ_WRITE.with_user(true);
        let promise = Content::ZeroOnDemand { attr };
        let whole = size.bytes();
        must(map(&mut bench.tables, Gva::new(AT), whole, promise, size));
        let page = AT + whole - PAGE_SIZE;
        bench.attempts(page, "zero on demand");
        let (_, fault) = WRITE.make(page, 7);
        let what = format_args!("zero on demand");
        bench.checks.trapped(what, fault, PF, PF_WRITE);
        let found = told(&bench.tables, page).map(|mapping| mapping.content);
        bench.checks.that(
            found == Some(promise),
            format_args!("zero on demand is {found:?}"),
        );
        let fresh = bench.frames.area(whole);
        let resolve = modify(&mut bench.tables, Gva::new(AT), whole, |leaf| {
            if let Content::ZeroOnDemand { attr } = leaf.content() {
                must(leaf.set_page(Gpa::new(fresh), attr));
            }
        });
        must(resolve);
        // An entry that was not present is not cached: no INVLPG.
        let (word, trap) = READ.make(page, 7);
        bench.checks.quiet(format_args!("filled"), trap);
        bench.checks.equal(format_args!("filled"), word, 0);
        bench.attempt(page, WRITE, true, "filled");
        bench.attempts(page, "filled");
        bench.clear(AT, whole);
        bench.attempts(page, "unmapped");
    }
}

/// Another page in the place of one, by INVLPG and by a load of CR3.
fn remapping(bench: &mut Bench) {
    let attr = Amd64Attr::READ_WRITE.with_execute(true).with_user(true);
    let sizes = [PageSize::Size4K, PageSize::Size2M];
    let reload = [false, true];
    for (size, reload) in sizes.into_iter().flat_map(|s| reload.map(|r| (s, r))) {
        let whole = size.bytes();
        let [one, other] = bench.spots;
        let page = AT + one.offset(whole);
        map_to(&mut bench.tables, AT, whole, one.leaf(whole), attr);
        bench.attempt(page, WRITE, true, "first page");
        for spot in [other, one, other] {
            let phys = Gpa::new(spot.leaf(whole));
            let mut leaves = 0;
            must(modify(&mut bench.tables, Gva::new(AT), whole, |leaf| {
                must(leaf.set_page(phys, attr));
                leaves += 1;
            }));
            bench.checks.equal(format_args!("leaves"), leaves, 1);
            if reload {
                load_cr3(bench.tables.root().as_u64());
            } else {
                invlpg(page);
            }
            let (word, trap) = READ.make(page, 0);
            bench.checks.quiet(format_args!("another page"), trap);
            let expected = spot.word();
            bench
                .checks
                .equal(format_args!("another page"), word, expected);
            bench.attempts(page, "another page");
        }
        bench.clear(AT, whole);
        bench.attempts(page, "unmapped");
    }
}

/// Rights taken from a few of many pages and given back.
fn protection(bench: &mut Bench) {
    let pages = 16;
    let area = bench.frames.area(pages * PAGE_SIZE);
    for page in 0..pages {
        Spot::at(area + page * PAGE_SIZE);
    }
    let attr = Amd64Attr::READ_WRITE.with_execute(true).with_user(true);
    map_to(&mut bench.tables, AT, pages * PAGE_SIZE, area, attr);
    let all = |bench: &mut Bench, what| {
        for page in 0..pages {
            bench.attempts(AT + page * PAGE_SIZE, what);
        }
    };
    all(bench, "before protect");
    type Change = fn(Amd64Attr) -> Amd64Attr;
    let changes: [Change; 6] = [
        |attr| attr.with_write(Write::Denied),
        |attr| attr.with_execute(false),
        |attr| attr.with_user(false),
        |attr| attr.with_write(Write::Allowed),
        |attr| attr.with_execute(true),
        |attr| attr.with_user(true),
    ];
    for (first, change) in (2_u64..).zip(changes) {
        let at = AT + first * PAGE_SIZE;
        must(protect(
            &mut bench.tables,
            Gva::new(at),
            5 * PAGE_SIZE,
            change,
        ));
        for page in first..first + 5 {
            invlpg(AT + page * PAGE_SIZE);
        }
        all(bench, "after protect");
    }
    let middle = AT + 4 * PAGE_SIZE;
    bench.clear(middle, PAGE_SIZE);
    all(bench, "with a hole");
    bench.attempt(middle, READ, false, "the hole");
    bench.clear(AT, pages * PAGE_SIZE);
}

/// A global page survives a load of CR3 at most; INVLPG and CR4.PGE drop it.
fn global(bench: &mut Bench) {
    let attr = Amd64Attr::READ_WRITE.with_global(true);
    let [one, other] = bench.spots;
    map_to(&mut bench.tables, AT, PAGE_SIZE, one.phys, attr);
    bench.attempt(AT, WRITE, true, "global");
    let mut survived = 0;
    for (spot, flush) in [(other, true), (one, false)] {
        let old = READ.make(AT, 0).0;
        let phys = Gpa::new(spot.phys);
        must(modify(&mut bench.tables, Gva::new(AT), PAGE_SIZE, |leaf| {
            must(leaf.set_page(phys, attr));
        }));
        load_cr3(bench.tables.root().as_u64());
        let (word, _) = READ.make(AT, 0);
        bench.checks.that(
            word == old || word == spot.word(),
            format_args!("global page holds {word:#x}, which neither page does"),
        );
        survived += u64::from(word == old);
        if flush {
            flush_all();
        } else {
            invlpg(AT);
        }
        let (word, _) = READ.make(AT, 0);
        let expected = spot.word();
        bench
            .checks
            .equal(format_args!("global, dropped"), word, expected);
        bench.attempts(AT, "global");
    }
    // It may, but need not.
    println!("a global page outlived {survived} of 2 loads of CR3");
    bench.clear(AT, PAGE_SIZE);
}

/// A large leaf becomes small ones and large again; used and dirty stay so.
fn splitting(bench: &mut Bench, size: PageSize) {
    let whole = size.bytes();
    let spot = bench.spots[0];
    let page = AT + spot.offset(whole);
    let attr = Amd64Attr::READ_WRITE
        .with_user(true)
        .with_accessed(false)
        .with_dirty(false);
    let content = Content::Page {
        phys: Gpa::new(spot.leaf(whole)),
        attr,
    };
    must(map(&mut bench.tables, Gva::new(AT), whole, content, size));
    let status = |bench: &mut Bench, at, size, used: bool, what| {
        let found = told(&bench.tables, at);
        let right = found.is_some_and(|mapping| {
            mapping.size == size
                && matches!(mapping.content, Content::Page { attr, .. }
                    if attr.accessed() == used && attr.dirty() == used)
        });
        bench.checks.that(right, format_args!("{what}: {found:?}"));
    };
    status(bench, page, size, false, "fresh");
    bench.attempt(page, WRITE, true, "before the split");
    status(bench, page, size, true, "written");

    let small = PageSize::Size4K;
    must(split(&mut bench.tables, Gva::new(page), small));
    flush_all();
    status(bench, page, small, true, "split");
    for at in [page - PAGE_SIZE, page, page + PAGE_SIZE] {
        bench.attempts(at, "split");
    }
    // One page of it becomes read-only: then it is no large page any more.
    let page_range = (Gva::new(page), PAGE_SIZE);
    let deny = |attr: Amd64Attr| attr.with_write(Write::Denied);
    must(protect(&mut bench.tables, page_range.0, page_range.1, deny));
    invlpg(page);
    bench.attempt(page, WRITE, false, "read-only part");
    bench.attempt(page - PAGE_SIZE, WRITE, true, "beside it");
    must(merge(&mut bench.tables, Gva::new(AT), whole, size));
    flush_all();
    status(bench, page, small, true, "not merged");

    let allow = |attr: Amd64Attr| attr.with_write(Write::Allowed);
    must(protect(
        &mut bench.tables,
        page_range.0,
        page_range.1,
        allow,
    ));
    must(merge(&mut bench.tables, Gva::new(AT), whole, size));
    flush_all();
    status(bench, page, size, true, "merged");
    bench.attempts(page, "merged");

    // A hole in a large leaf: the rest stays.
    bench.clear(page, PAGE_SIZE);
    bench.attempt(page, READ, false, "the hole");
    bench.attempt(page - PAGE_SIZE, WRITE, true, "before the hole");
    bench.attempt(page + PAGE_SIZE, WRITE, true, "behind the hole");
    bench.clear(AT, whole);
    let (_, trap) = READ.make(page, 0);
    bench.checks.that(
        trap.is_some_and(|trap| trap.vector == PF && trap.error & PF_RESERVED == 0),
        format_args!("unmapped: {trap:?}"),
    );
}
