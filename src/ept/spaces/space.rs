//! A space, and what all spaces of a machine share.

use crate::addr::{AddrRange, Gpa};
use crate::ept::hw::capability::{Capability, Eptp, Features};
use crate::ept::hw::debt::Invalidate;
use crate::ept::hw::mtrr::Mtrrs;
use crate::ept::regions::map::Regions;
use crate::ept::regions::region::{DeviceRange, Region, RegionError, RegionKind};
use crate::ept::tables::policy::PagePolicy;
use crate::ept::tables::tree::Tree;
use crate::frames::{FrameAllocator, FrameError, FrameGuard, PhysMem};
use crate::paging::MemoryType;
use crate::paging::{Ept, Nested};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// What all spaces share: the frames, the zero page, and what the CPU can do.
pub struct Spaces<'f, M: PhysMem, F: Nested = Ept> {
    /// The zero page.
    pub(in crate::ept) zero: FrameGuard<'f, M>,
    pub(in crate::ept) features: Features,
    format: PhantomData<F>,
    mtrrs: Option<Mtrrs>,
    /// The number of the last template.
    templates: AtomicU64,
}

impl<'f, M: PhysMem, F: Nested> Spaces<'f, M, F> {
    /// Takes the frame that stands for all untouched memory.
    ///
    /// # Errors
    /// There is no frame for it.
    pub fn new(
        frames: &'f FrameAllocator<M>,
        capability: impl Capability<Format = F>,
    ) -> Result<Self, FrameError> {
        Ok(Self {
            zero: FrameGuard::new(frames, frames.alloc_zeroed()?),
            features: capability.features(),
            format: PhantomData,
            mtrrs: None,
            templates: AtomicU64::new(0),
        })
    }

    /// The same with what the machine says of memory types: devices that are passed through may then have the type that
    /// the machine gives them. Without it they are uncacheable or write-combining.
    pub fn with_mtrrs(self, mtrrs: Mtrrs) -> Self {
        Self {
            mtrrs: Some(mtrrs),
            ..self
        }
    }

    /// A space without regions, in which a guest-physical address has `width` bits (at most 48, and what the CPU has).
    ///
    /// # Errors
    /// There is no frame for its root.
    pub fn create(&self, width: u32) -> Result<Space<'_, M, F>, FrameError> {
        Ok(Space {
            spaces: self,
            frames: self.frames(),
            regions: Regions::new(
                self.frames(),
                width.min(48).min(self.features.physical_bits.into()),
            )?,
            tree: Tree::new(self.frames(), self.features)?,
            faults: Faults::default(),
            lineage: Lineage::default(),
        })
    }

    /// The allocator.
    pub fn frames(&self) -> &'f FrameAllocator<M> {
        self.zero.frames()
    }

    /// What the CPU can do.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The number of a new template: no other ever has it.
    pub(in crate::ept) fn next_template(&self) -> u64 {
        self.templates.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What violations of one space came to, by count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads of untouched memory that were given the zero page.
    pub zero_shared: u64,
    /// Writes to untouched memory that were given a zeroed frame.
    pub filled: u64,
    /// Pages copied on a write.
    pub copied: u64,
    /// Pages made writable in place, because nobody else referred to them any more.
    pub taken_over: u64,
    /// Pages of host bytes or of a device that were mapped.
    pub host_mapped: u64,
    /// Accesses handed to device models.
    pub mmio: u64,
    /// Pages of RAM that were mapped along with one that was touched: see [`Space::set_around`].
    pub around: u64,
    /// Violations of what was mapped already.
    pub spurious: u64,
    /// Violations that could not be resolved.
    pub refused: u64,
}

/// What a space was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ept) struct Lineage {
    /// How many templates are above it.
    pub generation: u32,
    /// The number of the template that it is a fork of; 0: of none.
    pub template: u64,
}

impl Faults {
    /// Adds those of another space.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.zero_shared, other.zero_shared),
            (&mut self.filled, other.filled),
            (&mut self.copied, other.copied),
            (&mut self.taken_over, other.taken_over),
            (&mut self.host_mapped, other.host_mapped),
            (&mut self.mmio, other.mmio),
            (&mut self.around, other.around),
            (&mut self.spurious, other.spurious),
            (&mut self.refused, other.refused),
        ] {
            *sum += more;
        }
    }
}

/// A guest's physical address space.
///
/// It ends by [`Space::end`]; one that is merely dropped leaks its frames.
#[must_use = "a space that is dropped without `end` leaks its frames"]
pub struct Space<'s, M: PhysMem, F: Nested = Ept> {
    pub(in crate::ept) spaces: &'s Spaces<'s, M, F>,
    /// Those of `spaces`.
    pub(in crate::ept) frames: &'s FrameAllocator<M>,
    pub(in crate::ept) tree: Tree<F>,
    pub(in crate::ept) regions: Regions<'s, M, F>,
    pub(in crate::ept) faults: Faults,
    pub(in crate::ept) lineage: Lineage,
}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Gives a range of addresses to a region. It must not overlap another, and host memory behind it must not be memory whose
    /// frames are handed out: a guest could else come by the frames of the host or of another guest. Nothing is put into
    /// the tables before the first touch. Neighbours that differ in nothing are one region from then on.
    ///
    /// # Errors
    /// What is wrong with the region. Nothing has changed.
    pub fn map(&mut self, region: Region) -> Result<(), RegionError> {
        if let Some(host) = region.kind.host() {
            let width = self.spaces.features.physical_bits;
            let last = host.last().unwrap_or(host.start());
            if last.as_u64() >> width != 0 {
                return Err(RegionError::HostTooWide { range: host, width });
            }
            if self.frames.overlaps(host) {
                return Err(RegionError::HostManaged(host));
            }
        }
        self.check_memory_type(&region)?;
        // What is refused leaves a fork with the regions of its template, and with its frames.
        let mut regions = *self.regions;
        regions.add(region)?;
        *self.regions.change()? = regions;
        self.tree.reach.include(region.range);
        Ok(())
    }

    /// Gives the guest a device at the addresses that it has in the host: write-combining where the machine has all of it
    /// so, as the memory of a screen, and the tables have that type; else uncacheable.
    ///
    /// # Errors
    /// As of [`Space::map`].
    pub fn identity_map_range(&mut self, device: DeviceRange) -> Result<(), RegionError> {
        let host = device.range();
        let range = AddrRange::new(Gpa::new(host.start().as_u64()), host.len());
        let range = range.ok_or(RegionError::HostRange(host))?;
        let machine = self
            .spaces
            .mtrrs
            .as_ref()
            .and_then(|mtrrs| mtrrs.type_of(host));
        let memory_type = match machine {
            Some(combining @ MemoryType::WriteCombining) if F::page(combining).is_some() => {
                combining
            }
            _ => MemoryType::Uncacheable,
        };
        self.map(Region {
            memory_type,
            ..Region::new(range, RegionKind::PassThrough(device))
        })
    }

    fn check_memory_type(&self, region: &Region) -> Result<(), RegionError> {
        let (range, memory_type) = (region.range, region.memory_type);
        let (host, mtrrs) = (region.kind.host(), self.spaces.mtrrs.as_ref());
        let of_machine = host.and_then(|host| mtrrs?.type_of(host)) == Some(memory_type);
        let right = match (region.kind, memory_type) {
            // Nothing is mapped.
            (RegionKind::Mmio, _) => true,
            _ if F::page(memory_type).is_none() => false,
            (RegionKind::PassThrough(_), MemoryType::Uncacheable) => true,
            (RegionKind::PassThrough(_), MemoryType::WriteCombining) => {
                mtrrs.is_none_or(|mtrrs| mtrrs.offers(memory_type))
            }
            (RegionKind::PassThrough(_), _) => of_machine,
            // The host reads and writes these frames too, as write-back; two types for one frame are undefined. So would
            // it be if the machine had another for the host's bytes.
            (_, MemoryType::WriteBack) => host.is_none() || mtrrs.is_none() || of_machine,
            _ => false,
        };
        right
            .then_some(())
            .ok_or(RegionError::MemoryType { range, memory_type })
    }

    /// The regions, in order of their addresses.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }

    /// The region that `gpa` is in.
    pub fn region_at(&self, gpa: Gpa) -> Option<&Region> {
        self.regions.find(gpa)
    }

    /// Bits of a guest-physical address.
    pub fn width(&self) -> u32 {
        self.regions.width()
    }

    /// Chooses of what size the pages are that a first write is given. Returns what comes of that on this CPU.
    pub fn set_page_policy(&mut self, policy: PagePolicy) -> PagePolicy {
        self.tree.policy.pages = policy.on(self.spaces.features);
        self.tree.policy.pages
    }

    /// The pointer to the tables: EPTP or N_CR3. Only [`Space::enter`] gives the right to run the guest with it.
    pub fn eptp(&self) -> Eptp {
        self.tree.eptp
    }

    /// What violations came to so far.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// How many templates it has above it: 0 where it is no fork of one.
    pub fn generation(&self) -> u32 {
        self.lineage.generation
    }

    /// INVEPTs executed for this space so far.
    pub fn invalidations(&self) -> u64 {
        self.tree.debt.paid
    }

    /// INVVPIDs executed for this space so far, where an INVEPT would have dropped more than is stale.
    pub fn linear_invalidations(&self) -> u64 {
        self.tree.debt.paid_by_invvpid
    }

    /// Pays what this CPU owes now rather than when the guest is entered next: frames that wait for it come back.
    pub fn settle(&mut self, cpu: &mut impl Invalidate) {
        let eptp = self.eptp();
        self.tree.debt.pay(eptp, cpu, self.frames);
    }

    /// Makes it right to run the guest on this CPU: pays what invalidation this CPU owes. As long as the result lives, the
    /// space cannot be changed.
    #[inline]
    pub fn enter(&mut self, cpu: &mut impl Invalidate) -> Entered<'_> {
        let eptp = self.eptp();
        self.tree.debt.pay(eptp, cpu, self.frames);
        self.tree.debt.run_on(cpu.cpu());
        Entered {
            eptp,
            space: PhantomData,
        }
    }
}

/// The right to run a guest in its space on this CPU, which owes no invalidation.
#[must_use]
#[derive(Debug)]
pub struct Entered<'a> {
    eptp: Eptp,
    space: PhantomData<&'a mut ()>,
}

impl Entered<'_> {
    /// The pointer to the tables to run with: EPTP or N_CR3.
    pub const fn eptp(&self) -> Eptp {
        self.eptp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_what_violations_came_to_leaves_none_out() {
        let each = Faults {
            zero_shared: 1,
            filled: 2,
            copied: 3,
            taken_over: 4,
            host_mapped: 5,
            mmio: 6,
            around: 7,
            spurious: 8,
            refused: 9,
        };
        let mut sum = Faults::default();
        sum.add(&each);
        assert_eq!(sum, each);
    }
}
