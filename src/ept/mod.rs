//! Guest-physical address spaces: EPT entries, lazy fill, and what must be flushed.

pub use crate::paging::{Ept, EptAttr, EptEntry, EptMetaData, ExtendedPageTable, MemoryType};
