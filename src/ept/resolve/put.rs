//! Putting a leaf into the slot that a cursor is at.

use crate::addr::Hpa;
use crate::ept::error::Reason;
use crate::ept::resolve::outcome::Fill;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::ops::Tables;
use crate::frames::{Frame, PhysMem};
use crate::paging::{Content, Cursor, EptAttr};

/// Gives a page whose frame is nobody else's the permissions of its region.
pub(in crate::ept) fn take_over<M: PhysMem>(
    mut cursor: Cursor<'_, Tables<'_, M>>,
    phys: Hpa,
    attr: EptAttr,
    wanted: EptAttr,
) -> Result<(Fill, bool), Reason> {
    // Getting the tables ready may have taken marks away.
    let attr = match cursor.content() {
        Content::Page { attr, .. } => attr,
        _ => attr,
    };
    // Whose frame it is stays, and whether it was told as dirty.
    let level = cursor.level();
    let wanted = cursor.ops().for_level(level, wanted);
    let wanted = cursor.ops().marks.given(wanted).with_soft(attr.soft());
    let wanted = wanted.with_dirty(wanted.dirty() || attr.dirty());
    if wanted == attr {
        return Ok((Fill::Present, false));
    }
    cursor.set_page(phys, wanted)?;
    let present = attr.write() == wanted.write() && attr.execute() == wanted.execute();
    if !present {
        let (table, level) = (cursor.table(), cursor.level());
        cursor.ops().lowest = (level == 1).then_some(table);
    }
    Ok((
        if present {
            Fill::Present
        } else {
            Fill::TakenOver
        },
        false,
    ))
}

/// Puts the frame into the slot, which then owns the reference; where that fails, the reference is ended.
#[inline(always)]
pub(in crate::ept) fn put<M: PhysMem>(
    cursor: &mut Cursor<'_, Tables<'_, M>>,
    frame: Frame,
    origin: Origin,
    attr: EptAttr,
) -> Result<(), Reason> {
    let attr = cursor.ops().marks.given(attr);
    match cursor.set_page(frame.address(), origin.mark(attr)) {
        Ok(()) => {
            frame.into_raw();
            let (table, level) = (cursor.table(), cursor.level());
            cursor.ops().lowest = (level == 1).then_some(table);
            Ok(())
        }
        Err(error) => {
            cursor.ops().frames.release(frame)?;
            Err(error.into())
        }
    }
}
