//! Templates: spaces that nobody runs any more and that never change, and the forks made of them.
//!
//! A fork is a root of its own whose entries refer to the same tables as the template's. Write is withdrawn from those
//! entries, so all below them is read-only to the fork at once; what it writes is copied, table by table on the way.
//!
//! | a space | its generation | is reset to |
//! |---|---|---|
//! | made by [`Spaces::create`](crate::ept::Spaces::create) | 0 | nothing |
//! | as [`Space::freeze`] makes it a template | one more than it was | |
//! | as [`FrozenSpace::fork`] makes it | the template's | that template |
//! | as [`Space::fork`] makes it | the other space's | nothing |

use crate::addr::{AddrRange, Gpa};
use crate::ept::hw::debt::Invalidate;
use crate::ept::memory::bytes::AccessError;
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::spaces::edit::{EditError, out};
use crate::ept::spaces::end::Ending;
use crate::ept::spaces::space::{Faults, Lineage, Space};
use crate::ept::tables::log::Log;
use crate::ept::tables::tree::Tree;
use crate::ept::templates::error::{FreezeError, ResetError};
use crate::frames::PhysMem;
use crate::paging::TableReadOps;
use crate::paging::{Ept, Nested};

/// A space that nobody runs and that never changes, from which others are forked.
///
/// It ends by [`FrozenSpace::end`]. Its forks may outlive it: what they share with it stays theirs.
#[must_use = "a template that is dropped without `end` leaks its frames"]
pub struct FrozenSpace<'s, M: PhysMem, F: Nested = Ept> {
    /// Its log holds the working set.
    pub(in crate::ept) space: Space<'s, M, F>,
    number: u64,
}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Makes this space a template. Nothing is copied, and the time it takes does not depend on how much memory it has.
    ///
    /// CPUs that ran the space may still have its translations; they are dropped when the template ends, and nobody uses
    /// them before.
    ///
    /// # Errors
    /// Why it cannot be a template, and the space, which is as it was.
    #[allow(clippy::result_large_err)]
    pub fn freeze(mut self) -> Result<FrozenSpace<'s, M, F>, (FreezeError, Self)> {
        if let Some(range) = self.passed_through() {
            return Err((FreezeError::PassThrough(range), self));
        }
        let Some(generation) = self.lineage.generation.checked_add(1) else {
            return Err((FreezeError::TooDeep, self));
        };
        let frames = self.frames;
        self.tree.log.clear(frames);
        self.tree.dirty.release(frames);
        self.tree.stop_zeroing(frames);
        self.tree.tables(frames).withdraw_write();
        let number = self.spaces.next_template();
        self.lineage.generation = generation;
        Ok(FrozenSpace {
            space: self,
            number,
        })
    }

    /// A second space with the same regions and the same memory: nothing is copied before one of the two writes it. Takes
    /// one frame, and the same time however large the memory is.
    ///
    /// This space owes an invalidation then, as writing is withdrawn from all that is shared.
    ///
    /// # Errors
    /// There is no frame for it, or a device passed through, which cannot be in two spaces. Nothing has changed.
    pub fn fork(&mut self) -> Result<Space<'s, M, F>, EditError> {
        if let Some(range) = self.passed_through() {
            return Err(EditError::PassThrough(range));
        }
        let lineage = Lineage {
            template: 0,
            ..self.lineage
        };
        let fork = empty_fork(self, lineage)?;
        let frames = self.frames;
        self.tree.tables(frames).withdraw_write();
        self.tree.dirty.clear_log(frames);
        share(&self.tree, fork)
    }

    fn passed_through(&self) -> Option<AddrRange<Gpa>> {
        let device = |region: &&Region| matches!(region.kind, RegionKind::PassThrough(_));
        self.regions.iter().find(device).map(|region| region.range)
    }
}

/// A space with the same regions, in which nothing is mapped.
#[inline]
fn empty_fork<'s, M: PhysMem, F: Nested>(
    from: &Space<'s, M, F>,
    lineage: Lineage,
) -> Result<Space<'s, M, F>, EditError> {
    let regions = from.regions.share().map_err(out)?;
    let mut tree = Tree::new(from.frames, from.spaces.features).map_err(out)?;
    tree.reach = from.tree.reach;
    tree.policy = from.tree.policy;
    tree.dirty.every_write = from.tree.dirty.every_write;
    Ok(Space {
        spaces: from.spaces,
        frames: from.frames,
        tree,
        regions,
        faults: Faults::default(),
        lineage,
    })
}

/// Has the empty `fork` share what the top table of `from` refers to, from which write has been withdrawn.
#[inline]
fn share<'s, M: PhysMem, F: Nested>(
    from: &Tree<F>,
    mut fork: Space<'s, M, F>,
) -> Result<Space<'s, M, F>, EditError> {
    let frames = fork.frames;
    let mut tables = fork.tree.page_tables(frames);
    if let Err(error) = tables.reference_top(from) {
        drop(tables);
        fork.end_unseen();
        return Err(out(error));
    }
    for (index, entry) in from.top_entries(frames) {
        tables.put(tables.root(), index, entry);
    }
    drop(tables);
    Ok(fork)
}

impl<'s, M: PhysMem, F: Nested> FrozenSpace<'s, M, F> {
    /// A space with the same regions and memory. It takes one frame and the same time, however large the memory is.
    ///
    /// # Errors
    /// There is no frame for it, or a device passed through, which cannot be in two spaces. Nothing has changed.
    pub fn fork(&self) -> Result<Space<'s, M, F>, EditError> {
        let lineage = Lineage {
            template: self.number,
            ..self.space.lineage
        };
        let mut fork = empty_fork(&self.space, lineage)?;
        fork.tree.log = Log::on();
        share(&self.space.tree, fork)
    }

    /// Takes the place of `other`: its forks count as being as many generations from the first template as that one's.
    pub fn in_place_of(mut self, other: &Self) -> Self {
        self.space.lineage.generation = other.generation();
        self
    }

    /// The memory, to be read, counted and audited.
    pub fn as_space(&self) -> &Space<'s, M, F> {
        &self.space
    }

    /// How many templates there are from the first to this one: the generation of its forks.
    pub fn generation(&self) -> u32 {
        self.space.lineage.generation
    }

    /// Copies bytes from `gpa` on out.
    ///
    /// # Errors
    /// As of [`Space::read`].
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), AccessError> {
        self.space.read(gpa, into)
    }

    /// Pays what this CPU owes for the time before the space was frozen, so that frames that waited for it come back.
    pub fn settle(&mut self, cpu: &mut impl Invalidate) {
        self.space.settle(cpu);
    }

    /// Ends the template. What its forks share with it stays theirs.
    pub fn end(self) -> Ending<'s, M, F> {
        self.space.end()
    }

    /// Whether `fork` is one of this template.
    pub(in crate::ept) fn check(&self, fork: &Space<'s, M, F>) -> Result<(), ResetError> {
        match fork.lineage.template {
            0 => Err(ResetError::NotAFork),
            number if number != self.number => Err(ResetError::OtherTemplate),
            _ => Ok(()),
        }
    }
}
