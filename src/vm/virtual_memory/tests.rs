//! Tests of accesses by guest-virtual address: crossing pages, rights, hostile tables, accessed and dirty.

use super::translation::Paging;
use super::*;

/// 64 KiB of guest memory.
struct Memory(Vec<u8>);
impl GuestMemory for Memory {
    type Error = ();
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), ()> {
        let at = usize::try_from(from.as_u64()).map_err(|_| ())?;
        into.copy_from_slice(self.0.get(at..at.saturating_add(into.len())).ok_or(())?);
        Ok(())
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), ()> {
        let at = usize::try_from(to.as_u64()).map_err(|_| ())?;
        self.0
            .get_mut(at..at.saturating_add(bytes.len()))
            .ok_or(())?
            .copy_from_slice(bytes);
        Ok(())
    }
}

const KERNEL: Privilege = Privilege {
    user: false,
    write_protect: true,
    smap: false,
    smep: false,
};
const USER: Privilege = Privilege {
    user: true,
    write_protect: true,
    smap: false,
    smep: false,
};
const W: u64 = 2;
const U: u64 = 4;

/// Root 1000, PDPT 2000, PD 3000, PT 4000; pages by their entries in the PT.
fn memory(pages: &[(u64, u64)]) -> Memory {
    let mut memory = Memory((0..0x10000u32).map(|i| (i / 0x1000) as u8).collect());
    memory.0[0x1000..0x5000].fill(0);
    let mut entry = |at: u64, bits: u64| memory.write(Gpa::new(at), &bits.to_le_bytes()).unwrap();
    entry(0x1000, 0x2007);
    entry(0x2000, 0x3007);
    entry(0x3000, 0x4007);
    for &(page, bits) in pages {
        entry(0x4000 + page * 8, bits);
    }
    memory
}
const FOUR_LEVEL: Translation = Translation::four_level(Gpa::new(0x1000));
fn at(memory: &mut Memory, privilege: Privilege) -> GuestVirtual<'_, Memory> {
    GuestVirtual::new(memory, &FOUR_LEVEL, privilege)
}
fn fault(address: u64, code: u32) -> Result<(), VirtualFault<()>> {
    Err(VirtualFault::Page {
        address: Gva::new(address),
        code,
    })
}

#[test]
fn a_range_may_cross_pages_that_lie_apart() {
    let mut memory = memory(&[(0, 0x8001), (1, 0x6003), (2, 0x9003)]);
    let mut bytes = [0; 6];
    at(&mut memory, KERNEL)
        .read(Gva::new(0xffd), &mut bytes)
        .unwrap();
    assert_eq!(bytes, [8, 8, 8, 6, 6, 6]);
    at(&mut memory, KERNEL)
        .write(Gva::new(0x1ffe), b"over")
        .unwrap();
    assert_eq!(&memory.0[0x6ffe..0x7000], b"ov");
    assert_eq!(&memory.0[0x9000..0x9002], b"er");
}

#[test]
fn a_write_into_a_hole_changes_nothing() {
    let mut memory = memory(&[(0, 0x8003), (1, 0), (2, 0x9001)]);
    let before = memory.0.clone();
    assert_eq!(
        at(&mut memory, KERNEL).write(Gva::new(0xffe), &[1; 4]),
        fault(0x1000, 2)
    );
    assert_eq!(
        at(&mut memory, KERNEL).write(Gva::new(0x2000), &[1; 4]),
        fault(0x2000, 3)
    );
    assert_eq!(memory.0, before);
}

#[test]
fn permissions_are_the_guests() {
    let mut memory = memory(&[
        (0, 0x8001),
        (1, 0x6001 | U),
        (2, 0x9001 | U | W),
        (3, 0xa001 | W),
    ]);
    let mut read =
        |privilege, page: u64| at(&mut memory, privilege).read(Gva::new(page << 12), &mut [0]);
    assert_eq!([0, 1, 2, 3].map(|page| read(KERNEL, page)), [Ok(()); 4]);
    assert_eq!(
        [0, 1, 2, 3].map(|page| read(USER, page)),
        [fault(0, 5), Ok(()), Ok(()), fault(0x3000, 5)]
    );
    let mut write =
        |privilege, page: u64| at(&mut memory, privilege).write(Gva::new(page << 12), &[0]);
    assert_eq!(
        [0, 1, 2, 3].map(|page| write(KERNEL, page)),
        [fault(0, 3), fault(0x1000, 3), Ok(()), Ok(())]
    );
    assert_eq!(
        [0, 1, 2, 3].map(|page| write(USER, page)),
        [fault(0, 7), fault(0x1000, 7), Ok(()), fault(0x3000, 7)]
    );
    let unprotected = Privilege {
        write_protect: false,
        ..KERNEL
    };
    assert_eq!(
        [0, 1, 2, 3].map(|page| write(unprotected, page)),
        [Ok(()); 4]
    );
    let kept_out = Privilege {
        smap: true,
        ..KERNEL
    };
    assert_eq!(write(kept_out, 2), fault(0x2000, 3));
    assert_eq!(write(kept_out, 3), Ok(()));
    let mut read =
        |privilege, page: u64| at(&mut memory, privilege).read(Gva::new(page << 12), &mut [0]);
    assert_eq!(
        [0, 1, 2, 3].map(|page| read(kept_out, page)),
        [Ok(()), fault(0x1000, 1), fault(0x2000, 1), Ok(())]
    );
}

#[test]
fn hostile_addresses_and_tables() {
    let mut memory = memory(&[
        (0, 0x8003),
        (1, 0xffff_f003),
        (2, 1 << 51 | 3),
        (511, 0x8003),
    ]);
    memory
        .write(Gpa::new(0x1008), &0x1007u64.to_le_bytes())
        .unwrap(); // the root refers to itself
    memory
        .write(Gpa::new(0x1010), &0xdead_f007u64.to_le_bytes())
        .unwrap(); // a table outside memory
    let mut read = |address| at(&mut memory, KERNEL).read(Gva::new(address), &mut [0; 16]);
    assert_eq!(
        read(0x8000_0000_0000),
        Err(VirtualFault::NonCanonical(Gva::new(0x8000_0000_0000)))
    );
    assert_eq!(read(u64::MAX - 3), fault(u64::MAX - 3, 0));
    let beyond = MemoryFault {
        address: Gpa::new(0xffff_f000),
        error: (),
    };
    assert_eq!(read(0x1000), Err(VirtualFault::Memory(beyond)));
    assert_eq!(read(0x2000), fault(0x2000, 9));
    let table = MemoryFault {
        address: Gpa::new(0xdead_f000),
        error: (),
    };
    assert_eq!(read(2 << 39), Err(VirtualFault::Memory(table)));
    assert!(
        read(1 << 39).is_ok(),
        "through the cycle to the PDPT as a page of data"
    );
    assert_eq!(
        read(0x1f_fff8),
        fault(0x20_0000, 0),
        "the page after the last of the table"
    );
}

#[test]
fn a_range_that_wraps_ends_there() {
    let mut memory = memory(&[]);
    let mut off = GuestVirtual::new(&mut memory, &Translation::OFF, KERNEL);
    assert!(off.read(Gva::new(0x8000), &mut [0; 8]).is_ok());
    assert!(matches!(
        off.read(Gva::new(u64::MAX), &mut [0; 8]),
        Err(VirtualFault::Memory(_))
    ));
    let mut narrow = at(&mut memory, KERNEL);
    let translation = Translation {
        paging: Paging::Pae([0; 4]),
        ..FOUR_LEVEL
    };
    narrow.translation = &translation;
    assert_eq!(
        narrow.read(Gva::new(0xffff_fffc), &mut [0; 8]),
        fault(0xffff_fffc, 0)
    );
    let beyond = Gva::new(1 << 32);
    assert_eq!(
        narrow.read(beyond, &mut [0]),
        Err(VirtualFault::NonCanonical(beyond))
    );
}

/// The entries of the tables of [`memory`] on the way to page 1, and what is set in each.
fn marks(memory: &Memory) -> [u64; 4] {
    [0x1000, 0x2000, 0x3000, 0x4008].map(|at| {
        let [bits] = memory.words(Gpa::new(at)).unwrap();
        bits & (A | D)
    })
}
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;

#[test]
fn an_access_marks_what_the_cpu_would_mark() {
    let fresh = || memory(&[(1, 0x6003), (2, 0x9001)]);
    let there = Gva::new(0x1ffe);
    let mut memory = fresh();
    at(&mut memory, KERNEL).read(there, &mut [0; 2]).unwrap();
    assert_eq!(marks(&memory), [A; 4]);
    at(&mut memory, KERNEL).write(there, &[1; 2]).unwrap();
    assert_eq!(marks(&memory), [A, A, A, A | D]);
    let mut memory = fresh();
    at(&mut memory, KERNEL).locate(there).unwrap();
    assert_eq!(marks(&memory), [A, A, A, A | D]);
    // A write that cannot be made to its end, and one that user mode may not make.
    let mut memory = fresh();
    at(&mut memory, KERNEL).write(there, &[1; 4]).unwrap_err();
    at(&mut memory, USER).write(there, &[1; 2]).unwrap_err();
    at(&mut memory, USER).read(there, &mut [0; 2]).unwrap_err();
    assert_eq!(marks(&memory), [0; 4]);
    // Code is looked at, not accessed: the CPU has fetched it.
    let ([word, beyond, _], left) = at(&mut memory, KERNEL).code(Gva::new(0x1ffb)).unwrap();
    assert_eq!((word, beyond, left), (0x0606_0606_0606_0606, 0, 5));
    assert_eq!(marks(&memory), [0; 4]);
}

/// Memory that cannot be marked, or whose tables change at each try.
struct Stubborn {
    memory: Memory,
    refuses: bool,
    tries: u32,
}
impl GuestMemory for Stubborn {
    type Error = ();
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), ()> {
        self.memory.read(from, into)
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), ()> {
        self.memory.write(to, bytes)
    }
    fn exchange_word(&mut self, _: Gpa, _: u64, _: u64) -> Result<bool, ()> {
        self.tries += 1;
        if self.refuses { Err(()) } else { Ok(false) }
    }
}

#[test]
fn tables_that_cannot_be_marked_are_no_endless_work() {
    for refuses in [true, false] {
        let mut stubborn = Stubborn {
            memory: memory(&[(1, 0x6003)]),
            refuses,
            tries: 0,
        };
        let mut guest = GuestVirtual::new(&mut stubborn, &FOUR_LEVEL, KERNEL);
        let found = guest.translate(Gva::new(0x1234), true);
        let root = MemoryFault {
            address: Gpa::new(0x1000),
            error: (),
        };
        if refuses {
            assert_eq!(found, Err(VirtualFault::Memory(root)));
            assert_eq!(stubborn.tries, 1);
        } else {
            assert_eq!(found, Ok(Gpa::new(0x6234)));
            assert_eq!(stubborn.tries, 4);
        }
    }
}
