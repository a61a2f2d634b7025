//! Segment registers in the VMCS, and what they say of the guest's code.

use super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::vmcs::{Vmcs, VmcsError};
use crate::virt::{AccessRights, CodeMode, Segment, SegmentRegister};

/// The fields of its selector, base, limit and access rights.
pub(super) const fn segment_fields(register: SegmentRegister) -> [Field; 4] {
    FIELDS[register as usize]
}

/// Writes a register into the VMCS.
///
/// # Errors
/// The first field that cannot be written.
pub fn write_segment(
    vmcs: &mut impl Vmcs,
    register: SegmentRegister,
    segment: &Segment,
) -> Result<(), VmcsError> {
    let Segment {
        selector,
        base,
        limit,
        access,
    } = *segment;
    let values = [selector.into(), base, limit.into(), access.0.into()];
    vmcs.write_four::<0, 4>(segment_fields(register), &values)
}

/// Reads a register from the VMCS.
///
/// # Errors
/// The first field that cannot be read.
pub fn read_segment(vmcs: &impl Vmcs, register: SegmentRegister) -> Result<Segment, VmcsError> {
    let [selector, base, limit, access] = vmcs.read_four(segment_fields(register))?;
    Ok(Segment {
        selector: selector as u16,
        base,
        limit: limit as u32,
        access: AccessRights(access as u32),
    })
}

/// What code the guest is at.
///
/// # Errors
/// What VMREAD says.
pub fn code_mode(vmcs: &impl Vmcs) -> Result<CodeMode, VmcsError> {
    let cs = AccessRights(vmcs.read32(Field32::GuestCsAccessRights)?);
    Ok(CodeMode::of(vmcs.read64(Field64::GuestEfer)?, cs))
}

/// From the VM-exit instruction-information field of OUTS; of INS it says nothing (SDM "Information for VM Exits Due to
/// Instruction Execution", 29.2.5).
pub const fn outs_segment(information: u32) -> SegmentRegister {
    match information >> 15 & 7 {
        0 => SegmentRegister::Es,
        1 => SegmentRegister::Cs,
        2 => SegmentRegister::Ss,
        4 => SegmentRegister::Fs,
        5 => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// The fields of every register. The manual numbers them in the order of [`SegmentRegister::ALL`].
const FIELDS: [[Field; 4]; 8] = {
    let of_es = [
        Field::Bits16(Field16::GuestEsSelector),
        Field::Natural(FieldNatural::GuestEsBase),
        Field::Bits32(Field32::GuestEsLimit),
        Field::Bits32(Field32::GuestEsAccessRights),
    ];
    let mut fields = [of_es; 8];
    let mut at = 0;
    while at < 4 * 8 {
        let (register, part) = (at / 4, at % 4);
        let encoding = of_es[part].encoding() + 2 * register as u32;
        fields[register][part] = Field::from_encoding(encoding).unwrap();
        at += 1;
    }
    fields
};

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::*;

    #[test]
    fn the_segment_of_outs_is_decoded() {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        for (number, register) in [Es, Cs, Ss, Ds, Fs, Gs, Ds, Ds].into_iter().enumerate() {
            let information = (number as u32) << 15 | 0x100;
            let found = outs_segment(information);
            assert_eq!(found, register);
        }
    }

    #[test]
    fn every_register_has_fields_of_its_own() {
        let mut vmcs = FakeVmcs::new();
        let segment = |n: u16| Segment {
            selector: n,
            base: u64::from(n) << 32 | 1,
            limit: u32::from(n) << 12,
            access: AccessRights(u32::from(n) << 1),
        };
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            write_segment(&mut vmcs, register, &segment(n)).unwrap();
        }
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            assert_eq!(
                read_segment(&vmcs, register),
                Ok(segment(n)),
                "{register:?}"
            );
        }
        assert_eq!(vmcs.written().count(), 32);
        for register in SegmentRegister::ALL {
            let name = format!("guest {register:?} ").to_uppercase();
            for (field, part) in
                segment_fields(register)
                    .iter()
                    .zip(["selector", "base", "limit", "access rights"])
            {
                assert_eq!(
                    field.name().to_uppercase(),
                    format!("{name}{part}").to_uppercase()
                );
            }
        }
    }

    #[test]
    fn the_mode_is_that_of_cs() {
        let mut vmcs = FakeVmcs::new();
        vmcs.set(Field32::GuestCsAccessRights, 0xa09b)
            .set(Field64::GuestEfer, 0x500);
        assert_eq!(code_mode(&vmcs), Ok(CodeMode::Bits64));
        vmcs.set(Field32::GuestCsAccessRights, 0xc09b);
        assert_eq!(code_mode(&vmcs), Ok(CodeMode::Bits32));
    }
}
