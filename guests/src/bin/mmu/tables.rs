//! Tables in the guest's own memory, which it reaches at its physical addresses.

use core::cell::Cell;
use core::marker::PhantomData;
use offshoot::addr::{Address, Gpa, Gva, PAGE_SIZE, PageSize};
use offshoot::paging::{
    Amd64Attr, AtomicWord, Content, Entry, EntryOf, Format, GuestAmd64, MayNotMoveTable, TableOps,
    TableReadOps, TableRoots, Write, map, query, translate,
};
use offshoot_guest::StartInfo;
use offshoot_guests::space;

/// Free memory of the guest.
pub struct Frames {
    start: u64,
    next: Cell<u64>,
    end: u64,
    /// The first frame that was given back; each holds the address of the next one in its first word.
    free: Cell<u64>,
    used: Cell<u64>,
}

impl Frames {
    /// The heap.
    pub fn new(info: &StartInfo) -> Self {
        Self {
            start: info.heap,
            next: Cell::new(info.heap),
            end: info.heap + info.heap_len,
            free: Cell::new(0),
            used: Cell::new(0),
        }
    }

    /// Fresh memory, aligned to its size.
    ///
    /// # Panics
    /// If there is none.
    pub fn area(&self, size: u64) -> u64 {
        let start = self.next.get().next_multiple_of(size);
        assert!(start + size <= self.end, "the heap is too small");
        self.next.set(start + size);
        start
    }

    /// A frame for a table.
    fn table(&self) -> u64 {
        self.used.set(self.used.get() + 1);
        match self.free.get() {
            0 => self.area(PAGE_SIZE),
            frame => {
                self.free.set(peek(frame));
                frame
            }
        }
    }

    fn give_back(&self, frame: u64) {
        poke(frame, self.free.get());
        self.free.set(frame);
        self.used.set(self.used.get() - 1);
    }

    /// How many frames are tables.
    pub fn used(&self) -> u64 {
        self.used.get()
    }
}

/// The word at a physical address.
pub fn peek(address: u64) -> u64 {
    // SAFETY: only called for memory of the heap, which nothing else in this program owns.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes the word at a physical address.
pub fn poke(address: u64, value: u64) {
    // SAFETY: as in `peek`.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// A tree of tables that the CPU may be using.
pub struct Tables<'f, F: Format<Phys = Gpa>> {
    frames: &'f Frames,
    root: Gpa,
    format: PhantomData<F>,
}

impl<'f, F: Format<Phys = Gpa>> Tables<'f, F> {
    /// An empty tree.
    pub fn new(frames: &'f Frames) -> Self {
        let root = Gpa::new(frames.table());
        let mut tables = Self {
            frames,
            root,
            format: PhantomData,
        };
        for index in 0..PAGE_SIZE as usize / F::Entry::BYTES {
            tables.write_entry(root, index, F::Entry::EMPTY);
        }
        tables
    }

    /// Makes operations start from `root`.
    pub fn choose(&mut self, root: Gpa) {
        self.root = root;
    }

    fn word(&self, table: Gpa, index: usize) -> Option<&<F::Entry as Entry>::Word> {
        let frames = self.frames;
        let at = table.checked_add((index * F::Entry::BYTES) as u64)?;
        let inside = (frames.start..frames.next.get()).contains(&table.as_u64())
            && table.is_aligned(PAGE_SIZE)
            && at.as_u64() - table.as_u64() < PAGE_SIZE;
        // SAFETY: an aligned word of the heap, mapped to its physical address. Whatever uses it here is atomic or
        // volatile, as the CPU may set accessed and dirty.
        inside.then(|| unsafe { &*(at.as_u64() as *const <F::Entry as Entry>::Word) })
    }

    /// An entry of a table, if there is such memory.
    pub fn read_entry(&self, table: Gpa, index: usize) -> Option<F::Entry> {
        Some(F::Entry::from_bits(self.word(table, index)?.load()))
    }

    /// Replaces it.
    pub fn write_entry(&mut self, table: Gpa, index: usize, entry: F::Entry) -> Option<()> {
        self.word(table, index)?.store(entry.to_bits());
        Some(())
    }

    /// The table and the index of the entry for `address` at `level`, which must be reached through tables.
    pub fn place(&self, address: u64, level: u8) -> Option<(Gpa, usize)> {
        let mut table = self.root;
        for at in (level..=F::LEVELS).rev() {
            let shift = 12 + F::INDEX_BITS * u32::from(at - 1);
            let index = (address >> shift) as usize & ((1 << F::INDEX_BITS) - 1);
            if at == level {
                return Some((table, index));
            }
            table = F::open_table(self.read_entry(table, index)?)?;
        }
        None
    }
}

impl<F: Format<Phys = Gpa>> TableReadOps for Tables<'_, F> {
    type Format = F;

    fn root(&self) -> Gpa {
        self.root
    }
    fn is_root(&self, table: Gpa) -> bool {
        self.word(table, 0).is_some()
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<F::Entry> {
        Self::read_entry(self, table, index)
    }
}

impl<F: Format<Phys = Gpa>> TableOps for Tables<'_, F> {
    type Movability = MayNotMoveTable;

    fn alloc_table(&mut self) -> Option<Gpa> {
        Some(Gpa::new(self.frames.table()))
    }
    unsafe fn free_table(&mut self, table: Gpa) {
        self.frames.give_back(table.as_u64());
    }
    unsafe fn write_entry(&mut self, table: Gpa, index: usize, entry: F::Entry) -> Option<()> {
        Self::write_entry(self, table, index, entry)
    }
    unsafe fn compare_exchange(
        &mut self,
        table: Gpa,
        index: usize,
        old: F::Entry,
        new: F::Entry,
    ) -> Option<Result<(), F::Entry>> {
        let word = self.word(table, index)?;
        let result = word.compare_exchange(old.to_bits(), new.to_bits());
        Some(result.map_err(F::Entry::from_bits))
    }
}

impl<F: Format<Phys = Gpa>> TableRoots for Tables<'_, F> {
    fn select_root(&mut self, root: Gpa) -> Option<()> {
        self.word(root, 0)?;
        self.choose(root);
        Some(())
    }
    fn share_table(&mut self, _: Gpa, _: u8) {}
}

/// The tables that the guest was started with. It can read them.
struct Loaders<'i>(&'i StartInfo);

impl TableReadOps for Loaders<'_> {
    type Format = GuestAmd64;

    fn root(&self) -> Gpa {
        Gpa::new(self.0.root)
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<EntryOf<Self>> {
        let at = table.checked_add(index as u64 * 8)?.as_u64();
        (at < self.0.memory).then(|| Entry::from_bits(peek(at)))
    }
}

/// Tables that map all that those of the start do, and again for user mode where [`space::user`] says.
///
/// # Panics
/// If the walker fails.
pub fn space<'f>(info: &StartInfo, frames: &'f Frames) -> Tables<'f, GuestAmd64> {
    let mut tables = Tables::new(frames);
    fill(&mut tables, info);
    tables
}

/// As [`space`], in tables that are there.
pub fn fill<O: TableOps<Format = GuestAmd64>>(tables: &mut O, info: &StartInfo) {
    let given = Loaders(info);
    for mapping in translate(&given, Gva::new(0), u64::MAX, 1 << 20) {
        let mapping = must(mapping);
        let size = mapping.size;
        must(map(
            tables,
            mapping.virt,
            size.bytes(),
            mapping.content,
            size,
        ));
        assert!(query(tables, mapping.virt) == Ok(Some(mapping)));
    }
    let attr = Amd64Attr::READ_WRITE.with_execute(true).with_user(true);
    map_to(tables, space::user(0), info.memory, 0, attr);
}

/// Maps `len` bytes at `address` to `phys`, in leaves of 2 MiB where that can be.
pub fn map_to<O: TableOps<Format = GuestAmd64>>(
    tables: &mut O,
    address: u64,
    len: u64,
    phys: u64,
    attr: Amd64Attr,
) {
    let phys = Gpa::new(phys);
    let page = Content::Page { phys, attr };
    must(map(tables, Gva::new(address), len, page, PageSize::Size2M));
}

/// The value that the walker must have returned.
///
/// # Panics
/// If it returned an error.
#[track_caller]
pub fn must<T, E: core::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the walker refused: {error}"),
    }
}

/// The three ways in which a leaf says whether it may be written.
pub const WRITES: [Write; 3] = [Write::Denied, Write::Allowed, Write::CopyFirst];
