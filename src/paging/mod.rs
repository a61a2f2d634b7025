//! The one walker for page tables of every format.
//!
//! A [`Format`] says how one kind of table encodes its entries: [`Amd64`] (a guest's and the hypervisor's own),
//! [`I686`] and [`Ept`]. Access to the tables is a pair of traits, [`TableReadOps`] and [`TableOps`]; the operations
//! are functions over them:
//!
//! - [`query`], [`query_seeing`], [`virt_to_phys`], [`translate`] read; [`path`] shows the entries themselves; [`RunsExt::runs`] joins neighbours;
//! - [`map`], [`unmap`], [`protect`] and [`modify`] change a range in one traversal, after one that finds out whether it can be done
//!   and takes the tables that it needs: an error leaves everything as it was;
//! - [`split`] and [`merge`] change the size of leaves and nothing else;
//! - [`walk_va_spaces`] and [`space_aware_map`] read and build several spaces, and keep what they share shared;
//! - [`Cursor`] finds one slot, makes it ready and changes it.

mod access;
mod buffer;
mod change;
mod cursor;
mod edit;
mod ept_attr;
mod ept_entry;
mod ept_format;
#[cfg(feature = "ept")]
mod ept_multiarch;
mod error;
mod format;
mod link_spaces;
mod map;
mod merge;
mod modify;
mod part;
mod path;
mod phys;
mod query;
mod ready;
mod runs;
mod spaces;
mod trail;
mod translate;
mod unmap;
mod word;
mod x86;
mod x86_entry;

pub use access::{
    EntryOf, FormatOf, MayMoveTable, MayNotMoveTable, MoveOf, Never, ResultOf, TableMovability,
    TableOf, TableOps, TableReadOps, VirtOf,
};
pub use buffer::GuestPageTableBuffer;
pub use cursor::Cursor;
pub use ept_attr::{EptAttr, MemoryType};
pub use ept_entry::EptEntry;
pub use ept_format::Ept;
#[cfg(feature = "ept")]
pub use ept_multiarch::{EptMetaData, ExtendedPageTable};
pub use error::{Fault, PagingError};
pub use format::{
    Content, ContentOf, Decoded, DecodedOf, Entry, Error, Format, MAX_LEVELS, Mapping, MappingOf,
    Rights, Write,
};
pub use link_spaces::{TableRoots, space_aware_map};
pub use map::map;
pub use merge::merge;
pub use modify::{Leaf, modify, protect, split};
pub use path::{Step, path};
pub use phys::{PhysTables, TableAlloc, table_words};
pub use query::{open_table, query, query_seeing, virt_to_phys};
pub use runs::{Run, Runs, RunsExt};
pub use spaces::{Seen, SpaceItem, SpaceItemOf, SpaceReference, WalkSpaces, walk_va_spaces};
pub use translate::{Translate, translate};
pub use unmap::{Emptied, unmap};
pub use word::AtomicWord;
pub use x86::{
    Amd64, Amd64Attr, Amd64Entry, GuestAmd64, GuestPae, HostAmd64, I686, I686Attr, I686Entry, X86,
};
pub use x86_entry::{Bits32, Bits64, Width, X86Attr, X86Entry};

#[cfg(test)]
mod model;
#[cfg(test)]
mod spaces_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
