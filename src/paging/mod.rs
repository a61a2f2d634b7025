//! The one walker for page tables of every format.
//!
//! A [`Format`] says how one kind of table encodes its entries: [`Amd64`] (a guest's and the hypervisor's own),
//! [`I686`], [`Ept`] and [`Npt`]. Access to the tables is a pair of traits, [`TableReadOps`] and [`TableOps`]; the operations
//! are functions over them:
//!
//! - [`query`], [`query_seeing`], [`virt_to_phys`], [`translate`] read; [`path`] shows the entries themselves; [`RunsExt::runs`] joins neighbours;
//! - [`map`], [`unmap`], [`protect`] and [`modify`] change a range in one traversal, after one that finds out whether it can be done
//!   and takes the tables that it needs: an error leaves everything as it was;
//! - [`split`] and [`merge`] change the size of leaves and nothing else;
//! - [`walk_va_spaces`] and [`space_aware_map`] read and build several spaces, and keep what they share shared;
//! - [`Cursor`] finds one slot, makes it ready and changes it.
//!
//! ```text
//!          level 4        level 3        level 2              level 1
//!  root --> [ table ] ---> [ table ] ---> [ table, leaf 2M ] --> [ leaf 4K, leaf 4K, empty ... ]
//!                             |                                a leaf is a page, or a promise of zeroes
//!                             +--- leaf 1G
//! ```
//! What a leaf grants is what it and all entries on the way to it grant together.
//!
//! ```
//! use offshoot::addr::{Gpa, Gva, PageSize};
//! use offshoot::paging::{
//!     Amd64Attr, Content, GuestAmd64, GuestPageTableBuffer, PagingError, map, query, virt_to_phys,
//! };
//!
//! // A guest's tables, built in a buffer that will stand at 1 MiB of its memory.
//! let mut bytes = vec![0; 4 * 4096];
//! let mut tables = GuestPageTableBuffer::<GuestAmd64>::new(&mut bytes, Gpa::new(0x10_0000)).unwrap();
//! let page = Content::Page {
//!     phys: Gpa::new(0x20_0000),
//!     attr: Amd64Attr::READ_WRITE,
//! };
//! let at = Gva::new(0x40_0000);
//! map(&mut tables, at, 0x1000, page, PageSize::Size4K)?;
//! assert_eq!(virt_to_phys(&tables, Gva::new(0x40_0123))?, Some(Gpa::new(0x20_0123)));
//! // Nothing is mapped behind it, and what is there is not mapped again.
//! assert_eq!(query(&tables, Gva::new(0x40_1000))?, None);
//! let twice = map(&mut tables, at, 0x1000, page, PageSize::Size4K);
//! assert!(matches!(twice, Err(PagingError::AlreadyMapped { .. })));
//! # Ok::<(), PagingError<Gva, Gpa>>(())
//! ```

mod access;
mod attr;
mod buffer;
mod change;
mod cursor;
mod edit;
mod entry;
mod ept;
#[cfg(feature = "ept")]
mod ept_multiarch;
mod error;
mod format;
mod levels;
mod link_spaces;
mod map;
mod merge;
mod modify;
mod nested;
mod npt;
mod part;
mod path;
mod phys;
mod query;
mod runs;
mod spaces;
mod table;
mod translate;
mod unmap;
mod word;
mod x86;

pub use access::{
    EntryOf, FormatOf, MayMoveTable, MayNotMoveTable, MoveOf, Never, ResultOf, TableMovability,
    TableOf, TableOps, TableReadOps, VirtOf,
};
pub use attr::Attr;
pub use buffer::GuestPageTableBuffer;
pub use cursor::Cursor;
pub use entry::{Layout, Pte};
pub use ept::{Ept, EptAttr, EptBits, EptEntry};
#[cfg(feature = "ept")]
pub use ept_multiarch::{EptMetaData, ExtendedPageTable};
pub use error::{Fault, PagingError};
pub use format::{
    Content, ContentOf, Decoded, DecodedOf, Entry, Error, Format, MAX_LEVELS, Mapping, MappingOf,
    Rights, Write,
};
pub use levels::Levels;
pub use link_spaces::{TableRoots, space_aware_map};
pub use map::map;
pub use merge::merge;
pub use modify::{Leaf, modify, protect, split};
pub use nested::{MemoryType, Nested, NestedLayout};
pub use npt::{Npt, NptAttr, NptBits, NptEntry};
pub use path::{Step, path};
pub use phys::{PhysTables, TableAlloc};
pub use query::{query, query_seeing, virt_to_phys};
pub use runs::{Run, Runs, RunsExt};
pub use spaces::{Seen, SpaceItem, SpaceItemOf, SpaceReference, walk_va_spaces};
pub use translate::{Translate, translate};
pub use unmap::{Emptied, unmap};
pub use word::AtomicWord;
pub use x86::{
    Amd64, Amd64Attr, Amd64Entry, Bits32, Bits64, GuestAmd64, GuestPae, HostAmd64, I686, I686Attr,
    I686Entry, X86,
};

#[cfg(test)]
mod model;
#[cfg(test)]
mod spaces_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
