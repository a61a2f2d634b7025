//! What the CPU can do with tables of each format, and the pointer that it is given.

use crate::addr::{Address, Hpa, PAGE_SIZE};
use crate::paging::{Ept, Format, Nested, Npt};
use bit_field::BitField;

/// What a CPU can do with the tables of one format.
pub trait Capability {
    /// The format.
    type Format: Nested;
    /// What spaces make use of.
    fn features(&self) -> Features;
}

/// What spaces make use of where the CPU has it, whatever the format of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The CPU sets accessed and dirty.
    pub accessed_dirty: bool,
    /// A CPU may also log where it sets dirty: a control of its own says which does.
    pub log: bool,
    /// Leaves larger than 4 KiB may be executable.
    pub execute_large: bool,
    /// Leaves of 2 MiB.
    pub pages_2m: bool,
    /// Leaves of 1 GiB.
    pub pages_1g: bool,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

/// What CPUs differ in that have nested page tables. All of them set accessed and dirty and have leaves of 2 MiB; none logs which
/// pages it marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptCapability {
    /// Leaves of 1 GiB (CPUID Fn8000_0001 EDX bit 26).
    pub pages_1g: bool,
    /// Bits of a physical address (CPUID Fn8000_0008 EAX bits 7:0).
    pub physical_bits: u8,
}

impl Capability for NptCapability {
    type Format = Npt;
    fn features(&self) -> Features {
        Features {
            accessed_dirty: true,
            log: false,
            execute_large: true,
            pages_2m: true,
            pages_1g: self.pages_1g,
            physical_bits: self.physical_bits.min(<Npt as Format>::PHYS_BITS as u8),
        }
    }
}

impl Capability for EptCapability {
    type Format = Ept;
    fn features(&self) -> Features {
        Features {
            accessed_dirty: self.accessed_dirty,
            log: self.accessed_dirty,
            execute_large: self.execute_large,
            pages_2m: self.pages_2m,
            pages_1g: self.pages_1g,
            physical_bits: self.physical_bits,
        }
    }
}

/// What the CPU reports of EPT and VPIDs in IA32_VMX_EPT_VPID_CAP (SDM "VPID and EPT Capabilities", appendix A.10). All
/// false on a CPU with neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EptCapability {
    /// Page walks of length 4.
    pub walk_length_4: bool,
    /// Page walks of length 5.
    pub walk_length_5: bool,
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
    /// INVEPT is there.
    pub invept: bool,
    /// The CPU can set accessed and dirty.
    pub accessed_dirty: bool,
    /// Violations say more about the linear address: its mode, and what the guest's tables allow.
    pub advanced_information: bool,
    /// Supervisor shadow-stack control.
    pub supervisor_shadow_stack: bool,
    /// INVEPT can act on one EPT pointer.
    pub invept_single: bool,
    /// INVEPT can act on all.
    pub invept_all: bool,
    /// INVVPID is there.
    pub invvpid: bool,
    /// INVVPID can act on one VPID.
    pub invvpid_single: bool,
    /// INVVPID can act on all.
    pub invvpid_all: bool,
    /// Bits of a physical address: an entry with others set is a misconfiguration.
    pub physical_bits: u8,
}

impl EptCapability {
    /// Decodes the value of IA32_VMX_EPT_VPID_CAP. `physical_bits` is MAXPHYADDR, what CPUID says of physical addresses.
    pub fn new(value: u64, physical_bits: u8) -> Self {
        Self {
            walk_length_4: value.get_bit(6),
            walk_length_5: value.get_bit(7),
            uncacheable_tables: value.get_bit(8),
            write_back_tables: value.get_bit(14),
            pages_2m: value.get_bit(16),
            pages_1g: value.get_bit(17),
            execute_large: true,
            invept: value.get_bit(20),
            accessed_dirty: value.get_bit(21),
            advanced_information: value.get_bit(22),
            supervisor_shadow_stack: value.get_bit(23),
            invept_single: value.get_bit(25),
            invept_all: value.get_bit(26),
            invvpid: value.get_bit(32),
            invvpid_single: value.get_bit(41),
            invvpid_all: value.get_bit(42),
            physical_bits: physical_bits.min(Ept::PHYS_BITS as u8),
        }
    }

    /// What a processor of today has, for tests and examples.
    pub fn typical() -> Self {
        Self::new(u64::MAX, 52)
    }

    /// What a space cannot do without, by name.
    pub const NEEDED: [&'static str; 3] = [
        "EPT page-walk length of 4 (IA32_VMX_EPT_VPID_CAP bit 6)",
        "EPT paging structures of type write-back (IA32_VMX_EPT_VPID_CAP bit 14)",
        "INVEPT with type single-context or all-context (IA32_VMX_EPT_VPID_CAP bits 20, 25, 26)",
    ];

    /// Which of [`EptCapability::NEEDED`] this CPU lacks.
    pub const fn missing(&self) -> [bool; 3] {
        let invept = self.invept && (self.invept_single || self.invept_all);
        [!self.walk_length_4, !self.write_back_tables, !invept]
    }

    /// Whether what a guest's VPID caches can be dropped, without which a VPID must not be used.
    pub const fn can_flush_vpid(&self) -> bool {
        self.invvpid && (self.invvpid_single || self.invvpid_all)
    }
}

/// The value of the EPT pointer field (SDM "Extended-Page-Table Pointer (EPTP)", 26.6.11), and of N_CR3 where the tables are
/// nested page tables (APM volume 2, 15.25.3), which is the address part alone. Two spaces never have the same address part, so it
/// also names the cached translations that INVEPT drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eptp(u64);

impl Eptp {
    /// The pointer to the tables of format `F` at `root`, the start of a frame.
    pub(in crate::ept) fn new<F: Nested>(root: Hpa, features: Features) -> Self {
        debug_assert!(root.is_aligned(PAGE_SIZE));
        Self(root.as_u64() | F::pointer_bits(features.accessed_dirty))
    }
    /// The number for the VMCS and the INVEPT descriptor.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// Where the top table is.
    pub const fn root(self) -> Hpa {
        Hpa::new(self.0 & 0x000f_ffff_ffff_f000)
    }
    /// Whether the CPU is asked to set accessed and dirty in these tables. N_CR3 has no such bit: it always does.
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
                (c.walk_length_4, 6),
                (c.walk_length_5, 7),
                (c.uncacheable_tables, 8),
                (c.write_back_tables, 14),
                (c.pages_2m, 16),
                (c.pages_1g, 17),
                (c.invept, 20),
                (c.accessed_dirty, 21),
                (c.advanced_information, 22),
                (c.supervisor_shadow_stack, 23),
                (c.invept_single, 25),
                (c.invept_all, 26),
                (c.invvpid, 32),
                (c.invvpid_single, 41),
                (c.invvpid_all, 42),
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
        let all = u64::MAX;
        for (lacks, missing) in [
            (0, [false, false, false]),
            (1 << 25, [false, false, false]),
            (1 << 26, [false, false, false]),
            (1 << 6, [true, false, false]),
            (1 << 14, [false, true, false]),
            (1 << 20, [false, false, true]),
            (1 << 25 | 1 << 26, [false, false, true]),
            (all, [true, true, true]),
        ] {
            let capability = EptCapability::new(all & !lacks, 52);
            assert_eq!(capability.missing(), missing, "{lacks:#x}");
        }
    }

    #[test]
    fn a_flush_of_a_vpid_needs_the_instruction_and_a_type_of_it() {
        for (value, can) in [
            (1 << 32 | 1 << 40, false),
            (1 << 41, false),
            (1 << 32 | 1 << 41, true),
            (1 << 32 | 1 << 42, true),
        ] {
            assert_eq!(EptCapability::new(value, 52).can_flush_vpid(), can);
        }
    }

    #[test]
    fn the_pointer_uses_only_what_the_cpu_has() {
        let all = EptCapability::typical();
        let root = Hpa::new(0x12_3456_7000);
        let pointer = Eptp::new::<Ept>(root, all.features());
        assert_eq!(pointer.as_u64(), 0x12_3456_705e);
        let old = EptCapability {
            accessed_dirty: false,
            ..all
        };
        let pointer = Eptp::new::<Ept>(root, old.features());
        assert_eq!(
            (pointer.as_u64(), pointer.root(), pointer.accessed_dirty()),
            (0x12_3456_701e, root, false)
        );
        let nested = NptCapability {
            pages_1g: true,
            physical_bits: 48,
        };
        let pointer = Eptp::new::<Npt>(root, nested.features());
        assert_eq!((pointer.as_u64(), pointer.root()), (0x12_3456_7000, root));
    }
}
