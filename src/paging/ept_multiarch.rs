//! EPT as `page_table_multiarch` wants it: another walker for the same tables.

use memory_addr::VirtAddr;
use page_table_multiarch::{PageTable64, PagingMetaData};

use super::ept::EptEntry;

/// EPT for `page_table_multiarch`.
pub struct EptMetaData;

impl PagingMetaData for EptMetaData {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    /// A guest-physical address; the crate wants one of its own address types.
    type VirtAddr = VirtAddr;

    fn vaddr_is_valid(address: usize) -> bool {
        address >> Self::VA_MAX_BITS == 0
    }
    /// Does nothing: only INVEPT drops what EPT translated, it needs the root, and no trait function here is told which.
    /// Who changes tables through [`ExtendedPageTable`] owes an INVEPT.
    fn flush_tlb(_address: Option<VirtAddr>) {}
}

/// The multi-architecture page table of `page_table_multiarch`, holding EPT entries: walked by the same CPU and by
/// the same walker as ours.
pub type ExtendedPageTable<H> = PageTable64<EptMetaData, EptEntry, H>;
