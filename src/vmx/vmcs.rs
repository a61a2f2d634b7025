//! Access to the current VMCS through one trait, so that what is set up and decoded can be tested against a fake.

use core::fmt;

use super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::instruction_error::VmFail;

/// Why a field could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmcsError {
    /// Which field it was.
    pub field: Field,
    /// Whether it was to be read or written.
    pub access: VmcsAccess,
    /// What VMREAD or VMWRITE said.
    pub fail: VmFail,
}

/// What was to be done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmcsAccess {
    /// VMREAD.
    Read,
    /// VMWRITE.
    Write,
}

impl fmt::Display for VmcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.access {
            VmcsAccess::Read => "VMREAD of",
            VmcsAccess::Write => "VMWRITE to",
        };
        write!(f, "{verb} the {} failed: {}", self.field, self.fail)
    }
}

impl core::error::Error for VmcsError {}

/// The current VMCS.
///
/// Nothing here is done behind the caller's back: a read that fails is an error, never a zero. An implementation
/// on the CPU is one VMREAD or VMWRITE and one branch to a cold path.
pub trait Vmcs {
    /// Reads a 16-bit field.
    ///
    /// # Errors
    /// What VMREAD says.
    fn read16(&self, field: Field16) -> Result<u16, VmcsError>;
    /// Reads a 32-bit field.
    ///
    /// # Errors
    /// What VMREAD says.
    fn read32(&self, field: Field32) -> Result<u32, VmcsError>;
    /// Reads a 64-bit field.
    ///
    /// # Errors
    /// What VMREAD says.
    fn read64(&self, field: Field64) -> Result<u64, VmcsError>;
    /// Reads a field of natural width.
    ///
    /// # Errors
    /// What VMREAD says.
    fn read_natural(&self, field: FieldNatural) -> Result<u64, VmcsError>;
    /// Writes a 16-bit field.
    ///
    /// # Errors
    /// What VMWRITE says.
    fn write16(&mut self, field: Field16, value: u16) -> Result<(), VmcsError>;
    /// Writes a 32-bit field.
    ///
    /// # Errors
    /// What VMWRITE says.
    fn write32(&mut self, field: Field32, value: u32) -> Result<(), VmcsError>;
    /// Writes a 64-bit field.
    ///
    /// # Errors
    /// What VMWRITE says.
    fn write64(&mut self, field: Field64, value: u64) -> Result<(), VmcsError>;
    /// Writes a field of natural width.
    ///
    /// # Errors
    /// What VMWRITE says.
    fn write_natural(&mut self, field: FieldNatural, value: u64) -> Result<(), VmcsError>;

    /// Reads four fields of any width, in this order.
    ///
    /// # Errors
    /// The first that cannot be read.
    #[inline]
    fn read_four(&self, fields: [Field; 4]) -> Result<[u64; 4], VmcsError> {
        self.read_each(fields)
    }

    /// Reads six fields of any width, in this order.
    ///
    /// # Errors
    /// The first that cannot be read.
    #[inline]
    fn read_six(&self, fields: [Field; 6]) -> Result<[u64; 6], VmcsError> {
        self.read_each(fields)
    }

    /// Reads fields of any width one by one, in this order.
    ///
    /// # Errors
    /// The first that cannot be read.
    fn read_each<const N: usize>(&self, fields: [Field; N]) -> Result<[u64; N], VmcsError> {
        let mut values = [0; N];
        for (value, field) in values.iter_mut().zip(fields) {
            *value = self.read_any(field)?;
        }
        Ok(values)
    }

    /// Writes four fields of any width, in this order, with the values from number `AT` on.
    ///
    /// # Errors
    /// The first that cannot be written.
    #[inline]
    fn write_four<const AT: usize, const N: usize>(
        &mut self,
        fields: [Field; 4],
        values: &[u64; N],
    ) -> Result<(), VmcsError> {
        for (field, value) in fields.into_iter().zip(values.iter().skip(AT)) {
            self.write_any(field, *value)?;
        }
        Ok(())
    }

    /// As [`Vmcs::write_four`], of fields that were written to this VMCS before: so they are there, and what fails for one
    /// fails for all. It need not look: the next access that is looked at tells.
    ///
    /// # Errors
    /// As of [`Vmcs::write_four`].
    #[inline]
    fn rewrite_four<const AT: usize, const N: usize>(
        &mut self,
        fields: [Field; 4],
        values: &[u64; N],
    ) -> Result<(), VmcsError> {
        self.write_four::<AT, N>(fields, values)
    }

    /// Reads a field of any width. For dumps and checks; where the width is known, say so.
    ///
    /// # Errors
    /// What VMREAD says.
    fn read_any(&self, field: Field) -> Result<u64, VmcsError> {
        match field {
            Field::Bits16(field) => self.read16(field).map(u64::from),
            Field::Bits32(field) => self.read32(field).map(u64::from),
            Field::Bits64(field) => self.read64(field),
            Field::Natural(field) => self.read_natural(field),
        }
    }

    /// Writes a field of any width; of a value that is wider, the lower bits.
    ///
    /// # Errors
    /// What VMWRITE says.
    #[inline]
    fn write_any(&mut self, field: Field, value: u64) -> Result<(), VmcsError> {
        match field {
            Field::Bits16(field) => self.write16(field, value as u16),
            Field::Bits32(field) => self.write32(field, value as u32),
            Field::Bits64(field) => self.write64(field, value),
            Field::Natural(field) => self.write_natural(field, value),
        }
    }
}

#[cfg(test)]
pub use fake::FakeVmcs;

#[cfg(test)]
mod fake {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::instruction_error::InstructionError;
    use super::*;

    /// A VMCS for tests: every field is there and 0 until written, exit information cannot be written but through
    /// [`FakeVmcs::set`], and any field can be made one that the CPU does not have.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct FakeVmcs {
        values: BTreeMap<Field, u64>,
        absent: BTreeSet<Field>,
        not_current: bool,
        writes: usize,
    }

    impl FakeVmcs {
        /// A VMCS of which every field is 0.
        pub fn new() -> Self {
            Self::default()
        }
        /// Gives a field a value as the CPU itself would, read-only ones too.
        ///
        /// # Panics
        /// The value is too wide for the field.
        #[track_caller]
        pub fn set(&mut self, field: impl Into<Field>, value: u64) -> &mut Self {
            let field = field.into();
            assert!(fits(field, value), "{value:#x} is too wide for the {field}");
            self.values.insert(field, value);
            self
        }
        /// The value of a field, also of one made absent.
        pub fn get(&self, field: impl Into<Field>) -> u64 {
            self.values.get(&field.into()).copied().unwrap_or(0)
        }
        /// From now on this CPU lacks `field`.
        pub fn remove(&mut self, field: impl Into<Field>) -> &mut Self {
            self.absent.insert(field.into());
            self
        }
        /// From now on there is no current VMCS.
        pub fn clear_current(&mut self) {
            self.not_current = true;
        }
        /// Which fields were ever written or set.
        pub fn written(&self) -> impl Iterator<Item = Field> {
            self.values.keys().copied()
        }
        /// How many times VMWRITE was executed.
        pub fn writes(&self) -> usize {
            self.writes
        }

        fn check(&self, field: Field, access: VmcsAccess) -> Result<(), VmcsError> {
            let fail = if self.not_current {
                VmFail::Invalid
            } else if self.absent.contains(&field) {
                VmFail::Valid(InstructionError::UnsupportedField)
            } else if access == VmcsAccess::Write && field.is_read_only() {
                VmFail::Valid(InstructionError::VmwriteReadOnly)
            } else {
                return Ok(());
            };
            Err(VmcsError {
                field,
                access,
                fail,
            })
        }
        fn read(&self, field: Field) -> Result<u64, VmcsError> {
            self.check(field, VmcsAccess::Read)?;
            Ok(self.get(field))
        }
        fn write(&mut self, field: Field, value: u64) -> Result<(), VmcsError> {
            self.check(field, VmcsAccess::Write)?;
            self.writes += 1;
            self.values.insert(field, value);
            Ok(())
        }
    }

    fn fits(field: Field, value: u64) -> bool {
        match field {
            Field::Bits16(_) => value <= u16::MAX.into(),
            Field::Bits32(_) => value <= u32::MAX.into(),
            Field::Bits64(_) | Field::Natural(_) => true,
        }
    }

    impl Vmcs for FakeVmcs {
        fn read16(&self, field: Field16) -> Result<u16, VmcsError> {
            self.read(field.into()).map(|value| value as u16)
        }
        fn read32(&self, field: Field32) -> Result<u32, VmcsError> {
            self.read(field.into()).map(|value| value as u32)
        }
        fn read64(&self, field: Field64) -> Result<u64, VmcsError> {
            self.read(field.into())
        }
        fn read_natural(&self, field: FieldNatural) -> Result<u64, VmcsError> {
            self.read(field.into())
        }
        fn write16(&mut self, field: Field16, value: u16) -> Result<(), VmcsError> {
            self.write(field.into(), value.into())
        }
        fn write32(&mut self, field: Field32, value: u32) -> Result<(), VmcsError> {
            self.write(field.into(), value.into())
        }
        fn write64(&mut self, field: Field64, value: u64) -> Result<(), VmcsError> {
            self.write(field.into(), value)
        }
        fn write_natural(&mut self, field: FieldNatural, value: u64) -> Result<(), VmcsError> {
            self.write(field.into(), value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::instruction_error::InstructionError;
    use super::*;

    #[test]
    fn a_failing_read_is_an_error_and_never_a_zero() {
        let mut vmcs = FakeVmcs::new();
        vmcs.set(Field64::GuestPkrs, 7).remove(Field64::GuestPkrs);
        let error = vmcs.read64(Field64::GuestPkrs).unwrap_err();
        assert_eq!(
            error.fail,
            VmFail::Valid(InstructionError::UnsupportedField)
        );
        assert_eq!(
            error.to_string(),
            "VMREAD of the guest IA32_PKRS (0x2818) failed: VMREAD/VMWRITE from/to unsupported VMCS component \
             (VM-instruction error 12)"
        );
        vmcs.clear_current();
        let error = vmcs.read_any(Field16::Vpid.into()).unwrap_err();
        assert_eq!(error.fail, VmFail::Invalid);
    }

    #[test]
    fn exit_information_cannot_be_written() {
        let mut vmcs = FakeVmcs::new();
        vmcs.set(Field32::ExitReason, 10);
        let error = vmcs.write32(Field32::ExitReason, 0).unwrap_err();
        assert_eq!(
            error,
            VmcsError {
                field: Field32::ExitReason.into(),
                access: VmcsAccess::Write,
                fail: VmFail::Valid(InstructionError::VmwriteReadOnly),
            }
        );
        assert_eq!(vmcs.read32(Field32::ExitReason), Ok(10));
    }

    #[test]
    fn a_value_comes_back_in_its_width() {
        let mut vmcs = FakeVmcs::new();
        vmcs.write16(Field16::HostTrSelector, 0x28).unwrap();
        vmcs.write64(Field64::EptPointer, u64::MAX).unwrap();
        vmcs.write_natural(FieldNatural::GuestRip, 1 << 63).unwrap();
        assert_eq!(vmcs.read_any(Field16::HostTrSelector.into()), Ok(0x28));
        assert_eq!(vmcs.read64(Field64::EptPointer), Ok(u64::MAX));
        assert_eq!(vmcs.read_natural(FieldNatural::GuestRip), Ok(1 << 63));
        assert_eq!(vmcs.read_natural(FieldNatural::GuestRsp), Ok(0));
    }
}
