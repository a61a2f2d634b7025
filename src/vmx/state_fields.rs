//! The fields of the VMCS that a guest can change: what is kept of a guest that is frozen, and written to bring it back.

use super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::register_bits::{CR0_PG, CR4_PAE, EFER_LMA};
use super::vmcs::{Vmcs, VmcsError};

/// All of them: the guest-state area as far as our exits save it or our handlers write it, and the controls that follow the
/// guest. The TSC offset is not here: what is kept of it is the guest's own time.
pub const STATE_FIELDS: [Field; 60] = {
    use Field16 as W;
    use Field32 as D;
    use Field64 as Q;
    use FieldNatural as N;
    const fn w(field: W) -> Field {
        Field::Bits16(field)
    }
    const fn d(field: D) -> Field {
        Field::Bits32(field)
    }
    const fn q(field: Q) -> Field {
        Field::Bits64(field)
    }
    const fn n(field: N) -> Field {
        Field::Natural(field)
    }
    [
        n(N::GuestRip),
        n(N::GuestRsp),
        n(N::GuestRflags),
        n(N::GuestCr0),
        n(N::Cr0ReadShadow),
        n(N::GuestCr3),
        n(N::GuestCr4),
        n(N::Cr4ReadShadow),
        n(N::GuestDr7),
        n(N::GuestPendingDebugExceptions),
        n(N::GuestSysenterEsp),
        n(N::GuestSysenterEip),
        n(N::GuestGdtrBase),
        n(N::GuestIdtrBase),
        n(N::GuestEsBase),
        n(N::GuestCsBase),
        n(N::GuestSsBase),
        n(N::GuestDsBase),
        n(N::GuestFsBase),
        n(N::GuestGsBase),
        n(N::GuestLdtrBase),
        n(N::GuestTrBase),
        q(Q::GuestDebugctl),
        q(Q::GuestPat),
        q(Q::GuestEfer),
        d(D::EntryControls),
        d(D::EntryInterruptionInformation),
        d(D::GuestInterruptibilityState),
        d(D::GuestActivityState),
        d(D::GuestSysenterCs),
        d(D::GuestGdtrLimit),
        d(D::GuestIdtrLimit),
        d(D::GuestEsLimit),
        d(D::GuestCsLimit),
        d(D::GuestSsLimit),
        d(D::GuestDsLimit),
        d(D::GuestFsLimit),
        d(D::GuestGsLimit),
        d(D::GuestLdtrLimit),
        d(D::GuestTrLimit),
        d(D::GuestEsAccessRights),
        d(D::GuestCsAccessRights),
        d(D::GuestSsAccessRights),
        d(D::GuestDsAccessRights),
        d(D::GuestFsAccessRights),
        d(D::GuestGsAccessRights),
        d(D::GuestLdtrAccessRights),
        d(D::GuestTrAccessRights),
        w(W::GuestEsSelector),
        w(W::GuestCsSelector),
        w(W::GuestSsSelector),
        w(W::GuestDsSelector),
        w(W::GuestFsSelector),
        w(W::GuestGsSelector),
        w(W::GuestLdtrSelector),
        w(W::GuestTrSelector),
        q(Q::GuestPdpte0),
        q(Q::GuestPdpte1),
        q(Q::GuestPdpte2),
        q(Q::GuestPdpte3),
    ]
};

/// Four of the fields.
const fn four(number: usize) -> [Field; 4] {
    let at = 4 * number;
    [
        STATE_FIELDS[at],
        STATE_FIELDS[at + 1],
        STATE_FIELDS[at + 2],
        STATE_FIELDS[at + 3],
    ]
}

/// How many of them there are without the last four, the PDPTEs, which mean something only with PAE paging: an exit from
/// another mode leaves anything there (SDM "Saving Non-Register State", 29.3.4).
const WITHOUT_PDPTES: usize = STATE_FIELDS.len() - 4;

/// The values of [`STATE_FIELDS`], in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFields {
    values: [u64; STATE_FIELDS.len()],
    /// Whether the guest uses PAE paging, so that its PDPTEs are part of its state.
    pae: bool,
}

impl StateFields {
    /// Reads them from a VMCS.
    pub fn capture(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        let mut values = [0; STATE_FIELDS.len()];
        let paging = vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PG != 0;
        let extended = vmcs.read_natural(FieldNatural::GuestCr4)? & CR4_PAE != 0;
        let long = vmcs.read64(Field64::GuestEfer)? & EFER_LMA != 0;
        let pae = paging && extended && !long;
        let used = if pae {
            STATE_FIELDS.len()
        } else {
            WITHOUT_PDPTES
        };
        for (field, value) in STATE_FIELDS.into_iter().zip(&mut values).take(used) {
            *value = vmcs.read_any(field)?;
        }
        Ok(Self { values, pae })
    }

    /// Writes them to a VMCS.
    #[inline]
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        // Each four fields by name: what is known to the compiler need not be looked up.
        macro_rules! each_four {
            ($($number:literal)*) => {
                const { assert!(WITHOUT_PDPTES == 4 * [$($number),*].len()) }
                $(vmcs.write_four::<{ 4 * $number }, _>(const { four($number) }, &self.values)?;)*
            };
        }
        each_four!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        if self.pae {
            const PDPTES: usize = WITHOUT_PDPTES / 4;
            vmcs.write_four::<WITHOUT_PDPTES, _>(const { four(PDPTES) }, &self.values)?;
        }
        Ok(())
    }

    /// The fields with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Field, u64)> {
        let used = if self.pae {
            STATE_FIELDS.len()
        } else {
            WITHOUT_PDPTES
        };
        STATE_FIELDS.into_iter().zip(self.values).take(used)
    }

    /// The value of a field that is one of them.
    pub fn get(&self, field: impl Into<Field>) -> Option<u64> {
        let field = field.into();
        self.iter()
            .find_map(|(known, value)| (known == field).then_some(value))
    }
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
        let kept: BTreeSet<Field> = STATE_FIELDS.into_iter().collect();
        assert_eq!(kept.len(), STATE_FIELDS.len(), "one is listed twice");
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
        for (value, field) in (1..).zip(STATE_FIELDS) {
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
            let state = StateFields::capture(&vmcs).unwrap();
            assert_eq!(state.iter().count(), fields);
            for (field, value) in state.iter() {
                assert_eq!((value, state.get(field)), (vmcs.get(field), Some(value)));
            }
            assert_eq!(state.get(Field64::EptPointer), None);
            assert_eq!(state.get(Field64::GuestPdpte3), (!long).then_some(60));
            let mut other = FakeVmcs::new();
            state.write(&mut other).unwrap();
            assert_eq!(StateFields::capture(&other), Ok(state));
            assert_eq!(other.writes(), fields);
            assert!(other.written().all(|field| STATE_FIELDS.contains(&field)));
        }
    }

    #[test]
    fn a_field_that_cannot_be_accessed_is_named() {
        for field in STATE_FIELDS {
            let mut vmcs = filled(false);
            let state = StateFields::capture(&vmcs).unwrap();
            vmcs.remove(field);
            assert_eq!(StateFields::capture(&vmcs).unwrap_err().field, field);
            assert_eq!(state.write(&mut vmcs).unwrap_err().field, field);
        }
    }
}
