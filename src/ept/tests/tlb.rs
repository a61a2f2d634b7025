//! A model of what CPUs cache of EPT or nested page tables, for tests: guest-physical mappings, combined mappings by linear address, and
//! pointers to the lowest tables. It keeps everything as long as it is allowed to, which no emulator does.

use crate::addr::{Gpa, Hpa};
use crate::ept::hw::capability::Eptp;
use crate::ept::hw::debt::{CpuId, Invalidate};
use crate::ept::hw::violation::{Access, Violation};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{PteOf, decode};
use crate::ept::tests::TestFormat;
use crate::frames::PhysMem;
use crate::frames::arena::Arena;
use crate::paging::{Content, Decoded, DecodedOf, Entry, Ept, Format, Layout, Rights};
use std::collections::HashMap;
use std::marker::PhantomData;

/// Pages that the log of a CPU has room for: few, so that it is often full.
const LOG_SIZE: usize = 3;

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    frame: Hpa,
    rights: Rights,
    /// The leaf was dirty already, or this CPU has marked it: it is not marked again.
    dirty: bool,
}

/// A CPU and what it has cached.
#[derive(Debug)]
pub(in crate::ept) struct Cpu<F = Ept> {
    id: CpuId,
    physical: HashMap<(Hpa, u64), Cached>,
    combined: HashMap<(Hpa, u64), (u64, Cached)>,
    tables: HashMap<(Hpa, u64), Cached>,
    /// Whether it logs the pages that it marks, and those that it has logged for the guest that it ran last.
    logs: bool,
    log: Vec<Gpa>,
    /// Times that the log was full before a page could be marked.
    pub full: u64,
    /// INVEPTs and INVVPIDs asked for so far.
    pub flushes: u64,
    /// Those of them that are INVVPIDs.
    pub invvpids: u64,
    /// The flush that is left out.
    pub skip: Option<u64>,
    format: PhantomData<F>,
}

// SAFETY: no real CPU runs anything here; the model drops what it is told to, unless a test is about that it does not.
unsafe impl<F: TestFormat> Invalidate for Cpu<F> {
    fn cpu(&self) -> CpuId {
        self.id
    }
    fn invept(&mut self, eptp: Eptp) {
        if self.is_done() {
            self.physical.retain(|(root, _), _| *root != eptp.root());
            self.combined.retain(|(root, _), _| *root != eptp.root());
            self.tables.retain(|(root, _), _| *root != eptp.root());
        }
    }
    /// Drops nothing that was not cached by a linear address (SDM "Operations that Need Not Invalidate Cached Mappings").
    fn invvpid(&mut self, eptp: Eptp) {
        self.invvpids += 1;
        if self.is_done() {
            self.combined.retain(|(root, _), _| *root != eptp.root());
        }
    }
}

impl<F: TestFormat> Cpu<F> {
    /// Counts a flush, and says whether it is one that is done.
    fn is_done(&mut self) -> bool {
        self.flushes += 1;
        self.skip != Some(self.flushes - 1)
    }
}

fn read<F: TestFormat>(mem: &Arena, table: Hpa, gpa: u64, level: u8) -> DecodedOf<F> {
    let index = gpa >> (12 + 9 * (level - 1)) & 511;
    // SAFETY: tables of a space that is alive, or what a CPU still takes for one: in the arena at any rate.
    let bits = unsafe {
        mem.ptr(Hpa::new(table.as_u64() + index * 8))
            .cast::<u64>()
            .read_volatile()
    };
    // A frame that is no table any more may hold anything.
    decode::<F>(level, PteOf::<F>::from_bits(bits))
}

/// Walks from `table` of `level`: the translation, and the lowest table with what the entries above it grant.
fn walk<F: TestFormat>(
    mem: &Arena,
    mut table: Hpa,
    mut level: u8,
    mut rights: Rights,
    gpa: u64,
) -> Option<(Cached, Option<Cached>)> {
    let mut lowest = None;
    loop {
        match read::<F>(mem, table, gpa, level) {
            Decoded::Table {
                table: next,
                rights: granted,
            } => {
                table = next;
                level -= 1;
                rights = rights.and(granted);
                if level == 1 {
                    lowest = Some(Cached {
                        frame: table,
                        rights,
                        dirty: false,
                    });
                }
            }
            Decoded::Content(Content::Page { phys, attr }) => {
                let offset = gpa & ((1 << (12 + 9 * (level - 1))) - 1) & !0xfff;
                let frame = Hpa::new(phys.as_u64() + offset);
                return Some((
                    Cached {
                        frame,
                        rights: rights.and(F::rights(attr)),
                        dirty: attr.dirty(),
                    },
                    lowest,
                ));
            }
            Decoded::Content(_) => return None,
        }
    }
}

/// Marks the leaf for `gpa` dirty, as the CPU does at the first write that it does not know to be marked.
fn mark<F: TestFormat>(mem: &Arena, mut table: Hpa, gpa: u64) {
    for level in (1..=4).rev() {
        let index = gpa >> (12 + 9 * (level - 1)) & 511;
        match read::<F>(mem, table, gpa, level) {
            Decoded::Table { table: next, .. } => table = next,
            Decoded::Content(_) => {
                let word = mem.ptr(Hpa::new(table.as_u64() + index * 8)).cast::<u64>();
                // SAFETY: as in `read`; nothing else runs.
                unsafe { word.write_volatile(word.read_volatile() | F::Layout::DIRTY) };
                return;
            }
        }
    }
}

fn wanted(access: Access) -> Rights {
    let read = Rights::READ.when(access.read);
    read.or(Rights::WRITE.when(access.write))
        .or(Rights::EXECUTE.when(access.fetch))
}

impl<F: TestFormat> Cpu<F> {
    pub fn new(id: u8) -> Self {
        Self {
            id: CpuId::new(id).unwrap(),
            physical: HashMap::new(),
            combined: HashMap::new(),
            tables: HashMap::new(),
            logs: false,
            log: Vec::new(),
            full: 0,
            flushes: 0,
            invvpids: 0,
            skip: None,
            format: PhantomData,
        }
    }

    /// Whether anything cached for this pointer differs from the tables as they are.
    pub fn is_stale(&self, eptp: Eptp, mem: &Arena) -> bool {
        let root = eptp.root();
        let now = |page: u64| walk::<F>(mem, root, 4, Rights::ALL, page << 12);
        // Of a page that cannot be written it does not matter whether it is known to be marked.
        let marked = |cached: &Cached| {
            cached.dirty && cached.rights.contains(Rights::WRITE) && F::marks(eptp)
        };
        // Less than the tables grant is no harm: it makes a violation.
        let good = |cached: &Cached, page: u64| {
            now(page).is_some_and(|(now, _)| {
                now.frame == cached.frame
                    && now.rights.contains(cached.rights)
                    && (now.dirty || !marked(cached))
            })
        };
        let physical = self
            .physical
            .iter()
            .filter(|((r, _), _)| *r == root)
            .all(|((_, page), c)| good(c, *page));
        let combined = self
            .combined
            .iter()
            .filter(|((r, _), _)| *r == root)
            .all(|(_, (page, c))| good(c, *page));
        let lowest = |gpa: u64| {
            let (mut table, mut level) = (root, 4);
            while level > 1 {
                match read::<F>(mem, table, gpa, level) {
                    Decoded::Table { table: next, .. } => (table, level) = (next, level - 1),
                    Decoded::Content(_) => return None,
                }
            }
            Some(table)
        };
        let tables = self
            .tables
            .iter()
            .filter(|((r, _), _)| *r == root)
            .all(|((_, at), c)| lowest(at << 21) == Some(c.frame));
        !(physical && combined && tables)
    }

    /// What the CPU does for an access by a running guest: the frame, or a violation.
    pub fn access(
        &mut self,
        eptp: Eptp,
        mem: &Arena,
        gva: u64,
        gpa: u64,
        access: Access,
    ) -> Result<Hpa, Violation> {
        let root = eptp.root();
        let (page, linear) = (gpa >> 12, gva >> 12);
        let cached = self
            .combined
            .get(&(root, linear))
            .filter(|(of, _)| *of == page)
            .map(|(_, cached)| *cached)
            .or_else(|| self.physical.get(&(root, page)).copied());
        let found = cached.or_else(|| {
            // A pointer to the lowest table is used as long as it is cached.
            let (found, lowest) = match self.tables.get(&(root, gpa >> 21)) {
                Some(table) => walk::<F>(mem, table.frame, 1, table.rights, gpa)?,
                None => walk::<F>(mem, root, 4, Rights::ALL, gpa)?,
            };
            if let Some(lowest) = lowest {
                self.tables.insert((root, gpa >> 21), lowest);
            }
            Some(found)
        });
        match found {
            Some(mut found) if found.rights.contains(wanted(access)) => {
                if access.write && F::marks(eptp) && !found.dirty {
                    if self.logs {
                        assert!(self.log.len() < LOG_SIZE);
                        self.log.push(Gpa::new(gpa & !0xfff));
                    }
                    mark::<F>(mem, root, gpa);
                    found.dirty = true;
                }
                self.physical.insert((root, page), found);
                self.combined.insert((root, linear), (page, found));
                Ok(found.frame)
            }
            _ => {
                // A violation drops what would be used for the address, and no more (SDM 30.4.3.1).
                self.physical.remove(&(root, page));
                self.combined.remove(&(root, linear));
                self.tables.remove(&(root, gpa >> 21));
                let rights = found.map_or(Rights::NONE, |found| found.rights);
                Err(F::violation(Gpa::new(gpa), access, rights))
            }
        }
    }

    /// Hands what it has logged for the space to it.
    pub fn unload(&mut self, space: &mut Space<'_, Arena, F>) {
        for gpa in self.log.drain(..) {
            space.note_logged(gpa);
        }
    }

    /// Runs one access of the guest to its end: enters, exits with violations, resolves them. Returns the frame, or the
    /// violation that could not be resolved.
    pub fn run(
        &mut self,
        space: &mut Space<'_, Arena, F>,
        gva: u64,
        gpa: u64,
        access: Access,
    ) -> Result<Hpa, crate::ept::Unresolved> {
        // One violation for the page, one for each time that a table was moved, and those in which a large page is zeroed are
        // plenty.
        self.logs = space.logs_dirty();
        for _ in 0..8 {
            // The CPU exits before it marks a page that it cannot log.
            if self.log.len() == LOG_SIZE {
                self.full += 1;
                self.unload(space);
            }
            let mem = space.frames.mem();
            let eptp = space.enter(self).eptp();
            match self.access(eptp, mem, gva, gpa, access) {
                Ok(frame) => return Ok(frame),
                Err(violation) => {
                    let resolution = space.resolve(&violation)?;
                    assert!(
                        matches!(resolution, crate::ept::Resolution::Retry(_)),
                        "{resolution:?}"
                    );
                }
            }
        }
        panic!("{access} at {gpa:#x} never succeeds")
    }
}
