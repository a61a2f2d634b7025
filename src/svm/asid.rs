//! ASIDs: under which number the CPU caches the translations of a guest, and what has to be dropped before it may use them.
//!
//! A CPU keeps the translations of all ASIDs over VMRUN, those of linear addresses and those of nested tables alike, until it is
//! told otherwise by TLB_CONTROL at a VMRUN (APM "TLB Control", 15.16.2). What a guest changes in its own tables it invalidates
//! itself. What is left is that the number was another guest's, that the guest was brought back to an earlier state, that nested
//! tables have changed, and that the hypervisor carries out for the guest what else had invalidated. Each of these makes a debt,
//! which the next VMRUN pays: there is no instruction that drops all of an ASID.
//!
//! There are few numbers, 16 on one CPU. They are given out in generations: when all are used up, the next VMRUN drops
//! everything, and every guest needs a new number. On a CPU that cannot flush a single ASID, a new number is also what pays for a
//! guest.

/// The ASIDs of a CPU.
#[derive(Debug)]
pub struct Asids {
    generation: u64,
    /// The last number given out in this generation.
    last: u32,
    most: u32,
    /// Whether the CPU can flush one ASID.
    by_asid: bool,
    /// Everything must be dropped: what is cached may be of an earlier generation.
    all_stale: bool,
}

/// The ASID of a guest.
#[derive(Debug)]
pub struct Asid {
    /// 0 before it had one.
    number: u32,
    generation: u64,
    /// What is cached under the number may be of another state of the guest or of its nested tables.
    stale: bool,
}

/// What VMRUN is to drop: TLB_CONTROL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbControl {
    /// Nothing.
    Keep = 0,
    /// Everything.
    FlushAll = 1,
    /// What is cached under the guest's ASID.
    FlushAsid = 3,
}

/// With what a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The ASID.
    pub asid: u32,
    /// What is dropped before it is used.
    pub control: TlbControl,
}

impl Asids {
    /// Of a CPU with so many ASIDs, of which 0 is the host's; there must be another. `by_asid`: it can flush one.
    ///
    /// What an earlier user of the CPU has left is dropped at the first VMRUN.
    pub const fn new(count: u32, by_asid: bool) -> Self {
        Self {
            generation: 1,
            last: 0,
            most: if count < 2 { 1 } else { count - 1 },
            by_asid,
            all_stale: true,
        }
    }

    /// To be called before each VMRUN of the guest: gives it a number where it has none, and says what the CPU must drop. What is
    /// owed stays owed until [`Asids::entered`].
    #[inline(always)]
    pub fn make_ready(&mut self, asid: &mut Asid) -> Tag {
        if asid.stale || asid.generation != self.generation || self.all_stale {
            return self.pay(asid);
        }
        Tag {
            asid: asid.number,
            control: TlbControl::Keep,
        }
    }

    #[cold]
    fn pay(&mut self, asid: &mut Asid) -> Tag {
        if asid.generation != self.generation || asid.stale && !self.by_asid {
            self.renumber(asid);
        }
        Tag {
            asid: asid.number,
            control: match (self.all_stale, asid.stale) {
                (true, _) => TlbControl::FlushAll,
                (false, true) => TlbControl::FlushAsid,
                (false, false) => TlbControl::Keep,
            },
        }
    }

    /// A number that nothing is cached under, or will not be once everything is dropped.
    fn renumber(&mut self, asid: &mut Asid) {
        if self.last == self.most {
            self.outdate_all();
        }
        self.last += 1;
        *asid = Asid {
            number: self.last,
            generation: self.generation,
            stale: false,
        };
    }

    /// Nothing of what is cached of any guest may be used any more: all get new numbers, and the next VMRUN drops everything.
    pub const fn outdate_all(&mut self) {
        self.generation += 1;
        self.last = 0;
        self.all_stale = true;
    }

    /// VMRUN has taken the tag, that is, it has not refused the VMCB.
    #[inline(always)]
    pub fn entered(&mut self, asid: &mut Asid, tag: Tag) {
        if tag.control != TlbControl::Keep {
            self.all_stale &= tag.control != TlbControl::FlushAll;
            asid.stale = false;
        }
    }
}

impl Asid {
    /// Of a guest that has not run yet on this CPU.
    pub const fn new() -> Self {
        Self {
            number: 0,
            generation: 0,
            stale: false,
        }
    }

    /// The guest was given another state, or its nested tables have lost or changed a translation, or it has asked for what
    /// drops its own: nothing of what is cached may be used any more.
    pub const fn outdate(&mut self) {
        self.stale = true;
    }
}

impl Default for Asid {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "asid_tests.rs"]
mod tests;
