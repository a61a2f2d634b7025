//! Arbitrary table memory under every operation that reads, and under those that change it: none may panic, and the work
//! is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot::addr::{Address, PageSize};
use offshoot::paging::{
    Content, Cursor, Emptied, Entry, Ept, Error, Format, GuestAmd64, I686, MayNotMoveTable, Never,
    RunsExt, Seen, TableOps, TableReadOps, merge, modify, query, split, translate, unmap,
    virt_to_phys, walk_va_spaces,
};

/// So many tables at the addresses from 0 on: what the input does not fill is zero.
const TABLES: usize = 16;
const LIMIT: u64 = 20_000;

struct Arena<F> {
    words: Vec<u64>,
    format: std::marker::PhantomData<F>,
    /// Entries that may still be read by an operation that has no limit of its own.
    left: std::cell::Cell<u64>,
}

impl<F: Format> Arena<F> {
    fn index(table: F::Phys, index: usize) -> Option<usize> {
        let table = usize::try_from(table.as_u64()).ok()?;
        let inside = table % 4096 == 0 && table < TABLES * 4096;
        inside.then_some(table / 8 + index * F::Entry::BYTES / 8)
    }
}

impl<F: Format> TableReadOps for Arena<F> {
    type Format = F;
    fn root(&self) -> F::Phys {
        F::Phys::new(0)
    }
    fn read_entry(&self, table: F::Phys, index: usize) -> Option<F::Entry> {
        self.left.set(self.left.get().checked_sub(1)?);
        let word = *self.words.get(Self::index(table, index)?)?;
        let shift = (index * F::Entry::BYTES % 8) * 8;
        Some(F::Entry::from_bits(word >> shift))
    }
}

impl<F: Format> TableOps for Arena<F> {
    type Movability = MayNotMoveTable;
    fn alloc_table(&mut self) -> Option<F::Phys> {
        None
    }
    fn free_table(&mut self, _table: F::Phys) {}
    fn write_entry(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        let word = self.words.get_mut(Self::index(table, index)?)?;
        let shift = (index * F::Entry::BYTES % 8) * 8;
        let mask = if F::Entry::BYTES == 8 { u64::MAX } else { 0xffff_ffff << shift };
        *word = *word & !mask | (entry.to_bits() << shift) & mask;
        Some(())
    }
    fn compare_exchange(
        &mut self,
        table: F::Phys,
        index: usize,
        old: F::Entry,
        new: F::Entry,
    ) -> Option<Result<(), F::Entry>> {
        let found = self.read_entry(table, index)?;
        if found != old {
            return Some(Err(found));
        }
        self.write_entry(table, index, new).map(Ok)
    }
    fn must_move(&self, _table: F::Phys, _level: u8) -> Option<Never> {
        None
    }
    fn move_table(&mut self, from: Never, _level: u8, _to: F::Phys) {
        match from {}
    }
    fn drop_shared(&mut self, table: Never, _level: u8) {
        match table {}
    }
    fn set_root(&mut self, from: Never, _to: F::Phys) {
        match from {}
    }
}

/// Where the input says what to put: a table, an entry of it, and its bits.
fn arena<F: Format>(input: &[u8]) -> Arena<F> {
    let mut arena = Arena {
        words: vec![0; TABLES * 512],
        format: std::marker::PhantomData,
        left: std::cell::Cell::new(u64::MAX),
    };
    for edit in input.chunks_exact(11) {
        let (place, bits) = edit.split_at(3);
        let table = (place[0] as u64 % TABLES as u64) << 12;
        let index = u16::from_le_bytes([place[1], place[2]]) as usize % (4096 / F::Entry::BYTES);
        let bits = u64::from_le_bytes(bits.try_into().expect("8 bytes"));
        // Half of the bits of an address mostly lead nowhere: bring it into the arena in most entries.
        let near = !(0x000f_ffff_ffff_0000u64 & !(0xf << 12));
        let bits = if place[0] & 0x80 == 0 { bits & near } else { bits };
        arena.write_entry(F::Phys::new(table), index, F::Entry::from_bits(bits));
    }
    arena
}

fn check<F: Format>(input: &[u8]) {
    let Some((head, rest)) = input.split_at_checked(18) else {
        return;
    };
    let mut arena = arena::<F>(rest);
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let (start, len) = (F::Virt::new(word(0)), word(8));

    // Reading: whatever an address leads to on its own, the iterator must say too.
    for address in [start, F::Virt::new(0), F::Virt::new(u64::MAX)] {
        let found = query(&arena, address);
        let phys = virt_to_phys(&arena, address);
        match (&found, &phys) {
            (Ok(Some(leaf)), Ok(phys)) => assert_eq!(leaf.phys_of(address), *phys),
            (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
            other => panic!("{other:?}"),
        }
        if let Ok(found) = found {
            let listed = translate(&arena, address, 1, LIMIT).next();
            assert_eq!(listed, found.map(Ok::<_, Error<F>>));
        }
    }
    let leaves = translate(&arena, start, len, LIMIT).count();
    assert!(leaves as u64 <= LIMIT + 1);
    let bytes = |content: &Content<_, _>| *content != Content::Unmapped;
    for run in translate(&arena, start, len, LIMIT).runs().flatten() {
        assert!(run.len > 0 && bytes(&run.content));
    }
    let roots = [0, 0x1000, 0x2000, 0].map(F::Phys::new);
    let mut seen = [Seen::FREE; 4 * TABLES];
    let items = walk_va_spaces(&arena, &roots, &mut seen, LIMIT * 4).count();
    assert!(items <= 4 * TABLES * 1024 + 4 * TABLES + 1);

    // Changing: the tables are the caller's own then, so there is no limit; the arena stands in for it.
    arena.left.set(1 << 16);
    let len = len & 0xff_ffff_f000;
    let start = start.align_down(0x1000);
    let _ = match head[16] % 6 {
        0 => unmap(&mut arena, start, len, Emptied::Retire, |_| {}),
        1 => unmap(&mut arena, start, len, Emptied::Keep, |_| {}),
        2 => modify(&mut arena, start, len, |leaf| leaf.unmap()),
        3 => merge(&mut arena, start, len, PageSize::Size4K).map(drop),
        4 => split(&mut arena, start, PageSize::Size4K),
        _ => Cursor::new(&mut arena, start, PageSize::Size4K)
            .and_then(|mut cursor| cursor.set(Content::Unmapped)),
    };
}

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((0..=84, rest)) => check::<GuestAmd64>(rest),
        Some((85..=169, rest)) => check::<Ept>(rest),
        Some((_, rest)) => check::<I686>(rest),
        None => {}
    }
});
