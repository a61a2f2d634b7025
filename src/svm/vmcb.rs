//! The VMCB: what VMRUN loads and an exit saves, one page in memory.
//!
//! Its fields are known by name and type in [`fields`]. What the host writes it marks as changed in the clean
//! field, by which a CPU with clean bits knows what it may keep from one entry to the next; and by which we know what has to be
//! copied before an entry, for a report should it be refused.

use core::fmt;

use super::field::{Clean, Field, VMCB_SIZE, Word};
use super::fields::{self, CLEAN, FIELDS};
use super::intercept::Intercepts;

/// Where the save area begins: what a guest's processor is, in contrast to how it is run.
pub const SAVE_AREA: usize = 0x400;
/// Bytes of the save area up to its last field that VMRUN loads.
pub const SAVED: usize = fields::DEBUGCTL.offset() as usize + 8 - SAVE_AREA;

/// A VMCB.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Vmcb([u8; VMCB_SIZE]);

const _: () = assert!(size_of::<Vmcb>() == VMCB_SIZE && align_of::<Vmcb>() == VMCB_SIZE);

impl Vmcb {
    /// All zero: nothing is intercepted, and the CPU knows nothing of it.
    pub const ZERO: Self = Self([0; VMCB_SIZE]);

    /// The value of a field.
    #[inline(always)]
    pub fn get<T: Word>(&self, field: Field<T>) -> T {
        // SAFETY: a field is aligned in the page and ends in it, which `Field::new` has seen to, and any bytes are a `Word`.
        unsafe {
            let at = self.0.as_ptr().add(usize::from(field.offset()));
            at.cast::<T>().read()
        }
    }

    /// Changes a field, and has the CPU load its group at the next entry.
    #[inline(always)]
    pub fn set<T: Word>(&mut self, field: Field<T>, value: T) {
        self.write(field, value);
        if field.clean() != Clean::NEVER {
            let clean = self.get(CLEAN) & !field.clean().0;
            self.write(CLEAN, clean);
        }
    }

    #[inline(always)]
    fn write<T: Word>(&mut self, field: Field<T>, value: T) {
        // SAFETY: as in `get`.
        unsafe {
            let at = self.0.as_mut_ptr().add(usize::from(field.offset()));
            at.cast::<T>().write(value);
        }
    }

    /// Whether all that is in these groups is as the CPU has last loaded or saved it.
    #[inline(always)]
    pub fn is_clean(&self, groups: Clean) -> bool {
        self.get(CLEAN) & groups.0 == groups.0
    }
    /// After an exit: the CPU has all that it has been given.
    #[inline(always)]
    pub fn is_known_to_the_cpu(&mut self) {
        self.write(CLEAN, Clean::ALL.0);
    }
    /// The CPU may have kept nothing of this, or something of another VMCB that stood here.
    pub fn is_new_to_the_cpu(&mut self) {
        self.write(CLEAN, 0);
    }

    /// What makes the guest exit.
    pub fn intercepts(&self) -> Intercepts {
        Intercepts::from_vectors(fields::INTERCEPTS.map(|vector| self.get(vector)))
    }
    /// Changes what makes the guest exit.
    pub fn set_intercepts(&mut self, intercepts: Intercepts) {
        for (field, vector) in fields::INTERCEPTS.into_iter().zip(intercepts.vectors()) {
            self.set(field, vector);
        }
    }

    /// Copies the save area up to its last field that VMRUN loads.
    pub fn copy_save_area(&mut self, from: &Self) {
        self.copy(SAVE_AREA..SAVE_AREA + SAVED, from);
    }
    /// Reads it.
    pub fn read_save_area(&self, into: &mut [u8; SAVED]) {
        if let Some(from) = self.0.get(SAVE_AREA..SAVE_AREA + SAVED) {
            into.copy_from_slice(from);
        }
    }
    /// Writes it, and has the CPU load it at the next entry.
    pub fn write_save_area(&mut self, from: &[u8; SAVED]) {
        if let Some(to) = self.0.get_mut(SAVE_AREA..SAVE_AREA + SAVED) {
            to.copy_from_slice(from);
        }
        let clean = self.get(CLEAN) & !Clean::SAVED.0;
        self.write(CLEAN, clean);
    }
    /// Copies the control area.
    pub fn copy_control_area(&mut self, from: &Self) {
        self.copy(0..SAVE_AREA, from);
    }
    fn copy(&mut self, range: core::ops::Range<usize>, from: &Self) {
        if let (Some(to), Some(from)) = (self.0.get_mut(range.clone()), from.0.get(range)) {
            to.copy_from_slice(from);
        }
    }

    /// Fills a field, whatever it is.
    #[cfg(test)]
    pub(super) fn fill_for_test(&mut self, named: &fields::Named, byte: u8) {
        let range = named.offset as usize..(named.offset + named.bytes) as usize;
        self.0[range].fill(byte);
    }

    /// Each field that has a name, with its value.
    pub fn named(&self) -> impl Iterator<Item = (&'static fields::Named, u64)> {
        FIELDS.iter().map(|named| {
            let mut bytes = [0; 8];
            let range = named.offset as usize..(named.offset + named.bytes) as usize;
            let from = self.0.get(range).unwrap_or_default();
            for (to, byte) in bytes.iter_mut().zip(from) {
                *to = *byte;
            }
            (named, u64::from_le_bytes(bytes))
        })
    }
}

impl fmt::Debug for Vmcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.named().filter(|(_, value)| *value != 0);
        f.debug_map()
            .entries(fields.map(|(named, value)| (named.name, value)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::intercept::Intercept;
    use super::fields::*;
    use super::*;

    #[test]
    fn what_is_written_is_read_where_it_belongs() {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(ASID, 0x0102_0304);
        vmcb.set(TLB_CONTROL, 3);
        vmcb.set(CR3, 0x1122_3344_5566_7788);
        vmcb.set(CPL, 3);
        assert_eq!(vmcb.get(ASID), 0x0102_0304);
        assert_eq!((vmcb.get(TLB_CONTROL), vmcb.get(CPL)), (3, 3));
        assert_eq!(vmcb.get(CR3), 0x1122_3344_5566_7788);
        assert_eq!(vmcb.0[0x58..0x5d], [4, 3, 2, 1, 3]);
        assert_eq!(vmcb.0[0x550], 0x88);
        let named = |name| vmcb.named().find(|(named, _)| named.name == name);
        assert_eq!(named("CR3").unwrap().1, 0x1122_3344_5566_7788);
        assert_eq!(named("CPL").unwrap().1, 3);
    }

    #[test]
    fn what_was_changed_is_not_clean_until_it_is_known() {
        for (change, group) in [
            ((|vmcb| vmcb.set(TSC_OFFSET, 1)) as fn(&mut Vmcb), 0),
            (|vmcb| vmcb.set_intercepts(Intercepts::EMPTY), 0),
            (|vmcb| vmcb.set(MSR_MAP, 1), 1),
            (|vmcb| vmcb.set(ASID, 1), 2),
            (|vmcb| vmcb.set(VIRTUAL_INTERRUPT, 1), 3),
            (|vmcb| vmcb.set(NESTED_CR3, 1), 4),
            (|vmcb| vmcb.set(PAT, 1), 4),
            (|vmcb| vmcb.set(EFER, 1), 5),
            (|vmcb| vmcb.set(DR7, 1), 6),
            (|vmcb| vmcb.set(IDTR_LIMIT, 1), 7),
            (|vmcb| vmcb.set(CPL, 1), 8),
            (|vmcb| vmcb.set(SELECTOR_OF_ES, 1), 8),
            (|vmcb| vmcb.set(CR2, 1), 9),
            (|vmcb| vmcb.set(DEBUGCTL, 1), 10),
        ] {
            let mut vmcb = Vmcb::ZERO;
            assert!(!vmcb.is_clean(Clean(1 << group)));
            vmcb.is_known_to_the_cpu();
            assert!(vmcb.is_clean(Clean::ALL));
            change(&mut vmcb);
            assert_eq!(vmcb.get(CLEAN), Clean::ALL.0 & !(1 << group));
            vmcb.is_new_to_the_cpu();
            assert_eq!(vmcb.get(CLEAN), 0);
        }
    }

    #[test]
    fn what_every_entry_loads_makes_nothing_unclean() {
        let mut vmcb = Vmcb::ZERO;
        vmcb.is_known_to_the_cpu();
        vmcb.set(RIP, 1);
        vmcb.set(RSP, 1);
        vmcb.set(RAX, 1);
        vmcb.set(RFLAGS, 1);
        vmcb.set(TLB_CONTROL, 1);
        vmcb.set(EVENT_INJECTION, 1);
        vmcb.set(INTERRUPT_SHADOW, 1);
        assert!(vmcb.is_clean(Clean::ALL));
    }

    #[test]
    fn intercepts_are_six_vectors() {
        let mut intercepts = Intercepts::EMPTY;
        intercepts.set(Intercept::cr_read(4), true);
        intercepts.set(Intercept::VMRUN, true);
        intercepts.set(Intercept::TLBSYNC, true);
        let mut vmcb = Vmcb::ZERO;
        vmcb.set_intercepts(intercepts);
        assert_eq!(vmcb.intercepts(), intercepts);
        assert_eq!((vmcb.0[0], vmcb.0[0x10], vmcb.0[0x14]), (1 << 4, 1, 1 << 4));
    }

    #[test]
    fn each_area_is_copied_alone() {
        let mut vmcb = Vmcb([0xaa; VMCB_SIZE]);
        vmcb.copy_save_area(&Vmcb([0x55; VMCB_SIZE]));
        for (named, value) in vmcb.named() {
            let of_guest = named.offset as usize >= SAVE_AREA;
            let copied = of_guest && named.offset <= DEBUGCTL.offset();
            let byte = if copied { 0x55 } else { 0xaa };
            assert_eq!(value as u8, byte, "{}", named.name);
        }
        vmcb.copy_control_area(&Vmcb([0x11; VMCB_SIZE]));
        for (named, value) in vmcb.named() {
            let of_guest = named.offset as usize >= SAVE_AREA;
            assert_eq!(value as u8 == 0x11, !of_guest, "{}", named.name);
        }
    }
}
