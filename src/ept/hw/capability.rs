//! What the CPU's EPT can do, and the pointer that it is given.

use crate::addr::{Address, Hpa, PAGE_SIZE, PageSize};
use crate::paging::{Ept, Format};
use bit_field::BitField;

/// What the CPU reports of EPT and VPIDs in IA32_VMX_EPT_VPID_CAP (SDM "VPID and EPT Capabilities", appendix A.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EptCapability {
    /// Pages may be executable without being readable.
    pub execute_only: bool,
    /// Page walks of 4 levels.
    pub four_levels: bool,
    /// The tables may be cached uncacheable.
    pub uncacheable_tables: bool,
    /// The tables may be cached write-back.
    pub write_back_tables: bool,
    /// Leaves of 2 MiB.
    pub pages_2m: bool,
    /// Leaves of 1 GiB.
    pub pages_1g: bool,
    /// Leaves larger than 4 KiB may be executable. On a CPU where a fetch from one can end in a machine check (iTLB
    /// multihit), whoever starts it takes this back.
    pub execute_large: bool,
    /// The CPU can set accessed and dirty.
    pub accessed_dirty: bool,
    /// Violations say more about the linear address: its mode, and what the guest's tables allow.
    pub advanced_information: bool,
    /// INVEPT is there.
    pub invept: bool,
    /// INVEPT can act on one EPT pointer.
    pub invept_single: bool,
    /// INVEPT can act on all.
    pub invept_all: bool,
    /// INVVPID is there.
    pub invvpid: bool,
    /// INVVPID can act on one address.
    pub invvpid_address: bool,
    /// INVVPID can act on one VPID.
    pub invvpid_single: bool,
    /// INVVPID can act on all.
    pub invvpid_all: bool,
    /// INVVPID can act on one VPID and spare global translations.
    pub invvpid_single_globals: bool,
    /// Bits of a physical address: an entry with others set is a misconfiguration.
    pub physical_bits: u8,
}

impl EptCapability {
    /// Decodes the value of IA32_VMX_EPT_VPID_CAP. `physical_bits` is MAXPHYADDR, what CPUID says of physical addresses.
    pub fn new(value: u64, physical_bits: u8) -> Self {
        Self {
            execute_only: value.get_bit(0),
            four_levels: value.get_bit(6),
            uncacheable_tables: value.get_bit(8),
            write_back_tables: value.get_bit(14),
            pages_2m: value.get_bit(16),
            pages_1g: value.get_bit(17),
            execute_large: true,
            invept: value.get_bit(20),
            accessed_dirty: value.get_bit(21),
            advanced_information: value.get_bit(22),
            invept_single: value.get_bit(25),
            invept_all: value.get_bit(26),
            invvpid: value.get_bit(32),
            invvpid_address: value.get_bit(40),
            invvpid_single: value.get_bit(41),
            invvpid_all: value.get_bit(42),
            invvpid_single_globals: value.get_bit(43),
            physical_bits: physical_bits.min(Ept::PHYS_BITS as u8),
        }
    }

    /// The first thing that a space cannot do without and that this CPU lacks, by name.
    pub const fn missing(&self) -> Option<&'static str> {
        if !self.four_levels {
            Some("EPT page walks of 4 levels")
        } else if !self.write_back_tables && !self.uncacheable_tables {
            Some("a memory type for EPT tables")
        } else if !self.invept || !(self.invept_single || self.invept_all) {
            Some("INVEPT")
        } else {
            None
        }
    }

    /// Whether leaves of this size can be used.
    pub const fn has_pages(&self, size: PageSize) -> bool {
        match size {
            PageSize::Size4K => true,
            PageSize::Size2M => self.pages_2m,
            PageSize::Size1G => self.pages_1g,
            PageSize::Size4M => false,
        }
    }
}

/// The value of the EPT pointer field (SDM "Extended-Page-Table Pointer (EPTP)", 26.6.11). Two spaces never have the same
/// address part, so it also names the cached translations that INVEPT drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eptp(u64);

impl Eptp {
    /// The pointer to the 4-level tables at `root`, the start of a frame.
    pub(in crate::ept) fn new(root: Hpa, capability: &EptCapability, accessed_dirty: bool) -> Self {
        debug_assert!(root.is_aligned(PAGE_SIZE));
        let mut value = root.as_u64();
        value.set_bits(0..3, if capability.write_back_tables { 6 } else { 0 });
        value.set_bits(3..6, 4 - 1);
        value.set_bit(6, accessed_dirty && capability.accessed_dirty);
        Self(value)
    }
    /// The number for the VMCS and the INVEPT descriptor.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// Where the top table is.
    pub const fn root(self) -> Hpa {
        Hpa::new(self.0 & 0x000f_ffff_ffff_f000)
    }
    /// Whether the CPU sets accessed and dirty in these tables.
    pub const fn accessed_dirty(self) -> bool {
        self.0 & 1 << 6 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_its_own_meaning() {
        let fields = |c: EptCapability| {
            [
                (c.execute_only, 0),
                (c.four_levels, 6),
                (c.uncacheable_tables, 8),
                (c.write_back_tables, 14),
                (c.pages_2m, 16),
                (c.pages_1g, 17),
                (c.invept, 20),
                (c.accessed_dirty, 21),
                (c.advanced_information, 22),
                (c.invept_single, 25),
                (c.invept_all, 26),
                (c.invvpid, 32),
                (c.invvpid_address, 40),
                (c.invvpid_single, 41),
                (c.invvpid_all, 42),
                (c.invvpid_single_globals, 43),
            ]
        };
        for bit in 0..64 {
            for (set, of) in fields(EptCapability::new(1 << bit, 0)) {
                assert_eq!(set, bit == of, "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = EptCapability::new(u64::MAX, 52);
        assert_eq!(all.missing(), None);
        assert_eq!(
            EptCapability {
                four_levels: false,
                ..all
            }
            .missing(),
            Some("EPT page walks of 4 levels")
        );
        assert_eq!(
            EptCapability {
                invept: false,
                ..all
            }
            .missing(),
            Some("INVEPT")
        );
        let neither = EptCapability {
            invept_single: false,
            invept_all: false,
            ..all
        };
        assert_eq!(neither.missing(), Some("INVEPT"));
        let no_type = EptCapability {
            write_back_tables: false,
            uncacheable_tables: false,
            ..all
        };
        assert!(no_type.missing().is_some());
    }

    #[test]
    fn the_pointer_uses_only_what_the_cpu_has() {
        let all = EptCapability::new(u64::MAX, 52);
        let root = Hpa::new(0x12_3456_7000);
        assert_eq!(Eptp::new(root, &all, true).as_u64(), 0x12_3456_705e);
        assert_eq!(Eptp::new(root, &all, false).as_u64(), 0x12_3456_701e);
        let old = EptCapability {
            accessed_dirty: false,
            write_back_tables: false,
            ..all
        };
        let pointer = Eptp::new(root, &old, true);
        assert_eq!(
            (pointer.as_u64(), pointer.root(), pointer.accessed_dirty()),
            (0x12_3456_7018, root, false)
        );
    }
}
