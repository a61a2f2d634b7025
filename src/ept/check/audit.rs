//! Checking what must always hold of spaces, by walking everything.

use crate::addr::{AddrRange, Address, Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::spaces::space::{Space, Spaces};
use crate::ept::tables::entry::AttrOf;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::table::{LEVELS, TableSlot};
use crate::ept::tables::zeroing::Zeroing;
use crate::frames::{Audit, FrameError, Miscount, PhysMem};
use crate::paging::Nested;
use crate::paging::{Content, Decoded, Rights, Write};
use core::fmt;

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A frame's count is not the number of references to it.
    Miscount(Miscount),
    /// An entry refers to a frame that is free or not managed.
    Dangling {
        /// The first address that the entry translates.
        gpa: Gpa,
        /// What is wrong with the frame.
        error: FrameError,
    },
    /// An entry grants write to something that others refer to.
    SharedWritable {
        /// The first address that the entry translates.
        gpa: Gpa,
        /// The shared frame.
        frame: Hpa,
    },
    /// A large leaf leads to more than the block of frames that it refers to.
    NotInBlock {
        /// The first address that the leaf translates.
        gpa: Gpa,
        /// The frame that it leads to.
        frame: Hpa,
    },
    /// A leaf does not agree with the regions.
    Region {
        /// The first address that the leaf translates.
        gpa: Gpa,
        /// The frame that it leads to.
        frame: Hpa,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Miscount(miscount) => write!(f, "{miscount}"),
            Self::Dangling { gpa, error } => {
                write!(f, "the entry for GPA {gpa:#x} is dangling: {error}")
            }
            Self::SharedWritable { gpa, frame } => {
                write!(
                    f,
                    "the entry for GPA {gpa:#x} grants write to frame {frame:#x}, which is shared"
                )
            }
            Self::NotInBlock { gpa, frame } => {
                write!(
                    f,
                    "GPA {gpa:#x} leads to frame {frame:#x} and beyond its block of frames"
                )
            }
            Self::Region { gpa, frame } => {
                write!(
                    f,
                    "GPA {gpa:#x} leads to frame {frame:#x}, which its region does not allow"
                )
            }
        }
    }
}

impl core::error::Error for Flaw {}

/// What a space holds at a moment, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Mapped to the zero page.
    pub zero: u64,
    /// Mapped to frames that were zeroed for it.
    pub filled: u64,
    /// Mapped to copies.
    pub copied: u64,
    /// Mapped to host bytes or devices.
    pub host: u64,
    /// Of the filled and the copied, those whose frames, or the tables on the way to them, others refer to as well.
    pub shared: u64,
    /// Of all these, mapped by large leaves.
    pub large: u64,
    /// Tables, the root included.
    pub tables: u64,
    /// Frames, tables included, that no other space refers to.
    pub private: u64,
}

impl Census {
    /// All mapped pages.
    pub const fn mapped(&self) -> u64 {
        self.zero + self.filled + self.copied + self.host
    }
    /// Bytes of host memory that the space alone holds.
    pub const fn private_bytes(&self) -> u64 {
        self.private * PAGE_SIZE
    }
}

/// A walk over all tables of one space.
struct Walk<'w, 's, M: PhysMem, F: Nested> {
    space: &'w Space<'s, M, F>,
    census: Census,
    /// Of the way to the last table of each level, less 1: whether all on it have a count of 1, and whether the audit is to be
    /// told what refers to what.
    private: [bool; LEVELS as usize],
    audited: [bool; LEVELS as usize],
}

impl<M: PhysMem, F: Nested> Walk<'_, '_, M, F> {
    /// Walks all tables. `audit` is told of each reference, but of those in tables that it was told of before.
    fn all(space: &Space<'_, M, F>, mut audit: Option<&mut Audit<'_, M>>) -> Result<Census, Flaw> {
        let mut walk = Walk {
            space,
            census: Census::default(),
            private: [true; _],
            audited: [audit.is_some(); _],
        };
        let top = space.tree.view(space.frames);
        walk.enter(top.address(), top.level(), true);
        let last = Gpa::new((1 << 48) - 1);
        top.walk(Gpa::new(0), last, &mut |slot| walk.slot(slot, &mut audit))?;
        Ok(walk.census)
    }

    /// The walk goes into a table.
    fn enter(&mut self, table: Hpa, level: u8, private: bool) {
        let private = private && self.space.frames.count(table) == 1;
        self.private[level as usize - 1] = private;
        self.census.tables += 1;
        self.census.private += u64::from(private);
    }

    fn slot(
        &mut self,
        slot: TableSlot<'_, M, F>,
        audit: &mut Option<&mut Audit<'_, M>>,
    ) -> Result<bool, Flaw> {
        let frames = self.space.frames;
        let (gpa, level) = (slot.gpa, slot.table.level());
        let here = level as usize - 1;
        let mut first = |frame| match audit {
            Some(audit) if self.audited[here] => audit
                .reference(frame)
                .map_err(|error| Flaw::Dangling { gpa, error }),
            _ => Ok(false),
        };
        match slot.says {
            Decoded::Table { table, rights } => {
                self.audited[here - 1] = first(table)?;
                if rights.contains(Rights::WRITE) && frames.count(table) != 1 {
                    return Err(Flaw::SharedWritable { gpa, frame: table });
                }
                self.enter(table, level - 1, self.private[here]);
                Ok(true)
            }
            Decoded::Content(Content::Page { phys, attr }) => {
                let pages = slot.table.size().bytes() / PAGE_SIZE;
                let origin = Origin::of(attr);
                if origin.is_counted() {
                    first(phys)?;
                    if self.private[here] && frames.count(phys) == 1 {
                        self.census.private += pages;
                    } else if origin != Origin::Zero {
                        self.census.shared += pages;
                    }
                }
                self.leaf(gpa, phys, attr, pages)?;
                Ok(false)
            }
            Decoded::Content(_) => Err(Flaw::Region {
                gpa,
                frame: Hpa::new(0),
            }),
        }
    }

    fn leaf(&mut self, gpa: Gpa, phys: Hpa, attr: AttrOf<F>, pages: u64) -> Result<(), Flaw> {
        let space = self.space;
        let wrong = Flaw::Region { gpa, frame: phys };
        let region = space.regions.find(gpa).ok_or(wrong)?;
        let leaf = AddrRange::new(gpa, pages * PAGE_SIZE).ok_or(wrong)?;
        let writable = attr.write() == Write::Allowed;
        // In all else a leaf is as its region has it.
        let like = |page: AttrOf<F>, attr: AttrOf<F>| {
            F::with_fetch(page, attr.execute())
                .with_write(attr.write())
                .with_accessed(attr.accessed())
                .with_dirty(attr.dirty())
                .with_soft(attr.soft())
        };
        let allowed = region.range.contains_range(leaf)
            && (!writable || region.is_writable())
            && (!attr.execute() || region.execute)
            && F::page(region.memory_type).is_some_and(|page| attr == like(page, attr))
            && (pages == 1 || space.spaces.features.execute_large || !attr.execute());
        let origin = Origin::of(attr);
        let at = region
            .kind
            .host()
            .and_then(|host| host.start().checked_add(region.offset(gpa)));
        let zero = space.spaces.zero.address();
        let right = match origin {
            Origin::Zero => phys == zero && !writable,
            Origin::Filled | Origin::Copied => region.kind.is_memory() && phys != zero,
            Origin::Host => at == Some(phys) && !(writable && region.kind.is_memory()),
        };
        if !allowed || !right {
            return Err(wrong);
        }
        let frames = space.frames;
        let in_block = |(head, size): (Hpa, PageSize)| {
            AddrRange::new(head, size.bytes())
                .zip(AddrRange::new(phys, leaf.len()))
                .is_some_and(|(block, leaf)| block.contains_range(leaf))
        };
        if origin.is_counted() && !frames.block(phys).is_some_and(in_block) {
            return Err(Flaw::NotInBlock { gpa, frame: phys });
        }
        if writable && origin.is_counted() && frames.count(phys) != 1 {
            return Err(Flaw::SharedWritable { gpa, frame: phys });
        }
        let counter = match origin {
            Origin::Zero => &mut self.census.zero,
            Origin::Filled => &mut self.census.filled,
            Origin::Copied => &mut self.census.copied,
            Origin::Host => &mut self.census.host,
        };
        *counter += pages;
        self.census.large += if pages > 1 { pages } else { 0 };
        Ok(())
    }
}

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Counts what the space holds, and checks what can be checked of it alone.
    ///
    /// # Errors
    /// What does not hold.
    pub fn census(&self) -> Result<Census, Flaw> {
        Walk::all(self, None)
    }

    /// How many pages of 4 KiB are mapped.
    ///
    /// # Errors
    /// The first flaw of the tables.
    pub fn mapped_page_count(&self) -> Result<u64, Flaw> {
        self.census().map(|census| census.mapped())
    }
}

impl<M: PhysMem, F: Nested> Spaces<'_, M, F> {
    /// Checks what must always hold, over all spaces there are (it must be all): every frame's count equals the references to
    /// it, no path grants write to what is shared, and every leaf is what its region says. Nothing may run meanwhile.
    ///
    /// Returns how many frames are in use that are not the spaces': the caller knows how many it holds.
    ///
    /// # Errors
    /// The first flaw: of the tables, of a frame's count, or of what is owed.
    pub fn audit<'a, 's: 'a>(
        &'a self,
        spaces: impl IntoIterator<Item = &'a Space<'s, M, F>>,
    ) -> Result<u64, Flaw>
    where
        M: 's,
    {
        let mut audit = self.frames().audit();
        let at_root = |error| Flaw::Dangling {
            gpa: Gpa::new(0),
            error,
        };
        audit.reference(self.zero.address()).map_err(at_root)?;
        for space in spaces {
            let mem = self.frames().mem();
            let logs = space.tree.log.records().frames(mem);
            let logs = logs.chain(space.tree.dirty.frames(mem));
            let zeroing = space.tree.zeroing.as_ref().map(Zeroing::block);
            for frame in [space.regions.frame(), space.tree.root()]
                .into_iter()
                .chain(zeroing)
                .chain(logs)
            {
                audit.reference(frame).map_err(at_root)?;
            }
            Walk::all(space, Some(&mut audit))?;
        }
        audit.finish().map_err(Flaw::Miscount)
    }
}
