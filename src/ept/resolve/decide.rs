//! Resolving EPT violations: one look at the region, one descent of the tables.

use crate::addr::{Address, Gpa, PAGE_SIZE};
use crate::ept::error::Reason;
use crate::ept::hw::violation::{NOT_DATA, TRANSLATION, Violation};
use crate::ept::regions::region::RegionKind;
use crate::ept::resolve::outcome::{Fill, Resolution, Unresolved};
use crate::ept::spaces::space::Space;
use crate::frames::PhysMem;

impl<M: PhysMem> Space<'_, M> {
    /// Makes the access possible that the guest was denied, if it may have it. Who can promise that the violation is
    /// what the guest was stopped by has [`Space::fill`] for the frequent ones.
    pub fn resolve(&mut self, violation: &Violation) -> Result<Resolution, Unresolved> {
        if let Some(fill) = self.short_way(violation.qualification, violation.gpa) {
            self.tree.debt.distrust_violation();
            return Ok(Resolution::Retry(fill));
        }
        self.resolve_rest(violation)
    }

    /// As [`Space::resolve`], where [`Space::fill`] could not do it.
    pub fn resolve_rest(&mut self, violation: &Violation) -> Result<Resolution, Unresolved> {
        let done = self.decide(violation);
        match done {
            Ok(Resolution::Retry(fill)) => self.count(fill),
            Ok(Resolution::Mmio { .. }) => self.faults.mmio += 1,
            Err(_) => self.faults.refused += 1,
        }
        done.map_err(|reason| Unresolved {
            violation: *violation,
            reason,
        })
    }

    /// The tag of the region of a device and how far into it `gpa` is, if a violation with this exit qualification is the
    /// access of an instruction to one: the frequent case of [`Resolution::Mmio`].
    #[inline]
    pub fn device(&mut self, qualification: u64, gpa: Gpa) -> Option<(u32, u64)> {
        if qualification & (TRANSLATION | NOT_DATA) != TRANSLATION {
            return None;
        }
        let region = &self.regions.find_often(gpa)?.region;
        if !matches!(region.kind, RegionKind::Mmio) {
            return None;
        }
        let found = (region.tag, region.offset(gpa));
        self.faults.mmio += 1;
        Some(found)
    }

    #[inline]
    fn decide(&mut self, violation: &Violation) -> Result<Resolution, Reason> {
        let gpa = violation.gpa;
        let known = self.regions.find_often(gpa).ok_or(Reason::NoRegion)?;
        let (region, access) = (&known.region, violation.access);
        let tag = region.tag;
        if matches!(region.kind, RegionKind::Mmio) {
            // A fetch cannot be emulated, and neither can a walk of page tables in registers.
            return if access.fetch || violation.is_page_walk() {
                Err(Reason::NotMemory { tag })
            } else {
                Ok(Resolution::Mmio {
                    tag,
                    offset: region.offset(gpa),
                })
            };
        }
        if let Some(reason) = region.refusal(access) {
            return Err(reason);
        }
        // Controls that no guest is given (SDM "Guest-Paging Verification", "EPT and Shadow Stacks") cannot be satisfied by
        // a mapping, and trying again would not end.
        if violation.paging_verification || violation.shadow_stack {
            return Err(Reason::Denied { tag });
        }
        self.tree
            .provide(&self.spaces, known, gpa.align_down(PAGE_SIZE), access)
            .map(Resolution::Retry)
    }

    fn count(&mut self, fill: Fill) {
        let counter = match fill {
            Fill::Present => &mut self.faults.spurious,
            Fill::ZeroShared => &mut self.faults.zero_shared,
            Fill::Zeroed => &mut self.faults.filled,
            Fill::Copied => &mut self.faults.copied,
            Fill::TakenOver => &mut self.faults.taken_over,
            Fill::HostMapped => &mut self.faults.host_mapped,
            Fill::Zeroing => return,
        };
        *counter += 1;
    }
}
