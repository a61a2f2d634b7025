//! The part of a VMCB that a guest can change: what is kept of a guest that is frozen, and written to bring it back.

use super::event::is_injecting;
use super::field::Field;
use super::fields::{
    EVENT_INJECTION, FIELDS, IN_SHADOW, INTERRUPT_SHADOW, Named, RAX, VISIBLE_CR0, VISIBLE_CR4,
};
use super::loaded::intercept_reads;
use super::vmcb::{SAVE_AREA, SAVED, Vmcb};

/// What of the control area follows the guest. The TSC offset is not here: what is kept of it is the guest's own time.
const OF_CONTROL_AREA: [Field<u64>; 4] =
    [INTERRUPT_SHADOW, EVENT_INJECTION, VISIBLE_CR0, VISIBLE_CR4];

/// The save area, and those of the control area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestState {
    saved: [u8; SAVED],
    control: [u64; OF_CONTROL_AREA.len()],
    has_event: bool,
}

impl GuestState {
    /// Reads it from a VMCB that does not run.
    pub fn capture(vmcb: &Vmcb) -> Self {
        let mut state = Self {
            saved: [0; SAVED],
            control: OF_CONTROL_AREA.map(|field| vmcb.get(field)),
            has_event: is_injecting(vmcb),
        };
        vmcb.read_save_area(&mut state.saved);
        // What an exit tells of RFLAGS beside it is in RFLAGS.
        let [shadow, ..] = &mut state.control;
        *shadow &= IN_SHADOW;
        state
    }

    /// Writes it to a VMCB that has all else.
    #[inline]
    pub fn write(&self, vmcb: &mut Vmcb) {
        vmcb.write_save_area(&self.saved);
        for (field, value) in OF_CONTROL_AREA.into_iter().zip(self.control) {
            vmcb.set(field, value);
        }
        intercept_reads(vmcb);
    }

    /// Whether an event is to be injected with it.
    pub const fn has_event(&self) -> bool {
        self.has_event
    }

    /// The fields with their values, but RAX, which is with the other general registers.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Named, u64)> {
        let control = |named: &Named| {
            let place = OF_CONTROL_AREA
                .iter()
                .position(|field| field.offset() == named.offset);
            place.and_then(|place| self.control.get(place).copied())
        };
        let saved = |named: &Named| {
            let at = usize::from(named.offset).checked_sub(SAVE_AREA)?;
            let bytes = self.saved.get(at..at + usize::from(named.bytes))?;
            let word = |all: u64, byte: &u8| all << 8 | u64::from(*byte);
            (named.offset != RAX.offset()).then(|| bytes.iter().rev().fold(0, word))
        };
        FIELDS
            .iter()
            .filter_map(move |named| Some((named, control(named).or_else(|| saved(named))?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::{CR0, DEBUGCTL, EXIT_CODE, RIP, TSC_OFFSET};
    use super::super::start_state::tests::set_up;
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn whatever_a_guest_can_change_is_kept_and_brought_back() {
        let (mut vmcb, _) = set_up();
        vmcb.set(CR0, 0x1_0031);
        vmcb.set(VISIBLE_CR0, 0x4001_0031);
        vmcb.set(INTERRUPT_SHADOW, 3);
        vmcb.set(EVENT_INJECTION, 0x8000_0301);
        vmcb.set(DEBUGCTL, 2);
        vmcb.set(TSC_OFFSET, 5);
        let state = GuestState::capture(&vmcb);
        assert!(state.has_event());
        let (mut other, _) = set_up();
        let quiet = GuestState::capture(&other);
        assert!(!quiet.has_event());
        assert_ne!(state, quiet);
        other.is_known_to_the_cpu();
        state.write(&mut other);
        assert_eq!(other.intercepts().vectors()[0] & 1, 1);
        // The TSC offset and what an exit told are not the guest's.
        for ((named, value), (_, wanted)) in other.named().zip(vmcb.named()) {
            match named.offset {
                offset if offset == TSC_OFFSET.offset() => assert_eq!(value, 0),
                offset if offset == INTERRUPT_SHADOW.offset() => assert_eq!(value, 1),
                offset if offset == EXIT_CODE.offset() => {}
                0xc0 | 0 => {}
                _ => assert_eq!(value, wanted, "{}", named.name),
            }
        }
        // The CPU loads all of it.
        assert!(!other.is_clean(super::super::field::Clean(1 << 5)));
        assert!(!other.is_clean(super::super::field::Clean(1 << 10)));
        quiet.write(&mut other);
        assert_eq!(GuestState::capture(&other), quiet);
        assert_eq!(other.intercepts().vectors()[0] & 1, 0);
    }

    #[test]
    fn every_field_is_told_once_with_its_value() {
        let (vmcb, _) = set_up();
        let all: BTreeMap<_, _> = vmcb
            .named()
            .map(|(named, value)| (named.offset, value))
            .collect();
        let state = GuestState::capture(&vmcb);
        let told: Vec<_> = state.iter().collect();
        assert!(told.is_sorted_by_key(|(named, _)| named.offset));
        for (named, value) in &told {
            assert_eq!(all[&named.offset], *value, "{}", named.name);
        }
        let offsets: Vec<_> = told.iter().map(|(named, _)| named.offset).collect();
        assert!(offsets.contains(&RIP.offset()) && offsets.contains(&DEBUGCTL.offset()));
        assert!(!offsets.contains(&RAX.offset()) && !offsets.contains(&TSC_OFFSET.offset()));
        assert!(offsets.contains(&VISIBLE_CR4.offset()));
    }
}
