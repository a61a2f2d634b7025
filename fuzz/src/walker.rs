//! Arbitrary tables under every operation that reads, and under those that change them: none may panic, what one says
//! of an address the others must say too, and the work is bounded.
//!
//! An input is a short list of steps, each either an entry of a table or an operation. The memory of the tables lives as
//! long as the process: a step notes which words it writes, and these alone are zeroed afterwards.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use offshoot::addr::{Address, PageSize};
use offshoot::paging::{
    Content, Cursor, Emptied, Entry, Ept, Format, GuestAmd64, I686, MayNotMoveTable, Npt,
    RunsExt, Seen, TableOps, TableReadOps, merge, modify, query, query_seeing, split, translate,
    unmap, virt_to_phys, walk_va_spaces,
};

/// How much work an input may ask for.
pub struct Effort {
    /// Entries that one operation over a range reads at most.
    limit: u64,
    /// Entries that the operations over ranges of one input read at most, together.
    budget: u64,
    /// Entries that are there for an operation that changes tables and has no limit of its own.
    change: u64,
    /// Every leaf of a range is looked up by itself, not only the first.
    every_leaf: bool,
}

/// As many inputs a second as there can be.
pub const QUICK: Effort = Effort {
    limit: 600,
    budget: 1500,
    change: 1500,
    every_leaf: false,
};

/// Ranges are walked through to their ends, and each leaf is looked up.
pub const THOROUGH: Effort = Effort {
    limit: 20_000,
    budget: u64::MAX,
    change: 1 << 16,
    every_leaf: true,
};

/// Bytes of a step: a kind, three numbers, and an entry or an address.
const STEP: usize = 12;
/// Tables at the addresses from 0 on: what the input does not fill is zero.
const TABLES: usize = 16;
const WORDS: usize = TABLES * 512;
/// So many words are zeroed one by one at most.
const TOUCHED: usize = 256;

/// The memory that the tables are in.
struct Memory {
    words: Box<[u64; WORDS]>,
    /// Words that have been written, in any order and with repetitions; where there was no room, all may have been.
    touched: [u16; TOUCHED],
    writes: usize,
}

impl Memory {
    fn write(&mut self, at: usize, word: u64) -> Option<()> {
        *self.words.get_mut(at)? = word;
        if let Some(place) = self.touched.get_mut(self.writes) {
            *place = at as u16;
        }
        self.writes += 1;
        Some(())
    }

    fn reset(&mut self) {
        match self.touched.get(..self.writes) {
            Some(touched) => touched
                .iter()
                .for_each(|at| self.words[usize::from(*at)] = 0),
            None => self.words.fill(0),
        }
        self.writes = 0;
    }
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory {
        words: Box::new([0; WORDS]),
        touched: [0; TOUCHED],
        writes: 0,
    });
}

/// The tables of one format in the memory.
struct Tables<'m, F> {
    memory: &'m mut Memory,
    /// Entries that may still be read.
    left: Cell<u64>,
    format: PhantomData<F>,
}

/// The word that an entry is in, and where in it.
#[inline(always)]
fn place<F: Format>(table: F::Phys, index: usize) -> Option<(usize, usize)> {
    let table = usize::try_from(table.as_u64()).ok()?;
    let byte = index * F::Entry::BYTES;
    (table & 0xfff == 0 && table < TABLES << 12).then_some((table / 8 + byte / 8, byte % 8 * 8))
}

impl<F: Format> TableReadOps for Tables<'_, F> {
    type Format = F;
    fn root(&self) -> F::Phys {
        F::Phys::new(0)
    }
    fn is_root(&self, table: F::Phys) -> bool {
        place::<F>(table, 0).is_some()
    }
    #[inline(always)]
    unsafe fn read_entry(&self, table: F::Phys, index: usize) -> Option<F::Entry> {
        self.left.set(self.left.get().checked_sub(1)?);
        let (word, shift) = place::<F>(table, index)?;
        let word = *self.memory.words.get(word)?;
        Some(F::Entry::from_bits(word >> shift))
    }
}

impl<F: Format> TableOps for Tables<'_, F> {
    type Movability = MayNotMoveTable;
    fn alloc_table(&mut self) -> Option<F::Phys> {
        None
    }
    unsafe fn free_table(&mut self, _table: F::Phys) {}
    unsafe fn write_entry(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        self.write(table, index, entry)
    }
}

impl<F: Format> Tables<'_, F> {
    fn write(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        let (at, shift) = place::<F>(table, index)?;
        let mask = (u64::MAX >> (64 - 8 * F::Entry::BYTES)) << shift;
        let word = *self.memory.words.get(at)?;
        self.memory
            .write(at, word & !mask | entry.to_bits() << shift & mask)
    }
}

/// One step of an input.
struct Step {
    kind: u8,
    numbers: [u8; 3],
    /// An entry or an address.
    word: u64,
}

impl Step {
    /// The place of an entry, and its bits. Most are in a corner of the memory, so that entries lead to entries.
    fn entry<F: Format>(&self) -> (F::Phys, usize, F::Entry) {
        let [table, low, high] = self.numbers;
        let index = usize::from(u16::from_le_bytes([low, high]));
        let index = index & if high & 0x80 == 0 { 7 } else { usize::MAX };
        let bits = match table & 0x80 {
            0 => self.word & !(0x000f_ffff_ffff_0000 & !((TABLES as u64 - 1) << 12)),
            _ => self.word,
        };
        (
            F::Phys::new((u64::from(table) % TABLES as u64) << 12),
            index % (4096 / F::Entry::BYTES),
            F::Entry::from_bits(bits),
        )
    }

    /// An address, most often one that the corner of the memory translates.
    fn address<F: Format>(&self) -> F::Virt {
        let corner = (0..F::LEVELS).fold(0xfff, |all, level| {
            all | 7 << (12 + F::INDEX_BITS * u32::from(level))
        });
        match self.numbers[0] & 0x80 {
            0 => F::Virt::new(self.word & corner),
            _ => F::Virt::new(self.word),
        }
    }

    /// A length in bytes, of any magnitude.
    fn len(&self) -> u64 {
        let [_, mantissa, exponent] = self.numbers;
        u64::from(mantissa).rotate_left(u32::from(exponent))
    }
}

/// Carries out what `input` lists.
pub fn run(input: &[u8], effort: &Effort) {
    let Some((format, steps)) = input.split_first() else {
        return;
    };
    MEMORY.with_borrow_mut(|memory| {
        match format % 4 {
            0 => steps_of::<GuestAmd64>(memory, steps, effort),
            1 => steps_of::<Ept>(memory, steps, effort),
            2 => steps_of::<I686>(memory, steps, effort),
            _ => steps_of::<Npt>(memory, steps, effort),
        }
        memory.reset();
    });
}

fn steps_of<F: Format>(memory: &mut Memory, steps: &[u8], effort: &Effort) {
    let mut tables = Tables::<F> {
        memory,
        left: Cell::new(u64::MAX),
        format: PhantomData,
    };
    let mut budget = effort.budget;
    for step in steps.chunks_exact(STEP) {
        let [kind, a, b, c, word @ ..] = step else {
            return;
        };
        let step = Step {
            kind: *kind,
            numbers: [*a, *b, *c],
            word: word
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        tables.left.set(u64::MAX);
        match step.kind {
            0..128 => {
                let (table, index, entry) = step.entry::<F>();
                tables.write(table, index, entry);
            }
            128..176 => {
                look_up(&tables, step.address::<F>());
            }
            176..208 => read_range(&tables, &step, effort, &mut budget),
            208..216 => read_spaces(&tables, &step, effort, &mut budget),
            _ => change(&mut tables, &step, effort),
        }
    }
}

/// Whatever an address leads to on its own, every operation must say.
fn look_up<F: Format>(tables: &Tables<F>, address: F::Virt) -> bool {
    let found = query(tables, address);
    let phys = virt_to_phys(tables, address);
    match (&found, &phys) {
        (Ok(Some(leaf)), Ok(phys)) => assert_eq!(leaf.phys_of(address), *phys),
        (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
        other => panic!("{other:?}"),
    }
    let mut seen = 0;
    let seeing = query_seeing(tables, address, |_| seen += 1);
    assert_eq!(found, seeing);
    assert!(seen <= F::LEVELS);
    let Ok(found) = found else {
        return false;
    };
    let mut listed = translate(tables, address, 1, u64::from(F::LEVELS) + 1);
    assert_eq!(listed.next(), found.map(Ok));
    found.is_some()
}

/// The leaves of a range are in order and in the range, the pieces that they are joined to are as long as they, and the
/// limit is one of reading.
fn read_range<F: Format>(tables: &Tables<F>, step: &Step, effort: &Effort, budget: &mut u64) {
    let (start, len) = (step.address::<F>(), step.len());
    let limit = effort.limit.min(*budget / 2);
    let last = start.as_u64().saturating_add(len.saturating_sub(1));
    let (mut leaves, mut bytes, mut end) = (0, 0_u64, None);
    let mut failed = None;
    for leaf in translate(tables, start, len, limit) {
        assert!(failed.is_none(), "{failed:?} is not the last");
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let (first, size) = (leaf.virt.as_u64(), leaf.size.bytes());
        assert_ne!(leaf.content, Content::Unmapped);
        assert!(end.is_none_or(|end| end < first) && first <= last);
        assert!(first.wrapping_add(size - 1) >= start.as_u64());
        if leaves == 0 || effort.every_leaf {
            assert_eq!(query(tables, leaf.virt), Ok(Some(leaf)));
        }
        end = Some(first + (size - 1));
        leaves += 1;
        bytes = bytes.wrapping_add(size);
    }
    assert!(leaves <= limit);
    tables.left.set(limit);
    for run in translate(tables, start, len, limit).runs() {
        match run {
            Ok(run) => {
                assert!(run.len > 0 && run.content != Content::Unmapped);
                bytes = bytes.wrapping_sub(run.len);
            }
            Err(error) => assert_eq!(failed.take(), Some(error)),
        }
    }
    assert_eq!((bytes, failed), (0, None));
    *budget -= 2 * (limit - tables.left.get());
}

/// Spaces that start at any of the tables, also twice at one.
fn read_spaces<F: Format>(tables: &Tables<F>, step: &Step, effort: &Effort, budget: &mut u64) {
    let table = |number: u8| F::Phys::new((u64::from(number) % TABLES as u64) << 12);
    let [a, b, c] = step.numbers.map(table);
    let roots = [F::Phys::new(0), a, b, c];
    let roots = &roots[..1 + (step.word % 4) as usize];
    let mut seen = [Seen::FREE; 4 * TABLES];
    let limit = effort.limit.min(*budget / 2) * 2;
    tables.left.set(limit);
    let mut items = 0;
    let count = |_, _| {
        items += 1;
        Ok(())
    };
    let _ = walk_va_spaces(tables, roots, &mut seen, limit, count);
    let read = limit - tables.left.get();
    // A root or a table that says nothing of itself is an item of its own.
    assert!(items <= read + (roots.len() + 4 * TABLES + 1) as u64);
    *budget -= read;
}

/// Changes tables, and sees that what was removed is gone, and that what may change nothing has changed nothing.
fn change<F: Format>(tables: &mut Tables<F>, step: &Step, effort: &Effort) {
    // They are the caller's own then, so there is no limit; the memory stands in for it.
    tables.left.set(effort.change);
    let at = step.address::<F>();
    let start = at.align_down(0x1000);
    let len = step.len() & 0xff_ffff_f000;
    match step.kind % 6 {
        kind @ 0..=2 => {
            let done = match kind {
                0 => unmap(tables, start, len, Emptied::Retire, |_| {}),
                1 => unmap(tables, start, len, Emptied::Keep, |_| {}),
                _ => modify(tables, start, len, |leaf| leaf.unmap()),
            };
            tables.left.set(u64::MAX);
            if done.is_ok() && len > 0 {
                for gone in [start.as_u64(), start.as_u64() + (len - 1)] {
                    assert!(!look_up(tables, F::Virt::new(gone)), "{gone:#x}");
                }
            }
        }
        kind => {
            let before = virt_to_phys(tables, at);
            let done = match kind {
                3 => merge(tables, start, len, PageSize::Size4K).map(drop),
                4 => split(tables, start, PageSize::Size4K),
                _ => Cursor::new(tables, start, PageSize::Size4K)
                    .and_then(|mut cursor| cursor.set(Content::Unmapped)),
            };
            tables.left.set(u64::MAX);
            let after = virt_to_phys(tables, at);
            match kind {
                5 if done.is_ok() => assert!(!matches!(after, Ok(Some(_)))),
                5 => {}
                _ if before.is_ok() => assert_eq!(before, after),
                _ => {}
            }
        }
    }
}
