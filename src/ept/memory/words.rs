//! Words of a guest's memory, one after the other or replaced in one step: for what reads and marks the guest's own page
//! tables, and fetches its code.

use crate::addr::{Address, Gpa, Hpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::memory::bytes::{AccessError, By};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::PteOf;
use crate::ept::tables::entry::{Way, step};
use crate::ept::tables::table::{EIGHTS, ENTRIES, Eight};
use crate::frames::{FrameRef, PhysMem};
use crate::paging::Entry;
use crate::paging::Nested;
use core::sync::atomic::Ordering;

/// The words that `read` finds from `gpa`, taken as a multiple of 8, on. Those behind its page are 0.
///
/// # Errors
/// The first of `read`.
pub fn words_by<const N: usize, E>(
    gpa: Gpa,
    read: impl Fn(Gpa, &mut [u8]) -> Result<(), E>,
) -> Result<[u64; N], E> {
    let at = gpa.align_down(8);
    let mut words = [0; N];
    let in_page = (PAGE_SIZE - at.page_offset()) as usize / 8;
    for (number, word) in (0..).zip(words.iter_mut().take(in_page)) {
        let mut bytes = [0; 8];
        read(Gpa::new(at.as_u64() + 8 * number), &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}

/// The table that led to the last words: a walk of the guest's tables most often reads on near them.
#[derive(Clone, Copy)]
pub struct Near<'s> {
    /// What the addresses that it is for have in common.
    prefix: u64,
    /// Of the lowest level. It stays as it is as long as its space is borrowed.
    table: Option<&'s [Eight; EIGHTS]>,
}

impl Near<'_> {
    /// None yet.
    pub const NONE: Self = Self {
        prefix: 0,
        table: None,
    };
}

/// How far an address is to be shifted for its number of a page, and for what leads to the lowest table.
const PAGE_SHIFT: u32 = 12;
const TABLE_SHIFT: u32 = 21;

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// The words from `gpa`, taken as a multiple of 8, on. Those behind its page are 0.
    ///
    /// # Errors
    /// As of [`Space::read`].
    #[inline(always)]
    pub fn words<const N: usize>(&self, gpa: Gpa) -> Result<[u64; N], AccessError> {
        let mut near = Near::NONE;
        self.words_near(gpa, &mut near)
    }

    /// The same, where the words before, of this space too, have left `near`.
    ///
    /// # Errors
    /// As of [`Space::read`].
    #[inline(always)]
    pub fn words_near<'s, const N: usize>(
        &'s self,
        gpa: Gpa,
        near: &mut Near<'s>,
    ) -> Result<[u64; N], AccessError> {
        let at = gpa.align_down(8);
        match self.counted(at, near) {
            // SAFETY: an entry refers to the frame.
            Some(at) => Ok(unsafe { self.frames.words(at) }),
            None => self.words_of_any(at),
        }
    }

    /// Where the byte at `gpa` is, if it is in a frame that is counted: such are only in regions of memory.
    #[inline(always)]
    fn counted<'s>(&'s self, gpa: Gpa, near: &mut Near<'s>) -> Option<Hpa> {
        let at = gpa.as_u64();
        let page = |shift: u32, page: Hpa| Hpa::new(page.as_u64() | at & ((1 << shift) - 1));
        if let Some(table) = near.table
            && near.prefix == at >> TABLE_SHIFT
        {
            let index = (at >> PAGE_SHIFT) as usize % ENTRIES;
            let word = &table.as_flattened()[index];
            return match step(1, PteOf::<F>::from_bits(word.load(Ordering::Acquire))) {
                Way::Counted(frame) => Some(page(PAGE_SHIFT, frame)),
                _ => None,
            };
        }
        if at >> 48 != 0 {
            return None;
        }
        let mut table = self.tree.view(self.frames);
        loop {
            match table.step(gpa) {
                Way::Table(below) => table = below,
                Way::Counted(frame) => {
                    if table.level() == 1 {
                        *near = Near {
                            prefix: at >> TABLE_SHIFT,
                            table: Some(table.words()),
                        };
                    }
                    return Some(page(table.size().bytes().trailing_zeros(), frame));
                }
                Way::Other => return None,
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn words_of_any<const N: usize>(&self, at: Gpa) -> Result<[u64; N], AccessError> {
        words_by(at, |gpa, bytes| self.read(gpa, bytes))
    }

    /// Puts `new` at `gpa`, taken as a multiple of 8, if `old` stands there, in one step and as if the guest had written
    /// it. Returns whether it did.
    ///
    /// # Errors
    /// As of [`Space::write`].
    pub fn exchange_word(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<bool, AccessError> {
        let at = gpa.align_down(8);
        self.make_writable(at, 8, By::Guest)?;
        let exchange = || {
            let (phys, ..) = self.mapped(at)?.ok_or(Reason::NoRegion)?;
            // SAFETY: the page of a memory region was provided for writing: its leaf holds a frame of guest bytes.
            Ok(unsafe {
                let frame = FrameRef::from_raw(phys.align_down(PAGE_SIZE));
                let frames = self.frames;
                frames.exchange(&frame, phys.page_offset(), old, new)
            }?)
        };
        exchange().map_err(|reason| AccessError { gpa: at, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::error::Reason;
    use crate::ept::hw::violation::Access;
    use crate::ept::spaces::space::Spaces;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{
        DEVICE, MMIO, MODULE, RAM, ROM, SHARED, add_device, add_regions, all_capabilities, finish,
        gpas, memory, read,
    };
    use crate::frames::arena::Arena;

    /// Words are the bytes that are there, up to the end of the page.
    fn agree(space: &Space<'_, Arena>, page: u64) {
        for offset in [0, 3, 8, 0xfe7, 0xff0, 0xff8, 0xfff] {
            let at = Gpa::new(page + offset);
            let from = at.align_down(8);
            let in_page = (PAGE_SIZE - from.page_offset()).min(24) as usize;
            let mut bytes = read(space, from.as_u64(), in_page);
            bytes.resize(24, 0);
            let words: [u64; 3] = space.words(at).unwrap();
            assert_eq!(bytes, words.map(u64::to_le_bytes).concat(), "{at:#x}");
        }
    }

    #[test]
    fn words_are_the_bytes_that_are_there() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(40).unwrap();
        add_regions(&mut space, host);
        add_device(&mut space);
        let mut cpu = Cpu::new(0);
        let places = [
            RAM,
            RAM + PAGE_SIZE,
            MODULE,
            MODULE + PAGE_SIZE,
            SHARED,
            ROM,
        ];
        for page in places {
            agree(&space, page);
        }
        // The zero page, host bytes, a copy of them, a frame of its own.
        for (page, access) in [
            (RAM, Access::READ),
            (MODULE, Access::READ),
            (SHARED, Access::READ),
            (MODULE + PAGE_SIZE, Access::WRITE),
            (RAM + PAGE_SIZE, Access::WRITE),
            (DEVICE, Access::READ),
        ] {
            cpu.run(&mut space, page, page, access).unwrap();
        }
        cpu.unload(&mut space);
        let bytes: Vec<u8> = (0..PAGE_SIZE).map(|at| (at * 7) as u8).collect();
        space.write(Gpa::new(RAM + PAGE_SIZE), &bytes).unwrap();
        for page in places {
            agree(&space, page);
        }
        // What one word has left leads to no other, not even where it would have to be looked for elsewhere.
        let all = || {
            places
                .into_iter()
                .chain([MMIO, DEVICE, RAM + 16 * PAGE_SIZE])
        };
        for (first, then) in all().flat_map(|first| all().map(move |then| (first, then))) {
            for then in [then, then ^ 1 << 21, then ^ 1 << 30, then | 1 << 48] {
                let mut near = Near::NONE;
                let _ = space.words_near::<1>(Gpa::new(first), &mut near);
                let then = Gpa::new(then);
                let found = space.words_near::<3>(then, &mut near);
                assert_eq!(found, space.words(then), "{first:#x} {then:#x}");
            }
        }
        // No memory, nothing, and addresses that would be others' if only some bits counted.
        let denied = |gpa: u64, reason| {
            let gpa = Gpa::new(gpa);
            assert_eq!(space.words::<1>(gpa), Err(AccessError { gpa, reason }));
        };
        denied(MMIO, Reason::NotMemory { tag: 6 });
        denied(DEVICE, Reason::NotMemory { tag: 7 });
        for gpa in [
            RAM + 16 * PAGE_SIZE,
            1 << 40,
            1 << 48,
            1 << 50,
            u64::MAX - 7,
        ] {
            denied(gpa, Reason::NoRegion);
        }
        finish(space, &mut cpu);
    }

    #[test]
    fn a_word_is_exchanged_as_if_the_guest_had_written_it() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(40).unwrap();
        add_regions(&mut space, host);
        let (at, other) = (Gpa::new(RAM + 8), Gpa::new(MODULE + 0x10));
        assert_eq!(space.exchange_word(at, 0, 5), Ok(true));
        assert_eq!(space.exchange_word(at, 0, 6), Ok(false));
        let [old] = space.words(other).unwrap();
        assert_eq!(space.exchange_word(other, old, 7), Ok(true));
        let error = |gpa: u64, reason| {
            let gpa = Gpa::new(gpa);
            Err(AccessError { gpa, reason })
        };
        let rom = space.exchange_word(Gpa::new(ROM), 0, 1);
        assert_eq!(rom, error(ROM, Reason::Denied { tag: 5 }));
        let hole = space.exchange_word(Gpa::new(1 << 40), 0, 1);
        assert_eq!(hole, error(1 << 40, Reason::NoRegion));
        // A fork gets its own, and it counts as written.
        let template = space.freeze().ok().unwrap();
        let mut fork = template.fork().unwrap();
        assert_eq!(fork.words(at), Ok([5]));
        assert_eq!(fork.exchange_word(at, 5, 9), Ok(true));
        assert_eq!((fork.words(at), fork.words(other)), (Ok([9]), Ok([7])));
        assert_eq!(template.as_space().words(at), Ok([5]));
        let mut told = vec![];
        fork.harvest_dirty(gpas(RAM, 16 * PAGE_SIZE), |page, _| {
            told.push(page.as_u64())
        })
        .unwrap();
        assert_eq!(told, [RAM]);
        assert!(spaces.audit([template.as_space(), &fork]).is_ok());
        let mut cpu = Cpu::new(0);
        finish(fork, &mut cpu);
        let mut ending = template.end();
        while !ending.step(&mut cpu, 100) {}
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }
}
