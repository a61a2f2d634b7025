//! The way into a guest's memory, and the guest's page tables there.

use core::cell::Cell;

use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE};
use crate::ept::{Near, words_by};
use crate::paging::{Entry, Format, GuestAmd64, MayNotMoveTable, TableOps, TableReadOps};

type GuestEntry = <GuestAmd64 as Format>::Entry;

/// The memory of a guest by guest-physical address, which may cross pages. What has never been written reads as zero.
pub trait GuestMemory {
    /// Why an access failed: outside of the memory, or no frame to be had.
    type Error: Copy;

    /// Copies bytes out.
    ///
    /// # Errors
    /// The address at which there is no memory to read.
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Self::Error>;
    /// Copies bytes in.
    ///
    /// # Errors
    /// The address at which there is no memory to write.
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The words from `at`, taken as a multiple of 8, on. Those behind its page are 0.
    ///
    /// # Errors
    /// As of [`GuestMemory::read`].
    fn words<const N: usize>(&self, at: Gpa) -> Result<[u64; N], Self::Error> {
        words_by(at, |gpa, bytes| self.read(gpa, bytes))
    }
    /// The same, for one after the other of a walk. Memory of several layers finds them the quicker by what the last has left.
    ///
    /// # Errors
    /// As of [`GuestMemory::read`].
    fn words_near<'s, const N: usize>(
        &'s self,
        at: Gpa,
        near: &mut Near<'s>,
    ) -> Result<[u64; N], Self::Error> {
        let _ = near;
        self.words(at)
    }
    /// Puts `new` at `at`, taken as a multiple of 8, if `old` stands there. Returns whether it did. Memory that others
    /// change too does it in one step.
    ///
    /// # Errors
    /// As of [`GuestMemory::write`].
    fn exchange_word(&mut self, at: Gpa, old: u64, new: u64) -> Result<bool, Self::Error> {
        let [found] = self.words(at)?;
        if found == old {
            self.write(at.align_down(8), &new.to_le_bytes())?;
        }
        Ok(found == old)
    }
}

/// An access to guest memory that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault<E> {
    /// Where.
    pub address: Gpa,
    /// Why.
    pub error: E,
}

/// Page tables in the memory of a guest that does not run yet.
pub(super) struct GuestTables<'m, M: GuestMemory> {
    memory: &'m mut M,
    /// Where tables may lie: fresh memory, so a table is zeroed before it is asked for. The first is the root.
    room: AddrRange<Gpa>,
    /// How many of them are taken.
    taken: u64,
    /// The walker only learns that an access failed; this is why.
    fault: Cell<Option<MemoryFault<M::Error>>>,
}

impl<'m, M: GuestMemory> GuestTables<'m, M> {
    /// An empty tree. `room` is whole pages of memory that nobody has written to.
    pub(super) fn new(memory: &'m mut M, room: AddrRange<Gpa>) -> Self {
        Self {
            memory,
            room,
            taken: 1,
            fault: Cell::new(None),
        }
    }
    /// The access that failed, if one has.
    pub(super) fn fault(&self) -> Option<MemoryFault<M::Error>> {
        self.fault.get()
    }

    fn note<T>(&self, address: Gpa, result: Result<T, M::Error>) -> Option<T> {
        result
            .map_err(|error| self.fault.set(Some(MemoryFault { address, error })))
            .ok()
    }
    /// Where an entry is, if its table is one of ours.
    fn place(&self, table: Gpa, index: usize) -> Option<Gpa> {
        let in_table = (index as u64).checked_mul(GuestEntry::BYTES as u64)?;
        let ours = self.room.contains(table) && in_table < PAGE_SIZE;
        ours.then(|| table.checked_add(in_table))?
    }
}

impl<M: GuestMemory> TableReadOps for GuestTables<'_, M> {
    type Format = GuestAmd64;

    fn root(&self) -> Gpa {
        self.room.start()
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<GuestEntry> {
        let at = self.place(table, index)?;
        let mut bytes = [0; GuestEntry::BYTES];
        self.note(at, self.memory.read(at, &mut bytes))?;
        Some(GuestEntry::from_bits(u64::from_le_bytes(bytes)))
    }
}

impl<M: GuestMemory> TableOps for GuestTables<'_, M> {
    type Movability = MayNotMoveTable;

    fn alloc_table(&mut self) -> Option<Gpa> {
        let table = self
            .room
            .start()
            .checked_add(self.taken.checked_mul(PAGE_SIZE)?)?;
        self.place(table, 0)?;
        self.taken += 1;
        Some(table)
    }
    unsafe fn free_table(&mut self, table: Gpa) {
        // Tables are counted before they are taken, so what comes back was taken last.
        if table.as_u64() == self.room.start().as_u64() + (self.taken - 1) * PAGE_SIZE {
            self.taken -= 1;
        }
    }
    unsafe fn write_entry(&mut self, table: Gpa, index: usize, entry: GuestEntry) -> Option<()> {
        let at = self.place(table, index)?;
        let result = self.memory.write(at, &entry.to_bits().to_le_bytes());
        self.note(at, result)
    }
    /// A large leaf a time through guest memory would cost a walk of the space each.
    unsafe fn write_run(
        &mut self,
        table: Gpa,
        first: usize,
        count: usize,
        mut bits: u64,
        step: u64,
    ) -> Option<()> {
        const AT_ONCE: usize = 64;
        let mut index = first;
        while index < first + count {
            let at = self.place(table, index)?;
            let mut bytes = [0; AT_ONCE * GuestEntry::BYTES];
            let now = AT_ONCE.min(first + count - index);
            let (chunk, _) = bytes.split_at_mut(now * GuestEntry::BYTES);
            for word in chunk.chunks_exact_mut(GuestEntry::BYTES) {
                word.copy_from_slice(&bits.to_le_bytes());
                bits = bits.wrapping_add(step);
            }
            let result = self.memory.write(at, chunk);
            self.note(at, result)?;
            index += now;
        }
        Some(())
    }
}
