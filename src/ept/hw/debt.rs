//! Invalidation that is owed, and who must pay before the guest runs again.
//!
//! A CPU may go on using what it has cached of an EPT entry until it executes INVEPT (SDM "Operations that Invalidate
//! Cached Mappings", 30.4.3.1). So an edit that removes or replaces a translation makes a debt: every CPU on which the guest
//! may have left something behind has to execute INVEPT before it runs the guest again, and the frames that became free
//! wait until all have. Adding a translation where none was, or only adding permission, owes nothing: the violation that led
//! to it has dropped what the CPU had cached for the address (SDM "EPT Violations" there).
//!
//! A page that is replaced at the guest's own violation, as copy-on-write does, owes less. The violation has dropped the
//! guest-physical mappings of its address, and the combined mappings of the linear address that was used. What may be left
//! are combined mappings of other linear addresses, or of the same one under other PCIDs, and pointers to the page where it
//! is a page table of the guest. INVVPID drops those as well as INVEPT does, costs what it costs on a CPU, and a tenth of it
//! where KVM is below. Without VPIDs the next VM entry drops them.
//!
//! | of this space a CPU | cached | stale | goes on by |
//! |---|---|---|---|
//! | has nothing | 0 | 0 | [`Debt::run_on`] |
//! | may have what the tables say | 1 | 0 | [`Debt::incur`] or [`Debt::incur_at`], to the next row |
//! | may have what they say no more | 1 | 1 | [`Debt::pay`]: by INVEPT to the first row, by INVVPID to the second |

use crate::ept::hw::capability::Eptp;
use crate::ept::hw::violation::Violation;
use crate::frames::{FrameAllocator, PhysMem, Retired};

/// A logical processor, by a number below 64 of the kernel's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuId(u8);

impl CpuId {
    /// The processor with this number, or `None` where it is too large.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 64 {
            Some(Self(number))
        } else {
            None
        }
    }
    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
    /// The bit that stands for it in a set of CPUs.
    const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// The processor that executes this, and its way to drop translations.
///
/// # Safety
/// [`Invalidate::cpu`] must tell the CPU that executes the call apart from all others, and [`Invalidate::invept`] must
/// have dropped, when it returns, all guest-physical and combined mappings that this CPU has cached for the EPT pointer
/// (INVEPT, single-context or all-context). [`Invalidate::invvpid`] must have dropped, when it returns, all combined mappings for
/// it: by INVVPID of every VPID under which this CPU has run a guest with it, by INVEPT, or by nothing where it ran guests with it
/// under no VPID, as each VM entry drops them then. The implementor must not move to another CPU.
pub unsafe trait Invalidate {
    /// Which CPU this is.
    fn cpu(&self) -> CpuId;
    /// Drops what this CPU has cached for `eptp`.
    fn invept(&mut self, eptp: Eptp);
    /// Drops what this CPU has cached for `eptp` by linear addresses.
    fn invvpid(&mut self, eptp: Eptp);
}

/// What one space owes. It owns the frames that must wait.
#[must_use = "frames in a debt that is dropped are leaked"]
#[derive(Debug, Default)]
pub(in crate::ept) struct Debt {
    /// The CPUs that may have cached something of this space, a bit for each.
    cached: u64,
    /// Those of them that must execute INVEPT before they run it again.
    stale: u64,
    /// INVVPID is enough where only one CPU is stale: what was replaced is the page of its last violation.
    linear: bool,
    /// Frames that these CPUs may still reach.
    pub retired: Retired,
    /// INVEPTs executed so far.
    pub paid: u64,
    /// INVVPIDs executed so far in their place.
    pub paid_by_invvpid: u64,
}

impl Debt {
    /// Notes that a translation was removed or replaced.
    #[inline]
    pub fn incur(&mut self) {
        self.stale = self.cached;
        self.linear = false;
    }

    /// Notes that the page of a violation was replaced. If the guest has just left a CPU by that, this has paid all else that it
    /// owed before.
    #[inline(always)]
    pub fn incur_at(&mut self, violation: Violation) {
        self.linear = violation.has_just_left();
        self.stale = self.cached;
    }

    /// Pays what this CPU owes. When no CPU owes any more, the frames go back.
    #[inline(always)]
    pub fn pay<M: PhysMem>(
        &mut self,
        eptp: Eptp,
        cpu: &mut impl Invalidate,
        frames: &FrameAllocator<M>,
    ) {
        if self.stale | u64::from(!self.retired.is_empty()) != 0 {
            self.pay_some(eptp, cpu, frames);
        }
    }

    #[cold]
    fn pay_some<M: PhysMem>(
        &mut self,
        eptp: Eptp,
        cpu: &mut impl Invalidate,
        frames: &FrameAllocator<M>,
    ) {
        if self.stale != cpu.cpu().bit() || !self.retired.is_empty() {
            return self.pay_any(eptp, cpu, frames);
        }
        // After a page was copied: this CPU alone owes, and no frame waits.
        self.stale = 0;
        self.invalidate(eptp, cpu);
    }

    /// Drops what is stale on this CPU. That comes last, so that nothing has to be kept over it.
    #[inline(always)]
    fn invalidate(&mut self, eptp: Eptp, cpu: &mut impl Invalidate) {
        if self.linear {
            self.paid_by_invvpid += 1;
            return cpu.invvpid(eptp);
        }
        self.paid += 1;
        self.cached &= !cpu.cpu().bit();
        cpu.invept(eptp);
    }

    #[inline(never)]
    fn pay_any<M: PhysMem>(
        &mut self,
        eptp: Eptp,
        cpu: &mut impl Invalidate,
        frames: &FrameAllocator<M>,
    ) {
        let id = cpu.cpu();
        // What the violation has dropped is known of the CPU that had it alone.
        self.linear &= self.stale == id.bit();
        if self.stale & id.bit() != 0 {
            self.invalidate(eptp, cpu);
            self.stale &= !id.bit();
        }
        if self.stale == 0 && !self.retired.is_empty() {
            frames.free_retired(&mut self.retired);
        }
    }

    /// Frees what was retired, if no CPU can have anything of it.
    #[inline(always)]
    pub fn free_unreachable<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if !self.retired.is_empty() && !self.is_owed() {
            frames.free_retired(&mut self.retired);
        }
    }

    /// Notes that `cpu` is about to run the space.
    #[inline]
    pub fn run_on(&mut self, cpu: CpuId) {
        self.cached |= cpu.bit();
    }

    /// Whether some CPU has still to pay.
    pub const fn is_owed(&self) -> bool {
        self.stale != 0
    }
}
