//! What is done about a violation.
//!
//! One look at what is behind the page ([`Backing`](crate::ept::regions::backing::Backing<F>)) and one at the slot of the tables
//! that translates it ([`Tree::slot`](crate::ept::tables::tree::Tree::slot)) decide, in [`Space::provide`]:
//!
//! | the slot holds | access | behind it: zeroes | host bytes | the last host bytes | a device |
//! |---|---|---|---|---|---|
//! | nothing | read, fetch | the zero page | the bytes, and those beside | a copy | the device |
//! | nothing | write | a zeroed frame | a copy | a copy | the device |
//! | the zero page | write | a zeroed frame | | | |
//! | the host's | write | | a copy | | the device, writable |
//! | a frame of others too | write | a copy | a copy | a copy | |
//! | a frame of its own | write | that, writable | that, writable | that, writable | |
//! | what may be written | write | it is there | it is there | it is there | it is there |
//! | a page | read, fetch | it is there | it is there | it is there | it is there |
//!
//! Where no slot is there that may be written in place, as tables are missing or shared or a large page is above, it is made
//! first ([`Space::open_slot`]). An access that the region does not allow, or that is to a device model, is not looked up in the
//! tables at all ([`Space::decide`]).

use crate::ept::error::Reason;
use crate::ept::hw::violation::Violation;
use crate::ept::regions::backing::Source;
use crate::ept::resolve::outcome::{Fill, Resolution, Unresolved};
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::Holds;
use crate::frames::PhysMem;
use crate::paging::Nested;

/// Access to data, in the decision.
const READ: bool = false;
const WRITE: bool = true;

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Makes the access possible that the guest was denied, if it may have it.
    ///
    /// # Errors
    /// It may not, or the host has no frame for it: the guest has to be stopped. Its memory is as it was.
    #[inline(always)]
    pub fn resolve(&mut self, violation: &Violation) -> Result<Resolution, Unresolved> {
        if self.regions.backing().allows(violation)
            && let Some(fill) = self.provide::<true>(*violation)
        {
            return Ok(Resolution::Retry(fill));
        }
        self.look_closer(*violation)
    }

    /// The violation may be of another region than the last, or of what its region does not allow, or the tables for it are not
    /// ready, or there is no frame.
    #[inline(never)]
    fn look_closer(&mut self, violation: Violation) -> Result<Resolution, Unresolved> {
        self.decide(violation).map_err(|reason| {
            self.faults.refused += 1;
            Unresolved { violation, reason }
        })
    }

    fn decide(&mut self, violation: Violation) -> Result<Resolution, Reason> {
        let gpa = violation.gpa();
        let backing = *self.regions.look_up(gpa).ok_or(Reason::NoRegion)?;
        let tag = backing.tag;
        if backing.source() == Source::Model {
            // A fetch cannot be emulated, and neither can a walk of page tables in registers.
            if violation.access().fetch || violation.is_page_walk() {
                return Err(Reason::NotMemory { tag });
            }
            self.faults.mmio += 1;
            let offset = backing.offset(gpa);
            return Ok(Resolution::Mmio { tag, offset });
        }
        let region = self.regions.find(gpa).ok_or(Reason::NoRegion)?;
        if let Some(reason) = region.refusal(violation.access()) {
            return Err(reason);
        }
        if violation.is_beyond_us() {
            return Err(Reason::Denied { tag });
        }
        let fill = self.provide_or_open(violation)?;
        Ok(if violation.is_special() {
            Resolution::Special(fill)
        } else {
            Resolution::Retry(fill)
        })
    }

    /// Makes the page accessible also where the tables for it are not ready. On an error the guest's memory is as it was.
    fn provide_or_open(&mut self, violation: Violation) -> Result<Fill, Reason> {
        if let Some(fill) = self.open_slot(violation)? {
            return Ok(fill);
        }
        // More may be owed than for a violation.
        self.provide::<false>(violation.past())
            .ok_or(Reason::OutOfFrames)
    }

    /// The same for the host, which may write all memory, where [`Regions::look_up`](crate::ept::regions::map::Regions::look_up)
    /// has found what is behind the page. That is no violation, so it does not count as one.
    #[inline(never)]
    pub(in crate::ept) fn provide_to_host(&mut self, violation: Violation) -> Result<Fill, Reason> {
        let faults = self.faults;
        let done = self.provide_or_open(violation);
        self.faults = faults;
        done
    }

    /// Makes the page accessible that the violation is of, as the last look-up of a region says; with `RUNS`, those that follow
    /// too where the guest goes through its memory. `None`, and nothing has changed: there is no slot that may be written in
    /// place, or no frame.
    #[inline(always)]
    fn provide<const RUNS: bool>(&mut self, violation: Violation) -> Option<Fill> {
        use Holds::{Frame, Hole, Host, Writable, ZeroPage};
        use Source::{HostPage, Zeroes};
        let last = self.tree.last_page();
        self.tree.find_slot(self.frames, violation.gpa())?;
        let slot = self.tree.slot(self.frames, violation.gpa());
        let follows = RUNS && slot.number == last.wrapping_add(1);
        // The frequent ones first.
        let source = self.regions.backing().source();
        match (Holds::of(slot.entry()), source, violation.is_write()) {
            (Hole, Zeroes, write) if follows => self.fill_run(slot, last, write),
            (Hole, Zeroes, WRITE) => self.fill(slot),
            (Hole, Zeroes, READ) => self.map_zero_page(slot),
            (Frame, _, WRITE) => self.copy_or_take_over(violation, slot),
            (ZeroPage, _, WRITE) => self.replace_zero_page(violation, slot),
            (Hole | Host, HostPage(_), WRITE) => self.copy_host_page(violation, slot),
            (Hole, _, _) | (Host, _, WRITE) => self.map_source(violation, slot),
            (Writable, _, WRITE) | (_, _, READ) => Some(self.find_present(violation, slot)),
        }
    }
}
