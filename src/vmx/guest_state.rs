//! The fields of the VMCS that a guest can change: what is kept of a guest that is frozen, and written to bring it back.

use super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::interruption::Interruption;
use super::vmcs::{Vmcs, VmcsError};
use crate::register_bits::{CR0_PG, CR4_PAE, EFER_LMA};

/// Interruptibility state: blocking by STI.
pub const BLOCKING_BY_STI: u32 = 1 << 0;
/// Interruptibility state: blocking by MOV SS.
pub const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
/// Interruptibility state: blocking by SMI.
pub const BLOCKING_BY_SMI: u32 = 1 << 2;
/// Interruptibility state: blocking by NMI.
pub const BLOCKING_BY_NMI: u32 = 1 << 3;
/// Pending debug exceptions: one of the breakpoints in bits 3:0 is enabled.
pub const PENDING_ENABLED_BREAKPOINT: u64 = 1 << 12;
/// Pending debug exceptions: BS, a single step.
pub const PENDING_BS: u64 = 1 << 14;

/// All of them, as the first and the last encoding of each row: the guest-state area as far as our exits save it or our
/// handlers write it, and the controls that follow the guest. The TSC offset is not here: what is kept of it is the guest's
/// own time.
const ROWS: [(u32, u32); 9] = {
    use {Field16 as W, Field32 as D, Field64 as Q, FieldNatural as N};
    [
        (N::GuestCr0 as u32, N::GuestSysenterEip as u32),
        (N::Cr0ReadShadow as u32, N::Cr4ReadShadow as u32),
        (Q::GuestDebugctl as u32, Q::GuestEfer as u32),
        (D::EntryControls as u32, D::EntryControls as u32),
        (
            D::EntryInterruptionInformation as u32,
            D::EntryInterruptionInformation as u32,
        ),
        (D::GuestEsLimit as u32, D::GuestActivityState as u32),
        (D::GuestSysenterCs as u32, D::GuestSysenterCs as u32),
        (W::GuestEsSelector as u32, W::GuestTrSelector as u32),
        (Q::GuestPdpte0 as u32, Q::GuestPdpte3 as u32),
    ]
};

/// Each of them.
pub const GUEST_STATE_FIELDS: [Field; 60] = {
    let mut fields = [Field::Natural(FieldNatural::GuestCr0); 60];
    let (mut count, mut row) = (0, 0);
    while row < ROWS.len() {
        let (mut encoding, last) = ROWS[row];
        while encoding <= last {
            fields[count] = Field::from_encoding(encoding).unwrap();
            (count, encoding) = (count + 1, encoding + 2);
        }
        row += 1;
    }
    assert!(count == fields.len());
    fields
};

/// Four of the fields.
const fn four(number: usize) -> [Field; 4] {
    let at = 4 * number;
    let all = &GUEST_STATE_FIELDS;
    [all[at], all[at + 1], all[at + 2], all[at + 3]]
}

/// How many of them there are without the last four, the PDPTEs, which mean something only with PAE paging: an exit from
/// another mode leaves anything there (SDM "Saving Non-Register State", 29.3.4).
const WITHOUT_PDPTES: usize = GUEST_STATE_FIELDS.len() - 4;

/// The values of [`GUEST_STATE_FIELDS`], in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestState {
    values: [u64; GUEST_STATE_FIELDS.len()],
    /// Whether the guest uses PAE paging, so that its PDPTEs are part of its state.
    pae: bool,
}

/// Has `$write` write all of the fields that mean something, four at a time.
macro_rules! each_four {
    ($this:ident, $vmcs:ident, $write:ident) => {
        each_four!($this, $vmcs, $write, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    ($this:ident, $vmcs:ident, $write:ident, $($number:literal)*) => {{
        const { assert!(WITHOUT_PDPTES == 4 * [$($number),*].len()) }
        $($vmcs.$write::<{ 4 * $number }, _>(const { four($number) }, &$this.values)?;)*
        if $this.pae {
            const PDPTES: usize = WITHOUT_PDPTES / 4;
            // Written for the first time where the guest did not use PAE paging before.
            $vmcs.write_four::<WITHOUT_PDPTES, _>(const { four(PDPTES) }, &$this.values)?;
        }
        Ok(())
    }};
}

/// Whether the guest uses PAE paging, whose PDPTEs an entry under EPT loads from the VMCS.
pub(super) fn uses_pae(vmcs: &impl Vmcs) -> Result<bool, VmcsError> {
    Ok(vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PG != 0
        && vmcs.read_natural(FieldNatural::GuestCr4)? & CR4_PAE != 0
        && vmcs.read64(Field64::GuestEfer)? & EFER_LMA == 0)
}

impl GuestState {
    /// Reads them from a VMCS.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn capture(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        let pae = uses_pae(vmcs)?;
        let mut values = [0; GUEST_STATE_FIELDS.len()];
        for (field, value) in used(pae).zip(&mut values) {
            *value = vmcs.read_any(field)?;
        }
        Ok(Self { values, pae })
    }

    /// Writes them to a VMCS.
    ///
    /// # Errors
    /// The first that cannot be written.
    #[inline]
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        // Each four fields by name: what is known to the compiler need not be looked up.
        each_four!(self, vmcs, write_four)
    }

    /// Writes them to a VMCS to which [`GuestState::write`] has written such fields before.
    ///
    /// # Errors
    /// Of the PDPTEs only: for the others, the next access that is looked at tells.
    #[inline]
    pub fn rewrite(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        each_four!(self, vmcs, rewrite_four)
    }

    /// The fields with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Field, u64)> {
        used(self.pae).zip(self.values)
    }

    /// Whether an event is to be injected with it.
    pub fn has_event(&self) -> bool {
        let information = self.get(Field32::EntryInterruptionInformation);
        information.is_some_and(|information| Interruption::decode(information as u32).is_some())
    }

    /// The value of a field that is one of them.
    pub fn get(&self, field: impl Into<Field>) -> Option<u64> {
        let field = field.into();
        self.iter()
            .find_map(|(known, value)| (known == field).then_some(value))
    }
}

/// Those that mean something.
fn used(pae: bool) -> impl Iterator<Item = Field> {
    let count = if pae { 60 } else { WITHOUT_PDPTES };
    GUEST_STATE_FIELDS.into_iter().take(count)
}

#[cfg(test)]
mod tests {
    use super::super::fields::FieldType;
    use super::super::vmcs::FakeVmcs;
    use super::*;
    use std::collections::BTreeSet;

    /// Fields of the guest-state area that no guest can change, and why.
    const CONSTANT: [(Field, &str); 25] = {
        const fn n(field: FieldNatural) -> Field {
            Field::Natural(field)
        }
        const fn q(field: Field64) -> Field {
            Field::Bits64(field)
        }
        [
            (q(Field64::VmcsLinkPointer), "no VMCS is shadowed"),
            (
                q(Field64::GuestPerfGlobalCtrl),
                "there are no performance counters",
            ),
            (q(Field64::GuestBndcfgs), "no MPX"),
            (q(Field64::GuestRtitCtl), "no processor trace"),
            (q(Field64::GuestLbrCtl), "no last-branch records"),
            (q(Field64::GuestPkrs), "no protection keys"),
            (q(Field64::GuestFredConfig), "no FRED"),
            (q(Field64::GuestFredRsp1), "no FRED"),
            (q(Field64::GuestFredRsp2), "no FRED"),
            (q(Field64::GuestFredRsp3), "no FRED"),
            (q(Field64::GuestFredStklvls), "no FRED"),
            (q(Field64::GuestFredSsp1), "no FRED"),
            (q(Field64::GuestFredSsp2), "no FRED"),
            (q(Field64::GuestFredSsp3), "no FRED"),
            (n(FieldNatural::GuestSCet), "no CET"),
            (n(FieldNatural::GuestSsp), "no CET"),
            (n(FieldNatural::GuestInterruptSspTableAddress), "no CET"),
            (
                Field::Bits16(Field16::GuestInterruptStatus),
                "no virtual-interrupt delivery",
            ),
            (
                Field::Bits16(Field16::PmlIndex),
                "the host's: where it logs pages",
            ),
            (Field::Bits16(Field16::GuestUinv), "no user interrupts"),
            (
                Field::Bits32(Field32::GuestSmbase),
                "guests do not enter SMM",
            ),
            (
                Field::Bits32(Field32::PreemptionTimerValue),
                "the host's: wound up at each run",
            ),
            // Controls that follow the guest, but not by being copied.
            (q(Field64::TscOffset), "made anew from the guest's time"),
            (
                Field::Bits32(Field32::EntryExceptionErrorCode),
                "only with an event to be injected, with which nothing is frozen",
            ),
            (Field::Bits32(Field32::EntryInstructionLength), "likewise"),
        ]
    };

    #[test]
    fn every_field_of_the_guest_is_kept_or_said_to_be_constant() {
        let kept: BTreeSet<Field> = GUEST_STATE_FIELDS.into_iter().collect();
        assert_eq!(kept.len(), GUEST_STATE_FIELDS.len(), "one is listed twice");
        let constant: BTreeSet<Field> = CONSTANT.iter().map(|(field, _)| *field).collect();
        assert_eq!(constant.len(), CONSTANT.len());
        assert!(kept.is_disjoint(&constant));
        for field in Field::all().filter(|field| field.field_type() == FieldType::Guest) {
            assert!(
                kept.contains(&field) || constant.contains(&field),
                "{field}"
            );
        }
        for field in kept {
            let control = [
                FieldNatural::Cr0ReadShadow.into(),
                FieldNatural::Cr4ReadShadow.into(),
                Field32::EntryControls.into(),
                Field32::EntryInterruptionInformation.into(),
            ];
            assert!(
                field.field_type() == FieldType::Guest || control.contains(&field),
                "{field}"
            );
        }
    }

    /// A VMCS in which every field has a value of its own, in long mode or with PAE paging.
    fn filled(long: bool) -> FakeVmcs {
        let mut vmcs = FakeVmcs::new();
        for (value, field) in (1..).zip(GUEST_STATE_FIELDS) {
            vmcs.set(field, value);
        }
        vmcs.set(FieldNatural::GuestCr0, CR0_PG)
            .set(FieldNatural::GuestCr4, CR4_PAE)
            .set(Field64::GuestEfer, if long { EFER_LMA } else { 0 });
        vmcs
    }

    #[test]
    fn what_was_captured_is_written_back_and_nothing_else() {
        for (long, fields) in [(false, 60), (true, 56)] {
            let vmcs = filled(long);
            let state = GuestState::capture(&vmcs).unwrap();
            assert_eq!(state.iter().count(), fields);
            for (field, value) in state.iter() {
                assert_eq!((value, state.get(field)), (vmcs.get(field), Some(value)));
            }
            assert_eq!(state.get(Field64::EptPointer), None);
            assert_eq!(state.get(Field64::GuestPdpte3), (!long).then_some(60));
            let mut other = FakeVmcs::new();
            state.write(&mut other).unwrap();
            assert_eq!(GuestState::capture(&other), Ok(state));
            assert_eq!(other.writes(), fields);
            assert!(
                other
                    .written()
                    .all(|field| GUEST_STATE_FIELDS.contains(&field))
            );
        }
    }

    #[test]
    fn a_field_that_cannot_be_accessed_is_named() {
        for field in GUEST_STATE_FIELDS {
            let mut vmcs = filled(false);
            let state = GuestState::capture(&vmcs).unwrap();
            vmcs.remove(field);
            assert_eq!(GuestState::capture(&vmcs).unwrap_err().field, field);
            assert_eq!(state.write(&mut vmcs).unwrap_err().field, field);
        }
    }
}
