//! A guest's own page tables as the hypervisor reads them: claims that the walker checks.

use crate::addr::{Address, Gpa, Gva};
use crate::ept::Space;
use crate::frames::PhysMem;
use crate::paging::{Content, Entry, Format, GuestAmd64, TableReadOps, query};

type GuestEntry = <GuestAmd64 as Format>::Entry;

/// CR3's bits of the root table, with the flags and the PCID left out.
const ROOT: u64 = 0x000f_ffff_ffff_f000;

/// The 4-level tables at a guest's CR3.
struct GuestTables<'a, 's, M: PhysMem> {
    space: &'a Space<'s, M>,
    root: Gpa,
}

impl<M: PhysMem> TableReadOps for GuestTables<'_, '_, M> {
    type Format = GuestAmd64;

    fn root(&self) -> Gpa {
        self.root
    }
    fn read_entry(&self, table: Gpa, index: usize) -> Option<GuestEntry> {
        let at = table.checked_add(index as u64 * GuestEntry::BYTES as u64)?;
        let mut bytes = [0; GuestEntry::BYTES];
        self.space.read(at, &mut bytes).ok()?;
        Some(GuestEntry::from_bits(u64::from_le_bytes(bytes)))
    }
}

/// Copies the bytes at `gva` out, as 64-bit code under `cr3` would read them, or tells the first address that it could
/// not read. The bytes may cross pages that are not neighbours.
pub(super) fn read<M: PhysMem>(
    space: &Space<'_, M>,
    cr3: u64,
    gva: Gva,
    into: &mut [u8],
) -> Result<(), Gva> {
    let tables = GuestTables {
        space,
        root: Gpa::new(cr3 & ROOT),
    };
    let mut at = gva;
    let mut rest = into;
    while !rest.is_empty() {
        let here = (4096 - at.page_offset()).min(rest.len() as u64);
        let (now, later) = rest.split_at_mut_checked(here as usize).ok_or(at)?;
        let mapping = query(&tables, at).ok().flatten().ok_or(at)?;
        let (Content::Page { .. }, Some(gpa)) = (mapping.content, mapping.phys_of(at)) else {
            return Err(at);
        };
        space.read(gpa, now).map_err(|_| at)?;
        rest = later;
        if !rest.is_empty() {
            at = at.checked_add(here).ok_or(at)?;
        }
    }
    Ok(())
}
