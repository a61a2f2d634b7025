use std::cell::Cell;
use std::collections::BTreeMap;

use super::super::testing::{ElfFile, Load, R, RW, RWX, RX};
use super::super::{LoadError, MappedData};
use super::*;
use crate::addr::PAGE_SIZE;

/// Guest memory that fails at the given access.
struct Buffer {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
    accesses: Cell<u64>,
    fail_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Outside,
    NoFrame,
}

impl Buffer {
    fn new(len: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            len,
            accesses: Cell::new(0),
            fail_at: u64::MAX,
        }
    }
    fn count(&self, at: Gpa, bytes: usize) -> Result<(), Failed> {
        self.accesses.set(self.accesses.get() + 1);
        if self.accesses.get() > self.fail_at {
            return Err(Failed::NoFrame);
        }
        if at.as_u64() + bytes as u64 > self.len {
            Err(Failed::Outside)
        } else {
            Ok(())
        }
    }
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(Gpa::new(at), &mut bytes).unwrap();
        bytes
    }
    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }
}

impl GuestMemory for Buffer {
    type Error = Failed;
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Failed> {
        self.count(from, into.len())?;
        for (at, byte) in (from.as_u64()..).zip(into) {
            let page = self.pages.get(&(at / PAGE_SIZE));
            *byte = page.map_or(0, |page| page[(at % PAGE_SIZE) as usize]);
        }
        Ok(())
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), Failed> {
        self.count(to, bytes.len())?;
        for (at, byte) in (to.as_u64()..).zip(bytes) {
            let page = self
                .pages
                .entry(at / PAGE_SIZE)
                .or_insert_with(|| vec![0; 4096]);
            page[(at % PAGE_SIZE) as usize] = *byte;
        }
        Ok(())
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const CODE: [u8; 5] = [0x90, 0x90, 0xf4, 0xeb, 0xfd];

fn image() -> Vec<u8> {
    ElfFile::new(0x200002)
        .load(Load::new(0x200000, RX).file(&CODE))
        .load(
            Load::new(0x201ffc, R)
                .file(b"constants across pages")
                .memory(0x30),
        )
        .load(Load::new(0x203000, RW).file(b"data").memory(0x5000))
        .load(Load::new(0x210000, RWX).memory(0x1000))
        .load(Load::new(0x220000, 0).memory(0x1000))
        .bytes()
}

fn loaded(memory: u64, gib: bool) -> (Plan, Buffer, Start) {
    let file = image();
    let image = Image::parse(&file).unwrap();
    let plan = Plan::new(&image, memory, None, gib).unwrap();
    let mut buffer = Buffer::new(memory);
    let start = load(&image, &plan, &mut buffer).unwrap();
    (plan, buffer, start)
}

/// The leaf for `at` as the CPU finds it: (translation, writable, executable). Written here from the manual alone.
fn walk(memory: &Buffer, root: u64, at: u64) -> Option<(u64, bool, bool)> {
    let (mut table, mut write, mut execute) = (root, true, true);
    for (level, shift) in [(4, 39), (3, 30), (2, 21), (1, 12)] {
        let entry = memory.word(table + (at >> shift & 511) * 8);
        if entry & 1 == 0 {
            assert_eq!(entry, 0);
            return None;
        }
        assert_ne!(entry & 1 << 5, 0, "accessed is not set");
        write &= entry & 2 != 0;
        execute &= entry >> 63 == 0;
        let address = entry & 0xf_ffff_ffff_f000;
        if level == 1 || entry & 1 << 7 != 0 {
            assert_ne!(entry & 1 << 6, 0, "dirty is not set");
            let within = (1u64 << shift) - 1;
            assert_eq!(address & within, 0);
            return Some((address | at & within, write, execute));
        }
        table = address;
    }
    unreachable!()
}

#[test]
fn every_page_has_its_own_permissions_and_no_other_is_mapped() {
    let (plan, memory, start) = loaded(64 * MIB, false);
    for page in 0..64 * MIB / PAGE_SIZE {
        let at = page * PAGE_SIZE + 0x123;
        let area = plan.areas().iter().find(|r| r.range.contains(Gpa::new(at)));
        let expected = area.filter(|r| r.read).map(|r| (at, r.write, r.execute));
        assert_eq!(walk(&memory, start.cr3.as_u64(), at), expected, "{at:#x}");
    }
    let at = |at| walk(&memory, start.cr3.as_u64(), at);
    assert_eq!(at(0), None);
    assert_eq!(at(64 * MIB), None);
    assert_eq!(at(0x200000), Some((0x200000, false, true)));
    assert_eq!(at(0x202000), Some((0x202000, false, false)));
    assert_eq!(at(0x210000), Some((0x210000, true, true)));
    assert_eq!(at(0x220000), None);
    assert_eq!(at(plan.stack.start().as_u64() - 1), None);
    assert_eq!(
        at(start.rdi.as_u64()),
        Some((start.rdi.as_u64(), false, false))
    );
}

#[test]
fn the_guest_starts_as_after_a_call() {
    let (plan, memory, start) = loaded(64 * MIB, false);
    assert_eq!(start.rip, Gva::new(0x200002));
    assert_eq!(start.rsp.as_u64() % 16, 8);
    assert_eq!(
        start.rsp.as_u64() + 8,
        plan.stack.start().as_u64() + plan.stack.len()
    );
    assert_eq!(memory.word(start.rsp.as_u64()), 0);
    assert_eq!(memory.bytes(0x200000, 6), [&CODE[..], &[0]].concat());
    assert_eq!(memory.bytes(0x201ffc, 22), b"constants across pages");
    assert_eq!(memory.bytes(0x203000, 8), b"data\0\0\0\0");

    let at = start.rdi.as_u64();
    let field = |offset: usize| memory.word(at + offset as u64);
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, magic)),
        StartInfo::MAGIC
    );
    let size_and_version = field(std::mem::offset_of!(StartInfo, version));
    assert_eq!(size_and_version, 152 << 32 | u64::from(VERSION));
    assert_eq!(std::mem::offset_of!(StartInfo, size), 12);
    assert_eq!(field(std::mem::offset_of!(StartInfo, memory)), 64 * MIB);
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, heap)),
        plan.heap.start().as_u64()
    );
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, heap_len)),
        plan.heap.len()
    );
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, stack)),
        plan.stack.start().as_u64()
    );
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, stack_len)),
        plan.stack.len()
    );
    assert_eq!(
        field(std::mem::offset_of!(StartInfo, root)),
        start.cr3.as_u64()
    );
    assert_eq!(field(std::mem::offset_of!(StartInfo, data)), 0);
    assert_eq!(field(std::mem::offset_of!(StartInfo, data_len)), 0);
    assert_eq!(field(std::mem::offset_of!(StartInfo, test_device)), 0);
    assert_eq!(field(std::mem::offset_of!(StartInfo, passthrough)), 0);
}

#[test]
fn devices_are_told_in_their_order() {
    let devices = [(0xfed0_0000, 0x1000), (0xfec0_0000, 0x2000)];
    let image = image();
    let image = Image::parse(&image).unwrap();
    let range = |(start, len)| AddrRange::new(crate::addr::Hpa::new(start), len).unwrap();
    let plan = Plan::new(&image, 64 * MIB, None, false).unwrap();
    let plan = plan.with_devices(devices.map(range));
    let mut memory = Buffer::new(64 * MIB);
    load(&image, &plan, &mut memory).unwrap();
    let at = plan.start_info.as_u64() + std::mem::offset_of!(StartInfo, passthrough) as u64;
    let told: Vec<_> = (0..8).map(|word| memory.word(at + 8 * word)).collect();
    assert_eq!(told, [0xfed0_0000, 0x1000, 0xfec0_0000, 0x2000, 0, 0, 0, 0]);
}

#[test]
fn data_is_mapped_without_being_touched() {
    let file = image();
    let image = Image::parse(&file).unwrap();
    for write in [false, true] {
        let len = 2 * MIB + 3 * PAGE_SIZE + 17;
        let data = MappedData { len, write };
        let plan = Plan::new(&image, 64 * MIB, Some(data), false).unwrap();
        // Not even a byte behind the guest's own memory may be accessed.
        let mut memory = Buffer::new(64 * MIB);
        let start = load(&image, &plan, &mut memory).unwrap();
        let at = |at| walk(&memory, start.cr3.as_u64(), at);
        let end = 66 * MIB + 4 * PAGE_SIZE;
        for place in [64 * MIB, 66 * MIB, end - 1] {
            assert_eq!(at(place), Some((place, write, false)));
        }
        assert_eq!(at(end), None);
        let info = start.rdi.as_u64();
        let field = |offset: usize| memory.word(info + offset as u64);
        assert_eq!(field(std::mem::offset_of!(StartInfo, data)), 64 * MIB);
        assert_eq!(field(std::mem::offset_of!(StartInfo, data_len)), len);
    }
}

#[test]
fn a_sparse_guest_costs_few_pages_of_host_memory() {
    for (memory, gib, tables) in [(GIB, false, 5), (64 * GIB, true, 6), (64 * GIB, false, 68)] {
        let (plan, buffer, start) = loaded(memory, gib);
        assert_eq!(plan.tables.len() / PAGE_SIZE, tables);
        // The tables, the pages of segments with bytes in the file, the start information.
        assert_eq!(buffer.pages.len() as u64, tables + 4 + 1);
        let middle = memory / 2 + 5;
        assert_eq!(
            walk(&buffer, start.cr3.as_u64(), middle),
            Some((middle, true, false))
        );
        assert!(
            buffer.accesses.get() < 600 * tables,
            "{}",
            buffer.accesses.get()
        );
    }
}

#[test]
fn memory_that_fails_at_any_access_is_named() {
    let file = image();
    let image = Image::parse(&file).unwrap();
    let plan = Plan::new(&image, 8 * MIB, None, false).unwrap();
    let mut fail_at = 0;
    let needed = loop {
        let mut buffer = Buffer {
            fail_at,
            ..Buffer::new(8 * MIB)
        };
        match load(&image, &plan, &mut buffer) {
            Ok(_) => break fail_at,
            Err(WriteError::Memory(fault)) => assert_eq!(fault.error, Failed::NoFrame),
            Err(other) => panic!("{other:?}"),
        }
        fail_at += 1;
    };
    assert!(needed > 10);
    let short = load(&image, &plan, &mut Buffer::new(4 * MIB));
    let Err(WriteError::Memory(MemoryFault {
        error: Failed::Outside,
        address,
    })) = short
    else {
        panic!("{short:?}")
    };
    assert!(plan.tables.contains(address));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(64)))]
    #[test]
    fn the_planned_tables_are_exactly_enough(
        segments in proptest::collection::vec((1u64..0x4000, 1u64..0x90_0000, 0u32..8), 1..6),
        pages in 0x100u64..0x30_0000,
        gib: bool,
    ) {
        let mut at = 0;
        let mut file = None;
        for (skip, len, flags) in segments {
            at += skip * PAGE_SIZE;
            let flags = if file.is_none() { RX } else { flags };
            file = Some(file.unwrap_or(ElfFile::new(at)).load(Load::new(at, flags).memory(len)));
            at = (at + len).next_multiple_of(PAGE_SIZE);
        }
        let bytes = file.unwrap().bytes();
        let image = Image::parse(&bytes).unwrap();
        let plan = match Plan::new(&image, pages * PAGE_SIZE, None, gib) {
            Ok(plan) => plan,
            Err(LoadError::OutsideMemory { .. } | LoadError::TooLittleMemory { .. }) => return Ok(()),
            Err(other) => panic!("{other}"),
        };
        let mut buffer = Buffer::new(pages * PAGE_SIZE);
        let start = load(&image, &plan, &mut buffer).unwrap();
        let in_tables = |page: &&u64| plan.tables.contains(Gpa::new(**page * PAGE_SIZE));
        assert_eq!(buffer.pages.keys().filter(in_tables).count() as u64, plan.tables.len() / PAGE_SIZE);
        for area in plan.areas() {
            let last = area.range.last().unwrap().as_u64();
            for at in [area.range.start().as_u64(), last] {
                let found = walk(&buffer, start.cr3.as_u64(), at);
                assert_eq!(found, area.read.then_some((at, area.write, area.execute)), "{:?}", area.kind);
            }
        }
    }
}
