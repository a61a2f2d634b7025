//! Tables built in a byte buffer that is to become guest memory.

use core::marker::PhantomData;

use super::access::{MayNotMoveTable, TableOps, TableReadOps};
use super::format::{Entry, Format};
use super::link_spaces::TableRoots;
use crate::addr::{Address, PAGE_SIZE};

/// Tables in a buffer of bytes that will stand at a given physical address of the guest. Tables are taken from it one
/// after the other, so the buffer's beginning, up to [`GuestPageTableBuffer::used`], is what must be copied there.
///
/// It can hold the trees of several spaces: [`GuestPageTableBuffer::add_root`] and [`TableRoots::select_root`].
pub struct GuestPageTableBuffer<'b, F: Format> {
    bytes: &'b mut [u8],
    base: F::Phys,
    /// Bytes taken so far: whole tables.
    used: usize,
    /// Tables given back, each holding the place of the next one; 0 ends the list.
    free: Option<usize>,
    root: F::Phys,
    format: PhantomData<F>,
}

impl<'b, F: Format> GuestPageTableBuffer<'b, F> {
    /// A buffer with one empty root in it, its first table. `base` is where the guest will see the buffer.
    /// `None` where that is not aligned to a page, is not a range of physical addresses that the format can express, or
    /// where there is no room for the root.
    pub fn new(bytes: &'b mut [u8], base: F::Phys) -> Option<Self> {
        let last = base.checked_add((bytes.len() as u64).checked_sub(1)?)?;
        if !base.is_aligned(PAGE_SIZE) || last.as_u64() >> F::PHYS_BITS != 0 {
            return None;
        }
        let mut buffer = Self {
            bytes,
            base,
            used: 0,
            free: None,
            root: base,
            format: PhantomData,
        };
        buffer.alloc_table()?;
        Some(buffer)
    }
    /// The root that the buffer was made with: at its beginning.
    pub fn initial_root(&self) -> F::Phys {
        self.base
    }
    /// An empty root more; it does not become the one that operations start from.
    pub fn add_root(&mut self) -> Option<F::Phys> {
        self.alloc_table()
    }
    /// Bytes in use, from the beginning of the buffer.
    pub fn used(&self) -> usize {
        self.used
    }
    /// The bytes in use.
    pub fn into_bytes(self) -> &'b mut [u8] {
        // `used` is never more than the length.
        self.bytes.get_mut(..self.used).unwrap_or_default()
    }

    /// Where an entry of a table in use is in the buffer.
    fn offset(&self, table: F::Phys, index: usize) -> Option<usize> {
        let from_base = table.as_u64().checked_sub(self.base.as_u64())?;
        let table = usize::try_from(from_base).ok()?;
        let in_table = index.checked_mul(F::Entry::BYTES)?;
        let inside = in_table < PAGE_SIZE as usize && table < self.used;
        inside.then(|| table.checked_add(in_table))?
    }
}

impl<F: Format> TableReadOps for GuestPageTableBuffer<'_, F> {
    type Format = F;

    fn root(&self) -> F::Phys {
        self.root
    }
    fn is_root(&self, table: F::Phys) -> bool {
        table.is_aligned(PAGE_SIZE) && self.offset(table, 0).is_some()
    }
    unsafe fn read_entry(&self, table: F::Phys, index: usize) -> Option<F::Entry> {
        let at = self.offset(table, index)?;
        let mut word = [0; 8];
        let bytes = self.bytes.get(at..at.checked_add(F::Entry::BYTES)?)?;
        word.get_mut(..F::Entry::BYTES)?.copy_from_slice(bytes);
        Some(F::Entry::from_bits(u64::from_le_bytes(word)))
    }
}

impl<F: Format> TableOps for GuestPageTableBuffer<'_, F> {
    type Movability = MayNotMoveTable;

    fn alloc_table(&mut self) -> Option<F::Phys> {
        let (at, next) = match self.free {
            Some(at) => {
                let link = self.bytes.get(at..at.checked_add(8)?)?;
                let next = u64::from_le_bytes(link.try_into().ok()?) as usize;
                (at, next.checked_sub(1))
            }
            None => (self.used, None),
        };
        let end = at.checked_add(PAGE_SIZE as usize)?;
        self.bytes.get_mut(at..end)?.fill(0);
        self.used = self.used.max(end);
        self.free = next;
        Some(F::Phys::new(self.base.as_u64() + at as u64))
    }
    unsafe fn free_table(&mut self, table: F::Phys) {
        let Some(at) = self.offset(table, 0) else {
            return;
        };
        let next = self.free.map_or(0, |next| next as u64 + 1);
        if let Some(link) = self.bytes.get_mut(at..at + 8) {
            link.copy_from_slice(&next.to_le_bytes());
            self.free = Some(at);
        }
    }
    unsafe fn write_entry(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        let at = self.offset(table, index)?;
        let bytes = self.bytes.get_mut(at..at.checked_add(F::Entry::BYTES)?)?;
        bytes.copy_from_slice(entry.to_bits().to_le_bytes().get(..F::Entry::BYTES)?);
        Some(())
    }
}

impl<F: Format> TableRoots for GuestPageTableBuffer<'_, F> {
    fn select_root(&mut self, root: F::Phys) -> Option<()> {
        self.root = self.is_root(root).then_some(root)?;
        Some(())
    }
    fn share_table(&mut self, _table: F::Phys, _level: u8) {}
}
