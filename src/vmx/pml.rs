//! The page-modification log: which of its entries the CPU has filled.
//!
//! The CPU fills the page at the PML address from its end: the PML index is the entry that it writes next, and goes down by
//! one each time. Where the index is no entry, the log is full: the access that is to be logged causes an exit before it
//! is done (SDM "Page-Modification Logging", 30.3.6).

use core::ops::Range;

use bit_field::BitField;

/// Entries of a log.
pub const PML_ENTRIES: u16 = 512;

/// The PML index of an empty log.
pub const PML_EMPTY: u16 = PML_ENTRIES - 1;

/// The entries that the CPU has filled, where it has left this PML index: the higher, the earlier.
pub const fn pml_filled(index: u16) -> Range<u16> {
    if index < PML_ENTRIES {
        index + 1..PML_ENTRIES
    } else {
        0..PML_ENTRIES
    }
}

/// Whether an IRET had unblocked NMIs when the log was full, by the qualification of that exit (SDM "Basic VM-Exit
/// Information", 29.2.1).
pub fn pml_full_unblocked_nmis(qualification: u64) -> bool {
    qualification.get_bit(12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cpu_has_filled_is_above_its_index() {
        assert!(pml_filled(PML_EMPTY).is_empty());
        assert_eq!(pml_filled(510), 511..512);
        assert_eq!(pml_filled(0), 1..512);
        // After entry 0 the index wraps; any index that is no entry stands for a full log.
        for full in [0xffff, 512, 0x8000] {
            assert_eq!(pml_filled(full), 0..512, "{full:#x}");
        }
        let mut index = PML_EMPTY;
        for filled in 1..=512 {
            index = index.wrapping_sub(1);
            assert_eq!(pml_filled(index).len(), filled);
        }
        assert_eq!(index, 0xffff);
    }

    #[test]
    fn nmi_unblocking_is_bit_12() {
        for bit in 0..64 {
            assert_eq!(pml_full_unblocked_nmis(1 << bit), bit == 12);
        }
    }
}
