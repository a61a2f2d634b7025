//! What follows from a region for its pages: their leaves, and what they hold before they are touched.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::regions::region::{Region, RegionKind};
use crate::ept::tables::entry::Origin;
use crate::paging::{EptAttr, Write};

/// A region, and what follows from it for every page.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct Known {
    pub region: Region,
    /// A leaf in the region, without write.
    pub leaf: EptAttr,
}

impl Known {
    pub fn new(region: Region) -> Self {
        let leaf = EptAttr::READ
            .with_execute(region.execute)
            .with_user_execute(region.execute)
            .with_memory_type(region.memory_type)
            // The type is the region's alone: what a guest's PAT makes uncacheable has the host as write-back, and one
            // frame with two types is undefined.
            .with_ignore_pat(true)
            .with_accessed(true);
        Self { region, leaf }
    }

    /// The leaf for a page that is written. One that may be written counts as dirty from the start: on CPUs that do not
    /// note writes, permission to write is what tells dirty pages. Where the CPU logs them, the mark is left away.
    #[inline]
    pub fn written(&self) -> EptAttr {
        let leaf = self.leaf.with_dirty(true);
        if self.region.is_writable() {
            leaf.with_write(Write::Allowed)
        } else {
            leaf
        }
    }
}

/// What the short way to fill a page of RAM needs to know: nothing of a region that is not RAM or may not be written.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct Ram {
    start: u64,
    len: u64,
    /// The leaf of a page that was read, beside the address.
    pub read: EptAttr,
    /// The leaf of a page that was written, beside the address.
    pub written: EptAttr,
}

impl Ram {
    /// No page.
    pub const NONE: Self = Self {
        start: 0,
        len: 0,
        read: EptAttr::READ,
        written: EptAttr::READ,
    };

    pub fn of(known: &Known, marked: bool) -> Self {
        if !matches!(known.region.kind, RegionKind::Ram) || !known.region.write {
            return Self::NONE;
        }
        Self {
            start: known.region.range.start().as_u64(),
            len: known.region.range.len(),
            read: Origin::Zero.mark(known.leaf),
            written: Origin::Filled.mark(known.written().with_dirty(marked)),
        }
    }

    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Whether the address is in it.
    #[inline(always)]
    pub fn contains(&self, gpa: Gpa) -> bool {
        gpa.as_u64().wrapping_sub(self.start) < self.len
    }
}

/// What the short way to make a page a guest's own needs to know of a region.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct Writable {
    start: u64,
    len: u64,
    /// The leaf of a page that was written, beside the address and whose frame it is; and if that is a copy.
    pub written: EptAttr,
    pub copied: EptAttr,
    /// The host's bytes behind it: where, and how many.
    host: u64,
    host_len: u64,
}

impl Writable {
    /// No page.
    pub const NONE: Self = Self {
        start: 0,
        len: 0,
        written: EptAttr::READ,
        copied: EptAttr::READ,
        host: 0,
        host_len: 0,
    };

    pub fn of(known: &Known, marked: bool) -> Option<Self> {
        let region = &known.region;
        let memory = region.is_writable() && region.kind.is_memory();
        let host = region.kind.host_bytes();
        let written = known.written().with_dirty(marked);
        memory.then(|| Self {
            start: region.range.start().as_u64(),
            len: region.range.len(),
            written,
            copied: Origin::Copied.mark(written),
            host: host.map_or(0, |host| host.start().as_u64()),
            host_len: host.map_or(0, |host| host.len()),
        })
    }

    #[inline(always)]
    pub fn contains(&self, gpa: Gpa) -> bool {
        gpa.as_u64().wrapping_sub(self.start) < self.len
    }

    /// What an untouched page holds.
    #[inline(always)]
    pub fn source(&self, page: Gpa) -> Untouched {
        let offset = page.as_u64().wrapping_sub(self.start);
        if offset >= self.host_len {
            Untouched::Zeroes
        } else if self.host_len - offset >= PAGE_SIZE {
            Untouched::HostPage(Hpa::new(self.host.wrapping_add(offset)))
        } else {
            Untouched::Part
        }
    }
}

/// What an untouched page holds.
pub(in crate::ept) enum Untouched {
    /// Zeroes.
    Zeroes,
    /// Host bytes.
    HostPage(Hpa),
    /// Host bytes and zeroes behind them.
    Part,
}
