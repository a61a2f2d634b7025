//! Every combination of permissions in leaves of every size, under tables that pass them on and tables that do not.

use crate::access::{Access, Attempt, PF_RESERVED, check, told};
use crate::tables::{WRITES, must};
use crate::{Bench, has_leaf, invlpg};
use offshoot::addr::{Gpa, Gva, PAGE_SIZE, PageSize};
use offshoot::paging::{
    Amd64Attr, Amd64Entry, Content, Emptied, Entry, MappingOf, PagingError, map, query, translate,
    unmap,
};
use offshoot_guest::trap::{GP, PF, PF_PRESENT};
use offshoot_guest::{println, probe};

/// Where the mappings of a leaf size begin; each size has as many bytes.
const BASE: u64 = 0x2000_0000_0000;
const PART: u64 = 1 << 42;
/// Bits of an entry.
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Attributes of all combinations of write, execute, user, global, and accessed and dirty preset or not; each with
/// another memory type.
fn attributes() -> impl Iterator<Item = Amd64Attr> {
    (0_u8..48).map(|number| {
        let bit = |bit: u8| (number / 3) >> bit & 1 != 0;
        Amd64Attr::READ
            .with_write(WRITES[usize::from(number % 3)])
            .with_execute(bit(0))
            .with_user(bit(1))
            .with_global(bit(2))
            .with_accessed(bit(3))
            .with_dirty(bit(3))
            .with_pat_index(number % 8)
            .with_soft(u16::from(number))
    })
}

fn attr_at(bench: &Bench, page: u64) -> Option<Amd64Attr> {
    match told(&bench.tables, page)?.content {
        Content::Page { attr, .. } => Some(attr),
        _ => None,
    }
}

/// Each leaf allows what its attributes say and no more, and the CPU notes what was used where the walker sees it.
pub fn leaves(bench: &mut Bench) {
    let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    for (size, start) in sizes.into_iter().zip((BASE..).step_by(PART as usize)) {
        let spot = bench.spots[0];
        for (attr, at) in attributes().zip((start..).step_by(size.bytes() as usize)) {
            let phys = Gpa::new(spot.leaf(size.bytes()));
            let content = Content::Page { phys, attr };
            let whole = size.bytes();
            must(map(&mut bench.tables, Gva::new(at), whole, content, size));
            let found = told(&bench.tables, at);
            let mapping = MappingOf::<offshoot::paging::GuestAmd64> {
                virt: Gva::new(at),
                size,
                content,
            };
            bench.checks.that(
                found == Some(mapping),
                format_args!("mapped {mapping:?}, found {found:?}"),
            );
            if has_leaf(size) {
                leaf(bench, attr, at + spot.offset(whole));
            } else {
                refused(bench, at + spot.offset(whole));
            }
        }
        if !has_leaf(size) {
            println!("no leaves of {size:?} on this CPU");
        }
    }
    same_by_range(bench);
}

fn leaf(bench: &mut Bench, attr: Amd64Attr, page: u64) {
    let (mut used, mut written) = (false, false);
    for attempt in Attempt::all() {
        let what = format_args!("{attr:?}");
        let allowed = check(&mut bench.checks, &bench.tables, page, attempt, what);
        used |= allowed;
        written |= allowed && attempt.access == Access::Write;
        let now = attr_at(bench, page).unwrap_or(attr);
        bench.checks.that(
            now.dirty() == (attr.dirty() || written),
            format_args!("{attr:?} after {attempt}: dirty is {}", now.dirty()),
        );
        // The CPU may note a use that it then refuses.
        bench.checks.that(
            now.accessed() || !(attr.accessed() || used),
            format_args!("{attr:?} after {attempt}: not accessed"),
        );
        let rest = now.with_accessed(attr.accessed()).with_dirty(attr.dirty());
        bench.checks.that(
            rest == attr,
            format_args!("{attr:?} became {now:?} by {attempt}"),
        );
    }
}

/// The CPU calls the entry bad.
fn refused(bench: &mut Bench, page: u64) {
    let (_, trap) = Attempt::kernel(Access::Read).make(page, 0);
    let what = format_args!("a leaf that the CPU lacks, at {page:#x}");
    let error = PF_PRESENT | PF_RESERVED;
    bench.checks.trapped(what, trap, PF, error);
}

/// A walk over the whole space returns the same as a query of each address that it names.
fn same_by_range(bench: &mut Bench) {
    let mut leaves = 0;
    for mapping in translate(&bench.tables, Gva::new(0), u64::MAX, 1 << 20) {
        let mapping = must(mapping);
        let asked = query(&bench.tables, mapping.virt);
        bench.checks.that(
            asked == Ok(Some(mapping)),
            format_args!("translate yields {mapping:?}, query {asked:?}"),
        );
        leaves += 1;
    }
    bench.checks.that(
        leaves > 3 * 48,
        format_args!("only {leaves} leaves in the space"),
    );
}

/// What one level withholds, no leaf below it grants.
pub fn upper_levels(bench: &mut Bench) {
    let at = BASE + 4 * PART;
    let spot = bench.spots[0];
    let attr = Amd64Attr::READ_WRITE.with_execute(true).with_user(true);
    let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    for (lowest, size) in (1..).zip(sizes).filter(|(_, size)| has_leaf(*size)) {
        let whole = size.bytes();
        let phys = Gpa::new(spot.leaf(whole));
        let content = Content::Page { phys, attr };
        must(map(&mut bench.tables, Gva::new(at), whole, content, size));
        let page = at + spot.offset(whole);
        for level in lowest + 1..=4 {
            let (table, index) = bench.tables.place(page, level).unwrap_or_default();
            let open = bench.tables.read_entry(table, index);
            let Some(open) = open.filter(|entry| entry.to_bits() & USER != 0) else {
                bench
                    .checks
                    .that(false, format_args!("no table above {page:#x}"));
                continue;
            };
            // Each alone, and all together.
            for (clear, set) in [
                (WRITABLE, 0),
                (USER, 0),
                (0, NO_EXECUTE),
                (WRITABLE | USER, NO_EXECUTE),
            ] {
                let entry = Amd64Entry::from_bits(open.to_bits() & !clear | set);
                bench.tables.write_entry(table, index, entry);
                invlpg(page);
                for attempt in Attempt::all() {
                    let what = format_args!("{size:?} leaf below {entry:?} of level {level}");
                    check(&mut bench.checks, &bench.tables, page, attempt, what);
                }
            }
            bench.tables.write_entry(table, index, open);
            invlpg(page);
        }
        must(unmap(
            &mut bench.tables,
            Gva::new(at),
            whole,
            Emptied::Retire,
            |_| (),
        ));
        invlpg(page);
    }
}

/// Entries that the walker calls bad are so for the CPU; the first and the last pages of both halves can be used.
pub fn edges(bench: &mut Bench) {
    bad_entries(bench);
    let spot = bench.spots[1];
    for at in [
        0x0000_7fff_ffff_f000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_f000,
    ] {
        let attr = Amd64Attr::READ_WRITE.with_execute(true).with_user(true);
        let phys = Gpa::new(spot.phys);
        let content = Content::Page { phys, attr };
        let size = PageSize::Size4K;
        let tables = &mut bench.tables;
        must(map(tables, Gva::new(at), PAGE_SIZE, content, size));
        for attempt in Attempt::all() {
            let what = format_args!("at the edge");
            let allowed = check(&mut bench.checks, &bench.tables, at, attempt, what);
            bench.checks.that(allowed, format_args!("{what}: denied"));
        }
        let last = at + (PAGE_SIZE - 1);
        let mut byte = 0_u64;
        // SAFETY: reads a byte; an exception is caught.
        let trap =
            unsafe { probe!("movzx eax, byte ptr [rcx]"; in("rcx") last, inout("rax") byte) };
        bench
            .checks
            .quiet(format_args!("last byte {last:#x}"), trap);
        let expected = crate::tables::peek(spot.phys + PAGE_SIZE - 8) >> 56;
        bench
            .checks
            .equal(format_args!("last byte {last:#x}"), byte, expected);
        let found = translate(&bench.tables, Gva::new(last), 1, 16).next();
        let virt = found.and_then(Result::ok).map(|mapping| mapping.virt);
        bench.checks.that(
            virt == Some(Gva::new(at)),
            format_args!("{last:#x} is in {virt:?}"),
        );
    }
    for at in [0x0000_8000_0000_0000, 0xffff_7fff_ffff_f000] {
        let found = query(&bench.tables, Gva::new(at));
        bench.checks.that(
            matches!(found, Err(PagingError::OutOfRange { .. })),
            format_args!("not canonical, but {found:?}"),
        );
        for access in [Access::Read, Access::Write] {
            let (_, trap) = Attempt::kernel(access).make(at, 0);
            bench
                .checks
                .trapped(format_args!("{access:?} {at:#x}"), trap, GP, 0);
        }
    }
}

/// Reserved bits: of a large leaf's address, and bit 7 at the top.
fn bad_entries(bench: &mut Bench) {
    let at = BASE + 5 * PART;
    let attr = Amd64Attr::READ_WRITE;
    let phys = Gpa::new(bench.spots[0].leaf(PageSize::Size2M.bytes()));
    let content = Content::Page { phys, attr };
    let size = PageSize::Size2M;
    let tables = &mut bench.tables;
    must(map(tables, Gva::new(at), size.bytes(), content, size));
    for (level, bit) in [(2, 1 << 13), (2, 1 << 20), (4, LARGE)] {
        let place = bench.tables.place(at, level).unwrap_or_default();
        let Some(good) = bench.tables.read_entry(place.0, place.1) else {
            bench
                .checks
                .that(false, format_args!("no entry at level {level}"));
            continue;
        };
        let bad = Amd64Entry::from_bits(good.to_bits() | bit);
        bench.tables.write_entry(place.0, place.1, bad);
        invlpg(at);
        let found = query(&bench.tables, Gva::new(at));
        bench.checks.that(
            matches!(found, Err(PagingError::Bad { level: of, .. }) if of == level),
            format_args!("{bad:?} of level {level} is read as {found:?}"),
        );
        let (_, trap) = Attempt::kernel(Access::Read).make(at, 0);
        let what = format_args!("{bad:?} of level {level}");
        let error = PF_PRESENT | PF_RESERVED;
        bench.checks.trapped(what, trap, PF, error);
        bench.tables.write_entry(place.0, place.1, good);
        invlpg(at);
        let what = format_args!("put right again");
        let read = Attempt::kernel(Access::Read);
        check(&mut bench.checks, &bench.tables, at, read, what);
    }
}
