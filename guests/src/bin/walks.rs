//! A guest whose tables hold anything, with the CPU as the judge: the same page is accessed by an instruction that the CPU
//! carries out, and by others for which the hypervisor walks the tables. Both must do the same: the access and its
//! marks, or the page fault. Wants the option `testdev`.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use offshoot_guest::trap::{BP, PF, Trap, USER_CODE, USER_DATA};
use offshoot_guest::{StartInfo, println, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::random::Random;
use offshoot_guests::{cpu, space};

offshoot_guest::entry!(main);

const CASES: u64 = 3000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const MARKS: u64 = 3 << 5;
const LEAF: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const AC: u64 = 1 << 18;
const CR0_WP: u64 = 1 << 16;
const CR4_SMAP: u64 = 1 << 21;
const EFER: u32 = 0xc000_0080;
const NXE: u32 = 1 << 11;
/// The place in the root table, and in the one below, that lead to the page.
const TOP: u64 = 300;
const SECOND: u64 = 5;

/// How a byte is accessed. The first of each kind is the CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Load,
    Outs,
    MovsToDevice,
    Store,
    Ins,
    MovsFromDevice,
}
const READS: [How; 3] = [How::Load, How::Outs, How::MovsToDevice];
const WRITES: [How; 3] = [How::Store, How::Ins, How::MovsFromDevice];

/// Vector, error code and CR2 of an exception, and the marks of the entries where there is none.
type Outcome = (Option<(u8, u64, u64)>, [u64; 4]);

struct Tables {
    /// Where the four entries are, the root's first.
    places: [u64; 4],
    /// What they hold where all is well: tables, and a page; and as leaves.
    tables: [u64; 4],
    leaves: [u64; 4],
    /// The page's linear address.
    page: u64,
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let mut checks = Checks::default();
    let tables = Tables::new(info.heap.next_multiple_of(2 << 20));
    let width = match cpu::cpuid(0x8000_0000, 0).eax {
        0x8000_0008.. => cpu::cpuid(0x8000_0008, 0).eax & 0xff,
        _ => 36,
    };
    let no_execute = cpu::cpuid(0x8000_0001, 0).edx >> 20 & 1 != 0;
    let smap = cpu::has_ebx7(20);
    let mut random = Random::new(Random::seed());
    let (mut faults, mut reserved, mut done) = (0, 0, 0);
    for _ in 0..CASES {
        let entries = tables.random(&mut random, width);
        let [no_execute_on, write_protect, keep_out, ac, user] =
            core::array::from_fn(|_| random.one_in(2));
        set_nxe(no_execute && no_execute_on);
        set_cr0(write_protect);
        set_smap(smap && keep_out);
        let flags = 2 | if ac { AC } else { 0 };
        for kind in [READS, WRITES] {
            let [own, hosts @ ..] = kind.map(|how| {
                let device = info.test_device + 8;
                let outcome = tables.access(&entries, how, user, flags, device);
                (how, outcome)
            });
            for (how, outcome) in hosts {
                checks.that(
                    outcome == own.1,
                    format_args!(
                        "{how:?} {outcome:x?}, {:?} {:x?}: {entries:x?}, user {user}, NXE {no_execute_on}, \
                         WP {write_protect}, SMAP {keep_out}, AC {ac}",
                        own.0, own.1
                    ),
                );
            }
            match own.1.0 {
                None => done += 1,
                Some((PF, error, _)) if error & 8 != 0 => reserved += 1,
                Some(_) => faults += 1,
            }
        }
    }
    set_nxe(no_execute);
    set_cr0(true);
    set_smap(false);
    println!("{done} accesses, {faults} page faults, {reserved} for reserved bits");
    let each = CASES / 10;
    checks.that(
        done > each && faults > each && reserved > each,
        format_args!("too few of a kind"),
    );
    checks.finish()
}

impl Tables {
    /// In 2 MiB of free memory at `area`.
    fn new(area: u64) -> Self {
        let page = area + 0x5000;
        // Some of bits 20 to 13 are set in each: none of them would do as a large page.
        let [second, third, fourth] = [area + 0x6000, area + 0xa000, area + 0xc000];
        let root: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) };
        let within = page & ((1 << 30) - 1);
        Self {
            places: [
                root + 8 * TOP,
                second + 8 * SECOND,
                third + 8 * (within >> 21),
                fourth + 8 * (within >> 12 & 511),
            ],
            tables: [second, third, fourth, page],
            leaves: [0, 0, area, page],
            page: 0xffff << 48 | TOP << 39 | SECOND << 30 | within,
        }
    }

    /// Entries with all kinds of bits, none of which leads elsewhere than to the page.
    fn random(&self, random: &mut Random, width: u32) -> [u64; 4] {
        let leaf = match random.below(4) {
            3 => 1,
            2 => 2,
            _ => 3,
        };
        core::array::from_fn(|at| {
            let base = match at == leaf {
                true if at < 3 => self.leaves[at] | LEAF,
                _ => self.tables[at],
            };
            let mut bits = base | PRESENT | WRITABLE | USER;
            // Marks, memory type, global, software's own.
            bits |= random.number() & 0xf78;
            for (bit, often) in [
                (PRESENT, 30),
                (WRITABLE, 8),
                (USER, 8),
                (NO_EXECUTE, 16),
                (1 << (52 + random.below(11)), 4),
                (
                    1 << (u64::from(width) + random.below(u64::from(52 - width).max(1))),
                    20,
                ),
                (
                    1 << (13 + random.below(8)),
                    if at == 2 && leaf == 2 { 6 } else { 0 },
                ),
                (
                    1 << (13 + random.below(17)),
                    if at == 1 && leaf == 1 { 6 } else { 0 },
                ),
                (LEAF, if at < leaf || at == 3 { 30 } else { 0 }),
            ] {
                if often != 0 && random.one_in(often) {
                    bits ^= bit;
                }
            }
            bits
        })
    }

    fn access(&self, entries: &[u64; 4], how: How, user: bool, flags: u64, device: u64) -> Outcome {
        for (&place, &bits) in self.places.iter().zip(entries) {
            // SAFETY: tables of this program, for addresses that nothing else uses.
            unsafe { (place as *mut u64).write_volatile(bits) };
        }
        // SAFETY: likewise.
        unsafe { asm!("invlpg [{}]", in(reg) self.page, options(nostack)) };
        let trap = access(how, self.page + 0x123, user, flags, device);
        let marks = self.places.map(|place| {
            // SAFETY: as above.
            unsafe { (place as *const u64).read_volatile() & MARKS }
        });
        match trap {
            // A CPU may mark entries of an access that it refuses.
            Some(trap) => (Some((trap.vector, trap.error, trap.cr2)), [0; 4]),
            None => (None, marks),
        }
    }
}

macro_rules! at_user {
    ($entry:ident; $($operands:tt)*) => {
        probe!(
            "push {user_data}",
            // The user's view of the kernel's stack, below what is in use. Ports are for user mode too.
            "mov {user_scratch}, 0x8000000000 - 256",
            "add {user_scratch}, rsp",
            "push {user_scratch}",
            "push 0x3002",
            "push {user_code}",
            "push {user_entry}",
            "iretq";
            user_data = const USER_DATA,
            user_code = const USER_CODE,
            user_entry = in(reg) space::user($entry as *const () as u64),
            user_scratch = out(reg) _,
            $($operands)*
        )
    };
}

/// Accesses the byte at `at`; returns the exception.
fn access(how: How, at: u64, user: bool, flags: u64, device: u64) -> Option<Trap> {
    let port = 0x80_u64;
    let value = 0x5a_u64;
    let users_device = space::user(device);
    // SAFETY: the byte is of a page that nothing else uses; exceptions are caught.
    let trap = unsafe {
        match (how, user) {
            (How::Load, false) => probe!("push r8", "popfq", "mov al, [rdi]";
                in("r8") flags, in("rdi") at, out("rax") _),
            (How::Outs, false) => probe!("push r8", "popfq", "outsb";
                in("r8") flags, inout("rsi") at => _, in("rdx") port),
            (How::MovsToDevice, false) => probe!("push r8", "popfq", "movsb";
                in("r8") flags, inout("rsi") at => _, inout("rdi") device => _),
            (How::Store, false) => probe!("push r8", "popfq", "mov [rdi], al";
                in("r8") flags, in("rdi") at, in("rax") value),
            (How::Ins, false) => probe!("push r8", "popfq", "insb";
                in("r8") flags, inout("rdi") at => _, in("rdx") port),
            (How::MovsFromDevice, false) => probe!("push r8", "popfq", "movsb";
                in("r8") flags, inout("rsi") device => _, inout("rdi") at => _),
            (How::Load, true) => at_user!(user_load; in("rdi") at, out("rax") _),
            (How::Outs, true) => at_user!(user_outs; inout("rsi") at => _, in("rdx") port),
            (How::MovsToDevice, true) => {
                at_user!(user_movs; inout("rsi") at => _, inout("rdi") users_device => _)
            }
            (How::Store, true) => at_user!(user_store; in("rdi") at, in("rax") value),
            (How::Ins, true) => at_user!(user_ins; inout("rdi") at => _, in("rdx") port),
            (How::MovsFromDevice, true) => {
                at_user!(user_movs; inout("rsi") users_device => _, inout("rdi") at => _)
            }
        }
    };
    // User code ends with INT3.
    trap.filter(|trap| !(user && trap.is(BP, 0)))
}

#[unsafe(naked)]
extern "C" fn user_load() {
    naked_asm!("mov al, [rdi]", "int3")
}
#[unsafe(naked)]
extern "C" fn user_store() {
    naked_asm!("mov [rdi], al", "int3")
}
#[unsafe(naked)]
extern "C" fn user_outs() {
    naked_asm!("outsb", "int3")
}
#[unsafe(naked)]
extern "C" fn user_ins() {
    naked_asm!("insb", "int3")
}
#[unsafe(naked)]
extern "C" fn user_movs() {
    naked_asm!("movsb", "int3")
}

fn set_nxe(on: bool) {
    let bit = if on { NXE } else { 0 };
    // SAFETY: no table that is in use has the bit that this gives a meaning to.
    unsafe {
        asm!("rdmsr", "and eax, {clear}", "or eax, {bit:e}", "wrmsr", in("ecx") EFER, clear = const !NXE as i32,
            bit = in(reg) bit, out("eax") _, out("edx") _);
    }
}

fn set_cr0(write_protect: bool) {
    let wp = if write_protect { CR0_WP } else { 0 };
    // SAFETY: nothing here relies on writes that fault, but the probes.
    unsafe {
        asm!("mov {0}, cr0", "and {0}, {1}", "or {0}, {2}", "mov cr0, {0}",
            out(reg) _, const !(CR0_WP as i32), in(reg) wp, options(nostack));
    }
}

fn set_smap(on: bool) {
    let bit = if on { CR4_SMAP } else { 0 };
    // SAFETY: nothing that is in use is a page of user mode in the kernel's view; the CPU has the bit where it is set.
    unsafe {
        asm!("mov {0}, cr4", "and {0}, {1}", "or {0}, {2}", "mov cr4, {0}",
            out(reg) _, const !(CR4_SMAP as i32), in(reg) bit, options(nostack));
    }
}
