//! What the hypervisor does for code behind 32-bit and PAE paging: port strings, copies from and to a device, calls. The
//! same page is read and written by the CPU too, through entries with all kinds of bits: both must do the same.

use crate::access::Spot;
use crate::crossing::{Crossing, Fault, Op, Paging, Served, USER_BASE};
use crate::tables::{Tables, must, poke};
use crate::{Bench, cr4, set_cr4};
use core::fmt;
use offshoot::addr::{Gpa, Gva, PAGE_SIZE, PageSize};
use offshoot::paging::{Amd64Attr, Content, Format, GuestPae, I686, I686Attr, TableReadOps, map};
use offshoot_guest::abi::Error;
use offshoot_guest::println;
use offshoot_guests::cpu;
use offshoot_guests::random::Random;

/// Where the page is mapped, and the device.
const AT: u64 = 0x4000_0000;
const DEVICE: u64 = 0x6000_0000;
const GIB: u64 = 1 << 30;
/// Entries that are tried of each kind of paging.
const CASES: usize = 60;
/// What is done with each, by whom.
const HOW: [Option<Served>; 7] = [
    None,
    Some(Served::Outs),
    Some(Served::ToDevice),
    Some(Served::Call),
    None,
    Some(Served::Ins),
    Some(Served::FromDevice),
];
/// The first of [`HOW`] that writes.
const WRITES: usize = 4;
/// Ops for one of them: four to set entries, one that flushes, the access, four that read the entries.
const OPS: usize = 10;
const ACCESS: usize = 5;
const MOST: usize = CASES * 2 * HOW.len() * OPS;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const MARKS: u64 = 3 << 5;
const LEAF: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const CR4_SMAP: u64 = 1 << 21;

/// A kind of paging, and what goes with it.
#[derive(Clone, Copy, Debug)]
struct Kind {
    pae: bool,
    pse: bool,
    no_execute: bool,
    smap: bool,
}

/// The entries of the page: where they are, and what they hold where all is well.
struct Entries {
    pae: bool,
    places: [u64; 2],
    table: u64,
    leaf: u64,
    page: u64,
}

/// What came of an access: an exception, or the marks in both entries.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    fault: Option<Fault>,
    marks: [u64; 2],
}

pub fn check(bench: &mut Bench) {
    if bench.info.test_device == 0 {
        return println!("no test device: not served");
    }
    let crossing = Crossing::new(bench.frames);
    let ops = bench
        .frames
        .area((MOST * size_of::<Op>()).next_power_of_two() as u64);
    // SAFETY: fresh memory of the heap, and zeroes are ops.
    let ops = unsafe { &mut *(ops as *mut [Op; MOST]) };
    let has_smap = cpu::has_ebx7(20);
    let mut random = Random::new(Random::seed());
    let mut all_counts = [0; 3];
    for (pae, pse, no_execute) in [
        (false, false, false),
        (false, true, false),
        (true, false, false),
        (true, true, true),
    ] {
        for smap in [false, true] {
            let kind = Kind {
                pae,
                pse,
                no_execute,
                smap: smap && has_smap,
            };
            let counts = try_kind(bench, &crossing, ops, kind, &mut random);
            for (all, count) in all_counts.iter_mut().zip(counts) {
                *all += count;
            }
        }
    }
    add_by_82(bench, &crossing);
    let [done, faults, reserved] = all_counts;
    println!("{done} accesses served, {faults} page faults, {reserved} for reserved bits");
    let few = done < 500 || faults < 400 || reserved < 100;
    let checks = &mut bench.checks;
    checks.that(!few, format_args!("too few of a kind"));
}

/// 82 is group 1 with a constant of 8 bits as 80 is, on memory and on the device.
fn add_by_82(bench: &mut Bench, crossing: &Crossing) {
    let (root, _) = two_level_tables(bench, true);
    let spot = bench.frames.area(PAGE_SIZE) as u32;
    let device = DEVICE as u32;
    let mut ops = [spot, device].map(|page| {
        [
            Op::write(page + 8, 0x1fe),
            Op::add_five(page + 8),
            Op::read(page + 8),
        ]
    });
    let paging = Paging {
        pae: false,
        pse: true,
        no_execute: true,
        device,
        user_device: device,
    };
    // SAFETY: the tables map memory to itself and for user mode; a page of its own and the device are written.
    unsafe { crossing.run(root, paging, ops.as_flattened_mut()) };
    for (name, [_, add, read]) in ["memory", "the device"].into_iter().zip(ops) {
        let what = format_args!("82 /0 on {name}: {:?}, {:#x}", add.fault(), read.result());
        let right = add.fault().is_none() && read.result() == 0x103;
        bench.checks.that(right, what);
    }
}

fn try_kind(
    bench: &mut Bench,
    crossing: &Crossing,
    ops: &mut [Op; MOST],
    kind: Kind,
    random: &mut Random,
) -> [u64; 3] {
    let spot = Spot::at(bench.frames.area(4 << 20) + 0x12_3000);
    let (root, first) = if kind.pae {
        pae_tables(bench, spot)
    } else {
        two_level_tables(bench, kind.pse)
    };
    let entries = Entries::new(bench, kind, spot, first);
    let cases: [[u64; 2]; CASES] = core::array::from_fn(|_| entries.random(kind, random));
    let at = (AT | spot.phys & ((4 << 20) - 1)) as u32;
    let mut rest = ops.as_chunks_mut::<OPS>().0.iter_mut();
    for case in cases {
        for user in [false, true] {
            for (number, how) in HOW.iter().enumerate() {
                let Some(ops) = rest.next() else {
                    return [0; 3];
                };
                let access = match how {
                    Some(served) => Op::served(*served, at + 8, user),
                    None => Op::plain(at + 8, number == WRITES, user),
                };
                entries.ask(ops, case, access);
            }
        }
    }
    let cr4_before = cr4();
    set_cr4(cr4_before & !CR4_SMAP | if kind.smap { CR4_SMAP } else { 0 });
    let paging = Paging {
        pae: kind.pae,
        pse: kind.pse,
        no_execute: kind.no_execute,
        device: DEVICE as u32,
        user_device: (DEVICE + PAGE_SIZE) as u32,
    };
    // SAFETY: the tables map memory to itself and for user mode; what is written are the entries and the page.
    unsafe { crossing.run(root, paging, ops) };
    set_cr4(cr4_before);
    let mut counts = [0; 3];
    let mut done = ops.as_chunks::<OPS>().0.iter();
    for case in cases {
        for user in [false, true] {
            let mut own: Option<Outcome> = None;
            for (number, how) in HOW.iter().enumerate() {
                let Some(ops) = done.next() else { break };
                let outcome = entries.outcome(ops);
                match (how, own) {
                    (None, _) => {
                        let faults = outcome.fault.map_or(0, |fault| 1 + (fault.error >> 3 & 1));
                        counts[faults as usize] += 1;
                        own = Some(outcome);
                    }
                    (Some(Served::Call), Some(_)) if user => {}
                    (Some(Served::Call), Some(own)) => {
                        let answer = ops[ACCESS].result() as i32;
                        let due = match own.fault {
                            None => Error::Invalid,
                            Some(_) => Error::BadAddress,
                        };
                        let right =
                            answer == due as i32 && (due == Error::BadAddress || outcome == own);
                        let what = format_args!("{kind:?} {case:x?}: call {answer}, {own}");
                        bench.checks.that(right, what);
                    }
                    (Some(served), Some(own)) => {
                        let what = format_args!(
                            "{kind:?} {case:x?}, {served:?} user {user}: {outcome}, CPU {own}, number {number}"
                        );
                        bench.checks.that(outcome == own, what);
                    }
                    (Some(_), None) => {}
                }
            }
        }
    }
    counts
}

impl Entries {
    /// The first is at `first`.
    fn new(bench: &Bench, kind: Kind, spot: Spot, first: u64) -> Self {
        let size: u64 = if kind.pae { 2 << 20 } else { 4 << 20 };
        // Bit 21, or some of bits 20 to 13, are set in the table's address: it would not do as a large page.
        let area = bench.frames.area(4 << 20);
        let table = area + 0x20_a000;
        for at in (0..PAGE_SIZE).step_by(8) {
            poke(table + at, 0);
        }
        let index = if kind.pae {
            8 * (spot.phys >> 12 & 511)
        } else {
            4 * (spot.phys >> 12 & 1023)
        };
        Self {
            pae: kind.pae,
            places: [first, table + index],
            table,
            leaf: spot.phys & !(size - 1),
            page: spot.phys,
        }
    }

    /// Entries of all kinds, none of which leads elsewhere than to the page.
    fn random(&self, kind: Kind, random: &mut Random) -> [u64; 2] {
        let large = (kind.pae || kind.pse) && random.one_in(3);
        let mut entries = [if large { self.leaf | LEAF } else { self.table }, self.page];
        for (at, bits) in entries.iter_mut().enumerate() {
            *bits |= PRESENT | WRITABLE | USER | random.number() & 0xf78;
            let leafless = at == 0 && !large;
            let pae = |often: u64| if kind.pae { often } else { 0 };
            for (bit, often) in [
                (PRESENT, 30),
                (WRITABLE, 6),
                (USER, 6),
                (NO_EXECUTE, pae(12)),
                (1 << (52 + random.below(11)), pae(16)),
                (
                    1 << (13 + random.below(8)),
                    if at == 0 && large { pae(6) } else { 0 },
                ),
                (1 << 21, if at == 0 && large && !kind.pae { 6 } else { 0 }),
                (LEAF, if leafless { 20 } else { 0 }),
            ] {
                if often != 0 && random.one_in(often) {
                    *bits ^= bit;
                }
            }
        }
        entries
    }

    /// Sets both entries, makes the access, reads them again.
    fn ask(&self, ops: &mut [Op; OPS], case: [u64; 2], access: Op) {
        // Without PAE an entry has no upper half: the lower one is done twice.
        let upper = if self.pae { 4 } else { 0 };
        let [first, second] = self.places.map(|place| place as u32);
        let high = |bits: u64| (bits >> (8 * upper)) as u32;
        *ops = [
            Op::write(first + upper, high(case[0])),
            Op::write(first, case[0] as u32),
            Op::write(second + upper, high(case[1])),
            Op::write(second, case[1] as u32),
            Op::flush(),
            access,
            Op::read(first),
            Op::read(first + upper),
            Op::read(second),
            Op::read(second + upper),
        ];
    }

    fn outcome(&self, ops: &[Op; OPS]) -> Outcome {
        let fault = ops[ACCESS].fault();
        let marks = match fault {
            // A CPU may mark entries of an access that it refuses.
            Some(_) => [0; 2],
            None => [6, 8].map(|at: usize| u64::from(ops[at].result()) & MARKS),
        };
        Outcome { fault, marks }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.fault {
            Some(fault) => fault.fmt(f),
            None => write!(f, "done, marks {:x?}", self.marks),
        }
    }
}

/// Two-level tables in which the page has no entries yet: their root, and where its first entry is to be.
fn two_level_tables(bench: &Bench, pse: bool) -> (u64, u64) {
    let mut tables: Tables<I686> = Tables::new(bench.frames);
    let size = if pse {
        PageSize::Size4M
    } else {
        PageSize::Size4K
    };
    let user = I686Attr::READ_WRITE.with_user(true);
    let (memory, device) = (bench.info.memory, bench.info.test_device);
    for (at, len, phys, attr) in [
        (0, memory, 0, I686Attr::READ_WRITE),
        (u64::from(USER_BASE), memory, 0, user),
        (DEVICE, PAGE_SIZE, device, I686Attr::READ_WRITE),
        (DEVICE + PAGE_SIZE, PAGE_SIZE, device, user),
    ] {
        map_to(&mut tables, at, len, phys, attr, size);
    }
    let root = tables.root().as_u64();
    (root, root + 4 * (AT >> 22))
}

/// The same with PAE paging: the top table, which has one entry for each GiB.
fn pae_tables(bench: &Bench, spot: Spot) -> (u64, u64) {
    let own = Amd64Attr::READ_WRITE.with_execute(true);
    let user = own.with_user(true);
    let (memory, device) = (bench.info.memory, bench.info.test_device);
    let top = bench.frames.area(PAGE_SIZE);
    for at in (0..PAGE_SIZE).step_by(8) {
        poke(top + at, 0);
    }
    let mut roots = [0; 3];
    for (gib, root) in (0..).zip(&mut roots) {
        let mut tables: Tables<GuestPae> = Tables::new(bench.frames);
        for (at, len, phys, attr) in [
            (0, memory, 0, own),
            (u64::from(USER_BASE), memory, 0, user),
            (DEVICE, PAGE_SIZE, device, own),
            (DEVICE + PAGE_SIZE, PAGE_SIZE, device, user),
        ] {
            if at / GIB == gib {
                map_to(&mut tables, at % GIB, len, phys, attr, PageSize::Size2M);
            }
        }
        *root = tables.root().as_u64();
        poke(top + 8 * gib, *root | PRESENT);
    }
    (top, roots[1] + 8 * (spot.phys >> 21 & 1))
}

fn map_to<F: Format<Virt = Gva, Phys = Gpa>>(
    tables: &mut Tables<F>,
    at: u64,
    len: u64,
    phys: u64,
    attr: F::Attr,
    size: PageSize,
) {
    let phys = Gpa::new(phys);
    must(map(
        tables,
        Gva::new(at),
        len,
        Content::Page { phys, attr },
        size,
    ));
}
