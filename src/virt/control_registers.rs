//! Control registers: what guests see of them, what is fixed in them, and accesses to them.

use super::regs::Gpr;
use crate::register_bits::{CR0_PE, CR0_PG};

/// The guest's view of the registers that depend on one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, with LMA.
    pub efer: u64,
}

/// Which bits of a control register are fixed while guests run: where none is, `fixed0` is 0 and `fixed1` all ones (SDM "VMX-Fixed Bits in CR0" and "in CR4", A.7, A.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    /// A bit that is 1 here must be 1.
    pub fixed0: u64,
    /// A bit that is 0 here must be 0.
    pub fixed1: u64,
}

impl FixedBits {
    /// `value` with every fixed bit as it must be.
    pub const fn apply(self, value: u64) -> u64 {
        (value | self.fixed0) & self.fixed1
    }
    /// The bits of `value` that are not as they must be.
    pub const fn wrong(self, value: u64) -> u64 {
        self.fixed0 & !value | value & !self.fixed1
    }
    /// The same of the CR0 of an unrestricted guest, which may be without protection and paging.
    pub const fn for_unrestricted_guest(self) -> Self {
        const PE_AND_PG: u64 = CR0_PE | CR0_PG;
        Self {
            fixed0: self.fixed0 & !PE_AND_PG,
            fixed1: self.fixed1,
        }
    }
}

/// A control register whose accesses can exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ControlRegister {
    Cr0,
    Cr3,
    Cr4,
    Cr8,
}

/// A control-register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to a control register.
    MovTo {
        /// Which.
        register: ControlRegister,
        /// Whose value.
        source: Gpr,
    },
    /// MOV from a control register.
    MovFrom {
        /// Which.
        register: ControlRegister,
        /// Where to.
        target: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW. Only bits 3:0 of the operand count, and PE is never cleared.
    Lmsw {
        /// The operand.
        source: u16,
        /// Whether it was in memory; the guest-linear address field says where.
        memory: bool,
    },
}
