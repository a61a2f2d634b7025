//! A VMCS that counts what is done with it.

use core::cell::Cell;

use super::fields::{Field16, Field32, Field64, FieldNatural};
use super::vmcs::{Vmcs, VmcsError};

/// How often VMREAD and VMWRITE were executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmcsCounts {
    /// VMREADs.
    pub reads: u64,
    /// VMWRITEs.
    pub writes: u64,
}

/// Counts the accesses to a VMCS.
#[derive(Debug)]
pub struct Counting<'v, V> {
    inner: &'v mut V,
    reads: Cell<u64>,
    writes: u64,
}

impl<'v, V: Vmcs> Counting<'v, V> {
    /// Counts from here on.
    pub fn new(inner: &'v mut V) -> Self {
        Self {
            inner,
            reads: Cell::new(0),
            writes: 0,
        }
    }

    /// How many there were.
    pub fn counts(&self) -> VmcsCounts {
        VmcsCounts {
            reads: self.reads.get(),
            writes: self.writes,
        }
    }

    fn read(&self) -> &V {
        self.reads.set(self.reads.get() + 1);
        self.inner
    }
    fn write(&mut self) -> &mut V {
        self.writes += 1;
        self.inner
    }
}

impl<V: Vmcs> Vmcs for Counting<'_, V> {
    fn read16(&self, field: Field16) -> Result<u16, VmcsError> {
        self.read().read16(field)
    }
    fn read32(&self, field: Field32) -> Result<u32, VmcsError> {
        self.read().read32(field)
    }
    fn read64(&self, field: Field64) -> Result<u64, VmcsError> {
        self.read().read64(field)
    }
    fn read_natural(&self, field: FieldNatural) -> Result<u64, VmcsError> {
        self.read().read_natural(field)
    }
    fn write16(&mut self, field: Field16, value: u16) -> Result<(), VmcsError> {
        self.write().write16(field, value)
    }
    fn write32(&mut self, field: Field32, value: u32) -> Result<(), VmcsError> {
        self.write().write32(field, value)
    }
    fn write64(&mut self, field: Field64, value: u64) -> Result<(), VmcsError> {
        self.write().write64(field, value)
    }
    fn write_natural(&mut self, field: FieldNatural, value: u64) -> Result<(), VmcsError> {
        self.write().write_natural(field, value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::Field;
    use super::super::vmcs::FakeVmcs;
    use super::*;

    #[test]
    fn each_access_is_counted_and_done() {
        let mut fake = FakeVmcs::new();
        let mut counting = Counting::new(&mut fake);
        let any: Field = Field64::TscOffset.into();
        counting.write16(Field16::Vpid, 7).unwrap();
        counting.write64(Field64::TscOffset, 9).unwrap();
        counting
            .write_four::<0, 4>([any; 4], &[1, 2, 3, 4])
            .unwrap();
        assert_eq!(counting.read64(Field64::TscOffset), Ok(4));
        assert_eq!(counting.read16(Field16::Vpid), Ok(7));
        assert_eq!(counting.read_four([any; 4]), Ok([4; 4]));
        let counts = counting.counts();
        assert_eq!((counts.reads, counts.writes), (6, 6));
        assert_eq!(fake.writes(), 6);
    }
}
