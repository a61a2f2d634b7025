//! Making one page accessible: what stands in its slot decides, by one descent.

use crate::addr::{Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::error::Reason;
use crate::ept::hw::violation::Access;
use crate::ept::regions::known::Known;
use crate::ept::resolve::fetch::split_for_fetch;
use crate::ept::resolve::large::large_page;
use crate::ept::resolve::outcome::Fill;
use crate::ept::resolve::put::{put, take_over};
use crate::ept::resolve::source::Source;
use crate::ept::spaces::space::Shared;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::ops::Tables;
use crate::ept::tables::policy::PagePolicy;
use crate::ept::tables::tree::Tree;
use crate::frames::PhysMem;
use crate::paging::{Content, Cursor, EptAttr, Write};

impl Tree {
    /// Makes the page at `page`, which is in the region and which the region allows to be accessed so, accessible. On an
    /// error the guest's memory is as it was.
    #[inline]
    pub fn provide<M: PhysMem>(
        &mut self,
        spaces: &Shared<'_, M>,
        known: &Known,
        page: Gpa,
        access: Access,
    ) -> Result<Fill, Reason> {
        let (near, pages) = (self.recent_table(page), self.pages);
        let mut tables = self.page_tables(spaces.frames);
        let done = provide(&mut tables, known, page, access, spaces.zero, near, pages);
        let (moved, failed, lowest) = (tables.moved, tables.failed, tables.lowest);
        self.set_recent(spaces.frames, page, lowest);
        // A large page was given, or something went wrong half-way.
        let untold = match done {
            Ok((Fill::Zeroed | Fill::Copied | Fill::TakenOver, _)) => lowest.is_none(),
            _ => failed.is_some(),
        };
        if access.write && untold {
            self.log.lose();
        }
        let replaced = matches!(done, Ok((_, true)));
        self.close(spaces.frames, replaced || moved);
        if let (Ok((Fill::HostMapped, _)), Some(table)) = (done, lowest) {
            self.map_host_around(spaces.frames, known, page, table);
        }
        match failed {
            Some(error) => Err(Reason::Frames(error)),
            None => done.map(|(fill, _)| fill),
        }
    }
}

/// Makes `page` accessible. The second result says whether a translation was replaced.
#[inline]
fn provide<M: PhysMem>(
    tables: &mut Tables<'_, M>,
    known: &Known,
    page: Gpa,
    access: Access,
    zero: Hpa,
    near: Option<Hpa>,
    pages: PagePolicy,
) -> Result<(Fill, bool), Reason> {
    let frames = tables.frames;
    let region = &known.region;
    let mut cursor = match near {
        Some(table) => Cursor::in_table(&mut *tables, page, table)?,
        None => Cursor::new(&mut *tables, page, PageSize::Size4K)?,
    };
    if cursor.level() > 1 && access.write {
        let (content, size) = (cursor.content(), cursor.size());
        if let Some(done) = large_page(tables, known, page, content, size, pages)? {
            return Ok(done);
        }
        cursor = Cursor::new(tables, page, PageSize::Size4K)?;
    }
    match cursor.content() {
        Content::Page { phys, attr } if access.write => {
            write_to_mapped(cursor, known, page, phys, attr)
        }
        Content::Page { phys, attr } => {
            // No table above withholds reading or fetching.
            if attr.read() && (!access.fetch || attr.execute()) {
                return Ok((Fill::Present, false));
            }
            let level = cursor.level();
            if access.fetch && !cursor.ops().for_level(level, known.leaf).execute() {
                return split_for_fetch(tables, page);
            }
            // Tables that have to be copied first take rights from the leaf.
            cursor.prepare()?;
            let attr = match cursor.content() {
                Content::Page { attr, .. } => attr,
                _ => attr,
            };
            let attr = attr
                .with_execute(region.execute)
                .with_user_execute(region.execute);
            cursor.set_page(phys, attr)?;
            Ok((Fill::TakenOver, false))
        }
        _ => {
            let source = Source::of(region, page)?;
            let (frame, origin, fill) = match source {
                Source::Device(phys) => {
                    cursor.set_page(phys, Origin::Host.mark(known.written()))?;
                    return Ok((Fill::HostMapped, false));
                }
                Source::Host(phys, PAGE_SIZE) if !access.write => {
                    cursor.set_page(phys, Origin::Host.mark(known.leaf))?;
                    let table = cursor.table();
                    cursor.ops().lowest = Some(table);
                    return Ok((Fill::HostMapped, false));
                }
                Source::Zero if !access.write => {
                    (frames.share_entry(zero)?, Origin::Zero, Fill::ZeroShared)
                }
                // What follows the bytes in their last page is not the guest's to see, so that page is always a copy.
                _ => {
                    let (frame, origin) = source.private(region, frames)?;
                    (
                        frame,
                        origin,
                        if origin == Origin::Filled {
                            Fill::Zeroed
                        } else {
                            Fill::Copied
                        },
                    )
                }
            };
            put(
                &mut cursor,
                frame,
                origin,
                if access.write {
                    known.written()
                } else {
                    known.leaf
                },
            )?;
            Ok((fill, false))
        }
    }
}

/// Makes a page writable that is mapped, by the guest or, where its region is not writable, by the host alone.
fn write_to_mapped<M: PhysMem>(
    mut cursor: Cursor<'_, Tables<'_, M>>,
    known: &Known,
    page: Gpa,
    phys: Hpa,
    attr: EptAttr,
) -> Result<(Fill, bool), Reason> {
    let frames = cursor.ops().frames;
    let (region, wanted) = (&known.region, known.written());
    let origin = Origin::of(attr);
    match origin {
        Origin::Host if !region.kind.is_memory() => {
            let fill = if attr.write() == Write::Allowed {
                Fill::Present
            } else {
                Fill::HostMapped
            };
            cursor.set_page(phys, origin.mark(wanted))?;
            Ok((fill, false))
        }
        Origin::Host | Origin::Zero => {
            let (frame, new) = Source::of(region, page)?.private(region, frames)?;
            put(&mut cursor, frame, new, wanted)?;
            cursor.ops().drop_leaf(phys, origin);
            Ok((
                if new == Origin::Filled {
                    Fill::Zeroed
                } else {
                    Fill::Copied
                },
                true,
            ))
        }
        Origin::Filled | Origin::Copied => {
            if cursor.is_ready() {
                if frames.count(phys) == 1 {
                    return take_over(cursor, phys, attr, wanted);
                }
                let frame = frames.alloc_copy(phys)?;
                put(&mut cursor, frame, Origin::Copied, wanted)?;
                cursor.ops().drop_leaf(phys, origin);
                return Ok((Fill::Copied, true));
            }
            // The tables may have to be copied first, which adds references: the frame is taken before, so that nothing
            // has changed where there is none.
            let frame = frames.alloc()?;
            let prepared = cursor.prepare().map_err(Reason::from);
            let shared = frames.count(phys) != 1;
            let copied = match prepared {
                Ok(()) if shared => frames.copy_into(&frame, phys).map_err(Reason::from),
                other => other,
            };
            if copied.is_err() || !shared {
                frames.release(frame)?;
                return copied.and_then(|()| take_over(cursor, phys, attr, wanted));
            }
            put(&mut cursor, frame, Origin::Copied, wanted)?;
            cursor.ops().drop_leaf(phys, origin);
            Ok((Fill::Copied, true))
        }
    }
}
